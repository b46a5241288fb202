"""What happened to a store: the contract of its events, and their values.

Events are of the store and told by it, whoever changed it: a daemon, a command, a library.  They are not the
progress of a call (`orlop.observe.Progress`), which is told to that call's observer and nowhere kept.

A *cursor* is a text: the place in one store's log right after an event.  Whoever keeps the last one it has
seen can go on there, after any pause, and misses nothing and sees nothing twice.  The log is bounded
(``Settings.events_kept``, ``events_age``): what lies before its beginning is answered by an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.hints import Protocol
from orlop.observe import Call
from orlop.values import dataclass

__all__ = [
    "EVENT_KINDS",
    "Event",
    "EventQuery",
    "EventStream",
    "Events",
    "Position",
    "check_query",
    "cursor_of",
    "is_wanted",
    "lost",
    "seq_of",
]

EVENT_KINDS: Mapping[str, str] = {
    "image.created": "a name means an image that meant none",
    "image.updated": "a name means another image, or the same one has got its manifest",
    "image.removed": "a name means nothing any more",
    "image.pulled": "a pull has ended, whether or not something was missing",
    "image.pushed": "a registry has taken an image",
    "image.committed": "a commit has made an image",
    "image.imported": "an archive, a layout or a root file system has become an image",
    "root.prepared": "a root is prepared",
    "root.mounted": "orlop is about to mount a root itself",
    "root.unmounted": "orlop has taken its mounts away, or could not make them",
    "root.cleaned": "a root is given up, and what was written to it is going",
    "root.forked": "a root was made of another",
    "root.moved": "a root has another path: a fork that gives up its source",
    "root.checkpointed": "what a root is has got a name",
    "root.checkpoint-dropped": "that name is gone",
    "root.rolled-back": "a root is what it was at a checkpoint",
    "store.collected": "nothing needs some layers, blobs, chains or folders, and they are going",
}
"""The kinds, and what each says.  A newer orlop may know more."""

_CURSOR = re.compile(r"([0-9a-f]{8})-(0|[1-9][0-9]{0,17})")
_SHOWN = 100  # characters of a wrong cursor or kind that an error repeats
_MOST_KINDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    ``cursor`` is the place right after it; ``seq`` its number in the log; ``time_ns`` in nanoseconds since
    1970, by the clock of the machine (so it may go back).  ``kind`` is one of `EVENT_KINDS`, or a newer one.
    ``subject`` is an image's name or a root's path; empty where it is the store.  ``namespace`` is empty for
    what all namespaces share.  ``attributes`` are texts; docs/events.md has those of each kind.
    """

    cursor: str
    seq: int
    time_ns: int
    kind: str
    namespace: str
    subject: str
    attributes: Mapping[str, str]

    @property
    def time(self) -> str:
        """RFC 3339, in microseconds."""
        stamp = datetime.fromtimestamp(self.time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{stamp}.{self.time_ns // 1000 % 1_000_000:06}Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place in the log that was reached without an event to tell: the start, or past others."""

    cursor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Which events.

    They begin after ``cursor``, or at the time ``since_ns``, or with the ``oldest`` that is kept.  Without
    any of these: with the oldest, or, if ``follow`` is set, with the next to come.  ``kinds`` are kinds, or
    their first words (``image``); none stands for all.
    """

    cursor: str = ""
    since_ns: int | None = None
    oldest: bool = False
    follow: bool = False
    kinds: tuple[str, ...] = ()


class Events(Protocol):
    """What happened, and what happens."""

    def watch_events(self, query: EventQuery, *, call: Call) -> Generator[Event | Position]:
        """Events in their order; first a `Position`, from which on nothing will be missed.

        Ends with the last event there was when it began; with ``follow`` it goes on until ``call`` is
        cancelled or past its deadline (`Cancelled`, `DeadlineExceeded`).  A daemon's client connects again
        where the daemon goes away and comes back, and goes on after what it has given.

        Raises `FailedPrecondition`, with the detail ``lost``, where events after the cursor are not kept any
        more, also in the midst of following; and for a cursor of another store.  `InvalidArgument` for no
        cursor, or no kind.  Of a time before the oldest event that is kept the observer is warned.
        """
        ...


class EventStream(Iterator[Event]):
    """The events of a `watch_events`, and the place that was reached; a context manager.

    ``cursor`` is where to go on after the events that were given, also past those of other kinds.  Made in
    the place of the first event: from then on nothing is missed.  Used by one thread at a time.
    """

    def __init__(self, steps: Generator[Event | Position]) -> None:
        self._steps = steps
        self.cursor = ""
        first = next(steps, None)
        self._first = first if isinstance(first, Event) else None
        if isinstance(first, Position):
            self.cursor = first.cursor

    def __next__(self) -> Event:
        """The next event; waits for it if the stream follows."""
        step: Event | Position
        if self._first is not None:
            step, self._first = self._first, None
        else:
            step = next(self._steps)
        while not isinstance(step, Event):
            self.cursor = step.cursor
            step = next(self._steps)
        self.cursor = step.cursor
        return step

    def close(self) -> None:
        """End it.  Idempotent."""
        self._steps.close()

    def __enter__(self) -> EventStream:
        """Itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self.close()


def check_query(query: EventQuery) -> None:
    """Raise `InvalidArgument` for two beginnings, for what is no cursor, and for kinds that there are not."""
    attempted = "read events"
    if (query.cursor != "") + (query.since_ns is not None) + query.oldest > 1:
        raise InvalidArgument(attempted, "more than one beginning", hint="give a cursor, a time, or oldest")
    if query.cursor and _CURSOR.fullmatch(query.cursor) is None:
        raise InvalidArgument(
            attempted, f"not a cursor: {query.cursor[:_SHOWN]!r}", hint="it is an event's, as 1a2b3c4d-17"
        )
    if query.since_ns is not None and not 0 <= query.since_ns < 2**63:
        raise InvalidArgument(attempted, f"no time: {query.since_ns}")
    if len(query.kinds) > _MOST_KINDS:
        raise InvalidArgument(attempted, f"{len(query.kinds)} kinds; there are not so many")
    families = {kind.partition(".")[0] for kind in EVENT_KINDS}
    for kind in query.kinds:
        if kind not in EVENT_KINDS and kind not in families:
            raise InvalidArgument(
                attempted,
                f"there are no events of kind {kind[:_SHOWN]!r}",
                hint=f"there are {', '.join(sorted(families))}, and below them {', '.join(EVENT_KINDS)}",
            )


def is_wanted(kinds: Collection[str]) -> Callable[[str], bool]:
    """Whether a kind is one of some, or below one."""
    if not kinds:
        return lambda kind: True
    return lambda kind: kind in kinds or kind.partition(".")[0] in kinds


def cursor_of(log: str, seq: int) -> str:
    """The place after an event of a log.

    >>> cursor_of("1a2b3c4d", 17)
    '1a2b3c4d-17'
    """
    return f"{log}-{seq}"


def seq_of(cursor: str, log: str, first: int, last: int) -> int:
    """The number that a cursor stands for, in a log that has the events from ``first`` to ``last``.

    Raises `FailedPrecondition` for one of another log, or past the last.
    """
    oldest = cursor_of(log, max(0, first - 1))
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidArgument("read events", f"not a cursor: {cursor[:_SHOWN]!r}")
    if match[1] != log:
        raise lost(cursor, "it is of another store's events, or this one was made anew", oldest)
    seq = int(match[2])
    if seq > last:
        raise lost(cursor, "the store has not come that far: it was put back to an earlier state", oldest)
    return seq


def lost(cursor: str, reason: str, oldest: str) -> FailedPrecondition:
    """The error of a cursor after which not all is kept; its details say from where on there is something."""
    return FailedPrecondition(
        f"read events after {cursor}",
        reason,
        hint="look at everything again, and go on with the oldest event there is ('--since oldest')",
        details={"lost": cursor, "oldest": oldest},
    )


def kinds_of(kinds: str | Sequence[str]) -> tuple[str, ...]:
    """Kinds as people give them: one, or several."""
    return (kinds,) if isinstance(kinds, str) else tuple(kinds)
