"""Sized disks: roots that may write so many bytes and no more.

A root with a quota has its writable part on an ext4 of its own, in a sparse file, mounted by a loop device at
``RUN/disks/<store>-<id>``; so a full root is ENOSPC inside it, and nowhere else.  The file takes the room
that is written, not the room that is allowed: if the store's own disk fills up, writes inside fail, too.

::

    prepared/<id>/disk.img       the file
    RUN/disks/<store>-<id>/      where it is mounted: the root's folder in place of prepared/<id>
    RUN/disks/<store>-<id>.map/  the same with mapped ids

Locking is the caller's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.linux import loop, mount, mountinfo
from orlop.linux.sync import DURABLE, Sync
from orlop.observe import reached
from orlop.snapshots.stacks import make_below_run, system_errors

__all__ = ["LEAST", "MOST", "Disks"]

LEAST, MOST = 1 << 20, 1 << 43  # bytes; ext4 with blocks of 4 KiB ends at 1 << 44
_JOURNAL = 4  # MiB
_OVERHEAD = 8 << 20
_IMAGE = "disk.img"
_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", f"size={_JOURNAL}")
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


class Disks:
    """The sized disks of one store."""

    def __init__(self, root: Path, run: Path, *, sync: Sync = DURABLE) -> None:
        self._sync = sync
        store = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:8]
        self._prepared = root / "prepared"
        self._disks = run / "disks"
        self._prefix = f"{store}-"

    def place(self, root_id: str, *, mapped: bool = False) -> Path:
        """Where a root's disk is mounted."""
        return self._disks / f"{self._prefix}{root_id}{'.map' if mapped else ''}"

    def has(self, root_id: str) -> bool:
        """Whether a root has a disk."""
        return (self._prepared / root_id / _IMAGE).exists()

    def create(self, root_id: str, size: int) -> None:
        """Make a disk that takes ``size`` bytes of files, about; durable on return.

        ``size`` is `LEAST` to `MOST`.  Raises `FailedPrecondition` where it cannot be done.
        """
        what = f"make a disk of {size} bytes"
        folder = self._prepared / root_id
        with system_errors(what):
            folder.mkdir(mode=0o700, exist_ok=True)
            new = folder / f"{_IMAGE}.new"
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(fd, -(-(size + size // 50 + _OVERHEAD) // 4096) * 4096)
                _make_filesystem(new, what)
                self._sync.file(fd)
            finally:
                os.close(fd)
            reached("disk.formatted")
            os.rename(new, folder / _IMAGE)
            for place in (folder, self._prepared):
                self._sync.folder(place)

    def activate(self, root_id: str, user_namespace: int | None = None) -> Path:
        """Have a root's disk mounted; returns where.  With a user namespace, with ids mapped by it.

        Needs its lock.  A disk that is mounted elsewhere is the same file system here.
        """
        place = self.place(root_id)
        with system_errors(f"mount the disk of root {root_id}"):
            make_below_run(self._disks)
            if not mountinfo.is_mount_point(place):
                place.mkdir(mode=0o700, exist_ok=True)
                self._mount(self._prepared / root_id / _IMAGE, place)
            if user_namespace is None:
                return place
            mapped = self.place(root_id, mapped=True)
            mapped.mkdir(mode=0o700, exist_ok=True)
            if not mountinfo.is_mount_point(mapped):
                mount.map_ids(place, mapped, user_namespace)
            return mapped

    @staticmethod
    def _mount(image: Path, place: Path) -> None:
        with loop.attached(image) as device, mount.FsContext("ext4") as context:
            context.set_string("source", device)
            context.create()
            fd = context.mount()
            try:
                mount.move_mount(fd, place)
            finally:
                os.close(fd)

    def attached(self, root_id: str) -> bool:
        """Whether a loop device has a root's disk, in whatever mount namespace."""
        with system_errors(f"find the disk of root {root_id}"):
            return loop.device_of(self._prepared / root_id / _IMAGE) is not None

    def deactivate(self, root_id: str) -> None:
        """Unmount a root's disk.  Idempotent."""
        with system_errors(f"unmount the disk of root {root_id}"):
            for place in (self.place(root_id, mapped=True), self.place(root_id)):
                while mountinfo.is_mount_point(place):
                    mount.umount(place, detach=True)
                with contextlib.suppress(FileNotFoundError):
                    place.rmdir()

    def activations(self) -> list[str]:
        """The ids of roots of this store whose disks have a mount point here."""
        with system_errors("list disks"), contextlib.suppress(FileNotFoundError):
            names = (name for name in os.listdir(self._disks) if name.startswith(self._prefix))
            return sorted({name.removeprefix(self._prefix).partition(".")[0] for name in names})
        return []


def _make_filesystem(image: Path, what: str) -> None:
    import subprocess

    try:
        done = subprocess.run(
            [*_MKFS, os.fspath(image)],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": _PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError as exc:
        raise FailedPrecondition(what, "mkfs.ext4 is not installed", hint="install e2fsprogs") from exc
    if done.returncode:
        raise FailedPrecondition(what, f"mkfs.ext4 says: {done.stderr.strip()[-300:]}")
