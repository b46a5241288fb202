"""Loop devices: a file as a block device, gone again with its last user.

Sources: include/uapi/linux/loop.h; loop(4).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from orlop.linux._syscall import Path

__all__ = ["attached"]

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
_INFO64 = 232  # sizeof(struct loop_info64); lo_flags lies at byte 52
_CONFIG = struct.Struct("=II52xI176x8Q")  # fd, block size, info.lo_flags, reserved
_TRIES = 64  # others take free devices at the same time


@contextlib.contextmanager
def attached(path: Path) -> Iterator[str]:
    """A loop device of a file, for the length of a ``with`` block; a mount made of it keeps it longer.

    Raises OSError: ENOENT where there are no loop devices, EACCES or EPERM without the privilege.
    """
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        device, fd = _configure(backing)
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(fd)


def _configure(backing: int) -> tuple[str, int]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _CONFIGURE, _CONFIG.pack(backing, 0, _AUTOCLEAR, *[0] * 8))
            except OSError as exc:
                os.close(fd)
                if exc.errno != errno.EBUSY:
                    raise
                continue
            return device, fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device stays free")
