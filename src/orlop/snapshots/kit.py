"""The drivers of one store, and what else mounts: made together when the first root needs one."""

from __future__ import annotations

from pathlib import Path

from orlop.linux.sync import Sync
from orlop.snapshots.disks import Disks
from orlop.snapshots.driver import Driver
from orlop.snapshots.erofs import ErofsDriver
from orlop.snapshots.mappings import Mappings
from orlop.snapshots.native import NativeDriver
from orlop.snapshots.overlay import OverlayDriver

__all__ = ["Kit"]


class Kit:
    """Of the store in ``root``, with its mount points in ``run``; ``empty`` is a folder without anything."""

    def __init__(self, root: Path, run: Path, empty: Path, *, sync: Sync, directio: bool) -> None:
        self.erofs = ErofsDriver(run, root, empty, sync=sync, directio=directio)
        self.overlay = OverlayDriver(empty, sync=sync)
        self.mappings = Mappings(root, run)
        self.disks = Disks(root, run, sync=sync)
        drivers: tuple[Driver, ...] = (self.erofs, self.overlay, NativeDriver(sync=sync))
        self.drivers: dict[str, Driver] = {driver.name: driver for driver in drivers}
