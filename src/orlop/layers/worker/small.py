"""Small layers of one pull, decompressed by one worker, one after the other.

A worker for a layer of one file takes 8 ms of CPU, nearly all of it the fork and the page faults after it.  A
layer that is small goes whole through this one's pipes instead, and costs a tenth of that.  It has neither
the layer's blob nor its tar: bytes go in, bytes come out, and we hash them and write them.

So a blob that takes it over can give wrong bytes for the layers after it, and nothing else: they have another
diff ID, and the pull fails, as it would have with that blob.  An index is not made here but by a worker of
the layer's own, which is where one layer could have lied about another.

The control pipe carries an 8-byte length and so many bytes; the answer is a status byte, as every worker's, a
length, and what came of them.  ``?`` says that it would be too much.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orlop.config import Limits
from orlop.layers.worker import SMALL_TAR
from orlop.layers.worker.said import LOOK, MOST_SAID, PART, Stall, nonsense, their_error
from orlop.observe import Call
from orlop.values import asdict

if TYPE_CHECKING:
    from orlop.layers.worker.client import Forker
    from orlop.layers.worker.template import Lifeline

__all__ = ["SMALL_BLOB", "SmallLayers"]

SMALL_BLOB = 256 << 10  # bytes of a blob that are worth it
_HEAD = struct.Struct("<cQ")


class SmallLayers:
    """A worker that is there from the first small layer on.  Thread-safe; a context manager."""

    def __init__(self, template: Forker, limits: Limits) -> None:
        self._template, self._limits = template, limits
        self._lock = threading.Lock()  # guards the worker: it has one layer at a time
        self._worker: _Worker | None = None
        self._broken = False

    def decompress(self, packed: bytes, *, call: Call) -> bytes | None:
        """The tar that a blob contains; None if it is not for this worker: too large, or the worker is gone.

        Raises what the worker found, or how it ended, as `unpack` does.
        """
        while not self._lock.acquire(timeout=LOOK):
            call.check("unpack layer")
        try:
            if self._broken:
                return None
            if self._worker is None:
                self._worker = _Worker(self._template, self._limits)
            try:
                kind, said = self._worker.ask(packed, call)
            except BaseException:
                self._broken = True  # nobody knows what it would answer next
                self._worker.close()
                raise
        finally:
            self._lock.release()
        if kind == b"-":
            raise their_error(said) if len(said) <= MOST_SAID else nonsense()
        return said if kind == b"+" else None

    def close(self) -> None:
        """End the worker.  Idempotent."""
        with self._lock:
            self._broken = True
            if self._worker is not None:
                self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Worker:
    """The worker and its pipes."""

    def __init__(self, template: Forker, limits: Limits) -> None:
        self._limits = limits
        job: dict[str, object] = {"limits": asdict(limits), "probe": False, "copy": False, "index": False}
        job["serve"] = True
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            theirs.callback(os.close, nothing)
            control, self._control = os.pipe2(os.O_CLOEXEC)
            theirs.callback(os.close, control)
            ours.callback(os.close, self._control)
            self._answer, answer = os.pipe2(os.O_CLOEXEC)
            ours.callback(os.close, self._answer)
            theirs.callback(os.close, answer)
            os.set_blocking(self._control, False)
            self._lifeline: Lifeline = template.submit(job, [nothing, control, answer, answer])
            ours.callback(self._lifeline.close)
            self._exit = ours.pop_all()

    def ask(self, packed: bytes, call: Call) -> tuple[bytes, bytes]:
        """The status of one layer's answer, and what it says."""
        to_send = memoryview(struct.pack("<Q", len(packed)) + packed)
        answer, expected = bytearray(), _HEAD.size
        stall = Stall(self._limits.worker_stall)
        poller = select.poll()
        poller.register(self._answer, select.POLLIN)
        poller.register(self._control, select.POLLOUT)
        last = time.monotonic()
        while len(answer) < expected:
            ready = poller.poll(LOOK * 1000)
            for pipe, _ in ready:
                if pipe == self._answer:
                    part = os.read(pipe, PART)
                    if not part:
                        raise self._lifeline.end().error(self._limits)
                    answer += part
                    if expected == _HEAD.size <= len(answer):
                        expected += _HEAD.unpack_from(answer)[1]
                        if expected > _HEAD.size + SMALL_TAR:
                            raise nonsense()
                    continue
                try:
                    to_send = to_send[os.write(pipe, to_send) :]
                except BrokenPipeError:  # why, its answer ends with
                    to_send = to_send[:0]
                if not to_send:
                    poller.unregister(pipe)
            call.check("unpack layer")
            now = time.monotonic()
            stall.watch(min(now - last, 1.0), moved=bool(ready), expects=True)
            last = now
        kind = bytes(answer[:1])
        if len(answer) != expected or kind not in (b"+", b"-", b"?") or (to_send and kind == b"+"):
            raise nonsense()
        return kind, bytes(answer[_HEAD.size :])

    def close(self) -> None:
        """End it.  Idempotent."""
        self._exit.close()
