"""The config of an image that was a plain root file system: made of nothing but what the caller says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from orlop.errors import InvalidArgument
from orlop.images.changed.changes import apply_change, is_text
from orlop.images.imports import ImportOptions
from orlop.spec.digest import DiffID
from orlop.spec.documents import encode
from orlop.spec.platform import Platform

__all__ = ["rootfs_config"]


def rootfs_config(
    options: ImportOptions, platform: Platform, *, diff_ids: Sequence[DiffID], what: str
) -> bytes:
    """The config; with ``created`` given it is the same whatever the day.

    Raises `InvalidArgument` for options that no config can hold.
    """
    if not (is_text(options.author) and is_text(options.message)):
        raise InvalidArgument(what, "the author or the message is not UTF-8")
    stamp = _stamp(options.created, what)
    config: dict[str, Any] = {}
    for change in options.changes:
        apply_change(config, change)
    line: dict[str, Any] = {"created": stamp, "created_by": "orlop import"}
    document: dict[str, Any] = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": stamp,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]},
        "history": [line],
    }
    if platform.variant:
        document["variant"] = platform.variant
    if platform.os_version:
        document["os.version"] = platform.os_version
    if options.message:
        line["comment"] = options.message
    if options.author:
        line["author"] = document["author"] = options.author
    return encode(document)


def _stamp(created: int | None, what: str) -> str:
    """RFC 3339, in UTC."""
    try:
        moment = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
    except (ValueError, OverflowError, OSError) as exc:  # RFC 3339 ends with the year 9999
        raise InvalidArgument(what, f"no date has the time {created}") from exc
    return moment.isoformat().replace("+00:00", "Z")
