"""Overlayfs's own xattrs in a tar: nested when indexed, unnested by commit.

A layer may hold what an overlayfs inside the container wrote (docker in docker).  It must come back as it
was, and must not steer our own overlay (Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts").
"""

from __future__ import annotations

from orlop.layers.index import Xattrs

__all__ = ["escape_xattrs", "holdable", "unescape_xattrs"]

_OVERLAY = b"trusted.overlay."
_KEPT = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_MAX_NAME = 255  # XATTR_NAME_MAX (include/uapi/linux/limits.h)


def escape_xattrs(pairs: Xattrs) -> Xattrs:
    """The xattrs as EROFS holds them: what could steer overlayfs is nested one level deeper.

    Names that Linux has no handler for, or no room, cannot be kept by any file system and are left out.
    """
    return tuple((name, value) for name, value in map(_escape, pairs) if holdable(name))


def _escape(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = pair
    return (_OVERLAY + b"overlay." + name[len(_OVERLAY) :], value) if name.startswith(_OVERLAY) else pair


def holdable(name: bytes) -> bool:
    """Whether a file system on Linux can hold an xattr of this name."""
    return name in _ACLS or (name.startswith(_KEPT) and name not in _KEPT and len(name) <= _MAX_NAME)


def unescape_xattrs(pairs: Xattrs) -> Xattrs:
    """The inverse of `escape_xattrs`; overlayfs's own xattrs are left out."""
    found: list[tuple[bytes, bytes]] = []
    for name, value in pairs:
        if name.startswith(_OVERLAY):
            rest = name[len(_OVERLAY) :]
            if not rest.startswith(b"overlay."):
                continue
            name = _OVERLAY + rest[len(b"overlay.") :]  # noqa: PLW2901
        found.append((name, value))
    return tuple(found)
