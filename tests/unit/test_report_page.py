"""Reports: what an image says becomes text and never markup, the page is bounded, and the same every time."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import orlop.explorer.page
from orlop.explorer.page import MOST, render
from orlop.explorer.page.facts import CHANGES, facts_of, kind_of_name
from orlop.explorer.page.text import plain, shown
from orlop.explorer.page.told import readable
from orlop.explorer.survey import LayerSurvey, Node, State, Survey
from orlop.images.comparing import HistoryLine, WastedFile

NASTY = (
    "</script><script>alert(1)</script>",
    "--><img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "]]></style></title></textarea>&lt;b&amp;",
    "\u202egnp.exe\u2066\u200f",
    "line\u2028sep\u2029\n\r\t\x00\x07\x1b[31m\x7f\x9b",
    "\ud800lone\udfff",
    "z" + "\u0300" * 60,
    "\U000e0041\ufeff\u200b\xa0\u3000\uffff",
    "javascript:alert(4)",
    "{{7*7}}${7*7}",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d",
)
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ud800-\udfff\ufeff]"
)


def named(text: str | bytes) -> bytes:
    """A text as a name in a tree."""
    return (
        text.encode("utf-8", "surrogatepass").replace(b"\0", b"").replace(b"/", b"")
        if isinstance(text, str)
        else text
    )


def tree_of(files: dict[bytes, int], what: State = "same") -> Node:
    """A tree of such files, all of layer 1."""
    top = Node(b"", "folder")
    for path, size in files.items():
        at, above = top, [top]
        *folders, name = path.split(b"/")
        for folder in folders:
            at = at.children.setdefault(folder, Node(folder, "folder", what=what))
            above.append(at)
        node = at.children[name] = Node(name, "file", what=what)
        node.size = node.total = size
        node.layer, node.mode = 1, 0o100644
        for one in above:
            one.total += size
            one.count += 1
    return top


def survey_of(text: str, *, many: int = 1, **changed: Any) -> Survey:
    """A survey that says a text wherever an image can say one."""
    line = HistoryLine(
        layer=1, diff_id=text, created=text, created_by=text, author=text, comment=text, size=10, entries=1
    )
    layer = LayerSurvey(
        number=1, diff_id=text, created=text, created_by=text, comment=text, size=1000, entries=3, wasted=10
    )
    settings = {
        "Env": [f"{text}={text}", text] * many,
        "Labels": {f"{text}{number}": text for number in range(many)},
        "Entrypoint": [text] * many,
        "Cmd": text,
        "User": text,
        "WorkingDir": {"odd": [text]},
        "ExposedPorts": {text: {}},
        "Volumes": [text],
        "Healthcheck": {"Test": [text]},
    }
    wasted = WastedFile(path=named(text), size=10, layer=1, hidden_by=2, what="deleted")
    given: dict[str, Any] = {
        "thing": text,
        "kind": "image",
        "names": (text, f"{text}2"),
        "id": text,
        "platform": text,
        "created": text,
        "size": 1000,
        "entries": 3,
        "shown": 900,
        "content": 1000,
        "wasted": 10,
        "layers": (layer,) * many,
        "history": (line, HistoryLine(created_by=text)) * many,
        "waste": (wasted,) * min(many, 50),
        "config": {"author": text, "created": text, "config": settings},
    }
    return Survey(**{**given, **changed})


class Seen(HTMLParser):
    """What a page is made of: the tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shape(page: str) -> set[tuple[str, tuple[str, ...]]]:
    return set(Seen(page).tags)


def files_of(text: str) -> dict[bytes, int]:
    return {named(text) + b"/" + named(text): 500, named(text) + b"2": 400}


@pytest.mark.parametrize("text", NASTY)
def test_what_an_image_says_is_never_markup(text: str) -> None:
    page = render(survey_of(text), tree_of(files_of(text)), title=text)
    harmless = render(survey_of("word"), tree_of(files_of("word")), title="word")
    assert shape(page) - {("i", ("class",)), ("details", ()), ("summary", ())} <= shape(harmless)
    assert page.count("<script") == 1
    assert not UNSEEN.search(page)
    page.encode("utf-8")
    assert not any(value.startswith(("javascript:", "http")) for value in Seen(page).values)


def test_a_page_asks_for_nothing_and_runs_nothing_but_its_own() -> None:
    page = render(survey_of("word"), tree_of(files_of("word")))
    (policy,) = re.findall(r'Content-Security-Policy content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"(?i)(?:src|href|action)=[\"']?(?:https?:)?//", page)
    assert " style=" not in page
    assert not re.search(r" on[a-z]+=", page)


@pytest.mark.parametrize("text", ["\u202e", "<", "\U000e0041", "w", "\U0001f600"])
def test_a_page_is_bounded_however_large_the_image(text: str) -> None:
    files = {b"%05d/" % number + named(text) * 80: 10**6 + number for number in range(3000)}
    tree = tree_of(files, "added")
    for number, name in enumerate(tree.children):
        tree.children[name].what = ("added", "changed", "deleted")[number % 3]
    survey = survey_of(text * 3000, many=1000, kind="root", names=(text * 300,))
    page = render(survey, tree)
    assert len(page.encode()) < MOST
    for what in ("entries", "lines", "layers"):
        assert f"more {what} are left out here" in page


def test_the_same_gives_the_same_bytes() -> None:
    one, other = files_of("a"), dict(reversed(files_of("a").items()))
    assert render(survey_of("a"), tree_of(one)) == render(survey_of("a"), tree_of(other))


def test_an_image_of_nothing_has_a_page() -> None:
    page = render(Survey(thing="x", kind="image", names=(), id="sha256:0"), Node(b"", "folder"))
    assert "The image has none." in page
    root = Survey(thing="/x", kind="root", names=("n",), id="sha256:0", layers=(LayerSurvey(number=0),))
    assert "Nothing: the root is as its image has it." in render(root, Node(b"", "folder"))


@pytest.mark.parametrize(
    "config", [{}, {"config": 5}, {"config": {"Env": {"a": 1}, "Labels": [1], "Cmd": 3, "User": []}}]
)
def test_any_config_has_a_page(config: dict[str, Any]) -> None:
    assert "Configuration" in render(survey_of("x", config=config), tree_of(files_of("x")))


# ------------------------------------------------------------------ colours


def luminance(colour: str) -> float:
    """Of ``#rrggbb``: WCAG 2.2, "relative luminance"."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def blended(over: str, under: str, opacity: float) -> str:
    pairs = ((int(over[at : at + 2], 16), int(under[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(one * opacity + other * (1 - opacity)):02x}" for one, other in pairs)


def test_every_text_can_be_read_in_each_scheme() -> None:
    style = (Path(orlop.explorer.page.__file__).parent / "style.css").read_text()
    schemes = [
        dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(schemes) == 3  # light, dark, paper
    (opacity,) = map(float, re.findall(r"svg \.n \{ opacity: ([0-9.]+); \}", style))
    for scheme in schemes:
        pairs = [(text, ground) for text in ("ink", "soft", "accent", "mark") for ground in ("page", "card")]
        pairs += [(text, "card") for text in ("added", "changed", "deleted")]
        pairs += [("onchart", ground) for ground in ("rest", *(f"c{number}" for number in range(9)))]
        pairs += [("ink", "frame"), ("page", "ink")]
        for text, ground in pairs:
            assert contrast(scheme[text], scheme[ground]) >= 4.5, (text, ground)
        for number in range(9):
            ground = scheme[f"c{number}"]
            assert contrast(blended(scheme["onchart"], ground, opacity), ground) >= 4.5, number


# ------------------------------------------------------------------ texts


@given(st.one_of(st.text(), st.binary()), st.integers(10, 80))
def test_texts_are_visible_bounded_and_escaped(text: str | bytes, limit: int) -> None:
    for found in (shown(text, limit), html.escape(plain(text, limit))):
        assert not UNSEEN.search(found)
        found.encode("utf-8")
        assert "<" not in found.replace("<i class=x>", "").replace("</i>", "")
    assert len(shown(text, limit).encode()) <= 3 * limit + 3


def test_what_can_be_read_stays_as_it_is() -> None:
    for text in (
        "caf\u00e9",
        "\u4f60\u597d",
        "\u0645\u0631\u062d\u0628\u0627",
        "\U0001f600",
        "a b",
        "e\u0301",
    ):
        assert shown(text) == text
    assert shown("a" * 500, 100).count("a") == 100 - 1
    assert shown("a\nb", lines=True) == "a\nb"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/bin/sh -c #(nop) ADD file:x in / ", "ADD file:x in /"),
        ("/bin/sh -c make &&   make install", "RUN make \\\n && make install"),
        ("RUN /bin/sh -c a && b # buildkit", "RUN a \\\n && b"),
        ("RUN |2 A=1 B=x /bin/sh -c a # buildkit", "RUN a"),
        ("/bin/bash -o pipefail -c x", "RUN x"),
        ("COPY /a /b # buildkit", "COPY /a /b"),
        ("/bin/sh", "/bin/sh"),
        ("", ""),
        (" " * 10**6 + "x", ""),
        ("RUN |1 " + "/bin/sh -a " * 10**5, None),
        ("a" + " \\\n" * 10**5 + "&& b", None),
    ],
)
def test_commands_read_as_they_were_written(command: str, expected: str | None) -> None:
    assert readable(command) == expected or expected is None


# ------------------------------------------------------------------ facts


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [
        (b"libc.so.6", 0o755, "Shared libraries"),
        (b"x.cpython-311-x86_64-linux-gnu.so", 0o644, "Shared libraries"),
        (b"bash", 0o755, "Programs (executable, no suffix)"),
        (b".bashrc", 0o644, "Others"),
        (b"A.PY", 0o644, "Python"),
        (b"git.1", 0o644, "Manual pages"),
        (b"x.\xff", 0o755, "Others"),
        (b"README", 0o644, "Others"),
    ],
)
def test_kinds_are_told_by_names(name: bytes, mode: int, kind: str) -> None:
    assert kind_of_name(name, mode) == kind


def test_a_folder_that_came_whole_stands_for_all_in_it() -> None:
    top = tree_of({b"new/a": 10, b"new/b/c": 20}, "added")
    top.what = "same"
    gone = top.children[b"gone"] = Node(b"gone", "folder", what="deleted")
    gone.children[b"x"] = Node(b"x", "file", what="deleted")
    gone.children[b"x"].size = 7
    back = top.children[b"new"].children[b"old"] = Node(b"old", "file", what="deleted")
    back.size = 3
    found = facts_of(top)
    told = {
        (what, one.path): (one.size, one.count) for what, all_of in found.changes.items() for one in all_of
    }
    assert told == {
        ("added", b"new"): (30, 2),
        ("deleted", b"gone"): (7, 1),
        ("deleted", b"new/old"): (3, 0),
    }
    assert [item.path for item in found.files] == [b"new/b/c", b"new/a"]


def test_changes_are_cut_off_and_counted() -> None:
    found = facts_of(tree_of({b"%05d" % number: 1 for number in range(CHANGES + 5)}, "added"))
    assert len(found.changes["added"]) == CHANGES
    assert found.all_changes["added"] == CHANGES + 5


def test_of_folders_within_one_another_only_those_that_tell_something_are_listed() -> None:
    found = facts_of(tree_of({b"usr/local/lib/x/a": 100, b"usr/local/lib/y/b": 100, b"usr/c": 10}))
    assert [item.path for item in found.folders] == [b"usr/local/lib", b"usr/local/lib/x", b"usr/local/lib/y"]
