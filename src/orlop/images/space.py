"""Room on the store's disk: asked for before much is written, told of when it runs out, kept for deleting.

What is known to be needed is compared with what is free before the work begins (`needing`).  Where the disk
runs out all the same, the error says how much was needed, how much was free and where, and the verb gives
back what it took.

Forgetting something takes room, too: SQLite writes a log first.  So a store keeps a file of some blocks that
hold nothing (`Reserve`).  A verb that deletes gives them up when the disk has no others, and takes them again
when it is done.

Invariant: only verbs that delete, and opening the store, ever spend the reserve.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from orlop.errors import Error, ResourceExhausted, from_oserror

__all__ = ["Reserve", "available_bytes", "check_room", "free_bytes", "is_full", "needing", "told"]

RESERVE = 1 << 20  # bytes: the shared memory of SQLite's log, and the log of forgetting some thousand things
_LEAST = 32 << 10  # a reserve below this helps nobody
_PLENTY = 16  # times its size must be free for the reserve to be taken when a store is opened
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_NAMES = frozenset(errno.errorcode[number] for number in _FULL)
_HINT = "make room ('orlop rmi', 'orlop gc'), then try again"
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def free_bytes(folder: Path) -> int:
    """What the disk of a folder has left for us."""
    about = os.statvfs(folder)
    return (about.f_bfree if os.geteuid() == 0 else about.f_bavail) * about.f_frsize


def available_bytes(folder: Path) -> int:
    """What the disk of a folder has left for everybody, as df(1) says: not what it reserves for root."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize


def is_full(exc: BaseException) -> bool:
    """Whether an error says that a disk, or the quota on it, has no room left."""
    if isinstance(exc, Error):
        return isinstance(exc, ResourceExhausted) and exc.details.get("errno") in _FULL_NAMES
    return isinstance(exc, OSError) and exc.errno in _FULL


def check_room(root: Path, needed: int, attempted: str) -> None:
    """Raise `ResourceExhausted` unless the disk of ``root`` has ``needed`` bytes left."""
    free = free_bytes(root)
    if needed > free:
        raise _exhausted(attempted, root, needed=needed, free=free)


@contextlib.contextmanager
def needing(
    root: Path, needed: int | Callable[[], int], attempted: str, *, by_workers: bool = False
) -> Iterator[None]:
    """Work that writes at least ``needed`` bytes to the disk of ``root``.

    Raises `ResourceExhausted` before the work if the room is not there, and with the same figures if it is
    used up on the way.  What takes long to find out is a function, which is called only then.  Workers are
    nobody, to whom the disk does not give what it reserves for root.
    """
    free = (available_bytes if by_workers else free_bytes)(root)
    if isinstance(needed, int) and needed > free:
        raise _exhausted(attempted, root, needed=needed, free=free)
    try:
        yield
    except (OSError, ResourceExhausted) as exc:
        if is_full(exc) and "needed" not in getattr(exc, "details", {}):
            least = needed if isinstance(needed, int) else needed()
            raise _exhausted(attempted, root, needed=least, free=free, began=True) from exc
        raise


def told(attempted: str, exc: OSError | ResourceExhausted, root: Path) -> Error:
    """The error of a full disk with where it is and what is free; the caller raises it ``from`` the other."""
    if isinstance(exc, ResourceExhausted):
        if "free" in exc.details:
            return exc
        attempted = exc.attempted or attempted
    elif exc.filename is not None and root not in Path(os.fsdecode(exc.filename)).parents:
        return from_oserror(attempted, exc)  # another disk, perhaps
    return _exhausted(attempted, root, needed=None, free=free_bytes(root))


def _exhausted(
    attempted: str, root: Path, *, needed: int | None, free: int, began: bool = False
) -> ResourceExhausted:
    where = f"on the disk of {root}"
    details = {"errno": "ENOSPC", "free": str(free), "where": str(root)}
    if needed is None:
        return ResourceExhausted(
            attempted, f"no room is left {where}: {_size(free)} are free", hint=_HINT, details=details
        )
    reason = f"it needs at least {_size(needed)} {where}, and {_size(free)} are free"
    if began:
        reason = f"no room is left {where}: it needed at least {_size(needed)}, and {_size(free)} were free"
    return ResourceExhausted(attempted, reason, hint=_HINT, details={**details, "needed": str(needed)})


def _size(count: int) -> str:
    number, unit = float(count), 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{count} {_UNITS[0]}"


class Reserve:
    """Blocks of the disk that hold nothing, in one file.  Thread-safe; processes may share it.

    It is never synced: blocks that a power cut gives back are taken again when the store is opened.
    """

    def __init__(self, path: Path, *, size: int = RESERVE) -> None:
        self._path = path
        self._size = size
        self._allowed = threading.local()

    def fill(self) -> None:
        """Take the blocks if they are not ours already and the disk has plenty."""
        if self._held() < self._size and free_bytes(self._path.parent) >= _PLENTY * self._size:
            self.restore()

    def restore(self) -> None:
        """Take the blocks again, or as many as there are."""
        size = self._size
        while size >= _LEAST and self._held() < size:
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    os.posix_fallocate(fd, 0, size)
                finally:
                    os.close(fd)
            except OSError as exc:
                if exc.errno not in _FULL:
                    return  # it is a comfort: a disk that cannot do it is written to without
                size //= 2
        with contextlib.suppress(OSError):
            os.truncate(self._path, size if size >= _LEAST else 0)

    def spend(self) -> bool:
        """Give the blocks up; whether there were any."""
        if self._held() < _LEAST:
            return False
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.ftruncate(fd, 0)
                os.fsync(fd)  # a file system with a journal gives blocks to others once that is written
            finally:
                os.close(fd)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def deleting(self) -> Iterator[None]:
        """Let this thread's transactions spend the reserve for the length of a ``with`` block."""
        outer = getattr(self._allowed, "yes", False)
        self._allowed.yes = True
        try:
            yield
        finally:
            self._allowed.yes = outer
            if not outer and self._held() < _LEAST:
                self.restore()

    def relieve(self) -> bool:
        """Spend the reserve if this thread is deleting; whether it helps to try again."""
        return getattr(self._allowed, "yes", False) and self.spend()

    def _held(self) -> int:
        try:
            return os.lstat(self._path).st_blocks * 512
        except OSError:
            return 0
