"""The verb of `orlop.images.events`, answered by a daemon.

Not `orlop.client.events`, which reads what a call's own stream reports of its progress.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing

from orlop.client import wireevents
from orlop.client.link import Link, unicode_only
from orlop.errors import Cancelled, DeadlineExceeded, Unavailable
from orlop.images.events import Event, EventQuery, Position, check_query
from orlop.observe import Call
from orlop.values import replace

__all__ = ["RemoteEvents"]

PATIENCE = 60.0  # seconds for a daemon that went away to be back
_PAUSE = 0.1  # seconds before the first try to connect again
_LONGEST = 2.0  # and at most
_CALL = Call()
_WHAT = "read events"


class RemoteEvents:
    """The events of a daemon's store.  Thread-safe."""

    _link: Link

    def watch_events(self, query: EventQuery, *, call: Call = _CALL) -> Generator[Event | Position]:
        """See `orlop.images.events.Events.watch_events`."""
        check_query(query)
        return self._watch(query, call)

    def _watch(self, query: EventQuery, call: Call) -> Generator[Event | Position]:
        until, pause = 0.0, _PAUSE
        reached = ""  # the place to go on from, once one is known
        while True:
            try:
                for step in self._once(query, call):
                    until, pause = 0.0, _PAUSE
                    if step.cursor != reached:  # else it is where another stream has begun
                        reached = step.cursor
                        query = replace(query, cursor=reached, since_ns=None, oldest=False)
                        yield step
                return
            except (Unavailable, Cancelled, DeadlineExceeded):
                # Its deadline, and that it cancels what runs when it stops, are the daemon's own.
                call.check(_WHAT)
                if not (query.follow and reached):
                    raise
                until = until or time.monotonic() + PATIENCE
                if time.monotonic() > until:
                    raise
                call.pause(pause, _WHAT)
                pause = min(2 * pause, _LONGEST)

    def _once(self, query: EventQuery, call: Call) -> Generator[Event | Position]:
        """The steps of one stream."""
        with unicode_only(_WHAT):
            request = wireevents.query_to(query)
        with closing(self._link.stream(lambda s: s.events.Watch, request, _WHAT, call=call)) as steps:
            for step in steps:
                kind = step.WhichOneof("step")
                if kind == "event":
                    yield wireevents.event_from(step.event)
                elif kind == "position":
                    yield Position(cursor=step.position.cursor)
                elif kind == "warning":
                    call.warn_once(step.warning.text)
