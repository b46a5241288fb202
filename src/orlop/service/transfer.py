"""orlop.v1.Transfer: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import os
from collections.abc import Iterator

import grpc

from orlop.client import wire
from orlop.errors import InvalidArgument
from orlop.images import api
from orlop.observe import Progress
from orlop.proto.orlop.v1 import transfer_pb2 as pb
from orlop.proto.orlop.v1 import transfer_pb2_grpc
from orlop.service.calls import watched, with_auth

__all__ = ["Transfer"]

_Context = grpc.ServicerContext


class Transfer(transfer_pb2_grpc.TransferServicer):
    """Images in and out."""

    def __init__(self, store: api.Store) -> None:
        self._store = store

    def Pull(self, request: pb.PullRequest, context: _Context) -> Iterator[pb.PullResponse]:
        """Fetch an image."""
        platform = [*([request.platform] if request.HasField("platform") else []), *request.platforms]
        for event in watched(
            context,
            lambda call: self._store.pull(
                request.name,
                platform=platform,
                all_platforms=request.all_platforms,
                call=with_auth(call, request.auth),
            ),
        ):
            if isinstance(event, Progress):
                yield pb.PullResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.PullResponse(warning=wire.warning_to(event))
            else:
                yield pb.PullResponse(image=wire.image_to(event[0]))

    def Push(self, request: pb.PushRequest, context: _Context) -> Iterator[pb.PushResponse]:
        """Send an image."""
        destination = request.destination if request.HasField("destination") else None
        for event in watched(
            context,
            lambda call: self._store.push(
                request.name,
                destination,
                tags=tuple(request.tags),
                recompress=request.recompress,
                all_platforms=request.all_platforms,
                call=with_auth(call, request.auth),
            ),
        ):
            if isinstance(event, Progress):
                yield pb.PushResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.PushResponse(warning=wire.warning_to(event))
            else:
                yield pb.PushResponse(pushed=wire.pushed_to(event[0]))

    def FetchBlobs(self, request: pb.FetchBlobsRequest, context: _Context) -> Iterator[pb.FetchBlobsResponse]:
        """Fetch the blobs of an image's layers."""
        for event in watched(
            context,
            lambda call: self._store.fetch_blobs(request.name, call=with_auth(call, request.auth)),
        ):
            if isinstance(event, Progress):
                yield pb.FetchBlobsResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.FetchBlobsResponse(warning=wire.warning_to(event))
            else:
                yield pb.FetchBlobsResponse(blobs=wire.blobs_to(event[0]))

    def Load(self, request: pb.LoadRequest, context: _Context) -> Iterator[pb.LoadResponse]:
        """Import a folder or an archive; relative to the daemon's own folder it would mean nothing."""
        if not os.path.isabs(request.source):
            raise InvalidArgument(f"load {request.source}", "the path is not absolute")
        name = request.name if request.HasField("name") else None
        for event in watched(
            context,
            lambda call: self._store.load(
                request.source,
                name=name,
                platform=list(request.platforms),
                all_platforms=request.all_platforms,
                call=call,
            ),
        ):
            if isinstance(event, Progress):
                yield pb.LoadResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.LoadResponse(warning=wire.warning_to(event))
            else:
                images = [wire.image_to(image) for image in event[0]]
                yield pb.LoadResponse(loaded=pb.Loaded(images=images))
