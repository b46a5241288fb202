"""A client of containerd's content API as containerd is one: each message of a write waits for its answer."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from typing import Any, Self

import grpc

from orlop.proto.containerd.services.content.v1 import content_pb2 as pb
from orlop.proto.containerd.services.content.v1 import content_pb2_grpc

SOON = 60.0  # seconds, after which a call is given up


class Write:
    """One Write stream, open until `close` or `cancel`; what it is refused raises grpc.RpcError."""

    def __init__(self, stub: Any, namespace: str | None, ref: str) -> None:
        self._messages: queue.Queue[pb.WriteContentRequest | None] = queue.Queue()
        metadata = [("containerd-namespace", namespace)] if namespace is not None else []
        self._call = stub.Write(iter(self._messages.get, None), metadata=metadata, timeout=SOON)
        self._ref = ref

    def send(self, action: str, **fields: Any) -> pb.WriteContentResponse:
        """Send a message, and have its answer."""
        ref, self._ref = self._ref, ""
        message = pb.WriteContentRequest(action=action, **{"ref": ref, **fields})
        self._messages.put(message)
        return next(self._call)

    def stat(self, **fields: Any) -> pb.WriteContentResponse:
        """Where it stands; opens the write."""
        return self.send("STAT", **fields)

    def write(self, offset: int, data: bytes, **fields: Any) -> pb.WriteContentResponse:
        """Add bytes."""
        return self.send("WRITE", offset=offset, data=data, **fields)

    def commit(self, offset: int, **fields: Any) -> pb.WriteContentResponse:
        """Make it a blob."""
        return self.send("COMMIT", offset=offset, **fields)

    def close(self) -> None:
        """Say that there is no more, and wait until the daemon has let go."""
        self._messages.put(None)
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
            pass  # said when it happened

    def cancel(self) -> None:
        """Go away without a word."""
        self._call.cancel()
        self._messages.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Content:
    """The calls in one namespace; None says none."""

    def __init__(self, channel: grpc.Channel, namespace: str | None) -> None:
        self.channel = channel
        self.stub = content_pb2_grpc.ContentStub(channel)
        self.namespace = namespace
        metadata = [("containerd-namespace", namespace)] if namespace is not None else []
        self._options: dict[str, Any] = {"metadata": metadata, "timeout": SOON}

    def write(self, ref: str) -> Write:
        """A stream that has not sent anything yet."""
        return Write(self.stub, self.namespace, ref)

    def put(self, data: bytes, ref: str = "put", labels: Mapping[str, str] | None = None) -> str:
        """Write a blob; its digest."""
        with self.write(ref) as write:
            write.stat(total=len(data))
            write.write(0, data)
            return write.commit(len(data), labels=labels or {}).digest

    def info(self, digest: str) -> pb.Info:
        return self.stub.Info(pb.InfoRequest(digest=digest), **self._options).info

    def update(self, digest: str, labels: Mapping[str, str], *paths: str) -> pb.Info:
        request = pb.UpdateRequest(info=pb.Info(digest=digest, labels=labels))
        request.update_mask.paths.extend(paths)
        return self.stub.Update(request, **self._options).info

    def list(self, *filters: str) -> list[str]:
        answers = self.stub.List(pb.ListContentRequest(filters=filters), **self._options)
        return [info.digest for answer in answers for info in answer.info]

    def delete(self, digest: str) -> None:
        self.stub.Delete(pb.DeleteContentRequest(digest=digest), **self._options)

    def parts(self, digest: str, offset: int = 0, size: int = 0) -> Iterator[pb.ReadContentResponse]:
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        return self.stub.Read(request, **self._options)

    def read(self, digest: str, offset: int = 0, size: int = 0) -> bytes:
        return b"".join(part.data for part in self.parts(digest, offset, size))

    def status(self, ref: str) -> pb.Status:
        return self.stub.Status(pb.StatusRequest(ref=ref), **self._options).status

    def statuses(self, *filters: str) -> list[str]:
        request = pb.ListStatusesRequest(filters=filters)
        return [status.ref for status in self.stub.ListStatuses(request, **self._options).statuses]

    def abort(self, ref: str) -> None:
        self.stub.Abort(pb.AbortRequest(ref=ref), **self._options)
