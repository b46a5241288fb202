"""What this machine's kernel offers of what orlop can use, in words for `orlop info`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from orlop.errors import Error
from orlop.linux import confine, mountinfo
from orlop.linux.confine import Confinement
from orlop.linux.files import can_reflink

__all__ = ["confinement_words", "features"]

_FILESYSTEMS = {
    mountinfo.EXT_MAGIC: "ext4",
    mountinfo.XFS_MAGIC: "xfs",
    mountinfo.BTRFS_MAGIC: "btrfs",
    mountinfo.TMPFS_MAGIC: "tmpfs",
    mountinfo.OVERLAYFS_MAGIC: "overlay",
    mountinfo.NFS_MAGIC: "nfs",
    mountinfo.FUSE_MAGIC: "fuse",
}


_TCP = 4  # the version of Landlock from which it knows of TCP


def features(root: Path, confined: Callable[[], Confinement]) -> dict[str, str]:
    """Names and findings.  Looks, and changes nothing; a thing that cannot be found out is ``unknown``.

    ``confined`` asks a worker what its confinement came to.
    """
    known = _read("/proc/filesystems").split()
    magic = mountinfo.filesystem_magic(root)
    return {
        "kernel": os.uname().release,
        "erofs": _yes("erofs" in known),
        "overlay": _yes("overlay" in known),
        "file system of the store": _FILESYSTEMS.get(magic, f"{magic:#x}"),
        "reflink": _yes(can_reflink(root)),
        "user namespaces": _namespaces(),
        **_confinement(confined),
    }


def _confinement(confined: Callable[[], Confinement]) -> dict[str, str]:
    try:
        return confinement_words(confined())
    except Error as exc:
        landlock = f"version {abi}" if (abi := confine.landlock_abi()) else "no"
        return {"landlock": landlock, "confinement of workers": f"unknown: {exc}"}


def confinement_words(found: Confinement) -> dict[str, str]:
    """What keeps a worker from the rest of the machine, and what does not, as it was tried."""
    lacks: list[str] = []
    if not found.seccomp:
        lacks.append("no seccomp: it can make system calls that it does not need")
    if not found.landlock:
        lacks.append(
            "no Landlock: " + ("seccomp alone" if found.seccomp else "nothing") + " keeps it from files"
        )
    if not found.seccomp and found.landlock < _TCP:
        lacks.append("nothing keeps it from the network")
    if not found.user_changed:
        lacks.append("it runs as the user who runs orlop: no other is to be had here")
    return {
        "landlock": f"version {found.landlock}" if found.landlock else "no",
        "seccomp": _yes(found.seccomp),
        "workers' user": str(confine.NOBODY) if found.user_changed else str(os.geteuid()),
        "confinement of workers": "; ".join(lacks) or "whole",
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
