"""A store's snapshots, made when they are first asked for."""

from __future__ import annotations

from functools import cached_property

from orlop.hints import TYPE_CHECKING
from orlop.images.parts import Parts

if TYPE_CHECKING:
    from orlop.images.snapshotting.service import SnapshotService

__all__ = ["SnapshotVerbs"]


class SnapshotVerbs(Parts):
    """Satisfies `orlop.images.snapshots.HasSnapshots`.  Thread-safe."""

    @cached_property
    def _snapshots(self) -> SnapshotService:
        from orlop.images.snapshotting.service import SnapshotService

        return SnapshotService(self._core)

    def snapshots(self) -> SnapshotService:
        """See `orlop.images.snapshots.Snapshots`."""
        return self._snapshots

    def _end_snapshots(self) -> None:
        """Discard what was made beforehand, if anybody has asked for snapshots."""
        if "_snapshots" in self.__dict__:
            self._snapshots.close()
