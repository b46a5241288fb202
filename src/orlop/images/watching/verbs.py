"""Watching, done in this process.  Orchestration only."""

from __future__ import annotations

from collections.abc import Generator

from orlop.hints import TYPE_CHECKING
from orlop.images.parts import Parts
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.events import Event, EventQuery, Position
    from orlop.images.watching.sizes import StoreSizes

__all__ = ["WatchVerbs"]

_CALL = Call()


class WatchVerbs(Parts):
    """Satisfies `orlop.images.events.Events`.  Thread-safe."""

    def watch_events(self, query: EventQuery, *, call: Call = _CALL) -> Generator[Event | Position]:
        """See `orlop.images.events.Events.watch_events`."""
        from orlop.images.watching.follow import watch

        return watch(self._core, query, call)

    def sizes(self) -> StoreSizes:
        """What the store's rows sum up to; see `orlop.images.watching.sizes`."""
        from orlop.images.watching.sizes import sizes_of

        return sizes_of(self._core)
