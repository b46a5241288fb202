"""An overlay's upper folder, read without following a link: xattrs, marks, files by their path.

The names of overlayfs's own xattrs and what they mean stand here (Documentation/filesystems/overlayfs.rst);
what they amount to is `orlop.layers.diff`'s.
"""

from __future__ import annotations

import os
import stat

from orlop.layers.index import Xattrs
from orlop.layers.nested import TRUSTED

__all__ = [
    "OPEN_FILE",
    "OPEN_FOLDER",
    "is_opaque",
    "is_whiteout",
    "open_below",
    "overlay_xattr",
    "read_xattrs",
]

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def read_xattrs(path: bytes, *, follow: bool) -> Xattrs:
    """All xattrs of a thing in the upper, overlay's own included, sorted."""
    return tuple(
        sorted(
            (os.fsencode(name), os.getxattr(path, name, follow_symlinks=follow))
            for name in os.listxattr(path, follow_symlinks=follow)
        )
    )


def overlay_xattr(xattrs: Xattrs, name: bytes, marks: bytes = TRUSTED) -> bytes | None:
    """The value of one of overlayfs's own xattrs, whose names begin with ``marks``."""
    return next((value for key, value in xattrs if key == marks + name), None) if marks else None


def is_opaque(xattrs: Xattrs, marks: bytes = TRUSTED) -> bool:
    """Whether a folder hides what lies below it.  The value ``x`` says something else."""
    return overlay_xattr(xattrs, b"opaque", marks) == b"y"


def is_whiteout(about: os.stat_result, xattrs: Xattrs, marks: bytes = TRUSTED) -> bool:
    """Whether something stands for a thing that is gone, in either of overlayfs's forms."""
    kind = about.st_mode & 0o170000
    if kind == stat.S_IFCHR:
        return about.st_rdev == 0
    return (
        kind == stat.S_IFREG and not about.st_size and overlay_xattr(xattrs, b"whiteout", marks) is not None
    )


def open_below(upper: int, path: bytes) -> int:
    """Open a file of the upper by its path, of any length."""
    fd = os.dup(upper)
    parts = path.split(b"/")
    try:
        for part in parts[:-1]:
            deeper = os.open(part, OPEN_FOLDER, dir_fd=fd)
            os.close(fd)
            fd = deeper
        return os.open(parts[-1], OPEN_FILE, dir_fd=fd)
    finally:
        os.close(fd)
