"""The tar writer: one layer's archive, hashed and indexed while it is written.

Writes ustar headers, with a PAX header before them where ustar cannot say it (long names, xattrs,
nanoseconds, large ids).  Deterministic: the same entries give the same bytes.  User and group names are
left empty, since an image's numbers mean nothing on the machine that commits.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import DataLoss
from orlop.layers import pax
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import BLOCK, LayerIndex, Xattrs
from orlop.layers.tarread import Entry
from orlop.spec.digest import DiffID

__all__ = ["Member", "TarWriter", "WrittenTar"]

_OCTAL_7 = 8**7
_OCTAL_11 = 8**11
_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry to write.

    ``path`` has no leading slash; ``mode`` is a whole st_mode; a hard link has ``hard`` set and its
    target's path in ``link``.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    nsec: int = 0
    size: int = 0
    rdev: int = 0
    link: bytes = b""
    hard: bool = False
    xattrs: Xattrs = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTar:
    """A finished archive: its digest, its bytes, its index."""

    diff_id: DiffID
    size: int
    index: LayerIndex


class TarWriter:
    """Writes one archive to a descriptor, from its start."""

    def __init__(self, out: int, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self._at = 0
        self._builder = IndexBuilder(limits=limits)

    def add(self, member: Member, read: Callable[[], bytes] | None = None) -> None:
        """Write one entry.

        ``read`` gives the next chunk of a regular file's bytes and must give ``member.size`` of them
        in all; `DataLoss` is raised otherwise.
        """
        header = headers(member)
        self._write(header)
        start = self._at
        if member.size and not member.hard and stat.S_ISREG(member.mode):
            left = member.size
            while left:
                chunk = read() if read is not None else b""
                if not chunk or len(chunk) > left:
                    raise DataLoss(
                        f"write /{member.path.decode(errors='replace')}", "its size changed while it was read"
                    )
                left -= len(chunk)
                self._write(chunk)
            self._write(bytes(-member.size % BLOCK))
        self._builder.add(_entry(member, start))

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        done = os.write(self._out, data)
        while done < len(data):
            done += os.write(self._out, memoryview(data)[done:])
        self._at += len(data)

    def finish(self) -> WrittenTar:
        """Write the end of the archive.  The descriptor stays open, and is not synced."""
        self._write(bytes(2 * BLOCK))
        return WrittenTar(
            diff_id=DiffID(f"sha256:{self._hash.hexdigest()}"),
            size=self._at,
            index=self._builder.finish(self._at),
        )


def headers(member: Member) -> bytes:
    """The header block of an entry, with a PAX header before it where one is needed."""
    path = member.path or b"."
    if stat.S_ISDIR(member.mode) and not member.hard:
        path += b"/"
    records: list[tuple[bytes, bytes]] = []
    if len(path) > 100:
        records.append((b"path", path))
    if len(member.link) > 100:
        records.append((b"linkpath", member.link))
    uid, gid, size, mtime = member.uid, member.gid, member.size, member.mtime
    if member.hard or not stat.S_ISREG(member.mode):
        size = 0
    if member.nsec or not 0 <= mtime < _OCTAL_11:
        records.append((b"mtime", _time(mtime, member.nsec)))
        mtime = mtime if 0 <= mtime < _OCTAL_11 else 0
    if uid >= _OCTAL_7:
        records.append((b"uid", b"%d" % uid))
        uid = 0
    if gid >= _OCTAL_7:
        records.append((b"gid", b"%d" % gid))
        gid = 0
    if size >= _OCTAL_11:
        records.append((b"size", b"%d" % size))
        size = 0
    if not member.hard:
        for name, value in member.xattrs:
            escaped = name.replace(b"%", b"%25").replace(b"=", b"%3D")
            records.append((b"SCHILY.xattr." + escaped, value))
    kind = b"1" if member.hard else _TYPES[member.mode & 0o170000]
    block = _block(path, member.mode & 0o7777, uid, gid, size, mtime, kind, member.link, member.rdev)
    if not records:
        return block
    body = b"".join(pax.record(key, value) for key, value in sorted(records))
    name = (b"PaxHeaders.0/" + path.rstrip(b"/").rpartition(b"/")[2])[:100]
    return _block(name, 0o644, 0, 0, len(body), 0, b"x", b"", 0) + body + bytes(-len(body) % BLOCK) + block


def _block(
    path: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, kind: bytes, link: bytes, rdev: int
) -> bytes:
    device = b"%07o\0%07o\0" % (os.major(rdev), os.minor(rdev)) if kind in b"34" else bytes(16)
    block = b"".join(
        (
            path[:100].ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0" % (mode, uid, gid),
            b"%011o\0%011o\0" % (size, mtime),
            b"        ",
            kind,
            link[:100].ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            device,
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _time(seconds: int, nsec: int) -> bytes:
    """A decimal time; a negative one counts down to the second, as POSIX's records do."""
    if seconds < 0 and nsec:
        seconds, nsec = seconds + 1, 1_000_000_000 - nsec
        text = b"-%d.%09d" % (-seconds, nsec)
    else:
        text = b"%d.%09d" % (seconds, nsec)
    return text.rstrip(b"0").rstrip(b".")


def _entry(member: Member, offset: int) -> Entry:
    """What a reader would make of the entry just written."""
    entry = Entry()
    entry.name = member.path or b"./"
    entry.link = member.link
    entry.mode = member.mode & 0o7777 if member.hard else member.mode
    entry.uid, entry.gid = member.uid, member.gid
    entry.mtime, entry.nsec = member.mtime, member.nsec
    entry.size = member.size if stat.S_ISREG(member.mode) and not member.hard else 0
    entry.offset = offset
    entry.rdev = (os.major(member.rdev), os.minor(member.rdev))
    entry.dirty = False
    entry.xattrs = () if member.hard else tuple(sorted(member.xattrs))
    entry.extents = None
    return entry
