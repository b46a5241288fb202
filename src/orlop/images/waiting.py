"""Folders made beforehand: on disk, durable, and nobody's yet; and what an open store does behind its calls.

Whoever needs a folder takes one and names it in its transaction, so a call costs no fsync but the database's.
Folders are made in batches, each with one lock that is held until every folder of it has a row or is
discarded.  So a collector tells a folder that waits from one that a dead process left.

They wait on shelves, one for each kind of folder that there is demand for.  A shelf is filled by a thread
once somebody takes from it for the second time: a process that makes one root makes one folder.

Invariant: what `Waiting.taken` yields is in its place, empty, and durable.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from orlop.errors import Error, Unavailable
from orlop.hints import Generic, Protocol, TypeVar
from orlop.linux.flock import FileLock
from orlop.metadata.forks import watch_forks

__all__ = ["BATCH", "Batch", "Behind", "Waiting"]


BATCH = 32  # folders that are made at a time, at most
LOW = 24  # folders left when more are made, at most
MOST_SHELVES = 8  # kinds that folders are kept of: those asked for last
_K = TypeVar("_K")


class Behind(Protocol):
    """What works behind the calls of one open store, or keeps something for the next of them."""

    def finish(self) -> None:
        """Have done what is to be done."""

    def rest(self) -> None:
        """The same, and give back what is kept."""

    def close(self) -> None:
        """The same, for good.  Idempotent."""


class Batch:
    """Folders that were made together."""

    __slots__ = ("lock", "open")

    def __init__(self, lock: FileLock, count: int) -> None:
        self.lock = lock
        self.open = count  # how many have no row yet


class _Shelf(Generic[_K]):
    """The folders of a kind."""

    __slots__ = ("like", "ready", "taken")

    def __init__(self, like: _K) -> None:
        self.like = like
        self.ready: deque[tuple[str, Batch]] = deque()
        self.taken = 0

    def is_low(self) -> bool:
        """Whether more are to be made: the more were taken, the more wait."""
        return self.taken > 1 and len(self.ready) < min(LOW, 2 * self.taken)

    def missing(self) -> int:
        """How many are to be made then."""
        return min(BATCH, 4 * self.taken)


class Waiting(ABC, Generic[_K]):
    """The folders that wait in one open store.  Thread-safe; its thread lives while there is work.

    A kind says how to make folders of it, find out whether one has a row, and delete one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin()
        watch_forks(self)

    def _begin(self) -> None:
        self._guard = threading.Condition()  # guards the fields below, and what is on them
        self._shelves: OrderedDict[object, _Shelf[_K]] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._round: object | None = None  # what the thread is at
        self._closed = False

    # -- of a kind ------------------------------------------------------------------------------

    @abstractmethod
    def _make(self, like: _K, count: int) -> list[tuple[str, Batch]]:
        """So many, in a batch or more."""

    @abstractmethod
    def _is_named(self, folder: str) -> bool:
        """Whether it has a row."""

    @abstractmethod
    def _discard(self, folder: str) -> None:
        """Delete one that has none."""

    # -------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """See `orlop.metadata.forks`."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew: what waits is the parent's."""
        for shelf in self._shelves.values():
            for batch in {batch for _, batch in shelf.ready}:
                batch.lock.abandon()
        self._begin()

    @contextlib.contextmanager
    def taken(self, key: object, like: _K) -> Iterator[str]:
        """A folder for a ``with`` block, which names it; one that it did not name is discarded.

        ``like`` says how to make folders of the kind ``key``.
        """
        folder, batch = self._take(key, like)
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(Error):  # a collection takes what stays
                # An interrupt may come when the row is there already.
                if not self._is_named(folder):
                    self._discard(folder)
            raise
        finally:
            self._settle(batch)

    def finish(self) -> None:
        """Nothing is to be done."""

    def rest(self) -> None:
        """Discard what waits; what others ask for meanwhile is theirs."""
        with self._guard:
            at = self._round
            ready = [one for shelf in self._shelves.values() for one in shelf.ready]
            self._shelves.clear()
        self._drop(ready)
        with self._guard:  # what is being made for a shelf that is gone is discarded, too
            self._guard.wait_for(lambda: at is None or self._round is not at)

    def close(self) -> None:
        """Discard what waits.  Idempotent; nothing is taken any more."""
        with self._guard:
            self._closed = True
        self.rest()
        with self._guard:
            self._guard.wait_for(lambda: self._thread is None)

    def _take(self, key: object, like: _K) -> tuple[str, Batch]:
        with self._guard:
            if self._closed:
                raise Unavailable("make a folder", "the store is closing")
            shelf = self._shelves.get(key)
            if shelf is None:
                shelf = self._shelves[key] = _Shelf(like)
            self._shelves.move_to_end(key)
            shelf.taken += 1
            found = shelf.ready.popleft() if shelf.ready else None
            if shelf.is_low() and self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread is to be had: what is asked for is made
                    thread.start()
                    self._thread = thread
        return found if found is not None else self._make(like, 1)[0]

    def _settle(self, batch: Batch) -> None:
        with self._guard:
            batch.open -= 1
            done = not batch.open
        if done:
            batch.lock.release()

    def _drop(self, ready: Sequence[tuple[str, Batch]]) -> None:
        for folder, batch in ready:
            with contextlib.suppress(Error):  # a collection takes what stays
                self._discard(folder)
            self._settle(batch)

    def _run(self) -> None:
        try:
            self._fill()
        except BaseException:
            with self._guard:  # a bug; who comes next has a new thread
                self._thread = self._round = None
                self._guard.notify_all()
            raise

    def _fill(self) -> None:
        """Make folders until enough wait, and discard those of kinds that nobody asks for any more."""
        while True:
            with self._guard:
                spare: list[tuple[str, Batch]] = []
                while len(self._shelves) > MOST_SHELVES:
                    spare += self._shelves.popitem(last=False)[1].ready
                wanted = None if self._closed else self._lowest()
                done = wanted is None and not spare
                self._round = None if done else object()
                if done:
                    self._thread = None
                self._guard.notify_all()
                if done:
                    return
            self._drop(spare)
            if wanted is None:
                continue
            made: list[tuple[str, Batch]] = []
            try:
                made = self._make(wanted.like, wanted.missing())
            except Error as exc:  # whoever needs one makes it, and is told why it cannot be
                logging.getLogger(__name__).debug("no folders are made beforehand: %s", exc)
                wanted.taken = 0
            with self._guard:
                kept = any(shelf is wanted for shelf in self._shelves.values())
                if kept:
                    wanted.ready += made
            if not kept:
                self._drop(made)

    def _lowest(self) -> _Shelf[_K] | None:
        """A shelf that is to be filled.  Needs the guard."""
        low = [shelf for shelf in self._shelves.values() if shelf.is_low()]
        return min(low, key=lambda shelf: len(shelf.ready), default=None)
