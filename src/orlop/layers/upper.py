"""An overlay's upper folder, read without following a link: xattrs, marks, files by their path.

The names of overlayfs's own xattrs and what they mean stand here (Documentation/filesystems/overlayfs.rst);
what they amount to is `orlop.layers.diff`'s.
"""

from __future__ import annotations

import os
import stat
from types import TracebackType

from orlop.hints import Self
from orlop.layers.index import Xattrs
from orlop.layers.nested import TRUSTED

__all__ = [
    "OPEN_FILE",
    "OPEN_FOLDER",
    "Below",
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
    names = os.listxattr(path, follow_symlinks=follow)
    if not names:
        return ()
    return tuple(
        sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=follow)) for name in names)
    )


def overlay_xattr(xattrs: Xattrs, name: bytes, marks: bytes = TRUSTED) -> bytes | None:
    """The value of one of overlayfs's own xattrs, whose names begin with ``marks``."""
    if not (xattrs and marks):
        return None
    return next((value for key, value in xattrs if key == marks + name), None)


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
    folder, _, name = path.rpartition(b"/")
    fd = _open_folder(upper, folder)
    try:
        return os.open(name, OPEN_FILE, dir_fd=fd)
    finally:
        os.close(fd)


class Below:
    """Opens files of the upper by their paths; the folder of the last one stays open for the next.

    A context manager.  Used by one thread.
    """

    def __init__(self, upper: int) -> None:
        self._upper = upper
        self._folder: bytes | None = None
        self._fd = -1

    def open(self, path: bytes) -> int:
        """As `open_below`."""
        folder, _, name = path.rpartition(b"/")
        if folder == self._folder:
            try:
                return os.open(name, OPEN_FILE, dir_fd=self._fd)
            except OSError:
                pass  # the folder may be another now
        self.close()
        self._fd = _open_folder(self._upper, folder)
        self._folder = folder
        return os.open(name, OPEN_FILE, dir_fd=self._fd)

    def close(self) -> None:
        """Let go of the folder.  Idempotent."""
        if self._folder is not None:
            os.close(self._fd)
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_folder(upper: int, path: bytes) -> int:
    fd = os.dup(upper)
    try:
        for part in path.split(b"/") if path else ():
            deeper = os.open(part, OPEN_FOLDER, dir_fd=fd)
            os.close(fd)
            fd = deeper
    except BaseException:
        os.close(fd)
        raise
    return fd
