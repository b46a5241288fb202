"""Locks between processes: flock(2) on a file.

Not for threads alone: use a `threading.Lock` where one process is all there is.  (Two `FileLock`
objects do exclude each other within a process, as each opens the file anew.)

Invariants: waiting never outlasts the caller's deadline or cancel, so the lock is polled for, not
blocked on; a lock file may be deleted only by a holder of the exclusive lock, and whoever gets the
lock makes sure that the file it holds is still the one at the path.

flock(2) belongs to the open file: a process forked while a lock is held shares it.  `release` frees
it all the same; but should the holder be killed, it lasts until the child's copy is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from orlop.linux._syscall import Path
from orlop.observe import Call

__all__ = ["FileLock", "hold"]

_FIRST_PAUSE = 0.001  # seconds between looks; doubled up to the last
_LAST_PAUSE = 0.025


class FileLock:
    """A lock on a path.  One thread at a time may use an object; its folder must exist.

    With ``unlink_on_release`` the last holder removes the file.
    """

    def __init__(self, path: Path, *, unlink_on_release: bool = False) -> None:
        self.path = os.fspath(path)
        self._unlink = unlink_on_release
        self._fd: int | None = None
        self._exclusive = False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(self, *, call: Call, attempted: str, exclusive: bool = True, blocking: bool = True) -> bool:
        """Get the lock; False if it is taken and ``blocking`` is off.

        Raises `Cancelled` or `DeadlineExceeded` while waiting, OSError if the file cannot be made.
        """
        if self._fd is not None:
            raise RuntimeError(f"this lock on {os.fsdecode(self.path)} is held already")
        pause = _FIRST_PAUSE
        while True:
            call.check(attempted)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                while not _try_lock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
                    if not blocking:
                        return False
                    call.pause(pause, attempted)
                    pause = min(pause * 2, _LAST_PAUSE)
                if self._is_at_path(fd):
                    self._fd, self._exclusive = fd, exclusive
                    return True
            finally:
                if self._fd is None:
                    os.close(fd)

    def release(self) -> None:
        """Let go.  Idempotent."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if self._unlink and (self._exclusive or _try_lock(fd, fcntl.LOCK_EX)) and self._is_at_path(fd):
                os.unlink(self.path)
        finally:
            # Unlocked by name, not just closed: a forked child may hold a copy of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _is_at_path(self, fd: int) -> bool:
        """Whether the file we locked is the one that others would open now."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(fd), there)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


@contextmanager
def hold(
    path: Path, *, call: Call, attempted: str, exclusive: bool = True, unlink_on_release: bool = False
) -> Iterator[FileLock]:
    """Hold the lock on a path for the length of a ``with`` block, waiting for it as `acquire` does."""
    lock = FileLock(path, unlink_on_release=unlink_on_release)
    lock.acquire(call=call, attempted=attempted, exclusive=exclusive)
    try:
        yield lock
    finally:
        lock.release()
