"""The filter program, run by an interpreter of classic BPF; the kernel runs it in test_linux_confine."""

from __future__ import annotations

import errno
import struct

import pytest

from orlop.linux.seccomp import WORKER_SYSCALLS, seccomp_program

ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM
X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def run(program: bytes, arch: int, number: int, *args: int) -> int:
    data = struct.pack("=iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, when_true, when_false, value = instructions[position]
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return value
        else:
            truth = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[
                code
            ]
            position += when_true if truth else when_false


CASES = [  # name, x86_64, aarch64, arguments, verdict
    ("read", 0, 63, (3,), ALLOW),
    ("write", 1, 64, (3,), ALLOW),
    ("openat", 257, 56, (), REFUSE),
    ("socket", 41, 198, (), REFUSE),
    ("execve", 59, 221, (), REFUSE),
    ("ptrace", 101, 117, (), REFUSE),
    ("kill", 62, 129, (), REFUSE),
    ("clone3", 435, 435, (), REFUSE),
    ("clone of a process", 56, 220, (0x11,), REFUSE),
    ("clone of a thread", 56, 220, (0x3D0F00,), REFUSE),
    ("ftruncate", 77, 46, (3, 0), REFUSE),
    ("pwrite64", 18, 68, (3,), REFUSE),
    ("pwritev", 296, 70, (3,), REFUSE),
    ("pwritev2 that does not append", 328, 287, (3, 0, 1, 0, 0, 0x20), REFUSE),
    ("fallocate", 285, 47, (3, 3, 0, 1), REFUSE),
    ("ioctl", 16, 29, (3, 0x40049409, 4), REFUSE),
    ("splice", 275, 76, (4, 0, 3, 0, 1, 0), REFUSE),
    ("sendfile", 40, 71, (3, 4, 0, 1), REFUSE),
    ("copy_file_range", 326, 285, (4, 0, 3, 0, 1, 0), REFUSE),
    ("io_uring_setup", 425, 425, (8,), REFUSE),
    ("dup", 32, 23, (3,), REFUSE),
    ("fcntl that no longer appends", 72, 25, (3, 4, 0), REFUSE),
    ("fcntl", 72, 25, (3, 8, 1), REFUSE),
    ("prctl", 157, 167, (1, 0), REFUSE),
    ("mmap of memory", 9, 222, (0, 4096, 3), ALLOW),
    ("mmap of code", 9, 222, (0, 4096, 5), REFUSE),
    ("mprotect to code", 10, 226, (0, 4096, 4), REFUSE),
    ("fstat", 5, 80, (3, 1), ALLOW),
    ("stat of a name", 262, 79, (3, 1, 1, 0), REFUSE),
    ("stat of a name that may be empty", 262, 79, (3, 1, 1, 0x1000), REFUSE),
    ("statx of a name that may be empty", 332, 291, (3, 1, 0x1000, 0xFFF, 1), REFUSE),
    ("limits read", 302, 261, (0, 7, 0, 1), ALLOW),
    ("limits set", 302, 261, (0, 7, 0x1000, 0), REFUSE),
    ("limits set, high address", 302, 261, (0, 7, 0x7F00 << 32, 0), REFUSE),
    ("limits of another", 302, 261, (1, 7, 0, 1), REFUSE),
    ("no call at all", 1023, 1023, (), REFUSE),
]


@pytest.mark.parametrize(("machine", "arch", "column"), [("x86_64", X86_64, 1), ("aarch64", AARCH64, 2)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_each_call_gets_its_verdict(machine: str, arch: int, column: int, case: tuple[object, ...]) -> None:
    program = seccomp_program(WORKER_SYSCALLS, machine)
    assert program is not None
    assert run(program, arch, case[column], *case[3]) == case[4]  # type: ignore[misc,arg-type]


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_another_architectures_call_kills(machine: str) -> None:
    program = seccomp_program(WORKER_SYSCALLS, machine)
    assert program is not None
    assert run(program, I386, 3) == KILL
    assert len(program) // 8 <= 4096  # BPF_MAXINSNS


def test_the_x32_table_kills() -> None:
    program = seccomp_program(WORKER_SYSCALLS, "x86_64")
    assert program is not None
    assert run(program, X86_64, 0x40000000) == KILL


def test_an_unknown_machine_has_no_filter_and_an_unknown_name_is_a_mistake() -> None:
    assert seccomp_program(["read"], "s390x") is None
    with pytest.raises(ValueError, match="openat"):
        seccomp_program(["openat"], "x86_64")
