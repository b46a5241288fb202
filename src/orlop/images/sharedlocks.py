"""Shared locks that the threads of a process hold together, and whose files stay open for the next time.

Prepares hold their chain's lock, shared, for a moment each.  One after another they would make, lock, unlock
and delete a file; here the first thread locks, the last unlocks, and the file stays until `rest`.  To other
processes, and to who asks for the lock exclusively, it is a lock like any other (`orlop.linux.flock`).
"""

from __future__ import annotations

import threading
from contextlib import suppress

from orlop.linux.flock import FileLock
from orlop.metadata.forks import watch_forks
from orlop.observe import Call

__all__ = ["SharedLocks"]

MOST = 64  # files kept open that nobody holds
_PAUSE = 0.002  # seconds between looks at a lock that somebody has exclusively


class _Shared:
    __slots__ = ("holders", "lock")

    def __init__(self, path: str) -> None:
        self.lock = FileLock(path, keep_open=True)
        self.holders = 0


class SharedLocks:
    """Those of one open store, by path.  Thread-safe."""

    def __init__(self) -> None:
        self._begin()
        watch_forks(self)

    def _begin(self) -> None:
        self._guard = threading.Lock()  # guards the field below, and what is in it
        self._known: dict[str, _Shared] = {}

    def before_fork(self) -> None:
        """See `orlop.metadata.forks`."""
        self._guard.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Begin anew: what is held is the parent's."""
        for one in self._known.values():
            one.lock.abandon()
        self._begin()

    def enter(self, path: str, *, call: Call, attempted: str) -> None:
        """Hold a lock, shared, until `leave`.  Raises as `FileLock.acquire` does."""
        while not self._enter(path, call, attempted):
            call.pause(_PAUSE, attempted)

    def leave(self, path: str) -> None:
        """Let go, once for each `enter`."""
        with self._guard:
            one = self._known[path]
            one.holders -= 1
            if not one.holders:
                one.lock.release()

    def finish(self) -> None:
        """Nothing is to be done."""

    def rest(self) -> None:
        """Close the files that nobody holds, and delete them unless another process does."""
        with self._guard:
            for path in [path for path, one in self._known.items() if not one.holders]:
                self._drop(path)

    def close(self) -> None:
        """The same."""
        self.rest()

    def _enter(self, path: str, call: Call, attempted: str) -> bool:
        with self._guard:
            one = self._known.get(path)
            if one is None:
                if len(self._known) >= MOST:
                    idle = next((other for other, known in self._known.items() if not known.holders), None)
                    if idle is not None:
                        self._drop(idle)
                one = self._known[path] = _Shared(path)
            if not one.holders and not one.lock.acquire(
                call=call, attempted=attempted, exclusive=False, blocking=False
            ):
                return False
            one.holders += 1
            return True

    def _drop(self, path: str) -> None:
        """Needs the guard."""
        self._known.pop(path).lock.close()
        last = FileLock(path, unlink_on_release=True)
        with suppress(OSError):  # a file that stays is in nobody's way, and a collection takes it
            if last.acquire(call=Call(), attempted="close", blocking=False):
                last.release()
