"""Changes as a layer's tar: the second half of a commit, after `orlop.layers.diff` has said what changed.

Files of the upper are opened by their path, no link followed on the way, and read once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from orlop.errors import Error, FailedPrecondition
from orlop.layers.chainview import ChainView, LowerReader
from orlop.layers.diff import FREEZE, MOVED_AWAY, Change, text_of
from orlop.layers.index import BLOCK
from orlop.layers.tarwrite import Member, TarWriter, WrittenTar
from orlop.layers.upper import open_below
from orlop.observe import Call

__all__ = ["least_size", "write_layer"]

CHUNK = 1 << 20


def least_size(found: Sequence[Change]) -> int:
    """The bytes that the tar of some changes has at least."""
    files = (c.member.size for c in found if stat.S_ISREG(c.member.mode) and not c.member.hard)
    return BLOCK * (len(found) + 2) + sum(files)


def write_layer(
    found: Sequence[Change],
    upper: int,
    out: int,
    view: ChainView,
    devices: Sequence[Sequence[Path]],
    *,
    call: Call,
) -> WrittenTar:
    """Write changes as a layer's tar; returns its diff ID and its index.

    A file that changes while it is read is an error that names it (`FailedPrecondition`).
    """
    writer = TarWriter(out)
    lower = LowerReader(view, devices)
    for change in found:
        call.check("write layer")
        member = change.member
        if change.whiteout:
            folder, slash, name = member.path.rpartition(b"/")
            writer.add(Member(path=folder + slash + b".wh." + name, mode=stat.S_IFREG))
        elif member.hard or not stat.S_ISREG(member.mode) or not member.size:
            writer.add(member)
        elif change.lower is not None:
            chunks = lower.chunks(change.lower)
            writer.add(member, lambda chunks=chunks: next(chunks, b""))  # type: ignore[misc]  # bound now
        else:
            _write_file(writer, member, upper)
    return writer.finish()


def _write_file(writer: TarWriter, member: Member, upper: int) -> None:
    """One file of the upper, by its path, no link followed on the way."""
    try:
        fd = open_below(upper, member.path)
    except OSError as exc:
        if exc.errno in MOVED_AWAY:
            raise _changed(member.path) from exc
        raise
    try:
        left = member.size

        def read() -> bytes:
            nonlocal left
            chunk = os.read(fd, min(CHUNK, left))
            left -= len(chunk)
            return chunk

        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_size != member.size:
            raise _changed(member.path)
        writer.add(member, read)
        after = os.fstat(fd)
        if (after.st_size, after.st_mtime_ns) != (about.st_size, about.st_mtime_ns):
            raise _changed(member.path)
    except Error as exc:
        if isinstance(exc, FailedPrecondition):
            raise
        raise _changed(member.path) from exc
    finally:
        os.close(fd)


def _changed(path: bytes) -> FailedPrecondition:
    return FailedPrecondition("commit", f"/{text_of(path)} changed while it was read", hint=FREEZE)
