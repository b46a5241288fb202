"""What a client sends for an import, as the store takes it: chunks that end only where the client says so."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from orlop.errors import Cancelled, DataLoss, InvalidArgument
from orlop.images.imports import Named
from orlop.proto.orlop.v1 import transfer_pb2 as pb

__all__ = ["sent"]

_WHAT = "import -"


def sent(requests: Iterator[pb.LoadStreamRequest], stem: str) -> Named:
    """The chunks of a stream.

    They raise `Cancelled` where the client is gone, `DataLoss` where the stream ends before its end was said:
    half of an archive must not look like one.
    """
    return Named(_chunks(requests), stem)


def _chunks(requests: Iterator[pb.LoadStreamRequest]) -> Iterator[bytes]:
    try:
        for request in requests:
            kind = request.WhichOneof("part")
            if kind == "end":
                return
            if kind != "chunk":
                raise InvalidArgument(_WHAT, "a message that is no chunk, after the first one")
            yield request.chunk
    except grpc.RpcError as exc:
        raise Cancelled(_WHAT, "the client is gone") from exc
    raise DataLoss(_WHAT, "what the client sends was cut off", hint="try again")
