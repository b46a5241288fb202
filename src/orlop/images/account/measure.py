"""How much disk things take, counted as ``du -x`` counts.

A *piece* is what is deleted as a whole: a layer's folder, a chain's file, a blob.  It is named by its path
from ROOT (``layers/<hex>``), as in the list of trash.  The folders that hold pieces are counted with their
kind, so that all kinds together are what ``du -sx ROOT`` says.

Invariants: blocks are counted, not lengths; a file with several names counts once in one measurement; folders
count themselves; no mount is entered, no link followed; no content is read.  Trees may change meanwhile and
have any depth: what vanishes counts nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from orlop.observe import Call
from orlop.values import dataclass, field

__all__ = ["KINDS", "Measured", "kind_of", "measure", "measure_some", "piece_of"]

# In the order in which they are shown.
KINDS: tuple[str, ...] = ("layers", "chains", "folders", "blobs", "ingests", "roots", "snapshots")
KINDS += ("trash", "metadata", "other")
_BLOCK = 512  # st_blocks counts these, stat(2)
_OPEN = 64  # folders of one tree that are open at a time
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# The folders that hold pieces, and the kind of those.
_HOLDERS = {
    "layers": "layers",
    "chains": "chains",
    "folders": "folders",
    "content": "blobs",
    "content/blobs": "blobs",
    "content/blobs/sha256": "blobs",
    "content/blobs/sha512": "blobs",
    "content/ingest": "ingests",
    "prepared": "roots",
    "snapshots": "snapshots",
    "trash": "trash",
    "quarantine": "other",
    "shares": "other",
}
_METADATA = ("meta.db", "format.json", "reserve")  # how the names of its files begin


@dataclass(slots=True)
class Measured:
    """A whole store: the bytes of each piece, and of each kind with the folders that hold it.

    ``inodes`` are the files and folders of each kind, ``unread`` counts the folders that we may not read.
    """

    pieces: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    inodes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    unread: int = 0

    @property
    def total(self) -> int:
        """What ``du`` says."""
        return sum(self.sizes.values())


def kind_of(path: str) -> str:
    """The kind of a piece."""
    holder, _, name = path.rpartition("/")
    if holder:
        return _HOLDERS.get(holder, "other")
    return "metadata" if name.startswith(_METADATA) else "other"


def piece_of(path: str) -> str | None:
    """The piece that holds a path from ROOT, or is it; None for a folder that holds pieces."""
    parts = path.split("/")
    for count in range(1, len(parts) + 1):
        piece = "/".join(parts[:count])
        if piece not in _HOLDERS and piece not in {"", "."}:
            return piece
    return None


def measure(root: Path, *, call: Call) -> Measured:
    """Measure a store.  Raises OSError if it is not there, `Cancelled` or `DeadlineExceeded`."""
    about = os.stat(root)
    meter = _Meter(about.st_dev, call)
    found = Measured()
    found.sizes["other"] += meter.own(about)
    found.inodes["other"] += meter.taken()
    _hold(root, "", meter, found)
    found.unread = meter.unread
    return found


def measure_some(root: Path, paths: Iterable[str], *, call: Call) -> dict[str, int]:
    """The bytes of some pieces; those that are not there have none."""
    meter = _Meter(os.stat(root).st_dev, call)
    found: dict[str, int] = {}
    for path in paths:
        try:
            parent = os.open(root / os.path.dirname(path), _FOLDER)
        except FileNotFoundError:
            continue
        try:
            name = os.path.basename(path)
            about = os.stat(name, dir_fd=parent, follow_symlinks=False)
            found[path] = meter.tree(parent, name, about)
        except FileNotFoundError:
            continue
        finally:
            os.close(parent)
    return found


def _hold(root: Path, path: str, meter: _Meter, found: Measured) -> None:
    """Measure what is in a folder of pieces."""
    with os.scandir(root / path) as entries:
        listed = list(entries)
    fd = os.open(root / path, _FOLDER)
    try:
        for entry in listed:
            place = f"{path}/{entry.name}" if path else entry.name
            try:
                about = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if place in _HOLDERS and stat.S_ISDIR(about.st_mode) and about.st_dev == meter.device:
                found.sizes[_HOLDERS[place]] += meter.own(about)
                found.inodes[_HOLDERS[place]] += meter.taken()
                _hold(root, place, meter, found)
                continue
            kind = kind_of(place)
            size = meter.tree(fd, entry.name, about)
            found.pieces[place] = size
            found.sizes[kind] += size
            found.inodes[kind] += meter.taken()
            found.counts[kind] += 1
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Level:
    """A folder on the way down: its name in the one above, and the folders in it still to be counted.

    ``fd`` is None while it is closed.
    """

    name: str
    fd: int | None
    pending: list[str]


class _Meter:
    """Counts blocks of one file system, each file once."""

    def __init__(self, device: int, call: Call) -> None:
        self.device = device
        self.unread = 0
        self._inodes = 0  # counted since they were last asked for
        self._call = call
        self._seen: set[int] = set()  # inode numbers of files with several names

    def own(self, about: os.stat_result) -> int:
        """The bytes of a file, or of a folder itself; none where it was counted before, or is elsewhere."""
        if about.st_dev != self.device:
            return 0
        if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
            if about.st_ino in self._seen:
                return 0
            self._seen.add(about.st_ino)
        self._inodes += 1
        return about.st_blocks * _BLOCK

    def taken(self) -> int:
        """How many inodes were counted since this was last asked."""
        count, self._inodes = self._inodes, 0
        return count

    def tree(self, parent: int, name: str, about: os.stat_result) -> int:
        """The bytes of a file or of a whole tree."""
        size = self.own(about)
        if not stat.S_ISDIR(about.st_mode) or about.st_dev != self.device:
            return size
        levels: list[_Level] = []
        try:
            size += self._enter(levels, parent, name)
            while levels:
                level = levels[-1]
                if not level.pending:
                    levels.pop()
                    if level.fd is not None:
                        os.close(level.fd)
                    continue
                fd = level.fd if level.fd is not None else self._reopen(levels)
                if fd is None:
                    level.pending.clear()  # it was moved or deleted meanwhile
                    continue
                size += self._enter(levels, fd, level.pending.pop())
        finally:
            for level in levels:
                if level.fd is not None:
                    os.close(level.fd)
        return size

    def _enter(self, levels: list[_Level], parent: int, name: str) -> int:
        """Go into a folder and count what is right in it."""
        self._call.check("measure the store")
        try:
            fd = os.open(name, _FOLDER, dir_fd=parent)
        except OSError as exc:
            if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}:
                raise
            self.unread += exc.errno == errno.EACCES
            return 0
        levels.append(_Level(name, fd, []))
        if len(levels) > _OPEN:
            above = levels[-_OPEN]  # never the first: from there closed ones are found again
            if above.fd is not None:
                os.close(above.fd)
                above.fd = None
        size = 0
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                size += self.own(about)
                if stat.S_ISDIR(about.st_mode) and about.st_dev == self.device:
                    levels[-1].pending.append(entry.name)
        return size

    @staticmethod
    def _reopen(levels: list[_Level]) -> int | None:
        """Open the deepest levels again, from the nearest one above that is open."""
        start = next(number for number in range(len(levels) - 1, -1, -1) if levels[number].fd is not None)
        fd = passing = levels[start].fd
        assert fd is not None
        for number in range(start + 1, len(levels)):
            try:
                step = os.open(levels[number].name, _FOLDER, dir_fd=fd)
            except OSError as exc:
                if exc.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES}:
                    raise
                step = -1
            if fd != passing and number - 1 < len(levels) - _OPEN // 2:
                os.close(fd)
            else:
                levels[number - 1].fd = fd
            if step < 0:
                return None
            fd = step
        levels[-1].fd = fd
        return fd
