"""What the mode that a program runs in can represent on disk, as its checks must know it.

``root`` is the machine's; ``many-ids`` and ``single-id`` are root of a user namespace with several ids or
one; ``container`` is a root that may not mount, as in most containers; ``none`` is everybody else.  What a
mode cannot show is left out of what a check compares, and named in its report; it is told from the kernel
(/proc/self), never from orlop.

Sources: user_namespaces(7), capabilities(7), xattr(7).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from orlop.values import dataclass

__all__ = ["ALL", "Abilities", "Mode", "detect"]

Mode = Literal["root", "many-ids", "single-id", "container", "none"]

# include/uapi/linux/capability.h
_CHOWN, _DAC_OVERRIDE, _FOWNER, _SYS_ADMIN, _MKNOD, _SETFCAP = 0, 1, 3, 21, 27, 31
_INITIAL = 0xEFFFFFFD  # inode of the first user namespace: PROC_USER_INIT_INO, include/linux/proc_ns.h
_LAST_ID = 2**32 - 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What can be represented.

    ``mount`` tells whether roots can be mounted; ``chown`` whether files can be given to others, up to
    ``last_id``; where they cannot, nor is a mode kept that the owner himself is bound by, or that makes
    somebody else of who runs a file.  ``mknod`` is about devices, ``xattrs`` are prefixes of names.
    """

    mode: Mode
    mount: bool
    chown: bool
    last_id: int
    mknod: bool
    xattrs: tuple[str, ...]

    def holds(self, xattr: str) -> bool:
        """Whether an xattr of this name can be set."""
        return xattr.startswith(self.xattrs)


ALL = Abilities(
    mode="root",
    mount=True,
    chown=True,
    last_id=_LAST_ID,
    mknod=True,
    xattrs=("user.", "trusted.", "security.capability", "system.posix_acl_"),
)
"""Root of the machine can represent all."""

_NONE = Abilities(mode="none", mount=False, chown=False, last_id=0, mknod=False, xattrs=("user.",))


def detect() -> Abilities:
    """What this process can represent."""
    capabilities = _capabilities()
    mount = _SYS_ADMIN in capabilities
    if os.geteuid() != 0 or not (mount or {_CHOWN, _DAC_OVERRIDE, _FOWNER} <= capabilities):
        return _NONE
    initial = os.stat("/proc/self/ns/user").st_ino == _INITIAL
    last_id = _LAST_ID if initial else min(map(_last_id, ("uid_map", "gid_map")))
    mode: Mode = "root" if initial else "many-ids" if last_id else "single-id"
    spaces = {
        "user.": True,
        "trusted.": initial and mount,
        "security.capability": _SETFCAP in capabilities,
        "system.posix_acl_": last_id > 0,
    }
    return Abilities(
        mode=mode if mount else "container",
        mount=mount,
        chown=last_id > 0,
        last_id=last_id,
        mknod=initial and _MKNOD in capabilities,
        xattrs=tuple(space for space, held in spaces.items() if held),
    )


def _capabilities() -> set[int]:
    """The numbers of our effective capabilities."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return {number for number in range(64) if bits >> number & 1}
    return set()


def _last_id(name: str) -> int:
    """The last of the ids that are mapped without a gap from 0 on."""
    end = 0
    for line in sorted(
        Path("/proc/self", name).read_text().splitlines(), key=lambda line: int(line.split()[0])
    ):
        inside, _, size = map(int, line.split())
        if inside == end:
            end += size
    return end - 1
