"""Locks between processes: flock(2) on a file.

Not for threads alone: use a `threading.Lock` where one process is all there is.  (Two `FileLock`
objects do exclude each other within a process, as each opens the file anew.)

Invariants: waiting never outlasts the caller's deadline or cancel, so the lock is polled for, not
blocked on; a lock file may be deleted only by a holder of the exclusive lock, and whoever gets the
lock makes sure that the file it holds is still the one at the path.

flock(2) belongs to the open file: a process forked while a lock is held shares it.  `release` frees
it all the same; but should the holder be killed, it lasts until the child's copy is closed.

A `FileLock` goes to whoever looks at the right moment; a `TurnLock` to whoever asked first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from orlop.linux._syscall import Path
from orlop.observe import Call

__all__ = ["FileLock", "TurnLock", "hold"]

_FIRST_PAUSE = 0.001  # seconds between looks; doubled up to the last
_LAST_PAUSE = 0.025
_PATIENCE = 1.0  # seconds that a queue may stand still while nobody is inside
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_GATE = 0  # the byte whose holder may join the queue; places are numbered from 1


class FileLock:
    """A lock on a path.  One thread at a time may use an object; its folder must exist.

    With ``unlink_on_release`` the last holder removes the file.  With ``keep_open`` the file stays open, so
    that the next time costs less; `close` ends that.
    """

    def __init__(self, path: Path, *, unlink_on_release: bool = False, keep_open: bool = False) -> None:
        self.path = os.fspath(path)
        self._unlink = unlink_on_release
        self._keep = keep_open
        self._fd: int | None = None
        self._spare: int | None = None  # open, and not locked
        self._exclusive = False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def acquire(
        self,
        *,
        call: Call,
        attempted: str,
        exclusive: bool = True,
        blocking: bool = True,
        meanwhile: Callable[[], None] | None = None,
    ) -> bool:
        """Get the lock; False if it is taken and ``blocking`` is off.

        ``meanwhile`` is called after each look that found it taken.

        Raises `Cancelled` or `DeadlineExceeded` while waiting, OSError if the file cannot be made.
        """
        if self._fd is not None:
            raise RuntimeError(f"this lock on {os.fsdecode(self.path)} is held already")
        pause = _FIRST_PAUSE
        while True:
            call.check(attempted)
            fd, self._spare = self._spare, None
            kept = fd is not None
            if fd is None:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            gone = False
            try:
                while not _try_lock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
                    if not blocking:
                        return False
                    if meanwhile is not None:
                        meanwhile()
                    call.pause(pause, attempted)
                    pause = min(pause * 2, _LAST_PAUSE)
                gone = not self._is_at_path(fd) if kept else _is_deleted(fd)
                if not gone:
                    self._fd, self._exclusive = fd, exclusive
                    return True
            finally:
                if self._fd is None:
                    self._put(fd, keep=self._keep and not gone)

    def release(self) -> None:
        """Let go.  Idempotent.  A file that cannot be removed stays: it is in nobody's way."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if self._unlink and (self._exclusive or _try_lock(fd, fcntl.LOCK_EX)) and not _is_deleted(fd):
                with suppress(OSError):  # what was done under the lock is done
                    os.unlink(self.path)
        finally:
            # Unlocked by name, not just closed: a forked child may hold a copy of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
            self._put(fd, keep=self._keep)

    def close(self) -> None:
        """Close what was kept open.  Idempotent; a lock that is held stays held."""
        fd, self._spare = self._spare, None
        if fd is not None:
            os.close(fd)

    def abandon(self) -> None:
        """In a forked child: forget what the parent holds, and leave it to the parent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
        self.close()

    def _put(self, fd: int, *, keep: bool) -> None:
        if keep:
            self._spare = fd
        else:
            os.close(fd)

    def _is_at_path(self, fd: int) -> bool:
        """Whether a file that was kept open is the one that others would open now."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(fd), there)


def _is_deleted(fd: int) -> bool:
    """Whether a file that was just opened is no more the one that others would open: deleted, or replaced."""
    return not os.fstat(fd).st_nlink


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


class TurnLock:
    """An exclusive lock on a path that processes get in the order of asking.  Held by one thread at a time.

    Places in the queue are bytes of ``<path>.queue``, each locked by whoever stands there (fcntl(2), open
    file description locks): the kernel frees the place of the dead, nothing is written, so it works on a
    full disk, and an empty queue begins at 1 again.  The first in the queue takes the flock on ``path``.

    The queue is for order only; that one at a time is inside is the flock's work.  So a process that was
    stopped in the queue holds nobody up for long: if nothing moves for a second and nobody is inside,
    others pass by.

    Where nobody queues, the lock is tried at once, and whoever gets it so has no place.

    Unlike a `FileLock`, one that could not be acquired keeps its place until `release`.
    """

    def __init__(self, path: Path, *, keep_open: bool = False) -> None:
        self._lock = FileLock(path, keep_open=keep_open)
        self._keep = keep_open
        self._queue = os.fsencode(path) + b".queue"
        self._fd: int | None = None
        self._place = 0  # 0: in no queue

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.held

    @property
    def queued(self) -> bool:
        """Whether this object has a place in the queue, or the lock already."""
        return self._place > 0 or self._lock.held

    def acquire(self, *, call: Call, attempted: str) -> None:
        """Queue, unless this object does already, and wait for the turn.

        Raises `Cancelled` or `DeadlineExceeded` while waiting, OSError if a file cannot be made.
        """
        if self._lock.held:
            return
        if not self._place:
            if self._is_empty() and self._lock.acquire(call=call, attempted=attempted, blocking=False):
                return
            self._join(call, attempted)
        if self._place:
            self._wait(call, attempted)
        while not (self._lock.held or self._lock.acquire(call=call, attempted=attempted, blocking=False)):
            call.pause(_FIRST_PAUSE / 2, attempted)  # not for long: whoever is inside is about to leave

    def release(self) -> None:
        """Let go of the lock, or of the place in the queue.  Idempotent."""
        self._lock.release()
        place, self._place = self._place, 0
        try:
            if self._fd is not None and place:
                _byte_lock(self._fd, fcntl.F_UNLCK, 0, 0)  # by name: a forked child may hold a copy
        finally:
            if not self._keep:
                self.close()

    def close(self) -> None:
        """Close what was kept open.  Idempotent; not while the lock is held, or waited for."""
        self._lock.close()
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def abandon(self) -> None:
        """In a forked child: forget what the parent holds, and leave it to the parent."""
        self._lock.abandon()
        fd, self._fd, self._place = self._fd, None, 0
        if fd is not None:
            os.close(fd)

    def _opened(self) -> int:
        if self._fd is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._queue, flags, 0o600)
        return self._fd

    def _is_empty(self) -> bool:
        """Whether nobody queues, or is about to."""
        return _locked_within(self._opened(), 0, 0) is None

    def _join(self, call: Call, attempted: str) -> None:
        """Stand behind the last one in the queue; without a place if there is no getting at it."""
        fd = self._opened()
        until = time.monotonic() + _PATIENCE
        while not _byte_lock(fd, fcntl.F_WRLCK, _GATE, 1):
            if time.monotonic() > until:
                return  # somebody was stopped between two system calls
            call.pause(_FIRST_PAUSE / 4, attempted)
        try:
            place = 1
            while (found := _locked_within(fd, place, 0)) is not None:
                place = found[1]
            _byte_lock(fd, fcntl.F_WRLCK, place, 1)
            self._place = place
        finally:
            _byte_lock(fd, fcntl.F_UNLCK, _GATE, 1)

    def _wait(self, call: Call, attempted: str) -> None:
        """Until nobody is before us, or the queue stands still and the lock is ours."""
        assert self._fd is not None
        before, since = 0, time.monotonic()
        while True:
            call.check(attempted)
            found = _locked_within(self._fd, 1, self._place - 1) if self._place > 1 else None
            if found is None:
                return
            if found[0] != before:
                before, since = found[0], time.monotonic()
            elif time.monotonic() > since + _PATIENCE:
                if self._lock.acquire(call=call, attempted=attempted, blocking=False):
                    return
                since = time.monotonic()  # somebody is inside: the queue is all right
            call.pause(min(_FIRST_PAUSE / 2 * (self._place - found[0]), _LAST_PAUSE), attempted)


def _byte_lock(fd: int, kind: int, start: int, length: int) -> bool:
    """Lock or free bytes of a file (all that follow for length 0), for this open of it; False if taken."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except OSError as exc:
        if exc.errno in {errno.EAGAIN, errno.EACCES}:
            return False
        raise
    return True


def _locked_within(fd: int, start: int, length: int) -> tuple[int, int] | None:
    """Where a lock of somebody else's lies (start and end) among some bytes, if one does."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _, found, size, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted))
    return None if kind == fcntl.F_UNLCK else (found, found + size)
