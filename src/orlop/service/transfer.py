"""orlop.v1.Transfer: translation only."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TypeVar

import grpc

from orlop.client import wire
from orlop.client.wireexport import export_options_from, exported_to
from orlop.client.wireimport import options_from
from orlop.errors import InvalidArgument
from orlop.images import api
from orlop.images.imports import ImportSource, said_of
from orlop.observe import Progress
from orlop.proto.orlop.v1 import transfer_pb2 as pb
from orlop.proto.orlop.v1 import transfer_pb2_grpc
from orlop.service.calls import watched, with_auth
from orlop.service.exports import exported
from orlop.service.received import sent

__all__ = ["Transfer"]

_Context = grpc.ServicerContext
_R = TypeVar("_R", pb.LoadResponse, pb.LoadStreamResponse)


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
                compression=request.compression if request.HasField("compression") else None,
                level=request.level if request.HasField("level") else None,
                format=request.format if request.HasField("format") else None,
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

    def Export(self, request: pb.ExportRequest, context: _Context) -> Iterator[pb.ExportResponse]:
        """Send images, or one file system."""
        things, options = tuple(request.things), export_options_from(request)
        for event in exported(
            context,
            lambda out, call: self._store.export(
                things, out, options=options, call=with_auth(call, request.auth)
            ),
            f"export {' '.join(things)}",
        ):
            if isinstance(event, bytes):
                yield pb.ExportResponse(chunk=event)
            elif isinstance(event, Progress):
                yield pb.ExportResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.ExportResponse(warning=wire.warning_to(event))
            else:
                yield pb.ExportResponse(exported=exported_to(event))

    def Load(self, request: pb.LoadRequest, context: _Context) -> Iterator[pb.LoadResponse]:
        """Import a folder or an archive; relative to the daemon's own folder it would mean nothing."""
        if not os.path.isabs(request.source):
            raise InvalidArgument(f"load {request.source}", "the path is not absolute")
        return self._loaded(request.source, request, context, pb.LoadResponse)

    def LoadStream(
        self, requests: Iterator[pb.LoadStreamRequest], context: _Context
    ) -> Iterator[pb.LoadStreamResponse]:
        """Import what the client sends."""
        for first in requests:
            if first.HasField("start"):
                source = sent(requests, first.start.stem)
                yield from self._loaded(source, first.start, context, pb.LoadStreamResponse)
                return
            break
        raise InvalidArgument("import -", "the first message has no 'start'")

    def _loaded(
        self, source: ImportSource, request: pb.LoadRequest, context: _Context, response: type[_R]
    ) -> Iterator[_R]:
        options = options_from(request.options, said_of(source))
        name = request.name if request.HasField("name") else None
        for event in watched(
            context,
            lambda call: self._store.load(
                source,
                name=name,
                platform=list(request.platforms),
                all_platforms=request.all_platforms,
                options=options,
                call=call,
            ),
        ):
            if isinstance(event, Progress):
                yield response(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield response(warning=wire.warning_to(event))
            else:
                images = [wire.image_to(image) for image in event[0]]
                yield response(loaded=pb.Loaded(images=images))
