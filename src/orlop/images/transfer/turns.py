"""How the layers of one call take turns: so many are fetched at once, and small ones reach the disk together.

A place among those that are fetched is given back once all bytes are there: waiting for the disk takes none.
Who has finished then waits for others, a little, so that their syncs fall together: a journal commits for
eight at once what it would commit for each.  Nobody waits for long, because layers that wait hold locks that
another process may need before its own, which we wait for, come on.
"""

from __future__ import annotations

import threading
import time
from typing import Self

from orlop.observe import Call

__all__ = ["FINISHING", "Gathering", "Turn"]

FINISHING = 8  # layers that may be on their way to the disk while others are fetched
GATHER = 0.2  # seconds that the first of those waits for the others, at most
LOOK = 0.1  # seconds; how soon a cancelled call stops waiting for its turn


class Turn:
    """One layer's place among those that are fetched at once.  A context manager; used by one thread."""

    def __init__(self, places: threading.Semaphore, gathering: Gathering, call: Call) -> None:
        self._places, self._gathering, self._call = places, gathering, call
        self._taken = False
        self._gathered = False

    def take(self) -> None:
        """Wait for a place.  Idempotent."""
        while not self._taken:
            self._call.check("fetch layer")
            self._taken = self._places.acquire(timeout=LOOK)

    def retake(self) -> None:
        """Have a place again if one is free, and go on without one otherwise.

        Who comes back holds locks already, and who has a place may be waiting for those.
        """
        self._taken = self._taken or self._places.acquire(blocking=False)

    def give_back(self) -> None:
        """Let another have it.  Idempotent."""
        if self._taken:
            self._taken = False
            self._places.release()

    def gather(self, *, small: bool) -> None:
        """Go on to the disk, a small layer together with others.  Idempotent."""
        if not self._gathered:
            self._gathered = True
            self._gathering.wait() if small else self._gathering.leave()

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()
        self.gather(small=False)


class Gathering:
    """Where the layers of a call meet before they go to the disk.  Thread-safe.

    ``coming`` is how many may come; each waits here once, or leaves.
    """

    def __init__(self, coming: int) -> None:
        self._news = threading.Condition()  # guards what follows
        self._coming = coming
        self._waiting = 0
        self._round = 0

    def wait(self) -> None:
        """Until enough are here, all that are left, or it has taken too long."""
        until = time.monotonic() + GATHER
        with self._news:
            self._waiting += 1
            mine = self._round
            self._look()
            while mine == self._round:
                if not self._news.wait(until - time.monotonic()):
                    self._open()

    def leave(self) -> None:
        """One less will come."""
        with self._news:
            self._coming -= 1
            self._look()

    def _look(self) -> None:
        if self._waiting and self._waiting >= min(FINISHING, self._coming):
            self._open()

    def _open(self) -> None:
        self._coming -= self._waiting
        self._waiting = 0
        self._round += 1
        self._news.notify_all()
