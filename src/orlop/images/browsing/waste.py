"""Files that later layers hide: what they take of each layer, and the largest of them with who hid them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice, pairwise

from orlop.images.browsing.history import layer_lines
from orlop.images.browsing.trees import Source
from orlop.images.comparing import LayerWaste, Waste, WastedFile
from orlop.images.core import Core
from orlop.layers.index import LINK, LOWER_LINK, LayerIndex
from orlop.layers.origins import content_size, wasted
from orlop.layers.trail import Trails, Version
from orlop.observe import Call

__all__ = ["waste_of"]

_LINKS = 1_000  # hard links to lower layers that are looked at for who hid the last name of a file


def waste_of(core: Core, source: Source, files: int, attempted: str, call: Call) -> Waste:
    """See `orlop.images.comparing.Comparing.waste`."""
    lines = layer_lines(core, source, attempted)
    indexes = [core.layers.load_index(diff_id) for diff_id in source.diff_ids]
    found = wasted(indexes, call=call)
    layers = tuple(
        LayerWaste(
            line=line, size=layer.total, wasted=layer.bytes, entries=layer.entries, files=len(layer.nodes)
        )
        for line, layer in zip(lines, found, strict=True)
    )
    every = (
        (content_size(indexes[layer.layer], node), -layer.layer, -node)
        for layer in found
        for node in layer.nodes
    )
    largest = [(size, -layer, -node) for size, layer, node in heapq.nlargest(files, every)]
    hiders = _Hiders(indexes, {(layer, node) for _, layer, node in largest}, call)
    return Waste(
        layers=layers,
        files=tuple(hiders.told(size, layer, node) for size, layer, node in largest if size),
    )


class _Hiders:
    """Finds out which layer hid the last name of a file."""

    def __init__(self, indexes: list[LayerIndex], files: set[tuple[int, int]], call: Call) -> None:
        self._indexes = indexes
        self._trails = Trails(indexes, call=call)
        self._names: dict[tuple[int, int], list[bytes]] = {
            (layer, node): [indexes[layer].path(node)] for layer, node in files
        }
        for layer in {layer for layer, _ in files}:
            index = indexes[layer]
            for node, flags in enumerate(index.flags):
                if flags & LINK and (layer, index.offset[node]) in files:
                    self._names[layer, index.offset[node]].append(index.path(node))
        lower = (
            index.path(node)
            for index in indexes
            for node, flags in enumerate(index.flags)
            if flags & LOWER_LINK
        )
        self._linked: dict[Version, tuple[int, bool]] = {}  # how those end that such links name
        for name in islice(lower, _LINKS if files else 0):
            for version, end in self._ends(name):
                self._linked[version] = max(end, self._linked.get(version, end))

    def told(self, size: int, layer: int, node: int) -> WastedFile:
        """One file that nothing shows."""
        file, names = Version(layer=layer, node=node), self._names[layer, node]
        ends = [end for name in names for version, end in self._ends(name) if version == file]
        gone = max([*ends, self._linked.get(file, (layer, False))])
        return WastedFile(
            path=names[0],
            size=size,
            layer=layer + 1,
            hidden_by=gone[0] + 1,
            what="changed" if gone[1] else "deleted",
        )

    def _ends(self, name: bytes) -> Iterator[tuple[Version, tuple[int, bool]]]:
        """What a name meant: until which layer, and whether it then means something else."""
        steps = self._trails.steps(name)
        for step, after in pairwise(steps):
            if step.version is not None and step.version != after.version:
                yield step.version, (after.layer, after.version is not None)
