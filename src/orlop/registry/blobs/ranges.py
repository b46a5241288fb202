"""Which range of a blob to fetch next, and over how many connections.  No I/O, no clock of its own.

A blob begins over one connection.  Where much of it is missing, a further one is tried for a while: it
stays if all that comes from the registry comes faster with it, else it goes, and the next trial is later.
Connections get pieces one after the other from the front on, as long as a few seconds of their speed, so
that none ever has to be cut short; none begins further ahead than the window: what is ahead of the front
waits to be hashed.

Invariants: no byte is given out twice; what was given out and did not come is given out again; where ranges
were refused, one stream fetches all the rest.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections.abc import Iterable

from orlop.values import dataclass

__all__ = ["PACE", "Pace", "Piece", "Ranges", "Traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When a further connection is tried.  Sizes in bytes, times in seconds."""

    split: int = 32 << 20  # still to come, for which a further connection may pay
    piece: int = 8 << 20  # what a connection is given at least; ``split`` where it is the only one...
    most: int = 256 << 20  # ...and at most
    length: float = 3.0  # how long a piece should take
    window: int = 512 << 20  # how far ahead of the front a piece may begin
    interval: float = 0.5  # over which speed is measured
    gain: float = 1.15  # how many times as fast it must be with one connection more
    hold: float = 5.0  # until the next trial, after one that did not help; longer each time


PACE = Pace()


class Piece:
    """What one connection fetches: the bytes from ``at`` to ``end``.

    ``open`` says that all the rest is asked for, or was answered.
    """

    __slots__ = ("at", "end", "open")

    def __init__(self, at: int, end: int, *, open: bool = False) -> None:  # noqa: A002 - what HTTP calls it
        self.at = at
        self.end = end
        self.open = open

    @property
    def left(self) -> int:
        """The bytes that are still to come."""
        return max(self.end - self.at, 0)

    def __repr__(self) -> str:
        return f"Piece({self.at}, {self.end}{', open=True' if self.open else ''})"


class Traffic:
    """What all downloads from one registry share: a count of bytes, connections to spare.  Thread-safe."""

    def __init__(self, spare: int) -> None:
        self._lock = threading.Lock()  # guards both
        self._spare = spare
        self.total = 0

    def add(self, count: int) -> None:
        """Bytes came."""
        with self._lock:
            self.total += count

    def take(self) -> bool:
        """Take one of the spare connections; False if there is none."""
        with self._lock:
            if not self._spare:
                return False
            self._spare -= 1
            return True

    def give_back(self, count: int = 1) -> None:
        """Give connections back."""
        with self._lock:
            self._spare += count


class Ranges:
    """The plan of one download.  Used by one thread at a time; ``now`` is seconds of any steady clock.

    ``gaps`` are what is missing of ``size`` bytes, in order; ``most`` how many connections there may be.
    A connection asks `take` for a piece, tells of its bytes with `advance`, and ends it with `finish` or
    `give_back`.  It ends itself when it is given no piece and the plan does not `wait`.
    """

    def __init__(
        self,
        *,
        size: int,
        gaps: Iterable[tuple[int, int]],
        most: int,
        pace: Pace = PACE,
        traffic: Traffic | None = None,
        now: float = 0.0,
    ) -> None:
        self._size = size
        self._todo = sorted(gaps)
        self._running: list[Piece] = []
        self._most = max(most, 1)
        self._pace = pace
        self._traffic = traffic or Traffic(self._most - 1)
        self._target = 1  # connections that there should be
        self._taken = 0  # of the spare ones
        self._whole = False  # ranges are refused
        self._since, self._before = now, self._traffic.total
        self._rate = 0.0
        self._base: float | None = None  # the speed without the connection that is being tried
        self._warm = False  # it has had its first interval
        self._hold, self._until = pace.hold, now

    @property
    def running(self) -> int:
        """How many pieces are being fetched."""
        return len(self._running)

    @property
    def target(self) -> int:
        """How many connections there should be."""
        return self._target

    @property
    def complete(self) -> bool:
        """Whether everything has come."""
        return not self._todo and not self._running

    @property
    def wait(self) -> bool:
        """Whether a connection without a piece may get one soon: the front must only move on."""
        return bool(self._todo) and len(self._running) < self._target and not self._whole

    def take(self, front: int) -> Piece | None:
        """A piece for a connection that has none; None where there is nothing to do for it now."""
        running = len(self._running)
        if running >= self._target or (running and self._whole):
            return None
        if not self._todo:
            return None
        start, end = self._todo[0]
        if running and start > front + self._pace.window:
            return None
        if self._whole:
            piece = Piece(start, self._todo[-1][1], open=True)
            self._todo.clear()
        else:
            least = self._pace.split if self._target == 1 else self._pace.piece
            length = self._length(least)
            if self._most == 1 or end - start < length + least // 2:
                del self._todo[0]
            else:
                end = start + length
                self._todo[0] = (end, self._todo[0][1])
            piece = Piece(start, end, open=end == self._size)
        self._running.append(piece)
        return piece

    def _length(self, least: int) -> int:
        each = self._rate / self._target * self._pace.length
        return int(min(max(each, least), self._pace.most))

    def advance(self, piece: Piece, count: int, now: float) -> bool:
        """Bytes of a piece came; True when it is time to try one connection more."""
        piece.at += count
        self._traffic.add(count)
        span = now - self._since
        if span < self._pace.interval or self._whole:
            return False
        total = self._traffic.total
        rate = (total - self._before) / span if span else 0.0
        self._since, self._before = now, total
        if self._base is not None:
            if not self._warm:
                self._warm = True
                return False
            helps = rate >= self._base * self._pace.gain
            self._base = None
            if not helps:
                self._retire()
                self._until = now + self._hold
                self._hold *= 2
                return False
        self._rate = rate
        return self._try(rate, now)

    def _try(self, rate: float, now: float) -> bool:
        left = sum(end - start for start, end in self._todo) + sum(piece.left for piece in self._running)
        if self._target >= self._most or now < self._until or left < self._pace.split:
            return False
        if not self._traffic.take():
            return False
        self._taken += 1
        self._target += 1
        self._base, self._warm = rate, not self._pace.interval
        return True

    def _retire(self) -> None:
        if self._target > 1:
            self._target -= 1
            self._taken -= 1
            self._traffic.give_back()

    def finish(self, piece: Piece) -> None:
        """A piece has come."""
        self._running.remove(piece)

    def give_back(self, piece: Piece) -> None:
        """A piece will not come, or not all of it."""
        self._running.remove(piece)
        if piece.left:
            insort(self._todo, (piece.at, piece.end))
            joined: list[tuple[int, int]] = []
            for start, end in self._todo:
                if joined and joined[-1][1] >= start:
                    joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
                else:
                    joined.append((start, end))
            self._todo = joined

    def shrink(self, now: float) -> None:
        """A connection failed, or was one too many for the registry, while others go on."""
        self._retire()
        self._base = None
        self._until = now + self._hold
        self._hold *= 2

    def refuse(self) -> None:
        """The registry gives no ranges: one stream fetches all the rest, from the first byte missing on.

        One that is answered with all the rest is that stream; what others fetch behind it they leave to it.
        """
        self._whole, self._base = True, None
        self.close()
        streams = [piece for piece in self._running if piece.open]
        if streams:
            stream = min(streams, key=lambda piece: piece.at)
            stream.end = self._size
            self._todo = [(start, min(end, stream.at)) for start, end in self._todo if start < stream.at]
            for piece in self._running:
                if piece.at > stream.at:
                    piece.end = piece.at

    def close(self) -> None:
        """Give back the spare connections.  Idempotent."""
        while self._target > 1:
            self._retire()
