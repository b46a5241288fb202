"""Trees that were read, so that going back to a layer is quick; as many as memory has room for."""

from __future__ import annotations

from collections import OrderedDict

from orlop.explorer.tui.model import Forest

__all__ = ["Forests"]

_MOST = 400_000  # names of all trees together, at about 0.5 kB each; the last one is kept however large


class Forests:
    """Trees by the number of their layer, the longest unused first to go."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._kept: OrderedDict[int, Forest] = OrderedDict()

    def get(self, layer: int) -> Forest | None:
        """The tree above a layer, if it is kept."""
        found = self._kept.get(layer)
        if found is not None:
            self._kept.move_to_end(layer)
        return found

    def put(self, layer: int, forest: Forest) -> None:
        """Keep a tree, and let go of others where they are too many."""
        self._kept[layer] = forest
        self._kept.move_to_end(layer)
        while len(self._kept) > 1 and sum(one.count for one in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
