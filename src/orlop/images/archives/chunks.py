"""Work that writes to a sink, as an iterator over what it writes.

The work runs in a thread of its own, a few chunks ahead of the reader and no more.  Whoever stops reading
calls `close`, or uses it as a context manager: the work is cancelled and has ended then.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from orlop.errors import Internal
from orlop.observe import Call

__all__ = ["Chunks"]

_T = TypeVar("_T")
_AHEAD = 8  # chunks, of about 1 MiB
_LOOK = 0.05  # seconds between looks at the cancel token while the reader is slow


class Chunks(Generic[_T]):
    """An iterator over the bytes; `result` is what the work returned, once it has ended."""

    def __init__(self, work: Callable[[Chunks[_T], Call], _T], call: Call, what: str) -> None:
        self._work = work
        self._call = call.child()
        self._what = what
        self._queue: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="orlop-export", daemon=True)
        self._thread.start()

    def write(self, data: bytes, /) -> int:
        """The sink's side.  Raises `Cancelled` where nobody reads any more."""
        if data:
            self._put(bytes(data))
        return len(data)

    def _put(self, item: bytes) -> None:
        while True:
            self._call.check(self._what)
            try:
                self._queue.put(item, timeout=_LOOK)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        try:
            self._result.append(self._work(self, self._call))
        except BaseException as exc:  # noqa: BLE001 - raised again in the reader's thread
            self._error = exc
        finally:
            self._end()

    def _end(self) -> None:
        """Wake the reader, if there is one."""
        while not self._ended:
            try:
                self._queue.put(None, timeout=_LOOK)
            except queue.Full:
                continue
            return

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = self.take()
        if not chunk:
            raise StopIteration
        return chunk

    def take(self, seconds: float | None = None) -> bytes | None:
        """The next bytes; nothing at the end, or None where none has come in some seconds."""
        if self._ended:
            return b""
        try:
            chunk = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if chunk is not None:
            return chunk
        self._ended = True
        if self._error is not None:
            raise self._error
        return b""

    @property
    def result(self) -> _T:
        """What the work returned, after the last chunk."""
        if not self._result:
            raise Internal(self._what, "it has not ended")
        return self._result[0]

    def close(self) -> None:
        """Stop the work, if it goes on still; it has ended on return.  Idempotent."""
        self._ended = True
        self._call.cancel.cancel()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
