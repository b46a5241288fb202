"""What ten roots of one image hold in the page cache after every file was read in each of them.

Counted by mincore(2): the files as seen in the last root, and the files behind EROFS (tars, second devices
and images).  Then all that the first root sees is dropped: what the last one still sees is a copy of its own,
and there is none where all share one.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.reading import File, read_all
from bench.section import Row
from bench.ways import DIRECT, FOLDERS, ORLOP, Ways, drop_caches, patiently

__all__ = ["cached", "shared", "ten_roots"]

TEN = 10
_FILES, _OWN = "files MB", "its own MB"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def ten_roots(image: str, ways: Ways, files: Sequence[File]) -> list[Row]:
    """A row for each way: orlop, orlop with directio, folders."""
    return [_ten(image, ways, way, files) for way in (ORLOP, DIRECT, FOLDERS)]


def shared(row: Row) -> float:
    """How much of what a root has in memory is its own."""
    return row.median(_OWN) / row.median(_FILES)


def _ten(image: str, ways: Ways, way: str, files: Sequence[File]) -> Row:
    row = Row(what=f"{image}: all files read in ten roots, page cache", tool=way)
    made = ways.more(way, TEN)
    try:
        drop_caches(Path(made[0].path).parent)
        for root in made:
            read_all(Path(root.path), files)
        first, last = (Path(root.path) for root in (made[0], made[-1]))
        row.add(
            files_MB=cached(last / name for name, _ in files) / 1e6,
            behind_EROFS_MB=cached(ways.behind(way)) / 1e6,
        )
        _drop(first / name for name, _ in files)
        row.add(its_own_MB=cached(last / name for name, _ in files) / 1e6)
    finally:
        for root in made:
            patiently(root.cleanup)
    return row


def cached(paths: Iterable[Path]) -> int:
    """Bytes of some files that are in the page cache."""
    return sum(map(_cached, paths)) * mmap.PAGESIZE


def _cached(path: Path) -> int:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0
        private = mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE  # ctypes wants it writable
        with mmap.mmap(file.fileno(), size, *private) as mapped:
            pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            first = ctypes.c_char.from_buffer(mapped)
            failed = _libc.mincore(ctypes.addressof(first), size, pages)
            del first  # or the mapping could not be closed
            if failed:
                raise OSError(ctypes.get_errno(), "mincore", os.fspath(path))
    return sum(page & 1 for page in pages)


def _drop(paths: Iterable[Path]) -> None:
    """Have clean files leave the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
