"""Freezing a cgroup of version 2 for a while: nothing in it runs, and all of it goes on afterwards.

The kernel's interface is Documentation/admin-guide/cgroup-v2.rst, ``cgroup.freeze`` and ``cgroup.events``.
Version 1's freezer is not used: what it has stopped cannot be killed.

Invariants: who calls is never inside of what is frozen; what we have frozen is thawed however the block is
left, and by a small process that waits for nothing else where we are killed (unless that is killed, too);
what somebody else had frozen before is left so.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.linux.mountinfo import filesystem_magic, mount_table
from orlop.linux.programs import find_helper
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["FREEZE_SECONDS", "Cgroup", "find_cgroup", "frozen"]

FREEZE_SECONDS = 30.0  # in which all processes have to stop; one that waits for a dead disk never does
_THAW_SECONDS = 10.0
_LOOK = 100  # milliseconds between looks at whether the call goes on
# include/uapi/linux/magic.h
_CGROUP2_MAGIC = 0x63677270
_CGROUP_MAGIC = 0x27E0EB
# Signals that end us are not for it: it ends when we do.
_GUARD = "trap '' TERM INT HUP QUIT; read -r line; echo 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """A cgroup's folder, and what tells it from all others of the machine."""

    path: Path
    key: str


def find_cgroup(text: str, attempted: str) -> Cgroup:
    """A cgroup by its folder (``/sys/fs/cgroup/a/b``), or as ``/proc/PID/cgroup`` has it (``/a/b``).

    Raises `NotFound` where there is none, `FailedPrecondition` for one that cannot be frozen by us.
    """
    if not text.startswith("/") or "\0" in text:
        raise InvalidArgument(
            attempted,
            f"no cgroup: {text[:200]!r}",
            hint="give its folder below /sys/fs/cgroup, or its name as /proc/PID/cgroup has it",
        )
    try:
        tops = [Path(os.fsdecode(entry.target)) for entry in mount_table() if entry.type == "cgroup2"]
        for path in (Path(text), *(Path(f"{top}/{text.lstrip('/')}") for top in tops)):
            if not path.is_dir():
                continue
            magic = filesystem_magic(path)
            if magic == _CGROUP2_MAGIC:
                return _checked(path, tops, attempted)
            if magic == _CGROUP_MAGIC:
                raise FailedPrecondition(
                    attempted,
                    f"{text} is a cgroup of version 1",
                    hint="what is frozen there cannot be killed; stop what runs there, or use version 2",
                )
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    reason = f"no cgroup {text}" if tops else f"no cgroup {text}, and cgroups of version 2 are not mounted"
    raise NotFound(attempted, reason, hint="/proc/PID/cgroup says in which one a process is")


def _checked(path: Path, tops: list[Path], attempted: str) -> Cgroup:
    if not (path / "cgroup.freeze").exists():
        raise FailedPrecondition(attempted, f"{path} cannot be frozen: it is the root of all cgroups")
    about = path.stat()
    identity = (about.st_dev, about.st_ino)
    if _is_above_us(identity, tops) or _holds_us(path):
        raise FailedPrecondition(
            attempted,
            f"we run in {path} ourselves, and would never thaw it",
            hint="run orlop outside of it, or ask the daemon",
        )
    return Cgroup(path=path, key=f"{identity[0]}-{identity[1]}")


def _is_above_us(identity: tuple[int, int], tops: list[Path]) -> bool:
    """Whether a cgroup is our own or one that ours is in, going by our path."""
    with open("/proc/self/cgroup", "rb") as file:
        lines = file.read().splitlines()
    own = next((os.fsdecode(line[3:]) for line in lines if line.startswith(b"0::")), None)
    if own is None:
        return False
    for top in tops:
        path = Path(f"{top}/{own.lstrip('/')}")
        for folder in (path, *path.parents):
            with contextlib.suppress(OSError):  # ours is beyond what this namespace shows
                about = folder.stat()
                if (about.st_dev, about.st_ino) == identity:
                    return True
            if folder == top:
                break
    return False


def _holds_us(path: Path) -> bool:
    """Whether our process is in a cgroup or one below it, going by the processes there."""
    me = b"%d" % os.getpid()
    for folder, _, files in os.walk(path):
        if "cgroup.procs" in files:
            # A threaded one does not tell its processes (EOPNOTSUPP), its domain does; or it is gone.
            with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", "rb") as file:
                if me in file.read().split():
                    return True
    return False


@contextlib.contextmanager
def frozen(cgroup: Cgroup, *, attempted: str, call: Call, seconds: float = FREEZE_SECONDS) -> Iterator[None]:
    """Have a cgroup frozen for the length of a ``with`` block.

    Raises `FailedPrecondition` where it does not freeze in ``seconds``, or was thawed by somebody else
    meanwhile.
    """
    with contextlib.ExitStack() as stack:
        with _system_errors(cgroup, attempted):
            folder = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            if _read(folder, "cgroup.freeze").strip() != b"1":
                stack.enter_context(_thawing(folder, cgroup, attempted))
                _write(folder, b"1")
            _wait(folder, cgroup, attempted, call, seconds)
        yield
        with _system_errors(cgroup, attempted):
            whole = _says_frozen(_read(folder, "cgroup.events"))
        if not whole:
            raise FailedPrecondition(
                attempted, f"{cgroup.path} was thawed meanwhile, by somebody else", hint="try again"
            )


@contextlib.contextmanager
def _system_errors(cgroup: Cgroup, attempted: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_oserror(f"{attempted}: freeze {cgroup.path}", exc) from exc


@contextlib.contextmanager
def _thawing(folder: int, cgroup: Cgroup, attempted: str) -> Iterator[None]:
    """Thaw a cgroup at the end of a ``with`` block, or of this process."""
    import subprocess

    shell = find_helper("sh", "/bin:/usr/bin")
    if shell is None:
        raise FailedPrecondition(attempted, "there is no /bin/sh, which would thaw it if we are killed")
    out = os.open("cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        guard = subprocess.Popen(
            [shell, "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(out)
    try:
        yield
    finally:
        assert guard.stdin is not None
        with _system_errors(cgroup, attempted):
            guard.stdin.close()
            try:
                guard.wait(_THAW_SECONDS)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
            if _read(folder, "cgroup.freeze").strip() != b"0":
                _write(folder, b"0")


def _wait(folder: int, cgroup: Cgroup, attempted: str, call: Call, seconds: float) -> None:
    """Wait until all of a cgroup stands still; the kernel tells of changes by POLLPRI."""
    fd = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        end = time.monotonic() + seconds
        while not _says_frozen(os.pread(fd, 4096, 0)):
            call.check(attempted)
            if time.monotonic() >= end:
                raise FailedPrecondition(
                    attempted,
                    f"{cgroup.path} did not freeze in {seconds:g} seconds",
                    hint="a process in it waits for something that does not come: a dead disk, a file server",
                )
            poll.poll(_LOOK)
    finally:
        os.close(fd)


def _says_frozen(events: bytes) -> bool:
    return b"frozen 1" in events.splitlines()


def _read(folder: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _write(folder: int, data: bytes) -> None:
    fd = os.open("cgroup.freeze", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
