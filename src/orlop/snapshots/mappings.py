"""Id mappings: the store's folders mounted once more, with other ids.

For each mapping ``RUN/maps/<store>-<mapping>/`` has ``prepared`` and ``folders``, id-mapped binds of the
store's; mounts of roots with mapped ids name paths below them.  So the disk holds the image's ids, a commit
has nothing to translate, and no copy is chowned.  Needs Linux 5.19 (overlayfs on id-mapped layers).

Locking is the caller's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from orlop.linux import mount, mountinfo
from orlop.snapshots.stacks import make_below_run, system_errors

__all__ = ["Mappings", "mapping_name"]

_SHARED = ("prepared", "folders")


def mapping_name(uid_map: str, gid_map: str) -> str:
    """The name of a mapping; empty for none."""
    if not uid_map and not gid_map:
        return ""
    return hashlib.sha256(f"{uid_map} {gid_map}".encode()).hexdigest()[:16]


class Mappings:
    """The id-mapped binds of one store."""

    def __init__(self, root: Path, run: Path) -> None:
        self._root = root
        store = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:8]
        self._maps = run / "maps"
        self._prefix = f"{store}-"

    def place(self, mapping: str) -> Path:
        """The folder that stands for the store's root where ids are mapped."""
        return self._maps / f"{self._prefix}{mapping}" if mapping else self._root

    def active(self, mapping: str) -> bool:
        """Whether the mapping's binds are mounted in this mount namespace."""
        with system_errors(f"find mapping {mapping}"):
            place = self.place(mapping)
            return all(mountinfo.is_mount_point(place / name) for name in _SHARED)

    def activate(self, mapping: str, user_namespace: int | None) -> None:
        """Mount them as the user namespace (a descriptor) maps ids, unless they are mounted."""
        assert user_namespace is not None
        with system_errors("map ids"):
            place = self.place(mapping)
            make_below_run(self._maps)
            for folder in (place, *(place / name for name in _SHARED)):
                folder.mkdir(mode=0o700, exist_ok=True)
            for name in _SHARED:
                if mountinfo.is_mount_point(place / name):
                    continue
                mount.map_ids(self._root / name, place / name, user_namespace)

    def deactivate(self, mapping: str) -> None:
        """Unmount what no root needs.  Overlays that live on it go on living.  Idempotent."""
        with system_errors("unmap ids"), contextlib.suppress(FileNotFoundError):
            place = self.place(mapping)
            for name in _SHARED:
                while mountinfo.is_mount_point(place / name):
                    mount.umount(place / name, detach=True)
                with contextlib.suppress(FileNotFoundError):
                    (place / name).rmdir()
            place.rmdir()

    def activations(self) -> list[str]:
        """The names of this store's mappings that have a folder here."""
        with system_errors("list mappings"), contextlib.suppress(FileNotFoundError):
            return sorted(
                name.removeprefix(self._prefix)
                for name in os.listdir(self._maps)
                if name.startswith(self._prefix)
            )
        return []
