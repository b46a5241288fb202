"""containerd.services.content.v1.Content: translation only.

A Write is one client's for as long as its stream is open; where the stream ends without a commit, whether the
client is gone or has said so, what was written waits for it.

A containerd says its client's namespace in some calls only: in Debian's 1.6 those that are no streams.
"""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.errors import InvalidArgument, Unimplemented
from orlop.proto.containerd.services.content.v1 import content_pb2 as pb
from orlop.proto.containerd.services.content.v1 import content_pb2_grpc
from orlop.service.calls import call_of
from orlop.service.containerd.calls import namespace_of
from orlop.spec.digest import Digest

if TYPE_CHECKING:
    from orlop.images.contentstore.api import ContentApi, ContentInfo, Writer, WriteStatus

__all__ = ["Content"]

_Context = grpc.ServicerContext
_BATCH = 100  # blobs in one message of a list, as containerd has it
_BATCH_SIZE = 1 << 20  # bytes after which a message is full all the same: one blob's labels may have 4 MiB
_SECOND = 10**9


class Content(content_pb2_grpc.ContentServicer):
    """Blobs and writes of a containerd that has orlop as a proxy plugin."""

    def __init__(self, content: ContentApi | None) -> None:
        self._known = content

    @property
    def _content(self) -> ContentApi:
        if self._known is None:
            raise Unimplemented("use content", "this store has none")
        return self._known

    def Info(self, request: pb.InfoRequest, context: _Context) -> pb.InfoResponse:
        """One blob."""
        found = self._content.info(namespace_of(context), Digest(request.digest))
        return pb.InfoResponse(info=_info(found))

    def Update(self, request: pb.UpdateRequest, context: _Context) -> pb.UpdateResponse:
        """A blob's labels."""
        digest = Digest(request.info.digest)
        found = self._content.update(
            namespace_of(context),
            digest,
            dict(request.info.labels),
            tuple(request.update_mask.paths),
        )
        return pb.UpdateResponse(info=_info(found))

    def List(self, request: pb.ListContentRequest, context: _Context) -> Iterator[pb.ListContentResponse]:
        """Blobs."""
        found = self._content.content(namespace_of(context), tuple(request.filters), call=call_of(context))
        batch: list[pb.Info] = []
        size = 0
        for info in found:
            batch.append(_info(info))
            size += batch[-1].ByteSize()
            if len(batch) == _BATCH or size >= _BATCH_SIZE:
                yield pb.ListContentResponse(info=batch)
                batch, size = [], 0
        if batch:
            yield pb.ListContentResponse(info=batch)

    def Delete(self, request: pb.DeleteContentRequest, context: _Context) -> Empty:
        """Take a blob from a namespace."""
        self._content.delete(namespace_of(context), Digest(request.digest))
        return Empty()

    def Read(self, request: pb.ReadContentRequest, context: _Context) -> Iterator[pb.ReadContentResponse]:
        """A blob's bytes."""
        parts = self._content.read(
            namespace_of(context),
            Digest(request.digest),
            request.offset,
            request.size,
            call=call_of(context),
        )
        for offset, data in parts:
            yield pb.ReadContentResponse(offset=offset, data=data)

    def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusResponse:
        """One write."""
        found = self._content.status(namespace_of(context), request.ref)
        return pb.StatusResponse(status=_status(found))

    def ListStatuses(self, request: pb.ListStatusesRequest, context: _Context) -> pb.ListStatusesResponse:
        """Writes."""
        found = self._content.statuses(namespace_of(context), tuple(request.filters))
        return pb.ListStatusesResponse(statuses=map(_status, found))

    def Write(
        self, requests: Iterator[pb.WriteContentRequest], context: _Context
    ) -> Iterator[pb.WriteContentResponse]:
        """Write to one ref."""
        first = next(requests, None)
        if first is None:
            raise InvalidArgument("write content", "the stream ended before its first message")
        attempted = f"write {first.ref}"
        if not first.ref:
            raise InvalidArgument("write content", "the first message names no ref")
        with closing(
            self._content.write(
                namespace_of(context),
                first.ref,
                first.total,
                Digest(first.expected) if first.expected else None,
                call=call_of(context),
            )
        ) as writer:
            request: pb.WriteContentRequest | None = first
            while request is not None:
                if request.ref not in ("", first.ref):
                    raise InvalidArgument(attempted, "a later message names another ref")
                answer = _written(request, writer)
                yield answer
                if request.action == pb.COMMIT:
                    return
                request = _next(requests)

    def Abort(self, request: pb.AbortRequest, context: _Context) -> Empty:
        """Give a write up."""
        self._content.abort(namespace_of(context), request.ref)
        return Empty()


def _next(requests: Iterator[pb.WriteContentRequest]) -> pb.WriteContentRequest | None:
    """The next message; None once there is none, or the client is gone."""
    try:
        return next(requests, None)
    except grpc.RpcError:
        return None


def _written(request: pb.WriteContentRequest, writer: Writer) -> pb.WriteContentResponse:
    """Do what one message says."""
    writer.expect(request.total, Digest(request.expected) if request.expected else None)
    if request.action == pb.STAT:
        return _answer(request.action, writer.status, writer.digest)
    if request.action not in (pb.WRITE, pb.COMMIT):
        raise InvalidArgument(f"write {writer.status.ref}", f"there is no action {request.action}")
    writer.write(request.offset, request.data)
    status = writer.status
    if request.action == pb.WRITE:
        return _answer(request.action, status, writer.digest)
    done = writer.commit(dict(request.labels))
    answer = _answer(request.action, status, done.digest)
    answer.total = done.size
    answer.updated_at.CopyFrom(_time(done.updated))
    answer.labels.update(done.labels)
    return answer


def _answer(action: pb.WriteAction.ValueType, status: WriteStatus, digest: Digest) -> pb.WriteContentResponse:
    return pb.WriteContentResponse(
        action=action,
        started_at=_time(status.started),
        updated_at=_time(status.updated),
        offset=status.offset,
        total=status.total,
        digest=digest,
    )


def _info(info: ContentInfo) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=_time(info.created),
        updated_at=_time(info.updated),
        labels=info.labels,
    )


def _status(status: WriteStatus) -> pb.Status:
    return pb.Status(
        started_at=_time(status.started),
        updated_at=_time(status.updated),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected or "",
    )


def _time(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // _SECOND, nanos=nanoseconds % _SECOND)
