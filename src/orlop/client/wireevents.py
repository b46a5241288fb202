"""Values of `orlop.images.events` and messages of orlop.v1.Events, to and fro."""

from __future__ import annotations

from orlop.client.status import text
from orlop.images.events import Event, EventQuery
from orlop.proto.orlop.v1 import events_pb2 as pb

__all__ = ["event_from", "event_to", "query_from", "query_to"]


def event_to(value: Event) -> pb.Event:
    """An event as a message."""
    return pb.Event(
        cursor=value.cursor,
        seq=value.seq,
        time_ns=value.time_ns,
        kind=value.kind,
        namespace=text(value.namespace),
        subject=text(value.subject),
        attributes={text(key): text(said) for key, said in value.attributes.items()},
    )


def event_from(message: pb.Event) -> Event:
    """An event from a message."""
    return Event(
        cursor=message.cursor,
        seq=message.seq,
        time_ns=message.time_ns,
        kind=message.kind,
        namespace=message.namespace,
        subject=message.subject,
        attributes=dict(sorted(message.attributes.items())),
    )


def query_to(value: EventQuery) -> pb.WatchRequest:
    """Which events, as a request."""
    return pb.WatchRequest(
        cursor=value.cursor,
        since_ns=value.since_ns,
        oldest=value.oldest,
        follow=value.follow,
        kinds=value.kinds,
    )


def query_from(message: pb.WatchRequest) -> EventQuery:
    """Which events, from a request."""
    return EventQuery(
        cursor=message.cursor,
        since_ns=message.since_ns if message.HasField("since_ns") else None,
        oldest=message.oldest,
        follow=message.follow,
        kinds=tuple(message.kinds),
    )
