"""The ``overlay`` driver: layers as folders, stacked.

For kernels that do not mount EROFS files, and for root of a user namespace.  The folders stand under
``folders/``: one for each layer, whatever lies below it, and one of glue for each chain, on top, for what
layers cannot say alone.  Nothing has to be mounted before the overlay itself.
"""

from __future__ import annotations

from pathlib import Path

from orlop.config import Driver as DriverName
from orlop.errors import FailedPrecondition
from orlop.linux import mountinfo
from orlop.linux.sync import DURABLE, Sync
from orlop.snapshots import stacks
from orlop.snapshots.driver import Fill, Ground, MountSpec, Root, Table
from orlop.snapshots.stacks import MAX_OPTIONS, MAX_STACK, system_errors

__all__ = ["OverlayDriver"]

_ID_LENGTH = 16  # of a root's folder, and at least of one of the lowers


class OverlayDriver:
    """Overlays over folders.  Thread-safe."""

    name: DriverName = "overlay"

    def __init__(self, empty: Path, *, sync: Sync = DURABLE) -> None:
        self._sync = sync
        self._empty = empty  # an empty folder

    def most(self, folder: Path, prepared: Path) -> int:
        """How many lowers one mount(2) takes, if ``folder`` is what each of them is like."""
        room = (
            MAX_OPTIONS
            - len(",".join(stacks.options_of("user.overlay.")))
            - len("ro,lowerdir=,upperdir=,workdir=,")
        )
        room -= 2 * (len(str(prepared)) + _ID_LENGTH + len("//upper"))
        return max(2, min(MAX_STACK, room // (len(str(folder)) + 1)))

    def create(self, root: Root, fill: Fill, *, sync: Sync | None = None) -> None:
        """See `orlop.snapshots.driver.Driver.create`."""
        stacks.create_upper(root.folder, fill, sync or self._sync)

    def upper(self, root: Root) -> Path:
        """See `orlop.snapshots.driver.Driver.upper`."""
        return root.folder / "upper"

    def mounts(self, root: Root, ground: Ground) -> list[MountSpec]:
        """See `orlop.snapshots.driver.Driver.mounts`."""
        what = f"prepare {root.target}"
        if root.self_contained:
            raise FailedPrecondition(
                what,
                "the overlay driver's mounts name folders of the store",
                hint="use the erofs driver, or prepare it without self_contained",
            )
        folders = [*ground.folders]
        if root.view and len(folders) == 1:
            folders.append(self._empty)  # a bind would show the layer's marks, and no upper needs two lowers
        return [stacks.check_room(stacks.overlay(root, folders), what)]

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
            upper = None if root.view else self.upper(root)
            return stacks.shows_overlay(place, upper=upper, first=ground.folders[0], table=table)
