"""Between the values of `orlop.images.exports` and the messages of orlop.v1."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.client import wire
from orlop.errors import InvalidArgument
from orlop.images.exports import EXPORT_FORMATS, Exported, ExportOptions
from orlop.observe import Auth
from orlop.proto.orlop.v1 import transfer_pb2 as pb

__all__ = ["export_options_from", "export_request", "exported_from", "exported_to"]


def export_request(things: Sequence[str], options: ExportOptions, auth: Auth | None) -> pb.ExportRequest:
    """What to ask a daemon for."""
    return pb.ExportRequest(
        things=things,
        format=options.format,
        platform=options.platform,
        all_platforms=options.all_platforms,
        recompress=options.recompress,
        compression=options.compression,
        level=options.level,
        created=options.created,
        size=options.size,
        auth=wire.auth_to(auth),
    )


def export_options_from(request: pb.ExportRequest) -> ExportOptions:
    """What a client asks for.  Raises `InvalidArgument` for a format that there is not."""
    if request.format not in EXPORT_FORMATS:
        raise InvalidArgument(
            "export", f"no such format: {request.format!r}", hint=f"one of {', '.join(EXPORT_FORMATS)}"
        )
    return ExportOptions(
        format=request.format,
        platform=request.platform if request.HasField("platform") else None,
        all_platforms=request.all_platforms,
        recompress=request.recompress,
        compression=request.compression if request.HasField("compression") else None,
        level=request.level if request.HasField("level") else None,
        created=request.created if request.HasField("created") else None,
        size=request.size if request.HasField("size") else None,
    )


def exported_to(value: Exported) -> pb.Exported:
    """What was sent."""
    return pb.Exported(format=value.format, names=value.names, digests=value.digests, size=value.size)


def exported_from(message: pb.Exported) -> Exported:
    """What was received."""
    return Exported(
        format=message.format,
        names=tuple(message.names),
        digests=tuple(message.digests),
        size=message.size,
    )
