"""Reading the log of events from a place on, and waiting for more.

Whoever waits asks SQLite a few times a second whether any process has written (`Database.version`), which
costs microseconds; only then the log is read.  So a command's change is seen by a daemon's clients, and
nothing runs between processes.
"""

from __future__ import annotations

from collections.abc import Generator

from orlop.images.core import Core
from orlop.images.events import Event, EventQuery, Position, check_query, cursor_of, is_wanted, lost, seq_of
from orlop.metadata import events
from orlop.metadata.db import Transaction
from orlop.metadata.events import EventRow, LogRow
from orlop.observe import Call

__all__ = ["watch"]

_BATCH = 256  # events that one transaction reads
_SOON = 0.02  # seconds until the next look, after something happened
_LATEST = 0.2  # and after nothing has for a while
_WHAT = "read events"


def watch(core: Core, query: EventQuery, call: Call) -> Generator[Event | Position]:
    """See `orlop.images.events.Events.watch_events`."""
    check_query(query)
    return _watch(core, query, call)


def _watch(core: Core, query: EventQuery, call: Call) -> Generator[Event | Position]:
    version = core.db.version()
    log, at = core.db.read(lambda tx: _begin(tx, query, call))
    end = log.last
    wanted = is_wanted(query.kinds)
    yield Position(cursor=cursor_of(log.id, at))
    pause = _SOON
    while query.follow or at < end:
        call.check(_WHAT)
        rows = _read(core, log.id, at, query)
        told = at
        for row in rows:
            if not query.follow and row.seq > end:
                break
            at = row.seq
            if wanted(row.kind):
                told = at
                yield _event(log.id, row)
        if told < at:
            yield Position(cursor=cursor_of(log.id, at))
        if len(rows) == _BATCH or not query.follow:
            continue
        pause = _SOON if rows else pause
        while (now := core.db.version()) == version:
            call.pause(pause, _WHAT)
            pause = min(pause * 1.5, _LATEST)
        version = now


def _begin(tx: Transaction, query: EventQuery, call: Call) -> tuple[LogRow, int]:
    """The log as it is, and the number after which to begin."""
    log = events.log_of(tx)
    if query.cursor:
        return log, seq_of(query.cursor, log.id, log.first, log.last)
    if query.since_ns is not None:
        first = events.first_since(tx, query.since_ns)
        if log.first > 1 and first == log.first:
            call.warn_once("events of that time are not kept any more: these are the oldest there are")
        return log, log.last if first is None else first - 1
    if query.oldest or not query.follow:
        return log, max(0, log.first - 1)
    return log, log.last


def _read(core: Core, log: str, at: int, query: EventQuery) -> list[EventRow]:
    """The next events; raises as `lost` where the very next is not there any more."""

    def body(tx: Transaction) -> tuple[list[EventRow], int]:
        return events.read_after(tx, at, _BATCH), events.log_of(tx).first

    rows, first = core.db.read(body)
    if first > at + 1:
        raise lost(
            cursor_of(log, at),
            f"{first - at - 1} events after it are not kept any more",
            cursor_of(log, first - 1),
        )
    return rows


def _event(log: str, row: EventRow) -> Event:
    return Event(
        cursor=cursor_of(log, row.seq),
        seq=row.seq,
        time_ns=row.time_ns,
        kind=row.kind,
        namespace=row.namespace,
        subject=row.subject,
        attributes=row.attributes,
    )
