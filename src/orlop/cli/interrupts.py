"""Ctrl-C: the first asks the work to stop cleanly, the second ends the process at once.

`Interrupts` holds SIGINT, SIGTERM and SIGHUP while a long call runs.  The store withstands an end at
any system call, so the second Ctrl-C loses time, never data.

Invariants: a signal that the parent had ignored (``nohup``, a background job) stays ignored; a child
that was forked meanwhile does nothing here, since its parent decides; the handler takes no lock of
this room.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from orlop.errors import Cancelled
from orlop.hints import Any, Self
from orlop.observe import CancelToken

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """A context manager; ``cancel`` is set by the first signal, ``signum`` says which it was (else 0).

    ``on_first`` is called in the handler: it may wait for no lock for long, and says whether it has made a
    place to write at.  Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, *, on_first: Callable[[], bool] | None = None) -> None:
        self.cancel = CancelToken()
        self.signum = 0
        self._on_first = on_first
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                before = signal.getsignal(signum)
                if before is not signal.SIG_IGN:
                    self._before[signum] = before
                    signal.signal(signum, self._handle)
        return self

    def __exit__(self, kind: object, value: BaseException | None, traceback: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before if before is not None else signal.SIG_DFL)
        self._before.clear()
        if isinstance(value, Cancelled) and self.signum:
            value.details["signal"] = str(self.signum)

    @contextmanager
    def renewed(self) -> Iterator[CancelToken]:
        """Forget a first signal while what follows (cleaning up) has a fresh token and a first of its own."""
        cancel, signum = self.cancel, self.signum
        self.cancel, self.signum = CancelToken(), 0
        try:
            yield self.cancel
        finally:
            self.cancel, self.signum = cancel, signum or self.signum

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.signum:
            _say("\norlop: stopped at once; the next call tidies up what was under way\n")
            os._exit(128 + signum)
        self.signum = signum
        placed = self._on_first is not None and self._on_first()
        _say(f"{'' if placed else chr(10)}orlop: stopping; once more to stop at once\n")
        self.cancel.cancel()


def _say(text: str) -> None:
    # Not through sys.stderr: its lock may be held by the very frame that the signal interrupted.
    with suppress(OSError):  # standard error may be closed or full; the signal counts all the same
        os.write(2, text.encode())
