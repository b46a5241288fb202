"""What comes after the last byte of a pull, done while the layers are still on their way to the disk.

A chain's lowest image follows from the layers' indexes alone, and those are all known as soon as the last
layer has the digest that its image names; the disk takes a while longer to have it, and a processor rests
meanwhile.  So the image is made then, in memory.  Nothing here is written or named: who builds the chain
(`orlop.images.chains`) takes what is here where it is just what it would make, and makes it itself otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from orlop.hints import Self
from orlop.layers.index import LayerIndex
from orlop.metadata.roots import ChainRow
from orlop.observe import Call
from orlop.spec.digest import DiffID

__all__ = ["Ahead", "Rendered"]

Rendered = tuple[ChainRow, bytearray, list[str]]
"""An image of a chain, the row that describes it, and warnings."""


_Indexes = dict[DiffID, LayerIndex]


class Ahead(_Indexes):
    """The indexes of the layers that a pull brings and, once all are here, the image that they make.

    ``make`` makes it of all layers and these indexes, unless it is there already; ``missing`` tells which
    layers have yet to come; ``meanwhile`` is work of the caller's own, for the time in which others fetch.
    A context manager, at whose end nothing goes on.  Thread-safe.
    """

    def __init__(
        self,
        make: Callable[[Sequence[DiffID], Mapping[DiffID, LayerIndex], Call], Rendered | None],
        missing: Callable[[Sequence[DiffID]], set[DiffID]],
        *,
        meanwhile: Callable[[], None],
        call: Call,
    ) -> None:
        super().__init__()
        self.meanwhile = meanwhile
        self._make, self._absent = make, missing
        self._call = call.child()
        self._lock = threading.Lock()  # guards the three below
        self._diff_ids: Sequence[DiffID] = ()
        self._missing: set[DiffID] = set()
        self._thread: threading.Thread | None = None
        self._made: Rendered | None = None

    def expect(self, diff_ids: Sequence[DiffID]) -> None:
        """These are the image's layers, bottom first.  Of several images only the first is foreseen."""
        missing = self._absent(diff_ids)
        with self._lock:
            if not self._diff_ids:
                self._diff_ids, self._missing = diff_ids, missing

    def seen(self, diff_id: DiffID, index: LayerIndex) -> None:
        """A layer's bytes are all here, and are what they should be."""
        with self._lock:
            self[diff_id] = index
            if diff_id not in self._missing:
                return
            self._missing.discard(diff_id)
            if self._missing:
                return
            self._thread = threading.Thread(target=self._run, name="chain-ahead", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads: it is made in its turn
                self._thread = None

    def _run(self) -> None:
        try:
            self._made = self._make(self._diff_ids, self, self._call)
        except Exception as exc:  # noqa: BLE001 - who makes it in its turn meets the same, and raises it
            import logging

            logging.getLogger(__name__).debug("no image ahead: %s", exc)

    def take(self, name: str) -> Rendered | None:
        """The image of this name, if it was made; once, since it is large."""
        self._join()
        made, self._made = self._made, None
        return made if made is not None and made[0].id == name else None

    def _join(self) -> None:
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call.cancel.cancel()
        self._join()
        self._made = None
