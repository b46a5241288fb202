"""orlop.v1.Contents: translation only.

The result of a call is made as the client takes it: gRPC asks for the next part once it has sent the last.
"""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import TypeVar

import grpc

from orlop.client import wire, wirecontents
from orlop.errors import Cancelled, DataLoss, InvalidArgument
from orlop.images import api
from orlop.observe import Call, Progress
from orlop.proto.orlop.v1 import contents_pb2 as pb
from orlop.proto.orlop.v1 import contents_pb2_grpc
from orlop.service.calls import Warnings, call_of, watched

__all__ = ["Contents"]

_Context = grpc.ServicerContext
_T = TypeVar("_T")
_CHUNK = 1 << 20


class Contents(contents_pb2_grpc.ContentsServicer):
    """What is in things."""

    def __init__(self, store: api.Store) -> None:
        self._store = store

    def ListFiles(self, request: pb.ListFilesRequest, context: _Context) -> Iterator[pb.ListFilesResponse]:
        """List a folder."""
        platform = request.platform if request.HasField("platform") else None
        for part in parts_of(
            context,
            lambda call: wirecontents.files_to(
                self._store.list_files(
                    request.thing,
                    request.path,
                    recursive=request.recursive,
                    itself=request.itself,
                    platform=platform,
                    call=call,
                )
            ),
        ):
            if isinstance(part, str):
                yield pb.ListFilesResponse(warning=wire.warning_to(part))
            else:
                yield pb.ListFilesResponse(files=part)

    def ReadFiles(self, request: pb.ReadFilesRequest, context: _Context) -> Iterator[pb.ReadFilesResponse]:
        """Send files' bytes."""
        platform = request.platform if request.HasField("platform") else None
        paths = tuple(request.paths)
        for part in parts_of(
            context,
            lambda call: self._store.read_files(request.thing, paths, platform=platform, call=call),
        ):
            if isinstance(part, str):
                yield pb.ReadFilesResponse(warning=wire.warning_to(part))
            else:
                yield pb.ReadFilesResponse(data=part)

    def FindFiles(self, request: pb.FindFilesRequest, context: _Context) -> Iterator[pb.FindFilesResponse]:
        """Look for files."""
        thing = request.thing if request.HasField("thing") else None
        options = wirecontents.options_from(request)
        for part in parts_of(
            context,
            lambda call: wirecontents.found_parts(
                self._store.find_files(thing, request.pattern, options=options, call=call)
            ),
        ):
            if isinstance(part, str):
                yield pb.FindFilesResponse(warning=wire.warning_to(part))
            else:
                yield pb.FindFilesResponse(found=part)

    def ReadArchive(
        self, request: pb.ReadArchiveRequest, context: _Context
    ) -> Iterator[pb.ReadArchiveResponse]:
        """Send a file or a folder as a tar."""
        platform = request.platform if request.HasField("platform") else None
        for part in parts_of(
            context,
            lambda call: self._store.read_archive(
                request.thing, request.path, follow=request.follow, platform=platform, call=call
            ),
        ):
            if isinstance(part, str):
                yield pb.ReadArchiveResponse(warning=wire.warning_to(part))
                continue
            for at in range(0, len(part), _CHUNK):
                yield pb.ReadArchiveResponse(data=part[at : at + _CHUNK])

    def WriteArchive(
        self, requests: Iterator[pb.WriteArchiveRequest], context: _Context
    ) -> Iterator[pb.WriteArchiveResponse]:
        """Unpack what the client sends."""
        first = next(requests, None)
        if first is None or not first.HasField("start"):
            raise InvalidArgument("copy into a root", "the first message has no 'start'")
        start, attempted = first.start, f"copy into {first.start.root}"
        for event in watched(
            context,
            lambda call: self._store.write_archive(
                start.root,
                start.path,
                _chunks(requests, attempted),
                archive=start.archive,
                content=start.content,
                call=call,
            ),
        ):
            if isinstance(event, Progress):
                yield pb.WriteArchiveResponse(progress=wire.progress_to(event))
            elif isinstance(event, str):
                yield pb.WriteArchiveResponse(warning=wire.warning_to(event))
            else:
                yield pb.WriteArchiveResponse(written=pb.ArchiveWritten())


def _chunks(requests: Iterator[pb.WriteArchiveRequest], attempted: str) -> Iterator[bytes]:
    """The tar that a client sends: half of one must not look like one."""
    try:
        for request in requests:
            kind = request.WhichOneof("part")
            if kind == "end":
                return
            if kind != "chunk":
                raise InvalidArgument(attempted, "a message that is no chunk, after the first one")
            yield request.chunk
    except grpc.RpcError as exc:
        raise Cancelled(attempted, "the client is gone") from exc
    raise DataLoss(attempted, "what the client sends was cut off", hint="try again")


def parts_of(context: _Context, begin: Callable[[Call], Generator[_T]]) -> Iterator[_T | str]:
    """The parts of a result, and between them the warnings (str) that their making gave."""
    heard = Warnings()
    parts = begin(call_of(context, heard))
    told = 0
    with closing(parts):
        for part in parts:
            yield from heard.texts[told:]
            told = len(heard.texts)
            yield part
    yield from heard.texts[told:]
