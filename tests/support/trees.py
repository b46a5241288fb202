"""What a tree of files is, as values: taken by `snapshot`, compared by `differences`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

Tree = Mapping[bytes, "Entry"]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One path of a tree.

    ``size`` and ``links`` are None for folders, where file systems differ by right.  ``twins`` are
    all paths of the same inode, of a file that has several names.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int | None = None
    links: int | None = None
    digest: str = ""
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    twins: tuple[bytes, ...] = ()


def snapshot(top: Path) -> dict[bytes, Entry]:
    """Every path below ``top``, relative, as bytes; ``top`` itself is ``b""``.

    Walks by directory descriptors, one open at a time, so no depth and no length of a path stops it.
    """
    found: dict[bytes, Entry] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    for path, folder, name, status in _walk(top):
        found[path] = _entry(folder, name, status)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
    for paths in inodes.values():
        for path in paths:
            found[path] = replace(found[path], twins=tuple(sorted(paths)))
    return found


def differences(expected: Tree, actual: Tree, *, ignore_mtime_of: Collection[bytes] = ()) -> list[str]:
    """How two trees differ, a readable line each, by path; empty if they are equal."""
    lines = []
    for path in sorted({*expected, *actual}):
        shown = path.decode("utf-8", "backslashreplace") or "."
        if path not in actual:
            lines.append(f"{shown}: missing, expected a {expected[path].kind}")
        elif path not in expected:
            lines.append(f"{shown}: unexpected {actual[path].kind}")
        else:
            ignored = "mtime_ns" if path in ignore_mtime_of else ""
            lines += [f"{shown}: {line}" for line in _changes(expected[path], actual[path], ignored)]
    return lines


def _changes(expected: Entry, actual: Entry, ignored: str) -> Iterator[str]:
    if expected.kind != actual.kind:
        yield f"is a {actual.kind}, expected a {expected.kind}"
        return
    for field in fields(Entry):
        is_, should = getattr(actual, field.name), getattr(expected, field.name)
        if is_ != should and field.name != ignored:
            show = oct if field.name == "mode" else repr
            yield f"{field.name} is {show(is_)}, expected {show(should)}"


def _walk(top: Path) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """Yield (path, folder's descriptor, name, status), a folder before what is in it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    here = os.open(top, flags)
    try:
        yield b"", here, b".", os.stat(b".", dir_fd=here)
        prefix, pending = b"", _names(here)
        above: list[tuple[bytes, list[bytes]]] = []
        while True:
            if pending:
                name = pending.pop()
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                yield prefix + name, here, name, status
                if not stat.S_ISDIR(status.st_mode):
                    continue
                above.append((prefix, pending))
                there, prefix = os.open(name, flags, dir_fd=here), prefix + name + b"/"
                os.close(here)
                here, pending = there, _names(there)
            elif above:
                prefix, pending = above.pop()
                there = os.open(b"..", flags, dir_fd=here)
                os.close(here)
                here = there
            else:
                return
    finally:
        os.close(here)


def _names(folder: int) -> list[bytes]:
    return sorted((os.fsencode(name) for name in os.listdir(folder)), reverse=True)


def _entry(folder: int, name: bytes, status: os.stat_result) -> Entry:
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_device = kind in ("char", "block")
    return Entry(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=None if kind == "folder" else status.st_size,
        links=None if kind == "folder" else status.st_nlink,
        digest=_digest(folder, name) if kind == "file" else "",
        target=os.readlink(name, dir_fd=folder) if kind == "symlink" else b"",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        xattrs=_xattrs(folder, name),
    )


def _digest(folder: int, name: bytes) -> str:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with open(descriptor, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(folder: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
    # By a path below the descriptor: that also reaches symlinks and devices, which cannot be opened
    path = b"/proc/self/fd/%d/%s" % (folder, name)
    keys = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in keys)
