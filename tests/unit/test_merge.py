"""Layers applied to one another, without mounting: trees, overlay marks, and when stacking is refused.

That the result is what the kernel shows is `tests/integration/test_layer_meaning.py`'s.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.erofs.reader import Image
from orlop.erofs.tree import HOLE, Node
from orlop.erofs.writer import build
from orlop.errors import InvalidArgument
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import COPIED, LayerIndex
from orlop.layers.merge import LowerLinkError, Merger
from orlop.layers.nested import escape_xattrs, unescape_xattrs
from orlop.layers.tarread import TarReader
from support.layers import Layer

SIZE = 1 << 20  # of every device: large enough for all tars here


def index_of(layer: Layer) -> LayerIndex:
    data = layer.tar()
    builder = IndexBuilder()
    for entry in TarReader([data]):
        builder.add(entry)
    return builder.finish(len(data))


def merged(*layers: Layer, below: ChainView | None = None) -> Node:
    merger = Merger(below=below)
    for number, layer in enumerate(layers, 1):
        merger.apply(index_of(layer), lambda data, number=number: number)  # type: ignore[misc]
    return merger.finish()


def chain(*stack: Sequence[Layer]) -> ChainView:
    """A view of a stack of images, given bottom first."""
    view = ChainView([])
    for layers in stack:
        tree = merged(*layers, below=view if view.images else None)
        image = Image(bytes(build(tree, devices=[SIZE] * len(layers), uuid=bytes(16))))
        view = ChainView([image, *view.images])
    return view


def paths(top: Node) -> dict[str, Node]:
    assert top.children is not None
    found: dict[str, Node] = {}
    todo = [("", top.children[b"root"])]
    while todo:
        path, node = todo.pop()
        found[path] = node
        for name, child in (node.children or {}).items():
            todo.append((f"{path}/{name.decode()}".lstrip("/"), child))
    return found


def shown(view: ChainView) -> dict[str, int]:
    """What a chain shows: paths and modes."""
    root = view.lookup(b"")
    assert root is not None
    found: dict[str, int] = {}
    todo = [(b"", root)]
    while todo:
        path, entry = todo.pop()
        found[path.decode()] = entry.mode
        if stat.S_ISDIR(entry.mode):
            for name in view.names(entry):
                child = view.child(entry, name)
                assert child is not None
                todo.append((path + b"/" + name if path else name, child))
    return found


def is_whiteout(node: Node) -> bool:
    return stat.S_ISCHR(node.mode) and node.rdev == 0


def is_opaque(node: Node) -> bool:
    return (b"trusted.overlay.opaque", b"y") in node.xattrs


BASE = (
    Layer().folder("d", mode=0o2750, uid=7, mtime_ns=5, xattrs={"user.a": b"v"}).file("d/a", b"1").file("d/b")
)
BASE.folder("d/s").file("d/s/x").symlink("l", "d").file("one").hardlink("two", to="one")

TOPS: dict[str, list[Layer]] = {
    "a new file": [Layer().file("d/n")],
    "a whiteout": [Layer().whiteout("d/a")],
    "a whiteout of nothing": [Layer().whiteout("d/zz").whiteout("n/zz")],
    "an opaque folder": [Layer().opaque("d").file("d/n")],
    "a folder over a symlink": [Layer().file("l/n")],
    "a file over a folder": [Layer().file("d")],
    "a folder hidden and made again": [Layer().whiteout("d"), Layer().file("d/n"), Layer().file("d/s/m")],
    "a folder hidden and made again in one layer": [Layer().whiteout("d").file("d/s/n")],
    "many layers": [Layer().file("d/s/n"), Layer().file("d"), Layer().folder("d/s"), Layer().whiteout("d/s")],
}


@pytest.mark.parametrize("case", TOPS)
def test_a_stack_shows_what_the_merged_tree_shows(case: str) -> None:
    tops = TOPS[case]
    whole = {path: node.mode for path, node in paths(merged(BASE, *tops)).items()}
    assert shown(chain([BASE], tops)) == whole
    assert shown(chain([BASE], *([top] for top in tops))) == whole


def test_a_top_holds_what_changed_and_the_folders_above() -> None:
    top = paths(merged(Layer().file("d/s/n"), below=chain([BASE])))
    assert top.keys() == {"", "d", "d/s", "d/s/n"}
    assert (top["d"].mode, top["d"].uid, top["d"].nsec) == (stat.S_IFDIR | 0o2750, 7, 5)
    assert top["d"].xattrs == ((b"user.a", b"v"),)


def test_whiteouts_stand_only_over_what_is_there() -> None:
    top = paths(
        merged(Layer().whiteout("d/a").whiteout("d/zz").whiteout("n/a").whiteout("l/a"), below=chain([BASE]))
    )
    assert [path for path, node in top.items() if is_whiteout(node)] == ["d/a"]


def test_folders_are_opaque_only_over_folders() -> None:
    layer = Layer().opaque("d").opaque("n").folder("l").folder("d/s").opaque("d/s")
    top = paths(merged(layer, below=chain([BASE])))
    assert [path for path, node in top.items() if is_opaque(node)] == ["d"]


@pytest.mark.parametrize(
    "layer",
    [
        Layer().hardlink("h", to="d/a"),
        Layer().whiteout("one"),
        Layer().file("one"),
        Layer().folder("two"),
        Layer().opaque(""),
        Layer().whiteout("one").symlink("n", "two"),
    ],
)
def test_a_top_that_cannot_be_right_is_refused(layer: Layer) -> None:
    with pytest.raises(LowerLinkError):
        merged(layer, below=chain([BASE]))


@pytest.mark.parametrize(
    "layers",
    [
        [Layer().whiteout("one").whiteout("two")],
        [Layer().whiteout("one").file("two"), Layer().whiteout("two"), Layer().file("one")],
        [Layer().file("d/n").file("three").hardlink("four", to="three"), Layer().whiteout("three")],
    ],
)
def test_all_names_of_a_file_may_go(layers: list[Layer]) -> None:
    assert shown(chain([BASE], layers)) == {p: n.mode for p, n in paths(merged(BASE, *layers)).items()}


def test_all_names_below_a_hidden_folder_go_with_it() -> None:
    base = Layer().file("d/x/1").hardlink("d/y/2", to="d/x/1").file("other")
    for layer in (
        Layer().whiteout("d"),
        Layer().opaque("d"),
        Layer().file("d"),
        Layer().folder("d").whiteout("d"),
    ):
        merged(layer, below=chain([base]))
    with pytest.raises(LowerLinkError):
        merged(Layer().whiteout("d/x"), below=chain([base]))


def test_a_hard_link_is_one_node_with_several_names() -> None:
    tree = paths(
        merged(
            Layer().file("a", b"1"), Layer().hardlink("b", to="a"), Layer().hardlink("c", to="b").file("a")
        )
    )
    assert tree["b"] is tree["c"]
    assert tree["a"] is not tree["b"]
    assert tree["b"].size == 1


@pytest.mark.parametrize(
    "layers",
    [
        [Layer().hardlink("h", to="nothing")],
        [Layer().folder("d"), Layer().hardlink("h", to="d")],
        [Layer().file("f"), Layer().whiteout("f"), Layer().hardlink("h", to="f")],
        [Layer().symlink("a", "b").symlink("b", "a"), Layer().hardlink("h", to="a/x")],
    ],
)
def test_a_hard_link_to_nothing_is_refused(layers: list[Layer]) -> None:
    with pytest.raises(InvalidArgument, match="hard link"):
        merged(*layers)


def test_devices_are_asked_for_only_when_needed() -> None:
    asked: list[bool] = []

    def device(data: bool) -> int:
        asked.append(data)
        return 1

    Merger().apply(index_of(Layer().folder("d").file("d/empty").symlink("s", "d")), device)
    assert asked == []
    Merger().apply(index_of(Layer().file("f", b"1").sparse("s", 9000, [(0, b"x")], how="gnu-1.0")), device)
    assert sorted(asked) == [False, True]


# ------------------------------------------------------------------ xattrs


@pytest.mark.hostile(41)
def test_overlays_own_xattrs_are_nested_and_come_back() -> None:
    pairs = (
        (b"trusted.overlay.opaque", b"y"),
        (b"trusted.overlay.overlay.x", b""),
        (b"user.overlay.opaque", b"y"),
    )
    escaped = escape_xattrs(pairs)
    assert escaped[0] == (b"trusted.overlay.overlay.opaque", b"y")
    assert unescape_xattrs(escaped) == pairs
    assert unescape_xattrs(((b"trusted.overlay.origin", b"x"), (b"user.a", b""))) == ((b"user.a", b""),)


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=3)))
def test_what_no_file_system_holds_is_left_out(found: dict[bytes, bytes]) -> None:
    for prefix in (b"", b"user.", b"trusted.", b"system.posix_acl_access"):
        for name, _ in escape_xattrs(tuple((prefix + name, value) for name, value in found.items())):
            assert name.startswith((b"user.", b"trusted.", b"security.", b"system.posix_acl_"))
            assert name not in (b"user.", b"trusted.", b"security.")


# ------------------------------------------------------------------ layer.data


def sparse(size: int, *extents: tuple[int, int]) -> LayerIndex:
    index = index_of(Layer().file("f"))
    index.size[1], index.flags[1] = size, COPIED
    index.sparse[1] = tuple((offset, length, 512) for offset, length in extents)
    return index


@given(st.integers(1, 1 << 40), st.lists(st.integers(0, 1 << 40), min_size=2, max_size=12, unique=True))
def test_every_byte_of_a_sparse_file_has_its_place_in_layer_data(size: int, marks: list[int]) -> None:
    marks = sorted({mark % size for mark in marks})
    extents = [(start, min(end - start, 5000)) for start, end in zip(marks[::2], marks[1::2], strict=False)]
    layout = DataLayout(sparse(size, *extents))
    chunks = layout.files[1].chunks
    assert chunks is not None
    chunk = 512 << chunks.bits
    assert (len(chunks.starts) - 1) * chunk < size <= len(chunks.starts) * chunk
    used = [start for start in chunks.starts if start != HOLE]
    assert used == sorted(set(used))
    full = sum(1 for start in chunks.starts[:-1] if start != HOLE) * chunk
    last = -(-(size - (len(chunks.starts) - 1) * chunk) // 512) * 512 if chunks.starts[-1] != HOLE else 0
    assert layout.size == full + last
    for offset, length in extents:
        for place in (offset, offset + length - 1):
            start = chunks.starts[place // chunk]
            assert start != HOLE
            assert start * 512 + place % chunk < layout.size
    assert len(used) <= sum(length // chunk + 2 for _, length in extents)


def test_the_layout_follows_from_the_index_alone() -> None:
    index = sparse(1 << 30, (0, 100), (1 << 29, 5000))
    again = DataLayout(LayerIndex.decode(index.encode()))
    first = DataLayout(index)
    assert first.size == again.size
    assert [c.chunks.starts for c in first.files.values() if c.chunks] == [
        c.chunks.starts for c in again.files.values() if c.chunks
    ]
