"""How far a worker may read a source that is still growing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import threading

from orlop.errors import Unavailable
from orlop.layers.worker import COMPLETE

__all__ = ["Feed"]


class Feed:
    """Tells a worker how far it may read a source that is still growing.

    Used by one writer thread; closing before it is complete makes the worker end.  ``total`` is what was
    told last, ``complete`` whether that is all.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._lock = threading.Lock()  # guards _writer against a close from the other thread
        self._taking = threading.Lock()  # guards _reader likewise; `advance` may wait with the other held
        self.complete = False
        self.total = 0

    def advance(self, total: int, *, complete: bool = False) -> None:
        """The first ``total`` bytes of the source are there (and no more will come)."""
        with self._lock:
            if self._writer >= 0:
                self.total, self.complete = total, self.complete or complete
                with contextlib.suppress(BrokenPipeError):  # the worker ended; `unpack` says why
                    os.write(self._writer, struct.pack("<Q", total | (COMPLETE if complete else 0)))

    def take_reader(self) -> int:
        """The worker's end, now the caller's: once no worker has it, `advance` waits for nobody.

        Raises `Unavailable` if the feed was closed before.
        """
        with self._taking:
            reader, self._reader = self._reader, -1
        if reader < 0:
            raise Unavailable("unpack layer", "its source was given up")
        return reader

    @property
    def told(self) -> bool:
        """Whether the worker has been told something that it has not read yet.  Waits for nobody."""
        if not self._lock.acquire(blocking=False):
            return True  # being told; perhaps its pipe is full
        try:
            return self._writer >= 0 and _unread(self._writer) > 0
        finally:
            self._lock.release()

    @property
    def expects(self) -> bool:
        """Whether it is the worker's turn: it has not read all it was told, or knows that it has all."""
        return self.complete or self.told

    @property
    def given_up(self) -> bool:
        """Whether the source ended before it was complete."""
        return self._writer < 0 and not self.complete

    def close(self) -> None:
        """Let go of both ends.  Idempotent."""
        with self._taking:
            if self._reader >= 0:
                os.close(self._reader)
                self._reader = -1
        with self._lock:
            if self._writer >= 0:
                os.close(self._writer)
                self._writer = -1

    @classmethod
    def whole(cls, size: int) -> Feed:
        """A feed for a source that is complete already."""
        feed = cls()
        feed.advance(size, complete=True)
        return feed


def _unread(pipe: int) -> int:
    found = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return int(struct.unpack("=i", found)[0])
