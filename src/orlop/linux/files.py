"""Files by descriptor: durable writes, lookups that cannot be led astray, removal of whole trees.

Not a store: it knows nothing of what the files mean.  Paths from outside are resolved by the kernel
under a root (`open_in_root`), or one component at a time from a directory descriptor
(`remove_tree`); strings are never joined.

Every failure is an OSError with the kernel's errno.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PosixPath

from orlop.linux._syscall import Path, call
from orlop.linux.sync import DURABLE, Sync
from orlop.observe import reached
from orlop.values import dataclass, field

__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "RESOLVE_NO_XDEV",
    "can_reflink",
    "clone_file",
    "copy_range",
    "fsync_dir",
    "new_locked_folder",
    "open_beneath",
    "open_in_root",
    "openat2",
    "remove_tree",
    "sync_range",
    "walk_folders",
    "write_durably",
]

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_OPENAT2_TRIES = 64  # openat2(2): EAGAIN when a rename elsewhere raced with the lookup
_SYNC_FILE_RANGE_WRITE = 2
_FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h
_COPY_CHUNK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHILD = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_REMOVE_LEVELS = 48  # folders open at a time while a tree is removed
_REMOVE_BATCH = 4096  # names in memory of one folder


def fsync_dir(folder: Path | int) -> None:
    """Make the names in a folder durable."""
    DURABLE.folder(folder)


def new_locked_folder(parent: Path) -> tuple[PosixPath, int]:
    """A new folder ``new-<random>`` and a descriptor of it that holds a flock: its maker lives.

    Collectors take such folders when nobody holds the lock; one that was taken before we had it is left
    to them.
    """
    while True:
        folder = PosixPath(os.fsdecode(parent)) / f"new-{os.urandom(8).hex()}"
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(os.fstat(lock), os.stat(folder)):
            return folder, lock
        os.close(lock)


@contextmanager
def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes | bytearray, *, mode: int = 0o600, sync: Sync = DURABLE) -> None:
    """Put a file in place whole and durable: the old content or the new, never a part.

    Written under a temporary name in the same folder, fsynced, renamed, the folder fsynced.  On
    failure the temporary file is removed; the old file stays unless only the last fsync failed.
    Where the process is killed, a ``.tmp-`` file stays; nobody holds a flock on it then.
    ``sync`` may leave out the syncing, and with it the durability.
    """
    folder, name = os.path.split(os.fsencode(path))
    with _opened(os.open(folder or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as dir_fd:
        temporary, opened = _temporary(dir_fd)
        with _opened(opened) as fd:
            try:
                os.fchmod(fd, mode)  # whatever the umask
                _write_all(fd, data)
                reached("file.written")
                sync.file(fd)
                reached("file.synced")
                os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            except BaseException:
                with suppress(OSError):  # the first failure is the one to report
                    os.unlink(temporary, dir_fd=dir_fd)
                raise
        reached("file.renamed")
        sync.folder(dir_fd)


def _temporary(dir_fd: int) -> tuple[bytes, int]:
    """A new file under a name of its own, with a flock that keeps it from those who tidy up."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        name = b".tmp-" + os.urandom(8).hex().encode()
        fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return name, fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # somebody took it for the file of a dead process before we had the lock


def _write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_range(fd: int, offset: int, length: int) -> None:
    """Start writing a range of a file's dirty pages to disk, without waiting for it.

    It promises nothing (no metadata, no barrier): it only leaves less for the fsync to come.
    """
    call("sync_file_range", fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def openat2(dir_fd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open a path under the rules of the RESOLVE_ bits; see the manual page of the same name.

    EXDEV or ELOOP says that a rule would have been broken.  Add O_CLOEXEC yourself.
    """
    how = bytearray(_OPEN_HOW.pack(flags, mode, resolve))
    for tries in itertools.count(1):
        try:
            return call("openat2", dir_fd, os.fsencode(path), how, _OPEN_HOW.size)
        except OSError as exc:
            if exc.errno != errno.EAGAIN or tries == _OPENAT2_TRIES:
                raise OSError(exc.errno, exc.strerror, path) from exc
    raise AssertionError("unreachable: the loop returns or raises")


def open_in_root(root_fd: int, path: str | bytes) -> int:
    """A regular file of an image's root, open for reading, as a process with that root would find it.

    Symlinks, absolute ones and ``..`` included, stay inside.  Anything but a regular file is refused
    with EINVAL without being opened: opening a device or a FIFO does things.
    """
    return _open_regular(root_fd, path, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_beneath(dir_fd: int, path: str | bytes) -> int:
    """A regular file below a folder, open for reading; links are not followed (ELOOP), nor a way out (EXDEV).

    Anything else is refused with EINVAL without being opened, as by `open_in_root`.
    """
    return _open_regular(dir_fd, path, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)


def _open_regular(dir_fd: int, path: str | bytes, resolve: int) -> int:
    # With O_PATH a last component that is a symlink is found itself, even if links are not to be followed.
    with _opened(openat2(dir_fd, path, os.O_PATH | os.O_CLOEXEC, resolve=resolve)) as found:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{found}", flags)


def clone_file(src_fd: int, dst_fd: int) -> None:
    """Make an empty file share all the bytes of another (a reflink: ioctl_ficlone(2)).

    Raises OSError where the file system cannot: EOPNOTSUPP, EXDEV, EINVAL.
    """
    fcntl.ioctl(dst_fd, _FICLONE, src_fd)


def can_reflink(folder: Path) -> bool:
    """Whether files in a folder can share blocks; found by trying with two that are not seen."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    try:
        with (
            _opened(os.open(folder, flags, 0o600)) as source,
            _opened(os.open(folder, flags, 0o600)) as target,
        ):
            os.write(source, bytes(4096))
            clone_file(source, target)
            return True
    except OSError:
        return False


def copy_range(src_fd: int, src_offset: int, dst_fd: int, dst_offset: int, length: int) -> None:
    """Copy bytes between files, sharing them where the file system can.

    Raises OSError with EIO if the source ends early.  The descriptors' own offsets do not move.
    """
    in_kernel = True
    while length > 0:
        count = _copy_in_kernel(src_fd, src_offset, dst_fd, dst_offset, length) if in_kernel else 0
        if not count:
            in_kernel = False
            data = os.pread(src_fd, min(length, _COPY_CHUNK), src_offset)
            if not data:
                raise OSError(errno.EIO, f"the source ends {length} bytes early")
            count = os.pwrite(dst_fd, data, dst_offset)
        src_offset, dst_offset, length = src_offset + count, dst_offset + count, length - count


def _copy_in_kernel(src_fd: int, src_offset: int, dst_fd: int, dst_offset: int, length: int) -> int:
    """Bytes copied by copy_file_range(2); 0 where it cannot, or sees the end."""
    try:
        return os.copy_file_range(src_fd, dst_fd, min(length, 1 << 30), src_offset, dst_offset)
    except OSError as exc:
        # Other file systems, special files, old kernels, overlapping ranges of one file.
        if exc.errno in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
            return 0
        raise


def walk_folders(top: int) -> Iterator[tuple[bytes, int, list[os.DirEntry[str]]]]:
    """All folders of a tree that nobody moves meanwhile: path, descriptor, entries; one is open at a time.

    The descriptor is valid until the next step.  No link is followed; no depth is too much.
    """
    here = os.open(b".", _FOLDER, dir_fd=top)
    path = b""
    above: list[tuple[bytes, list[bytes]]] = []
    try:
        while True:
            with os.scandir(here) as found:
                entries = list(found)
            yield path, here, entries
            pending = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
            while not pending:
                if not above:
                    return
                path, pending = above.pop()
                here = _step(here, b"..")
            name = pending.pop()
            above.append((path, pending))
            path = path + b"/" + name if path else name
            here = _step(here, name)
    finally:
        os.close(here)


def _step(here: int, name: bytes) -> int:
    there = os.open(name, _FOLDER, dir_fd=here)
    os.close(here)
    return there


@dataclass(slots=True)
class _Level:
    """A folder being emptied: its descriptor, its name in the level above, folders still to empty."""

    fd: int
    name: str
    pending: list[str] = field(default_factory=list)


def remove_tree(path: Path, *, dir_fd: int | None = None, missing_ok: bool = False) -> None:
    """Delete a file or a whole tree, of any depth, following no link and entering no mount.

    ``path`` is one component if ``dir_fd`` is given.  Folders that deny their owner access are opened
    up.  At a mount it stops with EBUSY or EXDEV; what was deleted by then is gone.  Others may
    delete in the tree at the same time.
    """
    folder, name = os.path.split(os.fsdecode(path).rstrip("/"))
    if name in {"", ".", ".."} or (folder and dir_fd is not None):
        raise OSError(errno.EINVAL, "not the name of a tree to remove", path)
    try:
        if dir_fd is not None:
            _remove(dir_fd, name)
            return
        with _opened(os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as parent:
            _remove(parent, name)
    except FileNotFoundError:
        if not missing_ok:
            raise


def _remove(parent: int, name: str) -> None:
    if not _remove_simple(parent, name, is_folder=False, missing_ok=False):
        _empty_and_remove(parent, name)


def _remove_simple(parent: int, name: str, *, is_folder: bool, missing_ok: bool = True) -> bool:
    """Remove a file or an empty folder; False if it is a folder with something in it."""
    try:
        if is_folder:
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
    except OSError as exc:
        if exc.errno == errno.EISDIR:
            return _remove_simple(parent, name, is_folder=True, missing_ok=missing_ok)
        if exc.errno == errno.ENOTDIR:
            return _remove_simple(parent, name, is_folder=False, missing_ok=missing_ok)
        if exc.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        if not (exc.errno == errno.ENOENT and missing_ok):
            raise
    return True


def _empty_and_remove(parent: int, name: str) -> None:
    """Walk the tree with an explicit stack.

    Where it gets deep, the folder below is renamed up to the top instead of entered, so neither
    the number of open folders nor PATH_MAX limits the depth.
    """
    levels = [_Level(_open_folder(parent, name), name)]
    moved = itertools.count()
    try:
        while levels:
            level = levels[-1]
            if not level.pending and not _sweep(level):
                above = levels[-2].fd if len(levels) > 1 else parent
                os.close(levels.pop().fd)
                if not _remove_simple(above, level.name, is_folder=True):
                    raise OSError(errno.ENOTEMPTY, "someone is writing into the tree", level.name)
                continue
            if not level.pending:
                continue
            child = level.pending.pop()
            try:
                fd = _open_folder(level.fd, child)
            except FileNotFoundError:
                continue
            if len(levels) < _REMOVE_LEVELS:
                levels.append(_Level(fd, child))
            else:
                os.close(fd)
                levels[0].pending.append(_move_up(level.fd, child, levels[0].fd, moved))
    finally:
        for level in levels:
            os.close(level.fd)


def _sweep(level: _Level) -> bool:
    """Remove what can be removed at once, note the folders to enter; False if nothing was left.

    Names come in batches, as a folder may hold millions.
    """
    with os.scandir(level.fd) as entries:
        batch = [(e.name, e.is_dir(follow_symlinks=False)) for e in itertools.islice(entries, _REMOVE_BATCH)]
    for name, is_folder in batch:
        if not _remove_simple(level.fd, name, is_folder=is_folder):
            level.pending.append(name)
    return bool(batch)


def _move_up(src: int, name: str, top: int, numbers: Iterator[int]) -> str:
    """Rename a deep folder into the top one, under a name that is free there (or an empty folder)."""
    for number in numbers:
        new = f".remove-{number}"
        try:
            os.rename(name, new, src_dir_fd=src, dst_dir_fd=top)
        except OSError as exc:
            if exc.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                continue
            raise
        return new
    raise AssertionError("unreachable: the numbers do not end")


def _open_folder(parent: int, name: str) -> int:
    """Open a folder to empty it; no link, no mount.  Its owner gets full access to it."""
    try:
        fd = openat2(parent, name, _FOLDER, resolve=_CHILD)
    except PermissionError:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with _opened(openat2(parent, name, flags, resolve=_CHILD)) as found:
            os.chmod(f"/proc/self/fd/{found}", 0o700)  # fchmod(2) refuses O_PATH descriptors
        fd = openat2(parent, name, _FOLDER, resolve=_CHILD)
    try:
        if os.geteuid() != 0 and os.fstat(fd).st_mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except OSError:
        os.close(fd)
        raise
    return fd
