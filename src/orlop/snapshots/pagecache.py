"""What the driver ``erofs`` asks of the kernel's page cache: docs/adr/0017.

An EROFS image in a file is read through that file's page cache, so what a program reads is in memory twice:
once for EROFS, once for the layer's tar.  Nothing here changes what is read, and no failure here is one.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["fetch_ahead", "reads_sectors"]

_STEP = 128 << 10  # the kernel takes no more of one advice than the disk's own read-ahead, which is this
_MOST = 32 << 20  # bytes of an image: some 250,000 entries
_SECTOR = 512


def fetch_ahead(image: Path) -> None:
    """Have an image on its way into memory, in pieces of some size; nothing waits for it.

    EROFS reads its inodes and folders a page at a time, each for itself.
    """
    with contextlib.suppress(OSError):  # advice; whoever reads the file next says what is wrong
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset in range(0, min(os.fstat(fd).st_size, _MOST), _STEP):
                os.posix_fadvise(fd, offset, _STEP, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)


def reads_sectors(devices: Sequence[Path]) -> bool:
    """Whether files can be read past the page cache from any multiple of 512 bytes.

    Files in a tar begin there.  Where a disk's sectors have 4,096 bytes, a mount with ``directio`` succeeds,
    and reads fail with EIO.
    """
    try:
        for device in devices:
            if not _reads_sectors(device):
                return False
    except OSError:
        return False
    return bool(devices)


def _reads_sectors(device: Path) -> bool:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    try:
        if os.fstat(fd).st_size < 2 * _SECTOR:
            return True
        with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view:  # aligned as O_DIRECT wants it
            return os.preadv(fd, [view[_SECTOR : 2 * _SECTOR]], _SECTOR) == _SECTOR
    finally:
        os.close(fd)
