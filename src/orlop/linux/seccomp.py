"""A seccomp filter from names of system calls, as classic BPF written by hand.

An allowlist for a process that computes on descriptors it already has.  Not a general compiler:
numbers are known for the calls of such a process only.

What is not on the list fails with EPERM, so that a parser's mistake comes back as an exception; a call
for another architecture's table kills the process, for nothing honest makes one.

Sources: Documentation/userspace-api/seccomp_filter.rst, include/uapi/linux/{seccomp,filter,audit}.h.
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from orlop.linux._syscall import call

if TYPE_CHECKING:
    from ctypes import Structure

__all__ = ["WORKER_SYSCALLS", "seccomp_allow", "seccomp_prepare", "seccomp_program"]

# (x86_64, generic table); None where the table has no such call.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "read": (0, 63),
    "readv": (19, 65),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "select": (23, None),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "write": (1, 64),
    "writev": (20, 66),
}

# What a Python process needs to read given descriptors and to append to others, to allocate, wait and exit.
# No name of a file or of another process is ever passed in, and nothing changes what is in a file that is
# open: a tar is hashed while its worker appends to it (docs/adr/0019-the-tar-goes-straight-into-its-file.md).
# There is one thread: many would be a way to use up the machine's process IDs.  Many C libraries make
# newfstatat or statx of fstat; both are not here, as with AT_EMPTY_PATH they take names all the same, and
# Landlock keeps nobody from looking at a file's metadata.
WORKER_SYSCALLS: tuple[str, ...] = tuple(_NUMBERS)

_AUDIT_ARCH = {  # machine: (AUDIT_ARCH_ token, column of the table)
    "x86_64": (0xC000_003E, 0),
    "aarch64": (0xC000_00B7, 1),
    "riscv64": (0xC000_00F3, 1),
}
_X32_BIT = 0x4000_0000  # x86_64's third table: the same token, numbers from here on

_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # filter.h: LD|W|ABS, JMP|*|K, RET|K
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_AT_NUMBER, _AT_ARCH, _AT_ARGS = 0, 4, 16  # struct seccomp_data; both halves of an argument are 32 bits
_SET_MODE_FILTER = 1

_PROT_EXEC = 4


class _Rule(NamedTuple):
    """A condition on one argument: refused if one of its bits ``mask`` is set."""

    argument: int
    mask: int


_RULES: dict[str, tuple[_Rule, ...]] = {
    "mmap": (_Rule(2, _PROT_EXEC),),  # no new code
    "mprotect": (_Rule(2, _PROT_EXEC),),
    "prlimit64": (_Rule(0, 0xFFFF_FFFF), _Rule(2, 0xFFFF_FFFF)),  # own limits, reading only
}


def _op(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    """One struct sock_filter; jumps count the instructions to skip."""
    return struct.pack("=HBBI", code, when_true, when_false, value)


def _case(name: str, number: int) -> bytes:
    """Instructions that decide ``number`` and fall through, number still loaded, for any other."""
    body = b""
    for rule in _RULES.get(name, ()):
        # Little-endian on all our machines: the low half comes first.
        halves = [_AT_ARGS + 8 * rule.argument]
        if rule.mask == 0xFFFF_FFFF:
            halves.append(halves[0] + 4)  # a pointer: NULL in both halves
        for offset in halves:
            body += _op(_LOAD, offset)
            body += _op(_JSET, rule.mask, 0, 1)
            body += _op(_RETURN, _ERRNO | errno.EPERM)
    body += _op(_RETURN, _ALLOW)
    return _op(_JEQ, number, 0, len(body) // 8) + body


def seccomp_program(names: Iterable[str], machine: str) -> bytes | None:
    """The filter as an array of struct sock_filter; None for a machine whose numbers we do not know.

    Raises ValueError for a name without a number.
    """
    if machine not in _AUDIT_ARCH:
        return None
    arch, column = _AUDIT_ARCH[machine]
    program = _op(_LOAD, _AT_ARCH) + _op(_JEQ, arch, 1, 0) + _op(_RETURN, _KILL_PROCESS)
    program += _op(_LOAD, _AT_NUMBER)
    if machine == "x86_64":
        program += _op(_JGE, _X32_BIT, 0, 1) + _op(_RETURN, _KILL_PROCESS)
    for name in names:
        if name not in _NUMBERS:
            raise ValueError(f"the number of system call {name!r} is not known")
        number = _NUMBERS[name][column]
        if number is not None:
            program += _case(name, number)
    return program + _op(_RETURN, _ERRNO | errno.EPERM)


@functools.cache
def _filter(names: tuple[str, ...]) -> Structure | None:
    """The filter as a struct sock_fprog; None for a machine whose numbers we do not know."""
    import ctypes

    program = seccomp_program(names, os.uname().machine)
    if program is None:
        return None

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    return Program(len(program) // 8, program)  # which it keeps alive


def seccomp_prepare(names: Iterable[str]) -> None:
    """Make the filter now, so that a forked process finds it made."""
    _filter(tuple(names))


def seccomp_allow(names: Iterable[str]) -> bool:
    """Allow this thread, and all it starts, only these system calls, for good.

    Needs no-new-privileges.  False, and nothing changed, where the kernel or this machine has no
    filters.
    """
    program = _filter(tuple(names))
    if program is None:
        return False
    try:
        call("seccomp", _SET_MODE_FILTER, 0, program)
    except OSError as exc:
        if exc.errno in {errno.ENOSYS, errno.EINVAL}:
            return False
        raise
    return True
