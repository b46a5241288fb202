"""``orlop df`` and ``orlop explain``: what they print of what a store says."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from orlop.cli import main
from orlop.errors import InvalidArgument, NotFound
from orlop.facade import Store
from orlop.images.upkeep import Explanation, ImageUsage, Part, Reason, Usage, UsagePart

ID, OTHER = "sha256:" + "3f" * 32, "sha256:" + "ab" * 32
USAGE = Usage(
    parts=(
        UsagePart(kind="layers", count=3, size=10_000_000, reclaimable=1_000_000),
        UsagePart(kind="blobs", count=2, size=20_000),
        UsagePart(kind="roots", count=1, size=5_000),
        UsagePart(kind="metadata", count=2, size=100_000),
    ),
    images=(
        ImageUsage(id=ID, names=("a:1", "a:2", "a:3"), unique=2_000_000, shared=4_000_000),
        ImageUsage(id=OTHER, names=("b:1",), unique=0, shared=4_000_000),
    ),
    free=50_000_000_000,
    capacity=200_000_000_000,
)
LAYER = Part(kind="layer", name=OTHER, size=1_500, shared_with=("b:1", "/srv/a", "pin x", "lease 12"))
CHAIN = Part(kind="chain", name="cd" * 32, size=500)
NAME = Reason(kind="image", name="a:1", note="its name")


def explanation(kind: str, **values: object) -> Explanation:
    filled = {
        "kind": kind,
        "name": "a:1",
        "size": 2_000,
        "kept_by": (NAME,),
        "parts": (),
        "frees": 500,
        **values,
    }
    return Explanation(**filled)


class Verbs:
    """Answers what it was told to."""

    def __init__(self) -> None:
        self.explained: dict[str, Explanation] = {}

    def usage(self, *, call: object) -> Usage:
        return USAGE

    def explain(self, thing: str, *, call: object) -> Explanation:
        if thing.startswith("."):
            raise InvalidArgument(f"explain {thing}", f"{thing!r} names nothing")
        if thing not in self.explained:
            raise NotFound(f"explain {thing}", "the store has no such thing", hint="look for it")
        return self.explained[thing]

    def close(self) -> None:
        pass


@pytest.fixture
def verbs() -> Verbs:
    return Verbs()


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(verbs: Verbs, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv, open_store=lambda target: Store(verbs))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_df_shows_the_parts_and_their_sum(run: Run) -> None:
    code, out, _ = run("df")
    assert code == 0
    assert out.splitlines() == [
        "KIND      COUNT  SIZE      RECLAIMABLE",
        "layers    3      10.0 MB   1.0 MB",
        "blobs     2      20.0 kB   0 B",
        "roots     1      5.0 kB    0 B",
        "metadata  2      100.0 kB  0 B",
        "total            10.1 MB   1.0 MB",
        "",
        "50.0 GB of 200.0 GB are free on that disk",
    ]


def test_df_of_images_adds_up_to_the_total(run: Run) -> None:
    lines = run("df", "-v")[1].splitlines()
    assert lines[7:13] == [
        "IMAGE                   ID            UNIQUE   SHARED",
        "a:1 (+2)                3f3f3f3f3f3f  2.0 MB   4.0 MB",
        "b:1                     abababababab  0 B      4.0 MB",
        "(shared, counted once)                7.0 MB",
        "(all else)                            1.1 MB",
        "total                                 10.1 MB",
    ]


def test_df_as_json_has_everything(run: Run) -> None:
    found = json.loads(run("df", "--json")[1])
    assert found["size"] == 10_125_000
    assert found["reclaimable"] == 1_000_000
    assert found["parts"][0] == {"kind": "layers", "count": 3, "size": 10_000_000, "reclaimable": 1_000_000}
    assert found["images"][1]["names"] == ["b:1"]
    assert found["free"] == 50_000_000_000


def test_an_explanation_says_who_keeps_it_and_what_it_shares(run: Run, verbs: Verbs) -> None:
    root = Reason(kind="root", name="/srv/\x1b[31m", note="prepared from it")
    verbs.explained["a"] = explanation("image", kept_by=(NAME, root), parts=(LAYER, CHAIN))
    code, out, _ = run("explain", "a")
    assert code == 0
    assert out.splitlines() == [
        "image a:1",
        "  size   2.0 kB",
        "  frees  500 B when its names are removed",
        "",
        "kept by",
        "  image  a:1            its name",
        r"  root   /srv/\x1b[31m  prepared from it",
        "",
        "PART   SIZE    NAME                      ALSO NEEDED BY",
        "layer  1.5 kB  sha256:abababababab       b:1, /srv/a and 2 more",
        "chain  500 B   cdcdcdcdcdcdcdcdcdcdcdcd",
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("root", "500 B when it is cleaned up"),
        ("pin", "500 B when it is taken back"),
        ("lease", "500 B when the operation ends"),
        ("layer", "nothing, as long as it is kept"),
    ],
)
def test_what_a_removal_frees_is_said_in_the_words_of_its_kind(
    run: Run, verbs: Verbs, kind: str, words: str
) -> None:
    verbs.explained["a"] = explanation(kind)
    assert words in run("explain", "a")[1]


def test_what_nothing_keeps_goes_with_the_next_collection(run: Run, verbs: Verbs) -> None:
    verbs.explained["a"] = explanation("layer", kept_by=())
    out = run("explain", "a")[1]
    assert "frees  500 B: nothing keeps it, the next collection takes it" in out
    assert "kept by" not in out


def test_long_lists_are_cut_unless_all_is_asked_for(run: Run, verbs: Verbs) -> None:
    reasons = tuple(Reason(kind="image", name=f"i:{number}") for number in range(30))
    verbs.explained["a"] = explanation("image", kept_by=reasons, parts=(CHAIN,) * 25 + (LAYER,))
    short = run("explain", "a")[1]
    assert "and 20 more: --all names them" in short
    assert "and 16 more: --all shows them" in short
    full = run("explain", "--all", "a")[1]
    assert "i:29" in full
    assert "more" not in full
    assert "pin x, lease 12" in full


def test_an_explanation_as_json_is_the_value(run: Run, verbs: Verbs) -> None:
    verbs.explained["a"] = explanation("image", parts=(LAYER,))
    found = json.loads(run("explain", "--json", "a")[1])
    assert found["frees"] == 500
    assert found["kept_by"] == [{"kind": "image", "name": "a:1", "note": "its name"}]
    assert found["parts"][0]["shared_with"] == ["b:1", "/srv/a", "pin x", "lease 12"]


def test_errors_have_their_exit_codes_and_hints(run: Run) -> None:
    code, out, err = run("explain", "nothing")
    assert (code, out) == (3, "")
    assert err.endswith("hint: look for it\n")
    code, _, err = run("explain", "./a")
    assert code == 2
    assert "hint: write /" in err
