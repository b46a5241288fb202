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

__all__ = ["attached", "device_of"]

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A
_GET_STATUS = 0x4C05  # LOOP_GET_STATUS64
_AUTOCLEAR = 4
_INFO64 = 232  # sizeof(struct loop_info64); lo_flags lies at byte 52
_CONFIG = struct.Struct("=II52xI176x8Q")  # fd, block size, info.lo_flags, reserved
_TRIES = 64  # others take free devices at the same time


@contextlib.contextmanager
def attached(path: Path) -> Iterator[str]:
    """A loop device of a file, for the length of a ``with`` block; a mount made of it keeps it longer.

    The one that it has already, if it has one.  Callers for one file must not overlap.

    Raises OSError: ENOENT where there are no loop devices, EACCES or EPERM without the privilege.
    """
    found = device_of(path)
    if found is not None:
        device, fd = found, os.open(found, os.O_RDWR | os.O_CLOEXEC)
    else:
        backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            device, fd = _configure(backing)
        finally:
            os.close(backing)
    try:
        yield device
    finally:
        os.close(fd)


def device_of(path: Path) -> str | None:
    """The loop device that has a file already, in whatever mount namespace it was attached; None for none.

    Two file systems over one file would destroy it, so this is to be asked first.
    """
    about = os.stat(path)
    major, minor = os.major(about.st_dev), os.minor(about.st_dev)
    wanted = (minor & 0xFF | major << 8 | (minor & ~0xFF) << 12, about.st_ino)  # new_encode_dev()
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop"):
            continue
        try:
            fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            status = fcntl.ioctl(fd, _GET_STATUS, bytes(_INFO64))
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # it was let go meanwhile
                raise
            continue
        finally:
            os.close(fd)
        if struct.unpack_from("=QQ", status) == wanted:
            return f"/dev/{name}"
    return None


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
