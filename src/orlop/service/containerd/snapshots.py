"""containerd.services.snapshots.v1.Snapshots: translation only.

Which namespace is meant stands in the call's metadata, or in the names that a containerd makes (see
orlop.service.containerd.calls).  A list without one is of all of them: that is containerd's own collector.
"""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from orlop.errors import Unimplemented
from orlop.images.snapshots import SnapshotInfo
from orlop.images.snapshotting.names import namespace_in
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2_grpc
from orlop.proto.containerd.types import mount_pb2
from orlop.service.calls import call_of
from orlop.service.containerd.calls import namespace_of, required_namespace

if TYPE_CHECKING:
    from orlop.images.api import Mount
    from orlop.images.snapshots import Snapshots as SnapshotVerbs

__all__ = ["Snapshots"]

_Context = grpc.ServicerContext
_KINDS = {"view": pb.VIEW, "active": pb.ACTIVE, "committed": pb.COMMITTED}
_BATCH = 100  # snapshots in one message of a list, as containerd has it
_SECOND = 10**9


class Snapshots(snapshots_pb2_grpc.SnapshotsServicer):
    """Snapshots for a containerd that has orlop as a proxy plugin."""

    def __init__(self, verbs: SnapshotVerbs | None) -> None:
        self._known = verbs

    @property
    def _verbs(self) -> SnapshotVerbs:
        if self._known is None:
            raise Unimplemented("use snapshots", "this store has none")
        return self._known

    def Prepare(self, request: pb.PrepareSnapshotRequest, context: _Context) -> pb.PrepareSnapshotResponse:
        """An active snapshot."""
        namespace = required_namespace(context, request.key, f"prepare snapshot {request.key}")
        mounts = self._verbs.prepare(
            namespace, request.key, request.parent, labels=dict(request.labels), call=call_of(context)
        )
        return pb.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    def View(self, request: pb.ViewSnapshotRequest, context: _Context) -> pb.ViewSnapshotResponse:
        """One that takes no writes."""
        namespace = required_namespace(context, request.key, f"view snapshot {request.parent}")
        mounts = self._verbs.view(
            namespace, request.key, request.parent, labels=dict(request.labels), call=call_of(context)
        )
        return pb.ViewSnapshotResponse(mounts=map(_mount, mounts))

    def Mounts(self, request: pb.MountsRequest, context: _Context) -> pb.MountsResponse:
        """The mounts of one again."""
        namespace = required_namespace(context, request.key, f"list mounts of snapshot {request.key}")
        mounts = self._verbs.mounts(namespace, request.key, call=call_of(context))
        return pb.MountsResponse(mounts=map(_mount, mounts))

    def Commit(self, request: pb.CommitSnapshotRequest, context: _Context) -> Empty:
        """A committed snapshot of an active one."""
        namespace = required_namespace(context, request.name, f"commit snapshot {request.key}")
        self._verbs.commit(
            namespace, request.name, request.key, labels=dict(request.labels), call=call_of(context)
        )
        return Empty()

    def Remove(self, request: pb.RemoveSnapshotRequest, context: _Context) -> Empty:
        """Forget one."""
        self._verbs.remove(
            namespace_of(context) or namespace_in(request.key), request.key, call=call_of(context)
        )
        return Empty()

    def Stat(self, request: pb.StatSnapshotRequest, context: _Context) -> pb.StatSnapshotResponse:
        """What one is."""
        namespace = required_namespace(context, request.key, f"look at snapshot {request.key}")
        return pb.StatSnapshotResponse(info=_info(self._verbs.stat(namespace, request.key)))

    def Update(self, request: pb.UpdateSnapshotRequest, context: _Context) -> pb.UpdateSnapshotResponse:
        """Other labels."""
        name = request.info.name
        namespace = required_namespace(context, name, f"update snapshot {name}")
        info = self._verbs.update(
            namespace, name, dict(request.info.labels), fields=tuple(request.update_mask.paths)
        )
        return pb.UpdateSnapshotResponse(info=_info(info))

    def List(self, request: pb.ListSnapshotsRequest, context: _Context) -> Iterator[pb.ListSnapshotsResponse]:
        """Those that a filter lets through."""
        for part in self._verbs.walk(namespace_of(context), tuple(request.filters)):
            for start in range(0, len(part), _BATCH):
                yield pb.ListSnapshotsResponse(info=map(_info, part[start : start + _BATCH]))

    def Usage(self, request: pb.UsageRequest, context: _Context) -> pb.UsageResponse:
        """What one takes on disk."""
        namespace = required_namespace(context, request.key, f"measure snapshot {request.key}")
        usage = self._verbs.usage(namespace, request.key, call=call_of(context))
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: pb.CleanupRequest, context: _Context) -> Empty:
        """Delete what removals left."""
        self._verbs.cleanup(call=call_of(context))
        return Empty()


def _mount(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def _info(info: SnapshotInfo) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_time(info.created),
        updated_at=_time(info.updated),
        labels=info.labels,
    )


def _time(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // _SECOND, nanos=nanoseconds % _SECOND)
