"""The tar writer: one layer's archive, hashed and indexed while it is written.

Writes ustar headers, with a PAX header before them where ustar cannot say it (long names, xattrs,
nanoseconds, large ids).  Deterministic: the same entries give the same bytes.  User and group names are
left empty, since an image's numbers mean nothing on the machine that commits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from functools import lru_cache
from zlib import adler32

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import DataLoss
from orlop.hints import TYPE_CHECKING
from orlop.layers import pax
from orlop.layers.builder import IndexBuilder
from orlop.layers.entry import Entry
from orlop.layers.hashing import SideHash
from orlop.layers.index import BLOCK, LayerIndex, Xattrs
from orlop.linux.files import sync_range
from orlop.spec.digest import DiffID
from orlop.values import dataclass

if TYPE_CHECKING:
    import hashlib

__all__ = ["Member", "TarWriter", "WrittenTar", "headers"]

BATCH = 1 << 20  # bytes that are written at once: small files cost no system call each
WRITE_BACK = 8 << 20  # bytes after which they are on their way to the disk, so that the fsync is short
_USTAR = b"ustar\x0000" + bytes(64)  # POSIX.1, "ustar Interchange Format"; no names of owners
_TAIL = bytes(100) + _USTAR + bytes(16 + 167)  # what follows the kind of what has no target and no device
_TAIL_SUM = sum(_TAIL)
_SPACES = sum(b"        ")  # what the checksum counts in its own place
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


@dataclass(slots=True, kw_only=True)
class Member:
    """One entry to write; not to be changed.

    ``path`` has no leading slash; ``mode`` is a whole st_mode; a hard link has ``hard`` set and its
    target's path in ``link``.
    """

    path: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    size: int
    rdev: int
    link: bytes
    hard: bool
    xattrs: Xattrs

    def __init__(  # by hand: a commit makes one for every entry, and so it is 4 us faster
        self,
        *,
        path: bytes,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        nsec: int = 0,
        size: int = 0,
        rdev: int = 0,
        link: bytes = b"",
        hard: bool = False,
        xattrs: Xattrs = (),
    ) -> None:
        self.path = path
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.nsec = nsec
        self.size = size
        self.rdev = rdev
        self.link = link
        self.hard = hard
        self.xattrs = xattrs


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTar:
    """A finished archive: its digest, its bytes, its index."""

    diff_id: DiffID
    size: int
    index: LayerIndex


class TarWriter:
    """Writes one archive to a descriptor, from its start.

    With ``write_back`` the kernel is told to begin writing to the disk as the archive grows.
    """

    def __init__(self, out: int, *, limits: Limits = DEFAULT_LIMITS, write_back: bool = False) -> None:
        self._out = out
        self._hash = SideHash()
        self._at = 0  # the end of the archive, of which the last ``_held`` bytes are still in ``_pieces``
        self._held = 0
        self._pieces: list[bytes] = []
        self._begun = 0 if write_back else None  # how much is on its way to the disk
        self._builder = IndexBuilder(limits=limits)

    @property
    def size(self) -> int:
        """The bytes so far."""
        return self._at

    def add(
        self,
        member: Member,
        read: Callable[[], bytes] | None = None,
        settled: Callable[[], bool] | None = None,
    ) -> bool:
        """Write one entry; False if it is not in the archive after all.

        ``read`` gives the next chunk of a regular file's bytes and must give ``member.size`` of them
        in all; `DataLoss` is raised otherwise.  With ``settled`` an entry that gave too few or too many, or
        that is not settled once it is written, is taken back as if it had never been there.
        """
        header = headers(member)
        size = member.size if not member.hard and stat.S_ISREG(member.mode) else 0
        if self._held + len(header) + size > BATCH:
            self._flush()
        before = self._mark(len(header) + size) if settled is not None else None
        self._write(header)
        start = self._at
        if size:
            left = size
            while left:
                chunk = read() if read is not None else b""
                if not chunk or len(chunk) > left:
                    if before is not None:
                        return self._rewind(*before)
                    raise DataLoss(
                        f"write /{member.path.decode(errors='replace')}", "its size changed while it was read"
                    )
                left -= len(chunk)
                self._write(chunk)
            if size % BLOCK:
                self._write(bytes(-size % BLOCK))
        if before is not None and settled is not None and not settled():
            return self._rewind(*before)
        self._builder.add(_entry(member, start))
        return True

    def _mark(self, size: int) -> tuple[int, int, hashlib._Hash | None]:
        """A state to come back to from behind ``size`` more bytes; nothing of them is written if they fit."""
        fits = self._held + size + BLOCK <= BATCH
        if not fits:
            self._flush()
        return self._at, len(self._pieces), None if fits else self._hash.settled().copy()

    def _rewind(self, at: int, pieces: int, digest: hashlib._Hash | None) -> bool:
        """Forget what came after a mark; the index knows nothing of it yet."""
        del self._pieces[pieces:]
        self._held = sum(map(len, self._pieces))
        self._at = at
        if digest is not None:
            os.lseek(self._out, at, os.SEEK_SET)
            os.ftruncate(self._out, at)
            self._hash.go_back(digest)
            if self._begun is not None:
                self._begun = min(self._begun, at)
        return False

    def _write(self, data: bytes) -> None:
        self._at += len(data)
        self._held += len(data)
        self._pieces.append(data)
        if self._held >= BATCH:
            self._flush()

    def _flush(self) -> None:
        """Hash and write what is held."""
        if not self._held:
            return
        data = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        self._pieces.clear()
        self._held = 0
        self._hash.update(data)
        done = os.write(self._out, data)
        while done < len(data):
            done += os.write(self._out, memoryview(data)[done:])
        if self._begun is not None and self._at - self._begun >= WRITE_BACK:
            sync_range(self._out, self._begun, self._at - self._begun)
            self._begun = self._at

    def finish(self) -> WrittenTar:
        """Write the end of the archive.  The descriptor stays open, and is not synced."""
        self._write(bytes(2 * BLOCK))
        self._flush()
        return WrittenTar(
            diff_id=DiffID(f"sha256:{self._hash.settled().hexdigest()}"),
            size=self._at,
            index=self._builder.finish(self._at),
        )


def headers(member: Member, more: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """The header block of an entry, with a PAX header before it where one is needed, or has ``more``."""
    path = member.path or b"."
    if stat.S_ISDIR(member.mode) and not member.hard:
        path += b"/"
    records: list[tuple[bytes, bytes]] = [*more]
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
    block = _block(
        path, _numbers(member.mode & 0o7777, uid, gid, size, mtime), kind, member.link, member.rdev
    )
    if not records:
        return block
    if len(records) == 1:
        body = pax.record(*records[0])
    else:
        body = b"".join(pax.record(key, value) for key, value in sorted(records))
    name = b"PaxHeaders.0/" + path.rstrip(b"/").rpartition(b"/")[2]
    return b"".join((_block(name, _pax_numbers(len(body)), b"x"), body, bytes(-len(body) % BLOCK), block))


def _sum(text: bytes) -> int:
    """The sum of the bytes, of which there are few: the low half of Adler-32 is that and one (RFC 1950)."""
    return (adler32(text) & 0xFFFF) - 1  # it is a remainder of 65,521, and 256 bytes are less


def _numbers(mode: int, uid: int, gid: int, size: int, mtime: int) -> bytes:
    return b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime)


@lru_cache(maxsize=256)
def _pax_numbers(size: int) -> bytes:
    """Those of a PAX header: nearly all of an archive's have one of a few sizes."""
    return _numbers(0o644, 0, 0, size, 0)


def _block(path: bytes, numbers: bytes, kind: bytes, link: bytes = b"", rdev: int = 0) -> bytes:
    path = path[:100]
    tail = _TAIL
    if link or kind in b"34":
        device = b"%07o\0%07o\0" % (os.major(rdev), os.minor(rdev)) if kind in b"34" else bytes(16)
        tail = link[:100].ljust(100, b"\0") + _USTAR + device + bytes(167)
    total = _sum(path + numbers) + _SPACES + kind[0] + (_TAIL_SUM if tail is _TAIL else _sum(tail))
    return b"".join((path.ljust(100, b"\0"), numbers, b"%06o\0 " % total, kind, tail))


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
    entry.rdev = (os.major(member.rdev), os.minor(member.rdev)) if member.rdev else (0, 0)
    entry.dirty = False
    entry.xattrs = () if member.hard or not member.xattrs else tuple(sorted(member.xattrs))
    entry.extents = None
    return entry
