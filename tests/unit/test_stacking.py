"""What must stand in a glue folder: the paths that overlayfs would get wrong, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orlop.erofs.reader import Image
from orlop.erofs.writer import build
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView
from orlop.layers.index import LayerIndex
from orlop.layers.merge import Merger
from orlop.layers.stacking import Stack
from orlop.layers.tarread import TarReader
from support.layers import Layer


def index_of(layer: Layer) -> LayerIndex:
    reader = TarReader([layer.tar()])
    builder = IndexBuilder()
    for entry in reader:
        builder.add(entry)
    return builder.finish(reader.size)


def glue(layers: Sequence[Layer], *, below: int = 0) -> set[bytes]:
    """The glue of some layers, the lowest ``below`` of which are one tree."""
    indexes = [index_of(layer) for layer in layers]
    stack = Stack.above(view_of(indexes[:below])) if below else Stack()
    for index in indexes[below:]:
        stack.add(index)
    return set(stack.glue(view_of(indexes)))


def view_of(indexes: Sequence[LayerIndex]) -> ChainView:
    merger = Merger()
    sizes: list[int] = []
    for number, index in enumerate(indexes, 1):
        sizes.append(index.tar_size)
        merger.apply(index, lambda data, number=number: number)  # type: ignore[misc]  # bound now
    return ChainView([Image(build(merger.finish(), devices=sizes, uuid=bytes(16)))])


def whole() -> Layer:
    """A layer whose folders all have entries."""
    return Layer().folder("").folder("d", mode=0o700).file("d/a", b"a").file("d/b", b"b")


CASES: dict[str, tuple[list[Layer], set[bytes]]] = {
    "one layer": ([whole()], set()),
    "folders that both layers bring": ([whole(), whole().file("d/c")], set()),
    "a folder that the upper layer only implies": ([whole(), Layer().folder("").file("d/c")], {b"d"}),
    "a folder that the lower layer only implies": (
        [Layer().folder("").file("d/c"), Layer().folder("").folder("d")],
        set(),
    ),
    "a root that the upper layer only implies": ([whole(), Layer().folder("d")], {b""}),
    "a whiteout of what is there": ([whole(), Layer().folder("").folder("d").whiteout("d/a")], set()),
    "a whiteout in a folder of its own layer": (
        [whole(), Layer().folder("").folder("e").whiteout("e/x")],
        {b"e"},
    ),
    "a whiteout in the only layer": ([Layer().folder("").whiteout("x")], {b""}),
    "a hard link to a lower file": (
        [whole(), Layer().folder("").folder("d").hardlink("d/c", to="d/a")],
        {b"d/a", b"d/c"},
    ),
    "a hard link to a lower file that goes": (
        [whole(), Layer().folder("").folder("d").hardlink("d/c", to="d/a").whiteout("d/a")],
        {b"d/c"},
    ),
    "names of one file in one layer": ([whole().hardlink("d/c", to="d/a")], set()),
    "one of two names goes": (
        [whole().hardlink("d/c", to="d/a"), Layer().folder("").folder("d").whiteout("d/c")],
        {b"d/a"},
    ),
    "all names go": (
        [whole().hardlink("d/c", to="d/a"), Layer().folder("").whiteout("d")],
        set(),
    ),
    "an opaque folder that is only implied": ([whole(), Layer().folder("").opaque("d").file("d/n")], {b"d"}),
    "a folder that replaces a file": ([whole(), Layer().folder("").folder("d").file("d/a/x")], set()),
}


@pytest.mark.parametrize("case", CASES)
def test_the_glue_has_what_overlayfs_would_get_wrong_and_no_more(case: str) -> None:
    layers, expected = CASES[case]
    assert glue(layers) == expected


def test_layers_that_are_one_tree_need_no_glue_among_themselves() -> None:
    layers = [whole(), Layer().file("d/c"), Layer().hardlink("e", to="d/a")]
    assert glue(layers) > set()
    assert glue(layers, below=3) == set()
    assert glue([*layers, Layer().folder("").folder("d").whiteout("d/a")], below=3) == {b"e"}
