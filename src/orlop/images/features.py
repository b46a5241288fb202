"""What this machine's kernel offers of what orlop can use, in words for `orlop info`."""

from __future__ import annotations

import os
from pathlib import Path

from orlop.linux import confine, mountinfo
from orlop.linux.files import can_reflink

__all__ = ["features"]

_FILESYSTEMS = {
    mountinfo.EXT_MAGIC: "ext4",
    mountinfo.XFS_MAGIC: "xfs",
    mountinfo.BTRFS_MAGIC: "btrfs",
    mountinfo.TMPFS_MAGIC: "tmpfs",
    mountinfo.OVERLAYFS_MAGIC: "overlay",
    mountinfo.NFS_MAGIC: "nfs",
    mountinfo.FUSE_MAGIC: "fuse",
}


def features(root: Path) -> dict[str, str]:
    """Names and findings.  Looks, and changes nothing; a thing that cannot be found out is ``unknown``."""
    known = _read("/proc/filesystems").split()
    magic = mountinfo.filesystem_magic(root)
    return {
        "kernel": os.uname().release,
        "erofs": _yes("erofs" in known),
        "overlay": _yes("overlay" in known),
        "file system of the store": _FILESYSTEMS.get(magic, f"{magic:#x}"),
        "reflink": _yes(can_reflink(root)),
        "user namespaces": _namespaces(),
        "landlock": f"version {abi}" if (abi := confine.landlock_abi()) else "no",
    }


def _yes(found: bool) -> str:
    return "yes" if found else "no"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _namespaces() -> str:
    most = _read("/proc/sys/user/max_user_namespaces").strip()
    if not most:
        return "unknown"
    if most == "0" or _read("/proc/sys/kernel/unprivileged_userns_clone").strip() == "0":
        return "not allowed"
    return "yes"
