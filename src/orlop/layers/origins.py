"""Which layer everything in an image came from, and what of its layers nothing shows any more.

The layers are applied by `orlop.layers.merge` itself, so the rules stand there and nowhere else.  What is
applied are copies of their indexes in which every owner is a layer's number and a node's, and every time the
layer's number: the merge carries owners and times along, and so tells where each thing came from.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterable, Iterator

from orlop.erofs.tree import Node
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import COPIED, IMPLIED, LINK, LOWER_LINK, LayerIndex
from orlop.layers.merge import Merger
from orlop.layers.sources import is_left_out
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["Origin", "Waste", "children_of", "origin_of", "origins", "walk", "wasted"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A node of the index of a layer; the layers are numbered from 0, the bottom.

    ``node`` is -1 for a folder that the layer only implies, where no lower one had it.
    """

    layer: int
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What of one layer nothing shows any more.

    ``bytes`` counts the contents of regular files, holes left out, ``total`` those of all files of the layer;
    ``entries`` the files, folders, symlinks and devices, of which a file with several names is one; ``nodes``
    the regular files among them.
    """

    layer: int
    total: int
    bytes: int
    entries: int
    nodes: tuple[int, ...]


def origins(layers: Iterable[LayerIndex], *, call: Call) -> Node:
    """The merged tree of some layers, bottom first, as nodes of which `origin_of` knows the origin."""
    merger = Merger()
    for number, index in enumerate(layers):
        call.check("read layers")
        merger.apply(_marked(index, number), _no_device, _NO_LAYOUT if not index.needs_data else None)
    return merger.root


def origin_of(node: Node) -> Origin:
    """Where a node of `origins` came from."""
    return Origin(node.mtime, node.gid if node.uid else -1)


def children_of(node: Node) -> list[tuple[bytes, Node]]:
    """A folder's members by name, in byte order."""
    return sorted((node.children or {}).items())


def walk(top: Node, path: bytes = b"") -> Iterator[tuple[bytes, Node]]:
    """Every path at or below a node, folders before what is in them, names in byte order."""
    todo = [(path, top)]
    while todo:
        at, node = todo.pop()
        yield at, node
        for name, child in reversed(children_of(node)):
            todo.append((at + b"/" + name if at else name, child))


def wasted(layers: list[LayerIndex], *, call: Call) -> list[Waste]:
    """What of each layer nothing shows any more."""
    alive = [bytearray(len(index)) for index in layers]
    todo = [origins(layers, call=call)]
    while todo:
        node = todo.pop()
        origin = origin_of(node)
        if origin.node >= 0:
            alive[origin.layer][origin.node] = 1
        todo.extend((node.children or {}).values())
    return [_waste(number, index, alive[number]) for number, index in enumerate(layers)]


def content_size(index: LayerIndex, node: int) -> int:
    """The bytes that a regular file takes in its layer, without its holes."""
    extents = index.sparse.get(node) if index.flags[node] & COPIED else None
    return index.size[node] if extents is None else sum(length for _, length, _ in extents)


def _waste(number: int, index: LayerIndex, alive: bytearray) -> Waste:
    total = gone = entries = 0
    nodes: list[int] = []
    for node, (mode, flags) in enumerate(zip(index.mode, index.flags, strict=True)):
        kind = mode & 0o170000
        if not kind or flags & (LINK | LOWER_LINK | IMPLIED):
            continue
        size = content_size(index, node) if kind == stat.S_IFREG else 0
        total += size
        if alive[node] or is_left_out(index, node):
            continue
        entries += 1
        gone += size
        if kind == stat.S_IFREG:
            nodes.append(node)
    return Waste(layer=number, total=total, bytes=gone, entries=entries, nodes=tuple(nodes))


def _marked(index: LayerIndex, number: int) -> LayerIndex:
    """A copy in which owners and times say where a node came from."""
    count = len(index)
    marked = index.same()
    marked.uid = array("I", [1]) * count
    marked.gid = array("I", range(count))
    marked.mtime = array("q", [number]) * count
    marked.xattrs = {}
    marked.time = number
    return marked


def _no_device(data: bool) -> int:
    """The number of a device, which nobody will read."""
    return 1


_NO_LAYOUT = DataLayout(LayerIndex())
