"""One binding to syscall(2): numbers, arguments in, `OSError` out.

Not a wrapper for each call: those are small functions in the other modules of this room.  Going by
number keeps us clear of the age of the C library; the price is a table of two columns.

Invariants: the argument types are declared once; a call that a signal interrupted is made again (as
PEP 475 does), after Python has run its signal handlers; -1 never leaves this module as a value.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

__all__ = [
    "AT_EMPTY_PATH",
    "AT_FDCWD",
    "AT_NO_AUTOMOUNT",
    "AT_RECURSIVE",
    "AT_SYMLINK_NOFOLLOW",
    "Path",
    "call",
    "number",
]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# (x86_64, generic table).  Since 424 the architectures share their numbers.
# Sources: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h.
_NUMBERS: dict[str, tuple[int, int]] = {
    "capget": (125, 90),
    "capset": (126, 91),
    "fstatfs": (138, 44),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mount": (165, 40),
    "munmap": (11, 215),
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "statfs": (137, 43),
    "statx": (332, 291),
    "sync_file_range": (277, 84),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
}
_GENERIC = ("aarch64", "riscv64", "loongarch64")


@functools.cache
def _column() -> int:
    machine = os.uname().machine
    if machine == "x86_64":
        return 0
    if machine in _GENERIC:
        return 1
    raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")


@functools.cache
def number(name: str) -> int:
    """The number of a system call on this machine."""
    return _NUMBERS[name][_column()]


@functools.cache
def _libc() -> tuple[Callable[..., int], Callable[[], int]]:
    """syscall(2) and the reader of its errno.  ctypes is imported here to keep start-up cheap."""
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    # A pointer takes a number as well, and bytes as they are: their address need not be asked for.
    function.argtypes = [ctypes.c_long, *[ctypes.c_void_p] * 6]
    return function, ctypes.get_errno


def _passed(arg: object) -> object:
    """An argument as ctypes takes it: a number, None for NULL, bytes, or what lends its memory."""
    if arg is None or isinstance(arg, int):
        return arg
    if isinstance(arg, bytes):
        if b"\0" in arg:
            raise ValueError("embedded null byte")
        return arg  # the C calls read it only; a NUL follows the bytes
    import ctypes

    if isinstance(arg, bytearray):
        return (ctypes.c_char * len(arg)).from_buffer(arg)
    return ctypes.byref(arg)  # type: ignore[arg-type]  # a structure


def call(
    name: str, *args: int | bytes | bytearray | ctypes.Structure | None, path: Path | int | None = None
) -> int:
    """Make a system call; return what it returned.  ``path`` is for the error: what it was about.

    ``bytes`` are passed as a pointer to a NUL-ended string, a ``bytearray`` as a buffer the kernel
    fills, None as NULL.  Raises OSError with the kernel's errno; ValueError for a NUL in a string.
    """
    words = [_passed(arg) for arg in args]
    words += [0] * (6 - len(words))
    function, get_errno = _libc()
    nr = number(name)
    while True:
        result = function(nr, *words)
        if result != -1:
            return result
        code = get_errno()
        if code != errno.EINTR:
            about = () if path is None or isinstance(path, int) else (os.fspath(path),)
            raise OSError(code, os.strerror(code), *about)
