"""A client of containerd's Snapshots, and mounts performed as containerd performs them: by mount(2)."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from orlop.linux import mount as mounts
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2 as pb
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2_grpc
from orlop.proto.containerd.types.mount_pb2 import Mount

__all__ = ["REF", "Snapshots", "mounted", "perform"]

REF = "containerd.io/snapshot.ref"
_WAIT = 60.0
# linux/mount.h; of each option what it sets and what it clears
_FLAGS = {"ro": (1, 0), "rw": (0, 1), "bind": (4096, 0), "rbind": (4096 | 16384, 0)}
_FLAGS |= {"suid": (0, 2), "dev": (0, 4), "exec": (0, 8)}
_REMOUNT = 32


class Snapshots:
    """One namespace's snapshots; without one, as containerd's own collector asks."""

    def __init__(self, channel: grpc.Channel, namespace: str | None) -> None:
        self.stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        self._told = (("containerd-namespace", namespace),) if namespace is not None else ()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(key=key, parent=parent, labels=labels or {})
        return list(self._call(self.stub.Prepare, request).mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> list[Mount]:
        request = pb.ViewSnapshotRequest(key=key, parent=parent, labels=labels or {})
        return list(self._call(self.stub.View, request).mounts)

    def mounts(self, key: str) -> list[Mount]:
        return list(self._call(self.stub.Mounts, pb.MountsRequest(key=key)).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> None:
        self._call(self.stub.Commit, pb.CommitSnapshotRequest(name=name, key=key, labels=labels or {}))

    def remove(self, key: str) -> None:
        self._call(self.stub.Remove, pb.RemoveSnapshotRequest(key=key))

    def stat(self, key: str) -> pb.Info:
        return self._call(self.stub.Stat, pb.StatSnapshotRequest(key=key)).info

    def update(self, info: pb.Info, *fields: str) -> pb.Info:
        request = pb.UpdateSnapshotRequest(info=info)
        request.update_mask.paths.extend(fields)
        return self._call(self.stub.Update, request).info

    def batches(self, *filters: str) -> list[list[pb.Info]]:
        request = pb.ListSnapshotsRequest(filters=filters)
        answers = self.stub.List(request, metadata=self._told, timeout=_WAIT)
        return [list(answer.info) for answer in answers]

    def list(self, *filters: str) -> dict[str, pb.Info]:
        return {info.name: info for batch in self.batches(*filters) for info in batch}

    def usage(self, key: str) -> tuple[int, int]:
        answer = self._call(self.stub.Usage, pb.UsageRequest(key=key))
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._call(self.stub.Cleanup, pb.CleanupRequest())

    def remove_all(self) -> None:
        """Children first."""
        while found := self.list():
            parents = {info.parent for info in found.values()}
            for name in found.keys() - parents:
                self.remove(name)

    def _call(self, method, request):  # type: ignore[no-untyped-def]
        return method(request, metadata=self._told, timeout=_WAIT)


def perform(specs: Sequence[Mount], target: Path) -> None:
    """Perform mounts; long options of overlays from the folder that all lowers have in common."""
    for spec in specs:
        assert not spec.target
        flags, data = 0, []
        for option in spec.options:
            if option in _FLAGS:
                on, off = _FLAGS[option]
                flags = (flags | on) & ~off
            else:
                data.append(option)
        if len(",".join(data)) > 4096 - 512:
            _perform_shortened(spec, data, target)
            continue
        _mount(spec.source, target, "" if flags & 4096 else spec.type, flags, ",".join(data))
        if flags & 4096 and flags & 1:
            _mount("", target, "", flags | _REMOUNT, "")


def _mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = (source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    if libc.mount(*words):
        raise OSError(ctypes.get_errno(), f"mount {source} {data}")


def _perform_shortened(spec: Mount, data: Sequence[str], target: Path) -> None:
    lowers = next(option for option in data if option.startswith("lowerdir=")).removeprefix("lowerdir=")
    common = os.path.commonpath(lowers.split(":"))
    short = ":".join(os.path.relpath(lower, common) for lower in lowers.split(":"))
    told = ",".join(f"lowerdir={short}" if option.startswith("lowerdir=") else option for option in data)
    assert len(told) < 4096
    command = ["mount", "-i", "-t", spec.type, spec.source, target, "-o", told]
    subprocess.run(command, cwd=common, check=True, stdin=subprocess.DEVNULL, timeout=60)


@contextmanager
def mounted(specs: Sequence[Mount], target: Path) -> Iterator[Path]:
    """Mounts performed at a folder for a ``with`` block."""
    target.mkdir(exist_ok=True)
    perform(specs, target)
    try:
        yield target
    finally:
        mounts.umount(target)
        target.rmdir()
