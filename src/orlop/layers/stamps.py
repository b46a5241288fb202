"""Stamps: what the inodes of a tree of our own making looked like when it was made.

A commit of such a tree (the native driver's) must find what changed without reading everything.  A file whose
inode still has the ctime that it had when the tree was complete was not written since: the kernel alone sets
ctimes.  Files are known by inode number and path, so swapping two folders fools nobody; ctimes are compared
for equality, so a clock that jumps does not either, and a ctime so young that a write right after might
have got the same one is not kept.

The file: 24 bytes an entry, little-endian (path hash, inode number, ctime in ns), behind a head of 8.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import DataLoss
from orlop.linux.files import walk_folders

__all__ = ["Stamps", "take_stamps"]

_MAGIC = b"ORLOPST1"
_ENTRY = struct.Struct("<QQQ")
_YOUNG = 20_000_000  # ns: more than two ticks of the slowest clock that stamps inodes (CONFIG_HZ=100)


def take_stamps(tree: int) -> bytes:
    """The stamps of all regular files below a folder."""
    found = [
        (_hash(path), about.st_ino, about.st_ctime_ns)
        for path, about in _files(tree)
        if about.st_ctime_ns < (1 << 64)
    ]
    newest = max((ctime for _, _, ctime in found), default=0)
    return _MAGIC + b"".join(_ENTRY.pack(*entry) for entry in found if entry[2] < newest - _YOUNG)


def _files(tree: int) -> Iterator[tuple[bytes, os.stat_result]]:
    for path, _, entries in walk_folders(tree):
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                name = os.fsencode(entry.name)
                yield (path + b"/" + name if path else name), entry.stat(follow_symlinks=False)


class Stamps:
    """Stamps read back from a file."""

    def __init__(self, data: bytes) -> None:
        if data[:8] != _MAGIC or (len(data) - 8) % _ENTRY.size:
            raise DataLoss("read stamps", "not a file of stamps")
        view = memoryview(data)[8:]
        self._known = {(path, inode): ctime for path, inode, ctime in _ENTRY.iter_unpack(view)}

    @classmethod
    def load(cls, path: Path) -> Stamps | None:
        """The stamps in a file; None where it is gone or no such file, and all must be compared."""
        try:
            return cls(path.read_bytes())
        except (FileNotFoundError, DataLoss):
            return None

    def untouched(self, path: bytes, about: os.stat_result) -> bool:
        """Whether the file at a path has certainly not been written since the stamps were taken."""
        return self._known.get((_hash(path), about.st_ino)) == about.st_ctime_ns


def _hash(path: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(path, digest_size=8).digest(), "little")
