"""Stamps: what the inodes of a tree of our own making looked like when it was made.

A commit of such a tree (the native driver's) must find what changed without reading everything.  A file whose
inode still has the ctime that it had when the tree was complete was not written since: the kernel alone sets
ctimes.  Files are known by inode number and path, so swapping two folders fools nobody; ctimes are compared
for equality, so a clock that jumps does not either, and a ctime so young that a write right after might
have got the same one is not kept.

The file is younger than all of the tree, so its own ctime tells later whether anything there was changed.

The file: 24 bytes an entry, little-endian (path hash, inode number, ctime in ns), behind a head of 8.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import DataLoss
from orlop.linux.files import walk_folders, write_durably
from orlop.linux.sync import DURABLE, Sync

__all__ = ["Stamps", "stamp_tree", "written_since"]

_MAGIC = b"ORLOPST1"
_ENTRY = struct.Struct("<QQQ")
_YOUNG = 20_000_000  # ns: more than two ticks of the slowest clock that stamps inodes (CONFIG_HZ=100)


def stamp_tree(tree: int, path: Path, *, sync: Sync = DURABLE) -> None:
    """Write the stamps of all regular files below a folder to a file beside it.

    When this returns, the file's ctime is later than every one in the tree, and what is written to the tree
    from now on gets none that is earlier.  Where the clock was set back meanwhile that cannot be had, and
    `written_since` says yes.
    """
    newest, files = os.fstat(tree).st_ctime_ns, []
    for name, about, regular in _entries(tree):
        newest = max(newest, about.st_ctime_ns)
        if regular and about.st_ctime_ns < (1 << 64):
            files.append((_hash(name), about.st_ino, about.st_ctime_ns))
    old = max((ctime for _, _, ctime in files), default=0) - _YOUNG
    write_durably(
        path, _MAGIC + b"".join(_ENTRY.pack(*entry) for entry in files if entry[2] < old), sync=sync
    )
    until = time.monotonic_ns() + _YOUNG
    while path.stat().st_ctime_ns <= newest and time.monotonic_ns() < until:
        time.sleep(0.001)
        os.utime(path)


def written_since(tree: int, path: Path) -> bool:
    """Whether anything in a tree was written, made, renamed or removed since its stamps were."""
    complete = path.stat().st_ctime_ns
    return os.fstat(tree).st_ctime_ns >= complete or any(
        about.st_ctime_ns >= complete for _, about, _ in _entries(tree)
    )


def _entries(tree: int) -> Iterator[tuple[bytes, os.stat_result, bool]]:
    for path, _, entries in walk_folders(tree):
        for entry in entries:
            name = os.fsencode(entry.name)
            regular = entry.is_file(follow_symlinks=False)
            yield (path + b"/" + name if path else name), entry.stat(follow_symlinks=False), regular


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
