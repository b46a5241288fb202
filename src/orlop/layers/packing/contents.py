"""A layer's entries as the seekable forms list them, from its index alone: no tar is parsed here.

What a table of contents cannot say so that its readers understand it (names that are not UTF-8 or need
escapes in JSON, times out of its calendar) makes a layer `Unlisted`: such a one goes in a plain form.
"""

from __future__ import annotations

import base64
import datetime
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

from orlop.layers.index import BLOCK, HIDES, IMPLIED, LINK, LOWER_LINK, OPAQUE, LayerIndex, Xattrs
from orlop.layers.packing.recipes import Unlisted
from orlop.layers.tarwrite import Member
from orlop.values import dataclass

__all__ = ["Item", "fields_of", "items", "pieces_of"]

WHITEOUT = b".wh."
OPAQUE_MARK = b".wh..wh..opq"
CHUNK = 4 << 20  # bytes of a file that are compressed, fetched and verified at a time
_TYPES = {
    stat.S_IFREG: "reg",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
_ESCAPED = re.compile(rb'[\x00-\x1f"\\]')
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # the years 1 to 9999, which RFC 3339 can write


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One entry: what a tar says of it, and where its bytes are.

    ``node`` is its number in the index, -1 of a mark; ``offset`` the place of its bytes in the layer's tar.
    """

    member: Member
    node: int
    offset: int = 0

    @property
    def has_data(self) -> bool:
        """Whether it is a file that has bytes of its own."""
        return bool(self.member.size) and not self.member.hard and stat.S_ISREG(self.member.mode)


def items(index: LayerIndex) -> Iterator[Item]:
    """The entries of a layer, a folder before what is in it, a file before the links to it.

    Folders that the layer only implies are left out, as in its tar.
    """
    paths: list[bytes] = [b""]
    for node, mode in enumerate(index.mode):
        if node:
            above = paths[index.parent[node]]
            paths.append(above + b"/" + index.names[node] if above else index.names[node])
        path, flags = paths[node], index.flags[node]
        if flags & HIDES:
            folder, slash, name = path.rpartition(b"/")
            yield _mark(folder + slash + WHITEOUT + name)
        if flags & LINK:
            yield _link(index, node, path, paths[index.offset[node]])
        elif flags & LOWER_LINK:
            yield _link(index, node, path, index.targets[node])
        elif mode and not flags & IMPLIED:
            yield _item(index, node, path)
        if flags & OPAQUE:
            yield _mark(path + b"/" + OPAQUE_MARK if path else OPAQUE_MARK)


def _mark(path: bytes) -> Item:
    return Item(member=Member(path=path, mode=stat.S_IFREG), node=-1)


def _link(index: LayerIndex, node: int, path: bytes, target: bytes) -> Item:
    """A hard link says again what its file is, where that is known."""
    file = index.offset[node] if index.flags[node] & LINK else node
    member = Member(
        path=path,
        mode=(index.mode[file] & 0o7777) | stat.S_IFREG,
        uid=index.uid[file],
        gid=index.gid[file],
        mtime=index.mtime[file],
        nsec=index.nsec[file],
        link=target,
        hard=True,
    )
    return Item(member=member, node=node)


def _item(index: LayerIndex, node: int, path: bytes) -> Item:
    mode = index.mode[node]
    kind = stat.S_IFMT(mode)
    member = Member(
        path=path,
        mode=mode,
        uid=index.uid[node],
        gid=index.gid[node],
        mtime=index.mtime[node],
        nsec=index.nsec[node],
        size=index.size[node] if kind == stat.S_IFREG else 0,
        rdev=index.offset[node] if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        link=index.targets[node] if kind == stat.S_IFLNK else b"",
        xattrs=index.xattrs.get(node, ()),
    )
    return Item(member=member, node=node, offset=index.offset[node] if kind == stat.S_IFREG else 0)


def fields_of(member: Member) -> dict[str, Any]:
    """What both tables of contents say of an entry, its data apart.  Raises `Unlisted`."""
    name = _text(member.path) if member.path else "."
    kind = "hardlink" if member.hard else _TYPES[stat.S_IFMT(member.mode)]
    found: dict[str, Any] = {"type": kind, "name": name + "/" if kind == "dir" else name}
    if member.link:
        found["linkName"] = _text(member.link)
    found["mode"] = member.mode & 0o7777
    if member.size and kind == "reg":
        found["size"] = member.size
    found |= {"uid": member.uid, "gid": member.gid, "modtime": _time(member.mtime, member.nsec)}
    if kind in ("char", "block"):
        found |= {"devMajor": os.major(member.rdev), "devMinor": os.minor(member.rdev)}
    if member.xattrs:
        found["xattrs"] = _xattrs(member.xattrs)
    return found


def pieces_of(size: int) -> Iterator[tuple[int, int]]:
    """A file's bytes in chunks: offset and length of each."""
    return ((at, min(CHUNK, size - at)) for at in range(0, size, CHUNK))


def _xattrs(pairs: Xattrs) -> dict[str, str]:
    return {_text(name): base64.b64encode(value).decode() for name, value in pairs}


def _text(name: bytes) -> str:
    if _ESCAPED.search(name):  # podman before 5.2 ends a name at an escaped quote, and loses what follows
        raise Unlisted(f"{name[:100]!r} needs escapes in JSON")
    try:
        return name.decode()
    except UnicodeDecodeError as exc:
        raise Unlisted(f"{name[:100]!r} is not UTF-8") from exc


def _time(seconds: int, nsec: int) -> str:
    """A time as RFC 3339 writes it, in UTC.

    >>> _time(0, 0), _time(-1, 500_000_000)
    ('1970-01-01T00:00:00Z', '1969-12-31T23:59:59.5Z')
    """
    if not _FIRST <= seconds <= _LAST:
        raise Unlisted("a time before the year 1 or after 9999")
    whole = (_EPOCH + datetime.timedelta(seconds=seconds)).strftime("%m-%dT%H:%M:%S")
    year = (_EPOCH + datetime.timedelta(seconds=seconds)).year
    fraction = f".{nsec:09d}".rstrip("0") if nsec else ""
    return f"{year:04d}-{whole}{fraction}Z"


def check_tar(index: LayerIndex) -> None:
    """Raise `Unlisted` where the bytes of a file do not lie in the tar as they are, or not at all."""
    if index.sparse:
        raise Unlisted("it has sparse files")
    if any(flags & LOWER_LINK for flags in index.flags):  # readers of a table look for the file in it
        raise Unlisted("it has hard links to files of other layers")


def padding(size: int) -> bytes:
    """What fills the last block of a file in a tar."""
    return bytes(-size % BLOCK)
