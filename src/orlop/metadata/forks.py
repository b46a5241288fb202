"""What keeps SQLite sound when a process forks, as multiprocessing does.

SQLite's locks are the process's (fcntl(2)), and it remembers in memory which ones it has: a child that had a
copy of that memory would believe to hold its parent's.  So nothing is open while a process forks
(sqlite.org/howtocorrupt.html, 2.7): idle connections are closed before.  Where a body is running in another
thread, it is waited for, for a moment; should it not end, the parent goes on, and the child is refused that
database, under whatever object.

One hook for all databases of the process; a program started by `subprocess` runs none of it.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.hints import Protocol

__all__ = ["check_not_spoilt", "spoil", "watch_forks"]


class Forkable(Protocol):
    """What is told of forks.  `before_fork` and one of the others come in pairs, in the forking thread."""

    def before_fork(self) -> None:
        """Close what can be closed, and let nothing be opened."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew: there are no other threads."""


_watched: weakref.WeakSet[Forkable] = weakref.WeakSet()
_told: list[Forkable] = []  # by the fork that is going on
_one_at_a_time = threading.Lock()  # two threads that fork at once would wait for one another
_spoilt: set[str] = set()  # resolved paths


def watch_forks(database: Forkable) -> None:
    """Have a database told of forks as long as it lives."""
    _watched.add(database)
    _register()


@functools.cache
def _register() -> None:
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)


def _before() -> None:
    _one_at_a_time.acquire()
    for database in list(_watched):
        _told.append(database)
        database.before_fork()


def _in_parent() -> None:
    for database in _told:
        database.after_fork_in_parent()
    _told.clear()
    _one_at_a_time.release()


def _in_child() -> None:
    for database in _told:
        database.after_fork_in_child()
    _told.clear()
    _one_at_a_time.release()


def spoil(path: Path) -> None:
    """Remember in a child that SQLite's memory of a file is its parent's."""
    _spoilt.add(os.path.realpath(path))


def check_not_spoilt(path: Path) -> None:
    """Raise `FailedPrecondition` in a child that was forked while the file was in use."""
    if _spoilt and os.path.realpath(path) in _spoilt:
        raise FailedPrecondition(
            f"use store {path.parent}",
            "this process was forked while another thread used it",
            hint="fork before, or start processes by 'spawn'",
        )
