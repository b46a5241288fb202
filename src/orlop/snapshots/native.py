"""The ``native`` driver: a copy of the whole tree.  No mount is needed to use it, and no privilege.

An active root's copy is its own, ``prepared/<id>/tree``; views share one of the chain, under ``folders/``.
The mount that it gives is a bind of the copy; who may not mount uses its source.
"""

from __future__ import annotations

from pathlib import Path

from orlop.config import Driver as DriverName
from orlop.errors import FailedPrecondition
from orlop.linux import mountinfo, processes
from orlop.linux.sync import DURABLE, Sync
from orlop.observe import reached
from orlop.snapshots.driver import Fill, Ground, MountSpec, Root, Table
from orlop.snapshots.stacks import system_errors

__all__ = ["NativeDriver"]


class NativeDriver:
    """Plain folders.  Thread-safe."""

    name: DriverName = "native"

    def __init__(self, *, sync: Sync = DURABLE) -> None:
        self._sync = sync

    def create(self, root: Root, fill: Fill, *, sync: Sync | None = None) -> None:
        """See `orlop.snapshots.driver.Driver.create`."""
        with system_errors(f"prepare {root.folder}"):
            root.folder.mkdir(mode=0o700)
            tree = self.upper(root)
            tree.mkdir(mode=0o700)
            reached("root.started")
            fill(tree, whole=True)
            reached("root.filled")
            for place in (root.folder, root.folder.parent):
                (sync or self._sync).folder(place)

    def upper(self, root: Root) -> Path:
        """See `orlop.snapshots.driver.Driver.upper`."""
        return root.folder / "tree"

    def mounts(self, root: Root, ground: Ground) -> list[MountSpec]:
        """See `orlop.snapshots.driver.Driver.mounts`."""
        if root.self_contained:
            raise FailedPrecondition(
                f"prepare {root.target}",
                "the native driver's mount names a folder of the store",
                hint="use the erofs driver, or prepare it without self_contained",
            )
        options = ("bind", "ro") if root.view else ("bind", "rw")
        source = str(self._source(root, ground))
        return [MountSpec(type="bind", source=source, target=root.target, options=options)]

    def _source(self, root: Root, ground: Ground) -> Path:
        return ground.folders[0] if root.view else self.upper(root)

    def in_use(self, root: Root) -> bool:
        """See `orlop.snapshots.driver.Driver.in_use`.

        There is no one to ask but the mount tables and the processes that we may look into.
        """
        with system_errors(f"look at {root.folder}"):
            return bool(processes.users_of_tree(self.upper(root)))

    def untouched(self, root: Root) -> bool:
        """See `orlop.snapshots.driver.Driver.untouched`: a copy can be used without any mount."""
        return False

    def shows(self, root: Root, ground: Ground, place: str, *, table: Table | None = None) -> bool:
        """See `orlop.snapshots.driver.Driver.shows`."""
        with system_errors(f"look at {place}"):
            return mountinfo.is_mount_point(place) and mountinfo.is_bind_of(place, self._source(root, ground))
