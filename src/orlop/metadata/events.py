"""Rows about what happened: images, roots, collections.

An event is written in the transaction that does what it tells, so none is lost, and none tells what was
undone.  Transactions follow one another, so an event that has become visible has no lower number than one
that was read before: a reader that remembers the last number misses nothing.

The log is bounded (`Trimmer`): each writer's transactions drop what is too much or too old, from its
beginning, and never the last event.  So ``seq`` has no gaps, and whoever asks for what was dropped can be
told.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

from orlop.hints import TYPE_CHECKING
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = [
    "EventRow",
    "LogRow",
    "Trimmer",
    "add",
    "first_since",
    "log_of",
    "name_of",
    "read_after",
    "rename_log",
]

_STRIDE = 256  # events after which a writer looks again whether there are too many
_MOST_DROPPED = 2_048  # events that one transaction drops, so that none is long
_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One event; ``time_ns`` is in nanoseconds since 1970, by the machine's clock."""

    seq: int
    time_ns: int
    namespace: str
    kind: str
    subject: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """The log: its name, and the numbers of its first and last event (0 and 0 before there are any)."""

    id: str
    first: int
    last: int


def add(
    tx: Transaction, namespace: str, kind: str, subject: str, attributes: Mapping[str, object] = _NOTHING
) -> None:
    """Write an event; attributes that are None or empty are left out."""
    said = {key: str(value) for key, value in attributes.items() if value not in (None, "")}
    tx.execute(
        "INSERT INTO events (time_ns, namespace, kind, subject, attributes) VALUES (?, ?, ?, ?, ?)",
        (time.time_ns(), namespace, kind, subject, _text(said) if said else "{}"),
    )


def _text(said: Mapping[str, str]) -> str:
    """A JSON object, as `json.dumps` writes it with sorted keys; for texts alone, in a fifth of the time."""
    return "{" + ", ".join([f"{_quoted(key)}: {_quoted(said[key])}" for key in sorted(said)]) + "}"


def _quoted(text: str) -> str:
    """A text of JSON.  What is plain, as nearly all is here, needs no encoder, which is 3 ms to import."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return _encoder()(text)


@functools.cache
def _encoder() -> Callable[[str], str]:
    from json import JSONEncoder  # not on the way of a command that only looks

    return JSONEncoder().encode


def log_of(tx: Transaction) -> LogRow:
    """What there is of the log."""
    name = tx.execute("SELECT id FROM event_log WHERE rowid = 1").fetchone()[0]
    return LogRow(id=name, first=_edge(tx, "MIN"), last=_edge(tx, "MAX"))


def name_of(boot: str) -> str:
    """The name of a log that was begun anew in a boot of the machine."""
    from hashlib import sha256

    return sha256(boot.encode()).hexdigest()[:8]


def rename_log(tx: Transaction, name: str) -> None:
    """Make it another log: events may have been lost, and their numbers come again."""
    tx.execute("UPDATE event_log SET id = ?", (name,))


def _edge(tx: Transaction, which: str) -> int:
    return int(tx.execute(f"SELECT COALESCE({which}(seq), 0) FROM events").fetchone()[0])


def first_since(tx: Transaction, time_ns: int) -> int | None:
    """The number of the first event that happened at a time or later; reads the log up to there."""
    row = tx.execute("SELECT seq FROM events WHERE time_ns >= ? ORDER BY seq LIMIT 1", (time_ns,)).fetchone()
    return int(row[0]) if row else None


def read_after(tx: Transaction, seq: int, limit: int) -> list[EventRow]:
    """The next events after a number."""
    from json import loads

    query = (
        "SELECT seq, time_ns, namespace, kind, subject, attributes FROM events "
        "WHERE seq > ? ORDER BY seq LIMIT ?"
    )
    return [
        EventRow(
            seq=row[0],
            time_ns=row[1],
            namespace=row[2],
            kind=row[3],
            subject=row[4],
            attributes=loads(row[5]) if row[5] != "{}" else {},
        )
        for row in tx.execute(query, (seq, limit))
    ]


class Trimmer:
    """Keeps the log to ``most`` events, give or take `_STRIDE`, and to those of the last ``age`` seconds.

    Called at the end of every transaction that writes, by one thread at a time.  ``age`` 0: of any age.

    It looks when a connection may have written that many since it looked, and when it is another: no event is
    written without a change that SQLite counts.  Other processes look at theirs.
    """

    __slots__ = ("_age", "_changes", "_most", "_stride", "_tx")

    def __init__(self, most: int, age: float) -> None:
        self.replace(most, age)

    def replace(self, most: int, age: float) -> None:
        """Go by other bounds, from the next transaction on."""
        self._most = most
        self._age = age
        self._stride = min(_STRIDE, most)
        self._tx: Transaction | None = None  # the connection that was looked at last; None: look
        self._changes = 0  # that SQLite had counted of it then

    def __call__(self, tx: Transaction) -> None:
        """Drop what is too much."""
        changes = tx.total_changes
        if tx is self._tx and changes < self._changes + self._stride:
            return
        self._tx, self._changes = tx, changes
        last = _edge(tx, "MAX")
        upto = last - self._most
        if self._age:
            young = first_since(tx, time.time_ns() - int(self._age * 1e9))
            upto = max(upto, (last if young is None else young) - 1)
        if upto < 1:
            return
        first = _edge(tx, "MIN")
        if upto - first >= _MOST_DROPPED:
            upto = first + _MOST_DROPPED
            self._tx = None  # the next transaction goes on
        tx.execute("DELETE FROM events WHERE seq <= ?", (upto,))
