"""A large file reaches the disk while it grows, so that little is left to wait for when it is whole.

A thread syncs what is there, and again, as fast as the disk takes it; the last time while whoever wrote the
file goes on with other things.  Starting the write-back alone would not do: bytes then stay in whatever cache
lies behind the file system (a disk's own, a loop device's file) until somebody flushes it.

Not for small files, for which a thread costs more than it saves: of these nothing is promised, and `settled`
says so.  A failed fsync(2) is told to each open file once, so it is kept here until it is asked for.
"""

from __future__ import annotations

import os
import threading
from typing import Self

from orlop.linux.sync import Sync

__all__ = ["WriteBack"]

STEP = 16 << 20  # bytes that are worth a sync of their own


class WriteBack:
    """Syncs one open file.  Used by one thread, apart from its own; a context manager, which ends that."""

    def __init__(self, fd: int, sync: Sync) -> None:
        self._fd, self._sync = fd, sync
        self._step = STEP if sync.durable else 0
        self._asked = 0
        self._news = threading.Condition()  # guards what follows
        self._wanted = False
        self._whole = False
        self._given_up = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def grown(self, total: int) -> None:
        """The file has so many bytes now."""
        if not self._step or total - self._asked < self._step:
            return
        self._asked = total
        with self._news:
            self._wanted = True
            self._news.notify()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="write-back", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads: all is left for the last fsync
                self._step = 0
                return
            self._thread = thread

    def whole(self) -> None:
        """No more will come; waits for nothing."""
        with self._news:
            self._whole = True
            self._news.notify()

    def settled(self) -> bool:
        """Whether all of a file that is `whole` is on the disk, once that has been waited for.

        False where nobody saw to that: the caller syncs it.  Raises OSError as fsync(2) did.
        """
        if self._thread is None:
            return False
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return True

    def _run(self) -> None:
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._wanted or self._whole or self._given_up)
                    self._wanted = False
                    if self._given_up:
                        return
                    whole = self._whole
                if whole:
                    self._sync.file(self._fd)
                    return
                os.fdatasync(self._fd)
        except BaseException as exc:  # noqa: BLE001 - raised by `settled`
            self._failure = exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._given_up = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
