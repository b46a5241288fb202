"""What was written to a snapshot: counted, and made durable before a row says that it is committed.

Whoever wrote it (containerd's differ, a container) did not sync it.  Each file and folder is synced, never
the whole disk: several at a time, for most of them find that the file system's log is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from orlop.images.snapshots import SnapshotUsage
from orlop.linux.files import walk_folders
from orlop.linux.sync import Sync
from orlop.observe import Call

__all__ = ["count", "settle"]

THREADS = 8
BATCH = 256  # files between two looks at the call
_BLOCK = 512  # st_blocks counts these, stat(2)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def count(folder: bytes, *, call: Call) -> SnapshotUsage:
    """The bytes and inodes of a tree, counted as du(1) does.  What vanishes meanwhile counts nothing."""
    return settle(folder, sync=Sync(False), call=call)


def settle(folder: bytes, *, sync: Sync, call: Call) -> SnapshotUsage:
    """Have a tree on disk, of any depth; its bytes and inodes.

    Raises OSError, `Cancelled`, `DeadlineExceeded`.
    """
    try:
        return _by_paths(folder, sync, call)
    except OSError as exc:
        if exc.errno != errno.ENAMETOOLONG:
            raise
    return _by_descriptors(folder, sync, call)


def _by_paths(folder: bytes, sync: Sync, call: Call) -> SnapshotUsage:
    """Several files at a time; folders may be moved meanwhile."""
    counter = _Counter()
    found = _walk(folder, counter, call)
    if not sync.durable:
        for _ in found:
            pass
        return counter.usage
    pool: ThreadPoolExecutor | None = None
    try:
        while batch := list(islice(found, BATCH)):
            if len(batch) == 1:
                _sync_one(sync, *batch[0])
                continue
            if pool is None:
                pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="orlop-settle")
            for done in [pool.submit(_sync_one, sync, *one) for one in batch]:
                done.result()
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return counter.usage


def _by_descriptors(folder: bytes, sync: Sync, call: Call) -> SnapshotUsage:
    """One after the other, for paths that are too long for the kernel."""
    counter = _Counter()
    counter.add(os.lstat(folder))
    top = os.open(folder, _FOLDER)
    try:
        for _, here, entries in walk_folders(top):
            call.check("read snapshot")
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    about = os.stat(entry.name, dir_fd=here, follow_symlinks=False)
                    if counter.add(about) and stat.S_ISREG(about.st_mode) and sync.durable:
                        _sync_one(sync, os.fsencode(entry.name), is_folder=False, folder=here)
            sync.folder(here)
    finally:
        os.close(top)
    return counter.usage


def _sync_one(sync: Sync, path: bytes, is_folder: bool, folder: int | None = None) -> None:
    try:
        fd = os.open(path, _FOLDER if is_folder else _FILE, dir_fd=folder)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}:
            return  # it was replaced meanwhile, which its folder tells
        raise
    try:
        sync.file(fd)
    finally:
        os.close(fd)


class _Counter:
    """Adds up inodes, each once."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._size = 0
        self._inodes = 0

    @property
    def usage(self) -> SnapshotUsage:
        """What was counted."""
        return SnapshotUsage(size=self._size, inodes=self._inodes)

    def add(self, about: os.stat_result) -> bool:
        """Count an inode; whether it is new."""
        if about.st_nlink > 1 and not stat.S_ISDIR(about.st_mode):
            key = (about.st_dev, about.st_ino)
            if key in self._seen:
                return False
            self._seen.add(key)
        self._size += about.st_blocks * _BLOCK
        self._inodes += 1
        return True


def _walk(folder: bytes, counter: _Counter, call: Call) -> Iterator[tuple[bytes, bool]]:
    """The regular files and the folders of a tree, folders after what is in them; no link is followed."""
    counter.add(os.lstat(folder))
    pending: list[tuple[bytes, bool]] = [(folder, False)]
    while pending:
        path, visited = pending.pop()
        if visited:
            yield path, True
            continue
        call.check("read snapshot")
        pending.append((path, True))
        with contextlib.suppress(FileNotFoundError), os.scandir(path) as entries:
            for entry in entries:
                try:
                    about = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                new = counter.add(about)
                if stat.S_ISDIR(about.st_mode):
                    pending.append((entry.path, False))
                elif new and stat.S_ISREG(about.st_mode):
                    yield entry.path, False
