"""The tree that the writer writes: one `Node` per inode.

A hard link is the same `Node` under several names.  Nodes are mutable and plain, because a merge
makes and drops hundreds of thousands of them.
"""

from __future__ import annotations

import stat

__all__ = ["HOLE", "Chunks", "Node"]

HOLE = 0xFFFFFFFF
"""The start block of a chunk that has no data (EROFS_NULL_ADDR)."""


class Chunks:
    """The data of a file that is not one run: equal chunks, each at its own block of one device.

    ``bits`` is log2 of the chunk size over the block size; ``starts`` are block numbers within the
    device, or `HOLE`.
    """

    __slots__ = ("bits", "starts")

    def __init__(self, bits: int, starts: list[int]) -> None:
        self.bits = bits
        self.starts = starts


class Node:
    """One inode.

    ``mode`` is a whole st_mode; ``mtime`` seconds since 1970 (may be negative), ``nsec`` 0..999999999.
    A regular file's bytes are at ``offset`` (bytes, a multiple of the block size) of device number
    ``device`` (from 1; 0 means there are none), or where ``chunks`` says.  ``target`` is a symlink's,
    ``rdev`` a device's number as makedev gives it, ``children`` a folder's entries.  ``xattrs`` holds
    full names (``user.x``) and values.
    """

    __slots__ = (
        "children",
        "chunks",
        "device",
        "gid",
        "mode",
        "mtime",
        "nid",
        "nlink",
        "nsec",
        "offset",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        nsec: int = 0,
        size: int = 0,
        device: int = 0,
        offset: int = 0,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.nsec = nsec
        self.size = size
        self.device = device
        self.offset = offset
        self.rdev = 0
        self.target = b""
        self.xattrs: tuple[tuple[bytes, bytes], ...] = ()
        self.chunks: Chunks | None = None
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.nlink = 0  # counted by the writer
        self.nid = -1  # given by the writer
