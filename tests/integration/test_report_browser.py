"""Reports as a browser shows them: Chromium, without a window, in light and dark, wide and narrow, on paper.

Pictures of the pages are left in ``build/screenshots``, to be looked at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from orlop.explorer.report import report
from support import disks
from support.browser import CHROMIUM, Page, Scheme, browser
from support.images import make_image, write_layout
from support.layers import Layer

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to look at the pages as people do"),
]

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
SCHEMES: tuple[Scheme, Scheme] = ("light", "dark")
WIDE, NARROW = 1180, 390


@dataclass(frozen=True, slots=True)
class Desk:
    """A browser, and reports as files, by name."""

    page: Page
    reports: dict[str, Path]


def usual_layers() -> list[Layer]:
    """What an image of some application is like, small."""
    dice = random.Random(1)
    base = Layer().folder("./", mode=0o755).file("etc/os-release", b"NAME=some\n")
    for number in range(40):
        base.file(
            f"usr/lib/x86_64-linux-gnu/lib{number}.so.{number % 7}",
            bytes(dice.randint(200, 9_000)),
            mode=0o755,
        )
        base.file(f"usr/share/doc/package{number}/copyright", bytes(dice.randint(50, 700)))
    base.file("var/cache/apt/pkgcache.bin", bytes(60_000)).file("usr/bin/tool", bytes(30_000), mode=0o755)
    second = Layer().whiteout("var/cache/apt/pkgcache.bin").file("usr/bin/tool", bytes(35_000), mode=0o755)
    for number in range(60):
        second.file(
            f"usr/local/lib/python3.11/dist-packages/part{number % 6}/mod{number}.py",
            bytes(dice.randint(50, 9_000)),
        )
    third = Layer().file("srv/app/main.py", b"print('hello')\n" * 500).file("srv/app/logo.png", bytes(9_000))
    return [base, second, third]


HISTORY = [
    {"created": "2026-05-01T10:00:00Z", "created_by": "/bin/sh -c #(nop) ADD file:4b1be1de1a1e5aa6 in / "},
    {"created": "2026-05-01T10:00:00Z", "created_by": '/bin/sh -c #(nop)  CMD ["bash"]', "empty_layer": True},
    {
        "created": "2026-05-02T10:00:00Z",
        "created_by": "RUN /bin/sh -c apt-get update && apt-get install -y --no-install-recommends python3 python3-pip "
        "&& pip install --no-cache-dir -r requirements.txt && rm -rf /var/cache/apt /var/lib/apt/lists/* # buildkit",
        "comment": "buildkit.dockerfile.v0",
    },
    {"created": "2026-05-02T10:00:01Z", "created_by": "COPY . /srv/app # buildkit"},
]
SETTINGS = {
    "Entrypoint": ["python3", "/srv/app/main.py"],
    "User": "1000:1000",
    "WorkingDir": "/srv/app",
    "ExposedPorts": {"8080/tcp": {}},
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
    "Labels": {"org.opencontainers.image.source": "https://example.org/app", "maintainer": "somebody"},
}

NASTY = (
    b"<img src=x onerror=document.title=1>",
    b"</title><script>document.title=2<",
    b"\xff\xfe\x01\x1b[31m",
    "\u202egnp.exe".encode(),
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627".encode(),
    "a\u2028b".encode(),
    b"x" * 255,
    "z\u0300\u0300\u0300\u0300\u0300\u0300".encode(),
    b"'\"&quot;",
    b"line\nbreak",
)


def hostile_layers() -> list[Layer]:
    """Names that would do something to a page that took them as they are."""
    base, second = Layer().folder("./", mode=0o755), Layer()
    for number, name in enumerate(NASTY):
        base.file(name + b"/" + name, bytes(5_000 + 100 * number)).file(b"gone/" + name, bytes(900))
        second.whiteout(b"gone/" + name)
    return [base, second]


def hostile_config() -> dict[str, object]:
    texts = [name.decode("utf-8", "replace") for name in NASTY] + [
        "</script><script>document.title=3</script>"
    ]
    return {
        "author": "".join(texts),
        "history": [{"created": text, "created_by": text, "comment": text} for text in texts[:2]],
        "config": {
            "Env": [f"{text}={text}" for text in texts],
            "Labels": dict(zip(texts, texts, strict=True)),
        },
    }


@pytest.fixture(scope="module")
def desk(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = lab / "reports"
    folder.mkdir()
    pages = tmp_path_factory.mktemp("pages")
    reports: dict[str, Path] = {}

    def write(store: orlop.Store, name: str, thing: str) -> None:
        reports[name] = pages / f"{name}.html"
        reports[name].write_text(
            report(store, thing, title=name if thing.startswith("/") else ""), encoding="utf-8"
        )

    try:
        with orlop.open(folder / "root", folder / "run") as store, ExitStack() as held:
            for name, layers, config in (
                ("usual", usual_layers(), {"history": HISTORY, "config": SETTINGS}),
                ("hostile", hostile_layers(), hostile_config()),
            ):
                image = make_image([layer.tar() for layer in layers], compression="none", config=config)
                store.load(write_layout(folder / name, {"latest": image}))
                write(store, name, f"localhost/{name}:latest")
            root = held.enter_context(store.prepare("localhost/usual:latest", folder / "changed", mount=True))
            top = Path(root.path)
            (top / "srv/app/main.py").write_bytes(b"changed\n")
            (top / "srv/app/logo.png").unlink()
            for number in range(30):
                (top / f"srv/new{number}").write_bytes(bytes(300 * number))
            write(store, "changed", str(root.path))
        with browser(tmp_path_factory.mktemp("browser")) as page:
            yield Desk(page, reports)
    finally:
        disks.remove(folder)


def colour(page: Page, selector: str, what: str = "backgroundColor") -> str:
    found = page.tell(f"getComputedStyle(document.querySelector({selector!r})).{what}")
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("name", ["usual", "hostile", "changed"])
def test_a_page_is_clean_in_both_schemes_and_fits_its_window(desk: Desk, name: str) -> None:
    page, pictures, grounds = desk.page, set[bytes](), set[str]()
    for scheme in SCHEMES:
        for width in (WIDE, NARROW):
            page.show(desk.reports[name], width=width, scheme=scheme)
            if (scheme == "light") == (width == WIDE) or name == "usual":
                pictures.add(page.picture(SCREENSHOTS / f"report-{name}-{scheme}-{width}.png", height=2_400))
            assert page.tell("document.documentElement.scrollWidth") == width
            outside = page.tell(
                "Array.from(document.querySelectorAll('main *')).filter(one => one.checkVisibility() && "
                "(one.getBoundingClientRect().right > innerWidth + 1 || one.getBoundingClientRect().left < -1))"
                ".map(one => one.outerHTML.slice(0, 200))"
            )
            assert outside == []
            assert page.tell("document.querySelector('h1').textContent").endswith((f"{name}:latest", name))
            assert page.tell("document.querySelectorAll('svg.map rect').length") > 10
            assert page.tell("document.querySelectorAll('script').length") == 1
            assert page.tell("document.title").endswith((f"{name}:latest", name))
            assert page.complaints == []
            assert page.asked_for == [desk.reports[name].as_uri()]
        grounds.add(colour(page, "body"))
    assert len(pictures) == (4 if name == "usual" else 2)
    assert len(grounds) == 2


def test_what_a_script_adds_is_sorting_showing_all_and_looking_for_paths(desk: Desk) -> None:
    page = desk.page
    page.show(desk.reports["usual"], width=WIDE)
    shown = (
        "Array.from(document.querySelectorAll('#file-list tbody tr')).filter(row => row.checkVisibility())"
    )
    paths = f"{shown}.map(row => row.cells[0].textContent)"
    first = page.tell(paths)
    assert first[0] == "/usr/bin/tool"
    assert len(first) == 12
    page.tell("document.querySelector('#file-list th button').click()")
    assert page.tell(f"{shown}.length") == 12
    page.tell("document.querySelector('button.all').click()")
    everything = page.tell(paths)
    assert len(everything) == 100
    assert everything == sorted(everything)
    page.tell("document.querySelector('#file-list th.r button').click()")
    assert page.tell(paths)[0] == "/usr/bin/tool"
    page.tell(
        "(s => { s.value = 'APP main'; s.dispatchEvent(new Event('input')); })(document.querySelector('#search'))"
    )
    assert page.tell(paths) == ["/srv/app/main.py"]
    assert "row" in page.tell("document.querySelector('#found').textContent")
    page.tell(
        "document.querySelector('svg.wide g').dispatchEvent(new PointerEvent('pointermove', {clientX: 9, clientY: 9}))"
    )
    assert "names" in page.tell("document.querySelector('#tip').textContent")
    assert page.complaints == []


def test_a_page_is_whole_without_scripts_and_on_paper(desk: Desk) -> None:
    page = desk.page
    page.show(desk.reports["usual"], width=WIDE, scheme="dark", scripts=False)
    assert page.tell("document.querySelector('#search').checkVisibility()") is False
    rows = "Array.from(document.querySelectorAll('#file-list tbody tr')).every(row => row.checkVisibility())"
    assert page.tell(rows) is True
    assert page.tell("document.querySelectorAll('svg g > title').length") > 20
    page.set_media("dark", media="print")
    assert (colour(page, "body"), colour(page, "body", "color")) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    page.picture(SCREENSHOTS / "report-usual-print.png", height=1_600)
    assert page.complaints == []
