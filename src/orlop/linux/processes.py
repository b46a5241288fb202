"""Who is using a mount: for the sentence "in use by bash (1234)"; for a decision where nobody else can tell.

Best effort by nature: processes come and go, those of other users cannot be looked into without
privilege, and an overlay that was lazily unmounted is in no table of mounts.  Whether an upper is in
use is asked of the kernel by `orlop.linux.mount.upper_in_use`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from orlop.linux._syscall import Path
from orlop.linux.mountinfo import (
    MountEntry,
    mount_id_of,
    mount_namespace,
    mount_table,
    path_in_filesystem,
)
from orlop.values import dataclass

__all__ = ["ProcessInfo", "mount_points_of", "users_of", "users_of_mount", "users_of_tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process and the first reason found why it counts as a user (``its working directory``)."""

    pid: int
    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


def _names_of(path: Path) -> set[bytes]:
    """The forms in which a path may show in mountinfo."""
    return {os.fsencode(path), os.fsencode(os.path.realpath(path))}


def _mounts_of(upper: set[bytes], table: list[MountEntry]) -> list[MountEntry]:
    return [entry for entry in table if entry.type == "overlay" and entry.option(b"upperdir") in upper]


def mount_points_of(upper: Path) -> list[str]:
    """Where, in our own mount namespace, overlays with this upper are mounted."""
    return [os.fsdecode(entry.target) for entry in _mounts_of(_names_of(upper), mount_table())]


def users_of(upper: Path, *, holders: bool = True) -> list[ProcessInfo]:
    """The processes that use an overlay with this upper, by process ID.

    That is: processes with their root, working directory, program, an open file or a mapping in such
    an overlay; and as ``holders``, for a mount namespace other than ours that has one mounted but no such
    process, its oldest process.  A mount in our own namespace that nobody uses is no process's:
    `mount_points_of` tells of it.
    """
    names = _names_of(upper)
    tables: dict[int, list[MountEntry]] = {}  # by mount namespace: one look at each
    members: dict[int, list[int]] = {}
    for pid in _pids():
        try:
            namespace = mount_namespace(pid)
            if namespace not in tables:
                tables[namespace] = _mounts_of(names, mount_table(pid))
        except OSError:
            continue  # gone, or not ours to look into
        members.setdefault(namespace, []).append(pid)
    mounts = {entry.mount_id for table in tables.values() for entry in table}
    if not mounts:
        return []
    found: dict[int, ProcessInfo] = {}
    own = mount_namespace()
    for namespace, pids in members.items():
        users = [info for pid in pids if (info := _use(pid, mounts)) is not None]
        if holders and not users and namespace != own and tables[namespace]:
            target = os.fsdecode(tables[namespace][0].target)
            users = [ProcessInfo(pid=pids[0], name=_name(pids[0]), why=f"has it mounted at {target}")]
        found.update((info.pid, info) for info in users)
    return [found[pid] for pid in sorted(found)]


def users_of_mount(place: Path) -> list[ProcessInfo]:
    """The processes that use the mount at a place in our mount namespace, or files in it, by process ID."""
    mount_id = mount_id_of(place)
    found = [info for pid in _pids() if (info := _use(pid, {mount_id})) is not None]
    return [info for info in found if info.pid != os.getpid()]


def users_of_tree(tree: Path) -> list[ProcessInfo]:
    """The processes that use a plain folder as a root, by process ID; its binds count for their namespaces.

    That is: processes with their root, working directory, program or an open file below it, and one for
    each mount namespace that has it, or a folder in it, mounted somewhere.  Ourselves not counted,
    unless it is mounted in our own namespace.
    """
    try:
        device, inside = path_in_filesystem(tree)
    except FileNotFoundError:
        return []
    top = os.path.realpath(os.fsencode(tree))
    found: dict[int, ProcessInfo] = {}
    seen: set[int] = set()
    for pid in _pids():
        try:
            namespace = mount_namespace(pid)
            if namespace not in seen:
                seen.add(namespace)
                for entry in mount_table(pid):
                    if entry.device == device and _below(entry.root, inside):
                        why = f"has it mounted at {os.fsdecode(entry.target)}"
                        found[pid] = ProcessInfo(pid=pid, name=_name(pid), why=why)
                        break
        except OSError:
            continue  # gone, or not ours to look into
        if pid not in found and pid != os.getpid():
            use = _open_below(pid, top)
            if use is not None:
                found[pid] = ProcessInfo(pid=pid, name=_name(pid), why=use)
    return [found[pid] for pid in sorted(found)]


def _below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


def _open_below(pid: int, top: bytes) -> str | None:
    """Why a process uses something below a folder, or None; told by the names that the kernel shows."""
    for link, why in _links(pid):
        try:
            if _below(os.readlink(os.fsencode(f"/proc/{pid}/{link}")), top):
                return why
        except OSError:
            continue  # closed meanwhile, or not ours to look into
    return None


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().strip().decode("utf-8", "backslashreplace")
    except OSError:
        return "?"


def _use(pid: int, mounts: set[int]) -> ProcessInfo | None:
    """Why a process uses one of these mounts, or None.

    Asked by mount ID, not by st_dev: without ``xino`` an overlay's files show several of those.
    """
    for link, why in _links(pid):
        try:
            if mount_id_of(f"/proc/{pid}/{link}") in mounts:
                return ProcessInfo(pid=pid, name=_name(pid), why=why)
        except OSError:
            continue  # closed meanwhile, or not ours to look into
    return None


def _links(pid: int) -> Iterator[tuple[str, str]]:
    yield "root", "its root"
    yield "cwd", "its working directory"
    yield "exe", "its program"
    for folder, why in (("fd", "an open file"), ("map_files", "a mapped file")):
        try:
            names = os.listdir(f"/proc/{pid}/{folder}")
        except OSError:
            continue
        for name in names:
            yield f"{folder}/{name}", why
