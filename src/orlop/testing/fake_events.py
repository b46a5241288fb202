"""Events of `orlop.testing.fake.FakeStore`: a list, and who follows waits for it to grow."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime

from orlop.images.events import Event, EventQuery, Position, check_query, cursor_of, is_wanted, seq_of
from orlop.observe import Call
from orlop.testing.fake_base import FakeBase

__all__ = ["FakeEvents"]

_LOG = "0fa4e000"  # every fake's


class FakeEvents(FakeBase):
    """Satisfies `orlop.images.events.Events`.  Thread-safe."""

    def tell(self, kind: str, subject: str, **attributes: str) -> None:
        """Have something happened; the verbs do that, and a test may."""
        with self._lock:
            seq = len(self._told) + 1
            self._told.append(
                Event(
                    cursor=cursor_of(_LOG, seq),
                    seq=seq,
                    time_ns=int(datetime.fromisoformat(self.now).timestamp()) * 1_000_000_000 + seq,
                    kind=kind,
                    namespace="default",
                    subject=subject,
                    attributes=attributes,
                )
            )

    def watch_events(self, query: EventQuery, *, call: Call | None = None) -> Generator[Event | Position]:
        """From a place on."""
        call = self._begin("watch_events", "", call)
        check_query(query)
        return self._watch(query, call)

    def _watch(self, query: EventQuery, call: Call) -> Generator[Event | Position]:
        with self._lock:
            end = len(self._told)
            at = end if query.follow and not query.oldest else 0
            if query.cursor:
                at = seq_of(query.cursor, _LOG, 1 if end else 0, end)
            elif query.since_ns is not None:
                at = sum(event.time_ns < query.since_ns for event in self._told)
        yield Position(cursor=cursor_of(_LOG, at))
        wanted = is_wanted(query.kinds)
        while query.follow or at < end:
            with self._lock:
                found = self._told[at : None if query.follow else end]
            if not found:
                call.pause(0.005, "read events")
            for event in found:
                at = event.seq
                if wanted(event.kind):
                    yield event
            if found and not wanted(found[-1].kind):
                yield Position(cursor=cursor_of(_LOG, at))
