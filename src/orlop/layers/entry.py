"""What a tar says of one thing in it, as the reader gives it and the index takes it."""

from __future__ import annotations

from orlop.layers.index import Extents, Xattrs

__all__ = ["Entry"]


class Entry:
    """One member of the archive.

    ``mode`` is a whole st_mode, or has no type bits for a hard link.  ``offset`` is where the bytes
    start in the uncompressed archive, ``size`` their number (the apparent size if ``extents`` is
    set).  ``dirty`` tells that the padding behind the last byte is missing or not zero.
    """

    __slots__ = (
        "dirty",
        "extents",
        "gid",
        "link",
        "mode",
        "mtime",
        "name",
        "nsec",
        "offset",
        "rdev",
        "size",
        "uid",
        "xattrs",
    )

    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    nsec: int
    size: int
    offset: int
    rdev: tuple[int, int]
    dirty: bool
    xattrs: Xattrs
    extents: Extents | None
