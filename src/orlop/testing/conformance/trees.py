"""Trees on disk: `snapshot` reads one as a value, `compare` says how two differ in what a mode can show.

A snapshot is taken by directory descriptors and follows no link.  It changes nothing but access times.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from orlop.testing.conformance.abilities import Abilities
from orlop.testing.conformance.model import Entry, Tree
from orlop.values import dataclass, field, replace

__all__ = ["Comparison", "compare", "restoring_times", "snapshot"]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_SHOWN_PATH = 120
# With this containers/storage, fuse-overlayfs and orlop record what a mode cannot represent.
_RECORD = "user.containers.override_stat"


def snapshot(top: str | os.PathLike[str]) -> Tree:
    """Every path below a folder, and the folder itself as ``b""``."""
    found: Tree = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    root = os.fsencode(top)
    for folder, folders, files, fd in os.fwalk(root):
        prefix = folder[len(root) + 1 :] + b"/" if folder != root else b""
        if not prefix:
            found[b""] = _entry(fd, b".", os.stat(fd))
        for name in (*folders, *files):
            about = os.stat(name, dir_fd=fd, follow_symlinks=False)
            found[prefix + name] = _entry(fd, name, about)
            if not stat.S_ISDIR(about.st_mode):
                inodes.setdefault((about.st_dev, about.st_ino), []).append(prefix + name)
    for names in inodes.values():
        if len(names) > 1:
            for name in names:
                found[name] = replace(found[name], twins=tuple(sorted(names)))
    return found


def _entry(folder: int, name: bytes, about: os.stat_result) -> Entry:
    kind = _KINDS[stat.S_IFMT(about.st_mode)]
    is_device = kind in {"char", "block"}
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(about.st_mode),
        uid=about.st_uid,
        gid=about.st_gid,
        mtime_ns=about.st_mtime_ns,
        size=None if kind == "folder" else about.st_size,
        digest=_digest(folder, name) if kind == "file" else "",
        target=os.readlink(name, dir_fd=folder) if kind == "symlink" else b"",
        device=(os.major(about.st_rdev), os.minor(about.st_rdev)) if is_device else (0, 0),
        xattrs=_xattrs(folder, name),
    )


def _digest(folder: int, name: bytes) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with open(fd, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(folder: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
    # Through the descriptor: that reaches also what cannot be opened, symlinks and devices
    path = b"/proc/self/fd/%d/%s" % (folder, name)
    keys = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in keys)


def restoring_times(top: Path, *names: str) -> Callable[[], None]:
    """Remembers the times of things below a folder; the result gives them back."""
    times = {name: (top / name).lstat().st_mtime_ns for name in names}

    def restore() -> None:
        for name, moment in times.items():
            os.utime(top / name, ns=(moment, moment), follow_symlinks=False)

    return restore


# ------------------------------------------------------------------ comparing


@dataclass(slots=True)
class Comparison:
    """How two trees differ, a line each, and what of the expected one a mode cannot show."""

    differences: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)


def compare(expected: Tree, actual: Tree, can: Abilities) -> Comparison:
    """How a tree differs from what it should be."""
    found = Comparison()
    for path in sorted({*expected, *actual}):
        shown = path.decode("utf-8", "backslashreplace")[-_SHOWN_PATH:] or "the root"
        if path not in actual:
            found.differences.append(f"{shown}: missing, expected a {expected[path].kind}")
        elif path not in expected:
            found.differences.append(f"{shown}: unexpected {actual[path].kind}")
        else:
            for line in _differences(expected[path], actual[path], can, found.left_out):
                found.differences.append(f"{shown}: {line}")
    return found


def _differences(expected: Entry, actual: Entry, can: Abilities, left_out: set[str]) -> Iterator[str]:
    if expected.kind in {"char", "block"} and not can.mknod:
        left_out.add("devices")
        return
    if expected.kind != actual.kind:
        yield f"a {actual.kind}, expected a {expected.kind}"
        return
    if can.chown and max(expected.uid, expected.gid) > can.last_id:
        left_out.add(f"ids beyond {can.last_id}")
        expected, actual = (replace(entry, uid=0, gid=0) for entry in (expected, actual))
    expected, actual = _shown(expected, can, left_out), _shown(actual, can, set())
    for name in Entry.__dataclass_fields__:
        is_, should = getattr(actual, name), getattr(expected, name)
        if is_ != should:
            show = oct if name == "mode" else repr
            yield f"{name} is {show(is_)}, expected {show(should)}"


def _shown(entry: Entry, can: Abilities, left_out: set[str]) -> Entry:
    """An entry less what a mode cannot represent."""
    uid, gid, mode = entry.uid, entry.gid, entry.mode
    if not can.chown:
        if (uid, gid) != (0, 0):
            left_out.add("owners")
        if entry.kind != "symlink":
            is_folder = entry.kind == "folder"
            own, kept = (0o700, 0o1077) if is_folder else (0o600, 0o177)
            if mode & ~0o777 & ~kept or mode & own != own:
                left_out.add("set-id bits, and that an owner may not")
            mode &= kept
        uid = gid = 0
    held = tuple((key, value) for key, value in entry.xattrs if can.holds(key) and key != _RECORD)
    for key, _ in entry.xattrs:
        if not can.holds(key):
            space = key.partition(".")[0]
            left_out.add(f"xattrs {key if space == 'security' else space}")
    return replace(entry, uid=uid, gid=gid, mode=mode, xattrs=held)
