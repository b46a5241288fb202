"""How long a call may take, whatever its client allows.

A call's context is handed on with the daemon's bound in it, so that work ends by itself, as with a
client's own deadline.  Two kinds do not, and are cancelled some time after their bound: a stream whose
client has ceased to read, which frees its thread from waiting in gRPC; and a call that the store cannot
interrupt, which frees its client, while the thread goes on to the end of the work.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import grpc

__all__ = ["Deadlines", "Limited"]

LINGER = 30.0  # seconds that a call has to say that its time is over
_LOOK = 5.0  # seconds between looks at the calls
_END = 10.0  # seconds for the thread to end


class Limited:
    """A call's context, in which no more than ``seconds`` remain; 0 leaves the client's own deadline."""

    def __init__(self, context: grpc.ServicerContext, seconds: float) -> None:
        self._context = context
        self._until = time.monotonic() + seconds if seconds else None

    def time_remaining(self) -> float | None:
        """Seconds, as gRPC has it."""
        told: float | None = self._context.time_remaining()
        if self._until is None:
            return told
        own = max(0.0, self._until - time.monotonic())
        return own if told is None else min(own, told)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the context has
        return getattr(self._context, name)


class Deadlines:
    """Cancels calls that are long overdue.  `start` once; `stop` is idempotent.  Thread-safe."""

    def __init__(self, *, look: float = _LOOK, linger: float = LINGER) -> None:
        self._look = look
        self._linger = linger
        self._numbers = itertools.count()
        # Without a lock: each step on it is one of the interpreter's, and every call takes two.
        self._calls: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orlop-deadlines", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End, within a bound."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_END)

    def begin(self, context: grpc.ServicerContext, seconds: float | None) -> int:
        """Cancel the call some time after ``seconds``, unless what is returned has been given to `end`."""
        number = next(self._numbers)
        if seconds is not None:
            self._calls[number] = time.monotonic() + seconds + self._linger, context
        return number

    def end(self, number: int) -> None:
        """The call has ended, or has no bound any more.  Idempotent."""
        self._calls.pop(number, None)

    def cancel_overdue(self, now: float) -> int:
        """Cancel those whose time was over before ``now``; how many there were."""
        overdue = [number for number, (until, _) in self._calls.copy().items() if until < now]
        calls = [call for number in overdue if (call := self._calls.pop(number, None)) is not None]
        for _, context in calls:
            context.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leaves it without types
        return len(calls)

    def _run(self) -> None:
        while not self._stopped.wait(self._look):
            self.cancel_overdue(time.monotonic())
