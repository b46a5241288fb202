"""An import's options as messages of orlop.v1 and back.  No I/O; ``from(to(value)) == value``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from orlop.client import wire
from orlop.errors import InvalidArgument
from orlop.images.imports import FORMATS, ImportFormat, ImportOptions
from orlop.proto.orlop.v1 import transfer_pb2 as pb

__all__ = ["load_request", "options_from", "options_to"]


def load_request(
    source: str,
    name: str | None,
    platform: str | Sequence[str] | None,
    options: ImportOptions,
    *,
    all_platforms: bool,
) -> pb.LoadRequest:
    """A request for what is at a path of the service, or (empty) for what is sent."""
    return pb.LoadRequest(
        source=source,
        name=name,
        platforms=wire.platforms_to(platform),
        all_platforms=all_platforms,
        options=options_to(options),
    )


def options_to(value: ImportOptions) -> pb.ImportOptions:
    """How to import.  Raises `InvalidArgument` for ids that no message holds."""
    uid, gid = value.owner or (None, None)
    value.check("import")
    return pb.ImportOptions(
        format=value.format or "",
        replace=value.replace,
        changes=value.changes,
        author=value.author,
        message=value.message,
        created=value.created,
        owner_uid=uid,
        owner_gid=gid,
        newest=value.newest,
    )


def options_from(message: pb.ImportOptions, attempted: str) -> ImportOptions:
    """The inverse of `options_to`.  Raises `InvalidArgument` for what no value holds."""
    if message.format not in ("", *FORMATS):
        raise InvalidArgument(attempted, f"no such format: {message.format[:40]!r}")
    if message.HasField("owner_uid") != message.HasField("owner_gid"):
        raise InvalidArgument(attempted, "one of owner_uid and owner_gid is missing")
    return ImportOptions(
        format=cast("ImportFormat", message.format) or None,
        replace=message.replace,
        changes=tuple(message.changes),
        author=message.author,
        message=message.message,
        created=message.created if message.HasField("created") else None,
        owner=(message.owner_uid, message.owner_gid) if message.HasField("owner_uid") else None,
        newest=message.newest if message.HasField("newest") else None,
    )
