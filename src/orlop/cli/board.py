"""What is under way, as events tell it: how far each item is, how fast, and all of them together.

No I/O and no clock of its own: whoever draws brings the time.  Invariants: a rate counts bytes that came
while one looked, not those that a resumed download found on the disk; it falls where nothing comes.  An item
is in the sum once, however many phases it has.  Used under the lock of whoever draws.
"""

from __future__ import annotations

from collections import deque

from orlop.observe import Progress
from orlop.values import dataclass

__all__ = ["FINAL", "Board", "Item", "Meter", "Sum", "is_digest", "is_whole"]

FINAL = ("done", "exists", "mounted")
"""The last phases of an item."""

_INHERITED = ("fetching", "following")  # may begin where an earlier call, or another, has come to
_WINDOW = 5.0  # seconds of which a rate is the mean
_SAMPLE = 0.25  # seconds between two looks that are remembered
_LEAST = 0.5  # seconds before there is a rate to speak of


def is_digest(item: str) -> bool:
    """Whether an item is content, not the name of a whole, or a path."""
    algorithm, colon, digits = item.partition(":")
    return bool(colon) and algorithm in {"sha256", "sha384", "sha512"} and len(digits) >= 32


def is_whole(item: str) -> bool:
    """Whether an item is what a call is about, as a name or a path, and not a part of it."""
    return not is_digest(item) and not item.startswith("chain ")


class Meter:
    """Bytes a second, over the last few seconds."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, count: int) -> None:
        """So many bytes are there now; fewer than before where they begin anew."""
        samples = self._samples
        if samples and count < samples[-1][1]:
            samples.clear()
        if not samples or now - samples[-1][0] >= _SAMPLE:
            samples.append((now, count))

    def rate(self, now: float, count: int) -> float:
        """The rate up to now, where so many bytes are; 0 where it is too early to say."""
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - _WINDOW:
            samples.popleft()
        if not samples or now - samples[0][0] < _LEAST:
            return 0.0
        return max(0, count - samples[0][1]) / (now - samples[0][0])


class Item:
    """One item, and what its events have said.

    ``made`` are the bytes of a layer's tar that are there, while it is fetched and after; ``counted`` says
    that its bytes are in the sum.
    """

    __slots__ = ("counted", "done", "made", "making", "meter", "name", "note", "phase", "total")

    def __init__(self, name: str) -> None:
        self.name = name
        self.phase = ""
        self.done = 0
        self.total = 0
        self.made = 0
        self.note = ""
        self.counted = False
        self.meter = Meter()
        self.making = Meter()

    def take(self, event: Progress, now: float) -> int:
        """Take an event in; how many bytes have come with it."""
        if event.phase == "retrying":
            began = self.phase not in {"", "waiting"}
            self.phase, self.note = self.phase if began else event.phase, event.note
            return 0
        self.note = event.note
        if event.phase == "indexing":
            self.made = event.done
            self.making.note(now, event.done)
            if self.phase != "fetching" or self.done >= self.total:
                self.phase = event.phase
            return 0
        first = self.phase in {"", "waiting", "retrying"}
        before, self.phase = self.done, event.phase
        if event.phase in FINAL:
            self.total = event.total or self.total
            self.done = max(self.total, event.done)
            return max(0, self.done - before) if event.phase == "done" else 0
        self.done, self.total = event.done, event.total or self.total
        if not self.waits:
            self.meter.note(now, event.done)
        return 0 if first and event.phase in _INHERITED else max(0, event.done - before)

    @property
    def waits(self) -> bool:
        """Whether nothing of it has begun."""
        return self.phase == "waiting"

    def rate(self, now: float) -> float:
        """Bytes a second in the phase that it is in."""
        if self.phase == "indexing":
            return self.making.rate(now, self.made)
        return self.meter.rate(now, self.done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Several items as one: bytes, bytes a second, and how many of how many are finished.

    ``total`` is 0 as long as that of one is not known.
    """

    done: int
    total: int
    rate: float
    finished: int
    number: int


class Board:
    """All items of one call, or of several calls one after the other."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}  # those that are not finished, in the order in which they came
        self.moved = 0  # bytes that came
        self.began: float | None = None
        self.note = ""  # why all of it waits, if it does
        self._meter = Meter()
        self._clear()

    def _clear(self) -> None:
        self.over_bytes = 0  # of all that are finished
        self._over_done = self._over_total = 0  # of the counted that are
        self.finished = 0
        self.there = 0  # that had to be neither fetched nor sent
        self._uncounted = 0  # of them, those that nobody waited for

    def take(self, event: Progress, now: float) -> Item:
        """Take an event in; the item that it is about.  One that is finished is in ``items`` no more."""
        if self.began is None:
            self.began = now
            self._meter.note(now, 0)
        name = event.item
        if event.phase == "retrying" and name not in self.items and not is_digest(name):
            self.note = event.note
            waiting = Item(name)
            waiting.take(event, now)
            return waiting
        self.note = ""
        item = self.items.get(name)
        if item is None:
            item = Item(name)
            if event.phase not in FINAL:
                self.items[name] = item
        moved = item.take(event, now)
        if is_digest(name) and event.phase not in {"exists", "mounted"}:
            item.counted = True
        if moved and (item.counted or not self._counts()):
            self.moved += moved
            self._meter.note(now, self.moved)
        if event.phase in FINAL:
            self._finish(item)
        return item

    def _counts(self) -> bool:
        return bool(self._over_total) or any(item.counted for item in self.items.values())

    def _finish(self, item: Item) -> None:
        self.items.pop(item.name, None)
        if item.phase in {"exists", "mounted"}:
            self.there += 1
        if item.counted:
            self.finished += 1
            self._over_done += item.done
            self._over_total += item.total or item.done
        elif is_digest(item.name):
            self._uncounted += 1
        if is_digest(item.name):
            self.over_bytes += item.done

    def settle(self) -> None:
        """A whole is there, and what is next is counted from nothing; not while something is under way."""
        if not any(item.counted for item in self.items.values()):
            self._clear()
            self.began, self.moved, self._meter = None, 0, Meter()

    # -- all together ---------------------------------------------------------------------------

    @property
    def over(self) -> int:
        """How many items are finished, but for wholes."""
        return self.finished + self._uncounted

    @property
    def number(self) -> int:
        """How many items there are, finished or not, but for wholes."""
        return self.over + len(self.counted)

    @property
    def counted(self) -> list[Item]:
        """Those under way that are in the sum."""
        return [item for item in self.items.values() if item.counted]

    def shown(self) -> list[Item]:
        """Those under way that are worth a line: what resolves is not, once its parts are known."""
        known = self.finished or self.there or any(item.counted for item in self.items.values())
        return [item for item in self.items.values() if not (known and item.phase == "resolving")]

    def sum(self, now: float) -> Sum | None:
        """All that are counted, as one; None where the line of one, or of the whole, says as much."""
        counted = self.counted
        number = self.finished + len(counted)
        told = any(item.total and not item.counted for item in self.items.values())
        if number < 2 or not counted or told:
            return None
        known = all(item.total or item.waits for item in counted)
        return Sum(
            done=self._over_done + sum(item.done for item in counted),
            total=self._over_total + sum(item.total for item in counted) if known else 0,
            rate=self.rate(now),
            finished=self.finished,
            number=number,
        )

    def rate(self, now: float) -> float:
        """Bytes a second of all together."""
        self._meter.note(now, self.moved)
        return self._meter.rate(now, self.moved)

    def kept(self) -> tuple[int, int]:
        """Bytes of the counted items that are there, and of all of them."""
        counted = self.counted
        total = self._over_total + sum(max(item.total, item.done) for item in counted)
        return self._over_done + sum(item.done for item in counted), total
