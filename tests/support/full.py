"""Disks without room and disks with errors: filling one to the last block, and system calls that fail.

    with Faults(errno.ENOSPC, at=3) as faults:   # the third call that writes, and all that allocate after it
        store.pull(name)
    assert faults.failed

`Faults` stands at the seam where orlop calls the kernel, the functions of `os`, for the whole process; only
files, never pipes and sockets.  SQLite writes beside it, so a real disk that is full belongs to every set of
tests.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

# What a full disk may refuse; once it does, it goes on.
ALLOCATING = (
    "open",
    "write",
    "pwrite",
    "mkdir",
    "copy_file_range",
    "posix_fallocate",
    "symlink",
    "mknod",
    "link",
    "setxattr",
)
OTHERS = (
    "fsync",
    "ftruncate",
    "rename",
    "unlink",
    "rmdir",
    "chmod",
    "fchmod",
    "chown",
    "utime",
)  # what fails at most once, with an error of the disk


def free_blocks(folder: Path) -> int:
    """What the disk of a folder has left, in blocks."""
    return os.statvfs(folder).f_bfree


def fill(path: Path, *, leave: int = 0) -> None:
    """Take all blocks of a disk but ``leave`` bytes of them, with a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        about = os.fstatvfs(fd)
        chunk, size = 64 << 20, os.fstat(fd).st_size
        while chunk >= about.f_frsize:
            wanted = min(chunk, os.fstatvfs(fd).f_bfree * about.f_frsize - leave)
            wanted -= wanted % about.f_frsize
            if wanted <= 0:
                break
            try:
                os.posix_fallocate(fd, size, wanted)
                size += wanted
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                chunk //= 2
        os.fsync(fd)
    finally:
        os.close(fd)


class Faults:
    """Counts the calls that write, and has one fail: the ``at``-th, from 0; none for -1.

    With ENOSPC all that allocate fail from there on, as on a disk that is full; with other errors one call
    does.
    """

    def __init__(self, number: int, *, at: int, only: tuple[str, ...] = ()) -> None:
        self.number = number
        self.at = at
        self.calls: list[str] = []
        self.failed = ""
        self._names = only or (ALLOCATING if number == errno.ENOSPC else (*ALLOCATING, *OTHERS))
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Self:
        for name in self._names:
            self._real[name] = getattr(os, name)
            setattr(os, name, partial(self._call, name))
        return self

    def __exit__(self, *exc: object) -> None:
        for name, real in self._real.items():
            setattr(os, name, real)

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        if not self._counts(name, args):
            return self._real[name](*args, **kwargs)
        number = len(self.calls)
        self.calls.append(name)
        due = number == self.at or (self.number == errno.ENOSPC and 0 <= self.at < number)
        if due:
            self.failed = self.failed or f"{name} {args[:1]}"
            raise OSError(self.number, os.strerror(self.number))
        return self._real[name](*args, **kwargs)

    def _counts(self, name: str, args: tuple[Any, ...]) -> bool:
        if name == "open":
            return len(args) > 1 and bool(args[1] & os.O_CREAT)
        if name in {"write", "pwrite"}:
            return stat.S_ISREG(os.fstat(args[0]).st_mode)
        return True
