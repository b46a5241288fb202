"""What happened and what happens, in Python's terms: a part of `orlop.Store`."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.hints import TYPE_CHECKING
from orlop.observe import Call

if TYPE_CHECKING:
    from datetime import datetime

    from orlop.images.api import Store as StoreVerbs
    from orlop.images.events import EventStream

__all__ = ["StoreEvents"]


class StoreEvents:
    """Watching a store; `orlop.images.events` has the contract."""

    verbs: StoreVerbs

    def events(
        self,
        since: str | float | datetime | None = None,
        *,
        follow: bool = False,
        kinds: str | Sequence[str] = (),
        call: Call | None = None,
    ) -> EventStream:
        """The store's events, whoever made them; a context manager, and an iterator.

        ``since`` is a cursor, ``"oldest"``, or a time: a `datetime` or seconds since 1970.  Without it all
        that are kept or, if ``follow`` is set, those that happen from this moment on.  ``kinds`` are such as
        ``image.pulled``, or ``image`` for all below it.  With ``follow`` the iterator waits for more until
        ``call`` is cancelled.  The stream's ``cursor`` is where another can go on.

        Raises `FailedPrecondition` where events after a cursor are not kept any more.

        >>> with store.events("oldest", kinds="image.imported") as events:
        ...     next(events).subject
        'docker.io/library/alpine:latest'
        """
        from orlop.images.events import EventQuery, EventStream, kinds_of

        cursor, since_ns = "", None
        if isinstance(since, str):
            cursor = "" if since == "oldest" else since
        elif since is not None:
            seconds = since if isinstance(since, (int, float)) else since.timestamp()
            since_ns = max(0, int(seconds * 1_000_000)) * 1000  # a double has no more
        query = EventQuery(
            cursor=cursor,
            since_ns=since_ns,
            oldest=since == "oldest",
            follow=follow,
            kinds=kinds_of(kinds),
        )
        return EventStream(self.verbs.watch_events(query, call=call or Call()))
