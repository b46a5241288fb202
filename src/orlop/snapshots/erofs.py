"""The ``erofs`` driver: chains mounted as EROFS, overlays above them.

An activation is the mount of one EROFS image in this mount namespace, at ``RUN/chains/<store>-<id>``; all
prepared roots on it share it, so they share its page cache.  With ids mapped it is another mount, at
``<store>-<id>.<mapping>``.  ``<store>`` tells apart the stores that use one RUN: none takes away what
another needs.  What *is* mounted is asked of the kernel each time: rows say only what is needed.  The tree
stands under ``root/`` inside the image, so an overlay over a mount point with nothing mounted fails (ENOENT)
and never shows an empty root.

Locking is the caller's: `activate` and `deactivate` need the image's lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from orlop.config import Driver as DriverName
from orlop.errors import DataLoss, FailedPrecondition, from_oserror
from orlop.linux import mount, mountinfo
from orlop.linux.sync import DURABLE, Sync
from orlop.snapshots import stacks
from orlop.snapshots.driver import ChainImage, Fill, Ground, MountSpec, Root, Table, check_self_contained
from orlop.snapshots.pagecache import fetch_ahead, reads_sectors
from orlop.snapshots.stacks import MAX_OPTIONS, make_below_run, system_errors

__all__ = ["ErofsDriver"]


_NESTED = b"overlay.overlay."  # in EROFS the prefix "trusted." is a number
_VIEW = ("bind", "ro", "suid", "dev", "exec")  # an activation is sealed, and a bind would be, too


class ErofsDriver:
    """Chains under ``run``/chains.  Thread-safe."""

    name: DriverName = "erofs"

    def __init__(
        self, run: Path, root: Path, empty: Path, *, sync: Sync = DURABLE, directio: bool = False
    ) -> None:
        self._sync = sync
        self._directio = directio
        self._empty = empty  # an empty folder
        self._nested: dict[str, bool] = {}  # image -> whether it holds marks of overlays inside
        self._mounts = run / "chains"
        self._store = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:8] + "-"
        self._prefix = f"{self._mounts}/{self._store}"
        # Mount points where an image was found, and the number of that mount, which no other ever has.
        self._seen: dict[str, tuple[int, bytes]] = {}

    # -- activations ----------------------------------------------------------------------------

    def active(self, image: ChainImage, mapping: str = "") -> bool:
        """Whether the image is mounted at its place in this mount namespace."""
        point = self._place(image.id, mapping)
        try:
            there = mountinfo.unique_mount_id(point)
            if there is not None and self._seen.get(point) == (there, image.uuid):
                return True
            found = mountinfo.erofs_uuid(point) == image.uuid
            if found and there is not None and mountinfo.unique_mount_id(point) == there:
                self._seen[point] = there, image.uuid
        except OSError as exc:
            raise from_oserror(f"find chain {image.id[:12]}", exc) from exc
        return found

    def activate(self, image: ChainImage, mapping: str = "", user_namespace: int | None = None) -> None:
        """Mount an image at its place unless it is mounted there.  Needs its lock.

        With a mapping its ids are shown as ``user_namespace`` (a descriptor) maps them.  Raises
        `DataLoss` if the file is another image than its row says.
        """
        if self.active(image, mapping):
            return
        what = f"mount chain {image.id[:12]}"
        point = self._point(image.id, mapping)
        with system_errors(what):
            make_below_run(self._mounts)
            point.mkdir(mode=0o700, exist_ok=True)
            while mountinfo.is_mount_point(point):  # another image's, left by a bug
                mount.umount(point, detach=True)
            self._mount(image, user_namespace, point)
        if not self.active(image, mapping):
            self.deactivate(image.id, keep=lambda other: other != mapping)
            raise DataLoss(what, f"{image.file} is not the image that the store made")

    def renew(self, image: ChainImage, mapping: str = "", user_namespace: int | None = None) -> None:
        """Mount an image once more, over its mount that shows files which were replaced.  Needs its lock.

        The old one stays below, so the place is never empty, and what stands on it goes on; both go with
        `deactivate`.
        """
        with system_errors(f"mount chain {image.id[:12]}"):
            self._mount(image, user_namespace, self._point(image.id, mapping))

    def mapped(self, image_id: str) -> list[str]:
        """The mappings with which an image is mounted here; an empty one means none."""
        with system_errors(f"find chain {image_id[:12]}"), contextlib.suppress(FileNotFoundError):
            names = [name.partition(".") for name in os.listdir(self._mounts)]
            ours = sorted(mapping for image, _, mapping in names if image == self._store + image_id)
            return [mapping for mapping in ours if mountinfo.is_mount_point(self._point(image_id, mapping))]
        return []

    def deactivate(self, image_id: str, *, keep: Callable[[str], bool] = lambda mapping: False) -> None:
        """Unmount an image, but for the mappings to ``keep``.  Overlays that live on it go on living.

        Needs its lock.  Idempotent.
        """
        with system_errors(f"unmount chain {image_id[:12]}"), contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._mounts):
                image, _, mapping = name.partition(".")
                if image != self._store + image_id or keep(mapping):
                    continue
                point = self._mounts / name
                self._seen.pop(os.fspath(point), None)
                while mountinfo.is_mount_point(point):
                    mount.umount(point, detach=True)
                with contextlib.suppress(FileNotFoundError):
                    point.rmdir()

    def activations(self) -> list[str]:
        """The ids of this store's images that have a mount point here."""
        with system_errors("list activations"), contextlib.suppress(FileNotFoundError):
            names = [entry.name for entry in self._mounts.iterdir() if entry.is_dir()]
            ours = {name.removeprefix(self._store) for name in names if name.startswith(self._store)}
            return sorted({name.partition(".")[0] for name in ours})
        return []

    def _mount(self, image: ChainImage, user_namespace: int | None, point: Path) -> None:
        fetch_ahead(image.file)
        fd = self._detached(image)
        try:
            if user_namespace is not None:
                mount.mount_setattr(fd, set=mount.MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
            mount.move_mount(fd, point)
        finally:
            os.close(fd)

    def _detached(self, image: ChainImage) -> int:
        if self._directio and reads_sectors(image.devices):
            with contextlib.suppress(OSError):  # Linux 6.12 does not know the option
                return mount.mount_erofs(image.file, image.devices, options=("directio",))
        return mount.mount_erofs(image.file, image.devices)

    def _place(self, image_id: str, mapping: str = "") -> str:
        return f"{self._prefix}{image_id}{'.' if mapping else ''}{mapping}"

    def _point(self, image_id: str, mapping: str = "") -> Path:
        return Path(self._place(image_id, mapping))

    def _lowers(self, root: Root, ground: Ground) -> list[str]:
        return [f"{self._place(image.id, root.mapping)}/root" for image in ground.images]

    def trees(self, images: Sequence[ChainImage]) -> list[Path]:
        """Where the trees of images are while these are active, ids unmapped."""
        return [self._point(image.id) / "root" for image in images]

    # -- prepared roots -------------------------------------------------------------------------

    def create(self, root: Root, fill: Fill, *, sync: Sync | None = None) -> None:
        """See `orlop.snapshots.driver.Driver.create`."""
        stacks.create_upper(root.folder, fill, sync or self._sync)

    def upper(self, root: Root) -> Path:
        """See `orlop.snapshots.driver.Driver.upper`."""
        return root.folder / "upper"

    def mounts(self, root: Root, ground: Ground) -> list[MountSpec]:
        """See `orlop.snapshots.driver.Driver.mounts`."""
        if root.self_contained:
            return self._self_contained(root, ground)
        lowers = self._lowers(root, ground)
        if root.view and len(lowers) == 1 and self._has_nested_marks(ground.images[0]):
            lowers.append(
                str(self._empty)
            )  # a bind would show them nested; without an upper, two lowers are needed
        if root.view and len(lowers) == 1:
            return [MountSpec(type="bind", source=lowers[0], target=root.target, options=_VIEW)]
        return [stacks.overlay(root, lowers)]

    def _has_nested_marks(self, image: ChainImage) -> bool:
        """Whether an image may hold xattrs that overlayfs is to unnest; one too many costs but time."""
        found = self._nested.get(image.id)
        if found is None:
            with (
                system_errors(f"read chain {image.id[:12]}"),
                open(image.file, "rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                found = self._nested[image.id] = data.find(_NESTED) >= 0
        return found

    def _self_contained(self, root: Root, ground: Ground) -> list[MountSpec]:
        """The mounts for another mount namespace that sees the store at the same path.

        The EROFS goes to the target itself, and the overlay over it; no other folder is needed.
        """
        check_self_contained(root)
        what, target = f"prepare {root.target}", root.target
        if root.mapping:
            raise FailedPrecondition(what, "mounts that are self-contained cannot map ids")
        if len(ground.images) != 1:
            raise FailedPrecondition(what, "a self-contained root needs a chain of one image")
        (image,) = ground.images
        options = ("ro", *(f"device={device}" for device in image.devices))
        if len(",".join(options)) > MAX_OPTIONS:
            raise FailedPrecondition(
                what,
                f"its {len(image.devices)} layers do not fit into the options of one mount(2)",
                hint="prepare it without self_contained, or merge its layers by committing them into one",
            )
        base = MountSpec(type="erofs", source=str(image.file), target=target, options=options)
        if root.view:
            bind = MountSpec(type="bind", source=f"{target}/root", target=target, options=("bind", "ro"))
            return [base, bind]
        return [base, stacks.check_room(stacks.overlay(root, [f"{target}/root"]), what)]

    def in_use(self, root: Root) -> bool:
        """See `orlop.snapshots.driver.Driver.in_use`."""
        return stacks.upper_in_use(root.folder)

    def untouched(self, root: Root) -> bool:
        """See `orlop.snapshots.driver.Driver.untouched`."""
        return stacks.is_untouched(root.folder)

    def shows(self, root: Root, ground: Ground, place: str, *, table: Table | None = None) -> bool:
        """See `orlop.snapshots.driver.Driver.shows`."""
        with system_errors(f"look at {place}"):
            if not mountinfo.is_mount_point(place):
                return False
            uuid = mountinfo.erofs_uuid(place)
            if uuid is not None:
                own = {image.uuid for image in ground.images}
                return (root.view or root.self_contained) and uuid in own
            upper = None if root.view else self.upper(root)
            return stacks.shows_overlay(
                place, upper=upper, first=Path(self._lowers(root, ground)[0]), table=table
            )
