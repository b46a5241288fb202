"""orlop.v1.Events: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.client import wire, wireevents
from orlop.images.events import Event
from orlop.images.events import Events as EventVerbs
from orlop.proto.orlop.v1 import events_pb2 as pb
from orlop.proto.orlop.v1 import events_pb2_grpc
from orlop.service.calls import Warnings, call_of

__all__ = ["Events"]


class Events(events_pb2_grpc.EventsServicer):
    """What happens in the store.  A stream's thread is one of those for idle ones."""

    def __init__(self, verbs: EventVerbs) -> None:
        self._verbs = verbs

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchResponse]:
        """The events from a place on."""
        warnings = Warnings()
        call = call_of(context, warnings)
        for step in self._verbs.watch_events(wireevents.query_from(request), call=call):
            while warnings.texts:
                yield pb.WatchResponse(warning=wire.warning_to(warnings.texts.pop(0)))
            if isinstance(step, Event):
                yield pb.WatchResponse(event=wireevents.event_to(step))
            else:
                yield pb.WatchResponse(position=pb.Position(cursor=step.cursor))
