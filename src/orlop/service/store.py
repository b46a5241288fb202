"""orlop.v1.Store: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc

from orlop.client import wire, wirestore
from orlop.errors import InvalidArgument
from orlop.images import api, upkeep
from orlop.observe import Call, Progress
from orlop.proto.orlop.v1 import store_pb2 as pb
from orlop.proto.orlop.v1 import store_pb2_grpc
from orlop.service.calls import call_of, watched

__all__ = ["Store"]

_Context = grpc.ServicerContext


class Store(store_pb2_grpc.StoreServicer):
    """The store itself."""

    def __init__(self, store: api.Store) -> None:
        self._store = store

    def Info(self, request: pb.InfoRequest, context: _Context) -> pb.InfoResponse:
        """The store and what serves it."""
        return wirestore.info_to(self._store.info())

    def Collect(self, request: pb.CollectRequest, context: _Context) -> Iterator[pb.CollectResponse]:
        """Delete what nothing needs."""
        keep = wirestore.keep_from(request.keep) if request.HasField("keep") else None
        for event in watched(
            context, lambda call: self._store.collect(dry_run=request.dry_run, keep=keep, call=call)
        ):
            if isinstance(event, Progress):
                yield pb.CollectResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.CollectResponse(warning=wire.warning_to(event))
            else:
                yield pb.CollectResponse(collected=wirestore.collected_to(event[0]))

    def Usage(self, request: pb.UsageRequest, context: _Context) -> pb.UsageResponse:
        """What the store takes on disk."""
        return wirestore.usage_to(self._store.usage(call=call_of(context)))

    def Explain(self, request: pb.ExplainRequest, context: _Context) -> pb.ExplainResponse:
        """Why a thing is kept."""
        return wirestore.explanation_to(self._store.explain(request.thing, call=call_of(context)))

    def Pin(self, request: pb.PinRequest, context: _Context) -> pb.PinResponse:
        """Keep a thing."""
        pin = self._store.pin(
            request.thing,
            request.name if request.HasField("name") else None,
            expires=request.expires if request.HasField("expires") else None,
        )
        return pb.PinResponse(pin=wirestore.pin_to(pin))

    def Unpin(self, request: pb.UnpinRequest, context: _Context) -> pb.UnpinResponse:
        """Take a pin back."""
        self._store.unpin(request.name)
        return pb.UnpinResponse()

    def ListPins(self, request: pb.ListPinsRequest, context: _Context) -> pb.ListPinsResponse:
        """All pins."""
        return pb.ListPinsResponse(pins=[wirestore.pin_to(pin) for pin in self._store.pins()])

    def Check(self, request: pb.CheckRequest, context: _Context) -> Iterator[pb.CheckResponse]:
        """Compare what the metadata promise with what is on disk."""

        def work(call: Call) -> upkeep.Checked:
            return self._store.check(
                full=request.full,
                repair=request.repair,
                things=tuple(request.things),
                pace=request.pace if request.HasField("pace") else None,
                call=call,
            )

        for event in watched(context, work):
            if isinstance(event, Progress):
                yield pb.CheckResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.CheckResponse(warning=wire.warning_to(event))
            else:
                yield pb.CheckResponse(checked=wirestore.checked_to(event[0]))

    def Backup(self, request: pb.BackupRequest, context: _Context) -> Iterator[pb.BackupResponse]:
        """Write a backup; relative to the daemon's own folder a path would mean nothing."""
        if not os.path.isabs(request.destination):
            raise InvalidArgument(f"back up to {request.destination}", "the path is not absolute")

        def work(call: Call) -> upkeep.BackedUp:
            return self._store.backup(request.destination, content=request.content, call=call)

        for event in watched(context, work):
            if isinstance(event, Progress):
                yield pb.BackupResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.BackupResponse(warning=wire.warning_to(event))
            else:
                yield pb.BackupResponse(backed_up=wirestore.backed_up_to(event[0]))
