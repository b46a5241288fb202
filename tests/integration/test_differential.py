"""Random tars as orlop, GNU tar and bsdtar apply them: one tree, or a difference that is on a short list.

orlop's own tree is made in this process, from its reader to its EROFS image (`orlop.testing.applied`); that
the kernel shows the same is `test_erofs_hostile.py`'s, and for every driver `test_layer_meaning.py`'s.  The
list is `support.judges.DIFFERENCES`; docs/fuzzing.md prints it.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import Error, Internal
from orlop.testing import applied
from orlop.testing.conformance.model import Tree
from orlop.testing.gnutar import gnu_tar
from orlop.testing.layers import SECOND, Layer, Member
from orlop.testing.strategies import stacks, wild_layers
from support.fuzzing import soak, trials
from support.judges import DIFFERENCES, JUDGES, extract, unexplained

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]

SOUND = stacks(most=1).map(lambda layers: layers[0])
FORMS = {"pax": Layer.tar, "gnu": gnu_tar}


@pytest.fixture
def court(oracle_dir: Path) -> Callable[[Layer], Counter[str]]:
    """Applies a layer in both forms and by all judges; fails for what is not explained."""
    numbers = itertools.count()

    def try_it(layer: Layer) -> Counter[str]:
        seen: Counter[str] = Counter()
        for form, write in FORMS.items():
            tar = write(layer)
            try:
                ours = applied.apply_tars([tar])
            except Internal:
                raise
            except Error:
                seen["refused"] += 1
                continue
            for judge in JUDGES:
                theirs = made(judge, tar, oracle_dir / str(next(numbers)))
                if lines := unexplained(judge, layer, ours, theirs):
                    told = "\n".join([*map(str, layer.members), *lines])
                    pytest.fail(f"{judge} makes another tree of the {form} form of\n{told}")
                seen["compared"] += 1
        return seen

    return try_it


def made(judge: str, tar: bytes, target: Path) -> Tree:
    try:
        return extract(judge, tar, target)
    finally:
        shutil.rmtree(target)


def run(
    layers: st.SearchStrategy[Layer], court: Callable[[Layer], Counter[str]], how: settings
) -> tuple[Callable[[], None], Counter[str]]:
    """A test of Hypothesis's, and what it will have seen."""
    seen: Counter[str] = Counter()

    @how
    @given(layers)
    def check(layer: Layer) -> None:
        seen.update(court(layer))

    return check, seen


@pytest.mark.hostile(6, 8, 9, 10, 11, 42)
def test_sound_tars_are_what_gnu_tar_and_bsdtar_make_of_them(court: Callable[[Layer], Counter[str]]) -> None:
    check, seen = run(SOUND, court, trials(40))
    check()
    assert seen["refused"] == 0
    assert seen["compared"] >= 100


@pytest.mark.hostile(1, 3, 4, 6, 7, 8, 11)
def test_wild_tars_are_what_gnu_tar_and_bsdtar_make_of_them_or_refused(
    court: Callable[[Layer], Counter[str]],
) -> None:
    check, seen = run(wild_layers(most=5), court, trials(60))
    check()
    assert seen["compared"] >= 40


@pytest.mark.soak
@pytest.mark.large  # what it finds is mostly one more thing that another tool does otherwise
@pytest.mark.parametrize("kind", ["sound", "wild"])
def test_tars_without_end_are_what_gnu_tar_and_bsdtar_make_of_them(
    court: Callable[[Layer], Counter[str]], soak_seconds: float, kind: str
) -> None:
    layers = SOUND if kind == "sound" else wild_layers(most=7)
    check, seen = run(layers, court, settings(trials(100), derandomize=False))
    rounds = soak(check, soak_seconds)
    assert seen["compared"], f"nothing in {rounds} rounds: {dict(seen)}"


# ------------------------------------------------------------------ the list itself


def member(name: bytes, kind: str = "file", **about: object) -> Member:
    return Member(name=name, kind=kind, **about)  # type: ignore[arg-type]


EXAMPLES = {
    "times of folders that the tar only implies": [member(b"a/b")],
    "names with `..`, and hard links to such": [member(b"x/../a"), member(b"b", "hardlink", target=b"x/../a")],
    "a path that is both a folder and something else in one tar": [member(b"a/b"), member(b"a")],
    "names that lead through a symlink of the same tar": [
        member(b"d", "folder"),
        member(b"l", "symlink", target=b"d"),
        member(b"l/f"),
    ],
    "names that begin with `.wh.`": [member(b"a/.wh.b")],
    "hard links to what comes later in the tar, or to a symlink": [
        member(b"a", "hardlink", target=b"b"),
        member(b"b"),
    ],
    "xattrs of a path that comes twice": [
        member(b"a", "folder", xattrs={"user.a": b"1"}),
        member(b"a", "folder", xattrs={"user.b": b"2"}),
    ],
    "a header of the root that says that it is a file, though its name ends in a slash": [member(b"/")],
    "`/.` at the end of the name of what is no folder, `/` at that of a sparse file, either at that of a "
    "hard link's target": [
        member(b"a/.", "fifo"),
    ],
    "times, owner and mode of a folder that comes twice": [
        member(b"a", "folder"),
        member(b"a", "folder", mtime_ns=7 * SECOND),
    ],
    "a path that is a symlink and then something else": [member(b"a", "symlink", target=b"/b"), member(b"a")],
    "names that begin with a letter and a colon, or with a backslash": [member(b"c:/x")],
    "fractions of times before 1970": [member(b"a", mtime_ns=-SECOND // 2)],
    "xattrs of what is no folder and has a name that ends in a slash": [
        member(b"a/", "fifo", xattrs={"trusted.a": b"1"}),
    ],
    "xattrs with `=` or `%` in their names": [member(b"a", xattrs={"user.x=y": b"1"})],
}  # fmt: skip


@pytest.mark.parametrize("known", DIFFERENCES, ids=lambda known: known.what)
def test_every_difference_on_the_list_is_one(known, oracle_dir: Path) -> None:
    """What no tool does, or what orlop does as well, has no place on the list."""
    layer = Layer(EXAMPLES[known.what])
    tar = layer.tar()
    ours = applied.apply_tars([tar])
    for number, judge in enumerate(JUDGES):
        if known.judge in (judge, "both"):
            theirs = made(judge, tar, oracle_dir / str(number))
            assert ours != theirs or known.fault, f"{judge} makes the same of it"
            assert unexplained(judge, layer, ours, theirs) == []
