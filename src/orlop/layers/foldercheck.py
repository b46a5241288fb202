"""Whether a folder on disk is what `orlop.layers.folder` makes of some entries: the other way round.

Compared are names, types, modes, owners, link targets, device numbers, sizes, times and bytes; not xattrs, of
which a file system may refuse some, and nothing that the form in which ids stand cannot hold.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from orlop.layers.folder import Item
from orlop.layers.forms import Form, Stat, apply
from orlop.layers.verify import CHUNK, read_bytes
from orlop.linux.files import walk_folders
from orlop.observe import Call

__all__ = ["folder_differences"]

MOST = 5
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_LEAST_TIME, _MOST_TIME = -(1 << 31), (1 << 31) - 1  # what every file system can hold


def folder_differences(
    top: int,
    items: Iterable[Item],
    form: Form,
    *,
    spend: Callable[[int], None] = lambda count: None,
    call: Call,
) -> list[str]:
    """How a folder differs from its entries, a line each, `MOST` lines; empty if it does not.

    ``items`` come as for `FolderWriter.write`, their pieces readable.
    """
    expected = _by_path(items)
    found: list[str] = []
    seen = {b""}
    root = expected.get(b"")
    if root is not None:
        found += _metadata(b"", os.fstat(top), root, form)
    for path, folder, entries in walk_folders(top):
        for entry in entries:
            call.check("check folder")
            name = os.fsencode(entry.name)
            below = path + b"/" + name if path else name
            seen.add(below)
            item = expected.get(below)
            if item is None:
                found.append(f"{_text(below)} should not be there")
            else:
                found += _compare(below, folder, name, item, form, spend)
            if len(found) >= MOST:
                return found[:MOST]
    found += [f"{_text(path)} is missing" for path in sorted(expected.keys() - seen)]
    return found[:MOST]


def _by_path(items: Iterable[Item]) -> dict[bytes, Item]:
    """The entries by path; a further name of a file counts as the file."""
    expected: dict[bytes, Item] = {}
    folders: dict[int, bytes] = {0: b""}
    shared: dict[int, Item] = {}
    for item in items:
        above = folders[item.parent]
        path = (above + b"/" + item.name if above else item.name) if item.key else b""
        if stat.S_ISDIR(item.mode):
            folders[item.key] = path
        if item.shared:
            shared[item.key] = item
        expected[path] = shared[item.hard] if item.hard >= 0 else item
    return expected


def _compare(
    path: bytes, folder: int, name: bytes, item: Item, form: Form, spend: Callable[[int], None]
) -> list[str]:
    about = os.stat(name, dir_fd=folder, follow_symlinks=False)
    found = _metadata(path, about, item, form)
    if found or item.whiteout:
        return found
    if stat.S_ISLNK(about.st_mode) and os.readlink(name, dir_fd=folder) != item.target:
        return [f"{_text(path)} leads elsewhere"]
    if stat.S_ISREG(about.st_mode) and item.size:
        fd = os.open(name, _FILE, dir_fd=folder)
        try:
            return [] if _same_bytes(fd, item, spend) else [f"{_text(path)} has other bytes"]
        finally:
            os.close(fd)
    return []


def _metadata(path: bytes, about: os.stat_result, item: Item, form: Form) -> list[str]:
    kind = stat.S_IFMT(about.st_mode)
    if item.whiteout:
        whole = kind == stat.S_IFCHR and about.st_rdev == 0
        return [] if whole else [f"{_text(path)} should be a whiteout"]
    want = apply(form, Stat(item.mode, item.uid, item.gid, item.rdev, item.xattrs))
    wanted = stat.S_IFMT(want.mode)
    if kind != wanted:
        stands_in = kind == stat.S_IFREG and wanted in _DEVICES and not form.real
        return [] if stands_in else [f"{_text(path)} is of another kind"]
    found: list[str] = []
    if kind != stat.S_IFLNK and stat.S_IMODE(about.st_mode) != stat.S_IMODE(want.mode):
        modes = stat.S_IMODE(about.st_mode), stat.S_IMODE(want.mode)
        found.append(f"{_text(path)} has mode {modes[0]:04o}, not {modes[1]:04o}")
    if form.real and (about.st_uid, about.st_gid) != (want.uid, want.gid):
        found.append(f"{_text(path)} belongs to {about.st_uid}:{about.st_gid}, not to {want.uid}:{want.gid}")
    if kind in _DEVICES and about.st_rdev != want.rdev:
        found.append(f"{_text(path)} is another device")
    if kind == stat.S_IFREG:
        if about.st_size != item.size:
            found.append(f"{_text(path)} has {about.st_size} bytes, not {item.size}")
        inside = _LEAST_TIME <= item.mtime <= _MOST_TIME
        if inside and about.st_mtime_ns != item.mtime * 1_000_000_000 + item.nsec:
            found.append(f"{_text(path)} was changed")
    return found


def _same_bytes(fd: int, item: Item, spend: Callable[[int], None]) -> bool:
    at = 0
    for source, offset, target, length in item.pieces:
        if not _all_zeros(fd, at, target, spend):
            return False
        done = 0
        while done < length:
            count = min(CHUNK, length - done)
            spend(count)
            ours = read_bytes(fd, count, target + done, "check folder")
            if not ours or ours != read_bytes(source, len(ours), offset + done, "check folder"):
                return False
            done += len(ours)
        at = target + length
    return _all_zeros(fd, at, item.size, spend)


def _all_zeros(fd: int, start: int, end: int, spend: Callable[[int], None]) -> bool:
    while start < end:
        count = min(CHUNK, end - start)
        spend(count)
        data = read_bytes(fd, count, start, "check folder")
        if not data or data.count(0) != len(data):
            return False
        start += len(data)
    return True


def _text(path: bytes) -> str:
    return "/" + path.decode("utf-8", "backslashreplace")
