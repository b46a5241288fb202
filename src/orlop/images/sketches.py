"""Chains of an image's lowest layers that somebody looks at: in memory, and never written to the store.

`Chains` keeps what roots stand on.  Who looks at each of 60 layers in turn wants 60 chains for a moment, of
which all but the last would only take room, and which a full or read-only disk could not take.  So they are
made here, each above the next lower one that is known, by the same rules and with the same bytes; the last
few are remembered, `KEPT` bytes of them at most (and two whatever their size: what one layer did is the
difference of two).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from orlop.images.ahead import Rendered
from orlop.images.chains import MAX_DEPTH, Chains
from orlop.layers.chainview import ChainView
from orlop.layers.merge import LowerLinkError
from orlop.layers.nocycles import no_cycles
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import ChainRow
from orlop.observe import Call
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = ["KEPT", "Sketches"]

KEPT = 32 << 20  # bytes of images that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """A chain, top first: its rows, and the image of each that is not in a file."""

    rows: tuple[ChainRow, ...]
    images: tuple[bytes | bytearray | None, ...]

    @property
    def size(self) -> int:
        """The bytes of the image at the top, which no other sketch has."""
        return len(self.images[0] or b"") if self.images else 0


class Sketches:
    """The chains in memory of one store.  Thread-safe."""

    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Sketch] = OrderedDict()

    def view(self, diff_ids: Sequence[DiffID], *, call: Call) -> tuple[list[ChainRow], ChainView]:
        """The chain of some layers, to be read: as it lies in the store, else made now.

        Raises as `Chains.ensure` does, and `NotFound` where a file is collected at this moment.
        """
        sketch = self._of(diff_ids, call=call, room=MAX_DEPTH)
        return list(sketch.rows), self._opened(sketch)

    def _opened(self, sketch: Sketch) -> ChainView:
        pairs = zip(sketch.rows, sketch.images, strict=True)
        return ChainView.open([self._chains.file(row.id) if made is None else made for row, made in pairs])

    def _of(self, diff_ids: Sequence[DiffID], *, call: Call, room: int) -> Sketch:
        chains = self._chains
        name = chains.name(diff_ids)
        stack = chains.stack(name)
        if stack:
            return Sketch(rows=tuple(stack), images=(None,) * len(stack))
        with self._lock:
            known = self._known.get(name)
            if known is not None and self._is_whole(known):
                self._known.move_to_end(name)
                return known
        rows = chains.rows(diff_ids)
        below = chains.plan(rows, room, depth_of=self._depth_of)
        parent = self._of(diff_ids[:below], call=call, room=room - 1) if below else None
        with no_cycles():
            try:
                made = self._made(name, diff_ids, below, parent, call)
            except LowerLinkError:
                parent = None
                made = self._made(name, diff_ids, 0, None, call)
        row, image, _ = made
        sketch = Sketch(
            rows=(row, *(parent.rows if parent else ())), images=(image, *(parent.images if parent else ()))
        )
        self._remember(name, sketch)
        return sketch

    def _made(
        self, name: str, diff_ids: Sequence[DiffID], below: int, parent: Sketch | None, call: Call
    ) -> Rendered:
        rows = self._chains.rows(diff_ids)
        above = parent.rows if parent else ()
        opened = partial(self._opened, parent) if parent else None
        return self._chains.render(name, rows, below, above, {}, call, below_view=opened)

    def _depth_of(self, tx: Transaction, name: str) -> int | None:
        """How high a chain is that is at hand, here or in the store; None for one that is not."""
        known = self._known.get(name)
        if known is not None:
            return len(known.rows)
        row = roots.get_chain(tx, name)
        return row.depth if row is not None else None

    def _is_whole(self, sketch: Sketch) -> bool:
        """Whether the files are there that it lies on."""
        pairs = zip(sketch.rows, sketch.images, strict=True)
        return all(made is not None or self._chains.file(row.id).exists() for row, made in pairs)

    def _remember(self, name: str, sketch: Sketch) -> None:
        with self._lock:
            self._known[name] = sketch
            self._known.move_to_end(name)
            total = sum(known.size for known in self._known.values())
            while total > KEPT and len(self._known) > 2:
                _, gone = self._known.popitem(last=False)
                total -= gone.size
