"""Overlayfs's own xattrs in a tar: nested when written down, unnested by commit.

A layer may hold what an overlayfs inside the container wrote (docker in docker).  It must come back as it
was, and must not steer our own overlay (Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts").
Overlays mounted with ``userxattr`` heed `USER` names, all others `TRUSTED` ones; where there is no overlay
(``marks`` empty) nothing is nested.
"""

from __future__ import annotations

from orlop.layers.index import Xattrs

__all__ = ["TRUSTED", "USER", "escape_xattrs", "holdable", "unescape_xattrs"]

TRUSTED = b"trusted.overlay."
USER = b"user.overlay."
_KEPT = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_MAX_NAME = 255  # XATTR_NAME_MAX (include/uapi/linux/limits.h)


def escape_xattrs(pairs: Xattrs, marks: bytes = TRUSTED) -> Xattrs:
    """The xattrs as a lower layer holds them: what could steer overlayfs is nested one level deeper.

    Names that Linux has no handler for, or no room, cannot be kept by any file system and are left out.
    """
    escaped = ((_escape(name, marks), value) for name, value in pairs)
    return tuple((name, value) for name, value in escaped if holdable(name))


def _escape(name: bytes, marks: bytes) -> bytes:
    return marks + b"overlay." + name[len(marks) :] if marks and name.startswith(marks) else name


def holdable(name: bytes) -> bool:
    """Whether a file system on Linux can hold an xattr of this name."""
    return name in _ACLS or (name.startswith(_KEPT) and name not in _KEPT and len(name) <= _MAX_NAME)


def unescape_xattrs(pairs: Xattrs, marks: bytes = TRUSTED) -> Xattrs:
    """The inverse of `escape_xattrs`; overlayfs's own xattrs are left out."""
    found: list[tuple[bytes, bytes]] = []
    for name, value in pairs:
        if marks and name.startswith(marks):
            rest = name[len(marks) :]
            if not rest.startswith(b"overlay."):
                continue
            name = marks + rest[len(b"overlay.") :]  # noqa: PLW2901
        found.append((name, value))
    return tuple(found)
