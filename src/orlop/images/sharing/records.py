"""What the store remembers of a share, beside the pins that keep its images.

::

    ROOT/shares/<id>.json       one for each share; <id> is of its folder's path

Invariants: the record is there before a pin, a link or a mount is made for the share, and goes after them, so
whatever a crash leaves can be dropped by name.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from orlop.errors import DataLoss, from_oserror
from orlop.images.core import Core
from orlop.images.shares import ShareForm
from orlop.linux.files import fsync_dir, write_durably
from orlop.spec.documents import encode

__all__ = ["Record", "SharedImage", "forget", "pin_prefix", "read", "read_all", "share_id", "write"]


class SharedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One name in a share and the image that it means: digests of its config and its manifest there."""

    name: str
    config: str
    manifest: str
    media_type: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A share."""

    folder: str
    form: ShareForm
    created: str
    images: tuple[SharedImage, ...] = ()
    run_only: bool = False


def share_id(folder: str) -> str:
    """The name of a folder's share in the store."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]


def pin_prefix(folder: str) -> str:
    """How the names of a share's pins begin."""
    return f"share-{share_id(folder)}-"


def _path(core: Core, folder: str) -> Path:
    return core.layout.shares / f"{share_id(folder)}.json"


def write(core: Core, record: Record) -> None:
    """Remember a share durably, in place of what was remembered of it."""
    path = _path(core, record.folder)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_durably(path, encode(record), sync=core.sync)
    except OSError as exc:
        raise from_oserror(f"remember share {record.folder}", exc) from exc


def read(core: Core, folder: str) -> Record | None:
    """What is known of a folder's share; None if it is none."""
    return _read(_path(core, folder))


def read_all(core: Core) -> list[Record]:
    """All shares, by folder."""
    try:
        names = os.listdir(core.layout.shares)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise from_oserror("list shares", exc) from exc
    paths = [core.layout.shares / name for name in names if name.endswith(".json")]
    found = [record for record in map(_read, paths) if record is not None]
    return sorted(found, key=lambda record: record.folder)


def forget(core: Core, folder: str) -> None:
    """Forget a share."""
    path = _path(core, folder)
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            fsync_dir(path.parent)
    except OSError as exc:
        raise from_oserror(f"forget share {folder}", exc) from exc


def _read(path: Path) -> Record | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise from_oserror(f"read {path}", exc) from exc
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.MsgspecError as exc:
        raise DataLoss(f"read {path}", f"it is not what was written: {exc}") from exc
