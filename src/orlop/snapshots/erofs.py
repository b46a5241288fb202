"""The ``erofs`` driver: chains mounted as EROFS, overlays above them.

An activation is the mount of one EROFS image in this mount namespace, at ``RUN/chains/<store>-<id>``; all
prepared roots on it share it, so they share its page cache.  ``<store>`` tells apart the stores that use one
RUN: none takes away what another needs.  What *is* mounted is asked of the kernel each time: rows say only
what is needed.  The tree stands under ``root/`` inside the image, so an overlay over a
mount point with nothing mounted fails (ENOENT) and never shows an empty root.

Locking is the caller's: `activate` and `deactivate` need the image's lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, from_oserror
from orlop.linux import mount, mountinfo
from orlop.linux.files import fsync_dir, remove_tree

__all__ = ["OVERLAY_OPTIONS", "ChainImage", "ErofsDriver", "MountSpec"]

OVERLAY_OPTIONS = ("xino=on", "index=off", "nfs_export=off", "metacopy=off", "redirect_dir=off")
"""Every overlay option we depend on is said, never left to the module's defaults."""

MAX_OPTIONS = 3_900  # mount(2) takes one page of options, less what mount(8) adds
_OVERLAY = "trusted.overlay."
_ODD = re.compile(r"[,:\\\"\s]")  # what a mount option would need to escape


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainImage:
    """One EROFS image of a chain: its file, and the data its device numbers mean, in order."""

    id: str
    file: Path
    uuid: bytes
    devices: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """One mount to perform, in mount(2)'s terms."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


class ErofsDriver:
    """Chains under ``run``/chains, uppers under ``prepared``.  Thread-safe."""

    name = "erofs"

    def __init__(self, prepared: Path, run: Path, root: Path) -> None:
        self._prepared = prepared
        self._mounts = run / "chains"
        self._store = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:8] + "-"

    # -- activations ----------------------------------------------------------------------------

    def active(self, image: ChainImage) -> bool:
        """Whether the image is mounted at its place in this mount namespace."""
        with _system_errors(f"find chain {image.id[:12]}"):
            return mountinfo.erofs_uuid(self._point(image.id)) == image.uuid

    def activate(self, image: ChainImage) -> None:
        """Mount an image at its place unless it is mounted there.  Needs its lock.

        Raises `DataLoss` if the file is another image than its row says.
        """
        if self.active(image):
            return
        what = f"mount chain {image.id[:12]}"
        point = self._point(image.id)
        with _system_errors(what):
            point.mkdir(mode=0o700, exist_ok=True)
            while mountinfo.is_mount_point(point):  # another image's, left by a bug
                mount.umount(point, detach=True)
            fd = mount.mount_erofs(image.file, image.devices)
            try:
                mount.move_mount(fd, point)
            finally:
                os.close(fd)
        if not self.active(image):
            self.deactivate(image.id)
            raise DataLoss(what, f"{image.file} is not the image that the store made")

    def deactivate(self, image_id: str) -> None:
        """Unmount an image that no prepared root needs.  Overlays that live on it go on living.

        Needs its lock.  Idempotent.
        """
        point = self._point(image_id)
        with _system_errors(f"unmount chain {image_id[:12]}"), contextlib.suppress(FileNotFoundError):
            while mountinfo.is_mount_point(point):
                mount.umount(point, detach=True)
            point.rmdir()

    def activations(self) -> list[str]:
        """The ids of this store's images that have a mount point here."""
        with _system_errors("list activations"), contextlib.suppress(FileNotFoundError):
            names = [entry.name for entry in self._mounts.iterdir() if entry.is_dir()]
            return sorted(name.removeprefix(self._store) for name in names if name.startswith(self._store))
        return []

    def _point(self, image_id: str) -> Path:
        return self._mounts / f"{self._store}{image_id}"

    # -- prepared roots -------------------------------------------------------------------------

    def create_upper(self, root_id: str, stack: Sequence[ChainImage]) -> None:
        """Make the writable part of a root; durable on return.

        The overlay's root folder shows the upper's own mode, owner and xattrs, so they are the
        chain's from the start.  The chain must be active.
        """
        folder = self._prepared / root_id
        lower = self._point(stack[0].id) / "root"
        try:
            folder.mkdir(mode=0o700)
            upper = folder / "upper"
            upper.mkdir(mode=0o700)
            (folder / "work").mkdir(mode=0o700)
            copy_root_metadata(lower, upper)
            for place in (upper, folder, self._prepared):
                fsync_dir(place)
        except OSError as exc:
            remove_tree(folder, missing_ok=True)
            raise from_oserror(f"prepare {folder}", exc) from exc

    def upper(self, root_id: str) -> Path:
        """The folder that holds what was written to a root."""
        return self._prepared / root_id / "upper"

    def mounts(
        self, root_id: str, stack: Sequence[ChainImage], target: str, *, view: bool
    ) -> list[MountSpec]:
        """The mounts that assemble a root at ``target``."""
        lowers = [str(self._point(image.id) / "root") for image in stack]
        if view and len(lowers) == 1:
            return [MountSpec(type="bind", source=lowers[0], target=target, options=("bind", "ro"))]
        return [self._overlay(root_id, lowers, target, view=view)]

    def self_contained(
        self, root_id: str, stack: Sequence[ChainImage], target: str, *, view: bool
    ) -> list[MountSpec]:
        """The same, for another mount namespace that sees the store at the same path.

        The EROFS goes to ``target`` itself, and the overlay over it; no other folder is needed.
        Raises `FailedPrecondition` where mount(2) could not take the options, `InvalidArgument` for a
        path that could not stand in one.
        """
        if _ODD.search(target):
            raise InvalidArgument(
                f"prepare {target}",
                "the path of a self-contained root may hold no comma, colon, backslash, quote or white space",
                hint="choose another path, or prepare it without self_contained",
            )
        if len(stack) != 1:
            raise FailedPrecondition(f"prepare {target}", "a self-contained root needs a chain of one image")
        options = ("ro", *(f"device={device}" for device in stack[0].devices))
        if len(",".join(options)) > MAX_OPTIONS:
            raise FailedPrecondition(
                f"prepare {target}",
                f"its {len(stack[0].devices)} layers do not fit into the options of one mount(2)",
                hint="prepare it without self_contained, or merge its layers by committing them into one",
            )
        base = MountSpec(type="erofs", source=str(stack[0].file), target=target, options=options)
        if view:
            root = MountSpec(type="bind", source=f"{target}/root", target=target, options=("bind", "ro"))
            return [base, root]
        overlay = self._overlay(root_id, [f"{target}/root"], target, view=False)
        if len(",".join(overlay.options)) > MAX_OPTIONS:
            raise FailedPrecondition(
                f"prepare {target}", "its path is too long for the options of one mount(2)"
            )
        return [base, overlay]

    def _overlay(self, root_id: str, lowers: Sequence[str], target: str, *, view: bool) -> MountSpec:
        options = [f"lowerdir={':'.join(lowers)}"]
        if view:
            options.insert(0, "ro")
        else:
            folder = self._prepared / root_id
            options += [f"upperdir={folder / 'upper'}", f"workdir={folder / 'work'}"]
        return MountSpec(
            type="overlay", source="overlay", target=target, options=(*options, *OVERLAY_OPTIONS)
        )

    def in_use(self, root_id: str) -> bool:
        """Whether a live overlay anywhere on this machine uses the root's upper.

        Two of these for one root must not overlap (KERNEL: one could hide an overlay from the other):
        the root's lock is the caller's to hold.
        """
        with _system_errors(f"look at {self.upper(root_id)}"), contextlib.suppress(FileNotFoundError):
            return mount.upper_in_use(self.upper(root_id), work=self._prepared / root_id / "work")
        return False

    def shows(
        self, root_id: str, stack: Sequence[ChainImage], place: str, *, view: bool, self_contained: bool
    ) -> bool:
        """Whether the mount on top at a place, in this mount namespace, is one of a root's own.

        Told by what is mounted, so that nobody else's mount is taken for ours, whatever a row says.
        """
        with _system_errors(f"look at {place}"):
            if not mountinfo.is_mount_point(place):
                return False
            uuid = mountinfo.erofs_uuid(place)
            if uuid is not None:
                return (view or self_contained) and uuid in {image.uuid for image in stack}
            mount_id = mountinfo.mount_id_of(place)
            entry = next((e for e in mountinfo.mount_table() if e.mount_id == mount_id), None)
        if entry is None or entry.type != "overlay":
            return False
        if not view:
            return entry.option(b"upperdir") in _forms(self.upper(root_id))
        first = entry.option(b"lowerdir+") or (entry.option(b"lowerdir") or b"").split(b":")[0]
        return entry.option(b"upperdir") is None and first in _forms(self._point(stack[0].id) / "root")


def _forms(path: Path) -> set[bytes]:
    """The forms in which a path may show in mountinfo."""
    return {os.fsencode(path), os.fsencode(os.path.realpath(path))}


@contextlib.contextmanager
def _system_errors(attempted: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


def copy_root_metadata(source: Path, target: Path) -> None:
    """Give a folder the mode, owner, times and xattrs of another, without overlayfs's own."""
    about = os.stat(source)
    os.chown(target, about.st_uid, about.st_gid)
    os.chmod(target, stat.S_IMODE(about.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(_OVERLAY):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
