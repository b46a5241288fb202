"""Snapshots in containerd's sense: trees of files that build on each other, by names that the client chooses.

The contract; what is done is in `orlop.images.snapshotting`.  Snapshots are no images of orlop's: a committed
one is a folder under a name that its client vouches for, never a layer with a diff ID, even if the name looks
like one.  (But see `Snapshots.prepare` on layers that orlop has.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from orlop.metadata.snapshots import SnapshotKind
from orlop.observe import Call
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.images.api import Mount

__all__ = ["LABEL_REF", "HasSnapshots", "SnapshotInfo", "SnapshotUsage", "Snapshots"]

LABEL_REF = "containerd.io/snapshot.ref"
"""The label with the name that a snapshot is to be committed under once its layer has been unpacked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """What a snapshot is.  Times are nanoseconds since 1970; ``parent`` is a name, empty for none."""

    name: str
    kind: SnapshotKind
    parent: str
    created: int
    updated: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotUsage:
    """What a snapshot takes on disk, without its parents: bytes, as du(1) counts, and inodes."""

    size: int
    inodes: int


class Snapshots(Protocol):
    """One store's snapshots.  Thread-safe.

    All names share one space in a namespace: keys of active snapshots and views, names of committed ones.
    Labels have up to 4,096 bytes each, key and value together; one with an empty value is none.  Every method
    raises `InvalidArgument` for names and labels that cannot be, `NotFound` for what is not there.
    """

    def prepare(
        self, namespace: str, key: str, parent: str, *, labels: Mapping[str, str], call: Call
    ) -> list[Mount]:
        """Make an active snapshot on a committed one, or on nothing; the mounts that assemble it.

        Durable on return.  Raises `AlreadyExists` for a key that is taken, `InvalidArgument` for a parent
        that is not committed.

        With the label `LABEL_REF`, the chain ID of an image's layers, nothing is made if orlop has that layer
        or can fetch it (see `orlop.images.snapshotting.remote`): then there is a committed snapshot with that
        label and parent, and `AlreadyExists` is raised.
        """
        ...

    def view(
        self, namespace: str, key: str, parent: str, *, labels: Mapping[str, str], call: Call
    ) -> list[Mount]:
        """The same for a snapshot that takes no writes and is never committed."""
        ...

    def mounts(self, namespace: str, key: str, *, call: Call) -> list[Mount]:
        """The mounts of an active snapshot or a view again, made ready where they were not (after a reboot).

        Raises `FailedPrecondition` for a committed one.
        """
        ...

    def commit(self, namespace: str, name: str, key: str, *, labels: Mapping[str, str], call: Call) -> None:
        """Make a committed snapshot of an active one, which is gone then.

        What was written is durable on return.  Raises `AlreadyExists` for a name that is taken,
        `FailedPrecondition` for a key that is not an active snapshot's.
        """
        ...

    def remove(self, namespace: str | None, key: str, *, call: Call) -> None:
        """Forget a snapshot and have what was written to it deleted, whether it is mounted or not.

        Without a namespace it is looked for in all.  Raises `FailedPrecondition` while it has children.
        """
        ...

    def stat(self, namespace: str, key: str) -> SnapshotInfo:
        """What a snapshot is."""
        ...

    def update(
        self, namespace: str, key: str, labels: Mapping[str, str], *, fields: Sequence[str] = ()
    ) -> SnapshotInfo:
        """Change labels: all of them, or with ``fields`` (``labels``, ``labels.KEY``) those that are named.

        Raises `InvalidArgument` for a field that cannot be changed.
        """
        ...

    def walk(self, namespace: str | None, filters: Sequence[str] = ()) -> Iterator[list[SnapshotInfo]]:
        """The snapshots of a namespace, or of all, that a filter lets through: in parts, by name.

        Filters are those of `orlop.images.filters`, over ``name``, ``parent``, ``kind`` and ``labels``.
        """
        ...

    def usage(self, namespace: str, key: str, *, call: Call) -> SnapshotUsage:
        """What a snapshot takes; of an active one that is counted now."""
        ...

    def cleanup(self, *, call: Call) -> None:
        """Delete now what removals left to be deleted behind the call."""
        ...


@runtime_checkable
class HasSnapshots(Protocol):
    """A store that has snapshots."""

    def snapshots(self) -> Snapshots:
        """They."""
        ...
