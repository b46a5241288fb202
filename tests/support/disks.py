"""Scratch disks for tests: loop-mounted ext4 with a journal, in folders that clean up after the dead.

A disk is a sparse file in a folder of its own; the folder's lock is held as long as the disk is used.
A folder whose lock is free was left by a killed run, and the next run removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "orlop-test-"
SIZE = 8 << 30  # sparse: a disk costs what is written


def scratch_parent() -> Path:
    """Where scratch folders go: $ORLOP_TEST_DIR, or /var/tmp."""
    return Path(os.environ.get("ORLOP_TEST_DIR") or "/var/tmp").resolve()


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder that is removed in the end, or by `sweep` if this process is killed."""
    parent = parent or scratch_parent()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = os.open(folder / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(folder / "new", folder / "lock")  # under this name it is never seen unlocked
        yield folder
    finally:
        remove(folder)
        os.close(lock)


@contextmanager
def disk(*, features: str = "", size: int = SIZE, reserved: int = 0) -> Iterator[Path]:
    """A fresh ext4 with a journal, mounted; ``features`` as for mkfs.ext4's -O, ``reserved`` for -m."""
    with scratch_folder() as folder:
        image, mounted = folder / "disk.img", folder / "disk"
        with image.open("wb") as file:
            file.truncate(size)
        options = ["-O", features] if features else []
        _run("mkfs.ext4", "-q", "-F", "-m", str(reserved), "-E", "nodiscard", *options, os.fspath(image))
        mounted.mkdir()
        # No barriers: the power of this disk is never cut, and a flush of a file is a flush of the machine's disk
        _run("mount", "-o", "loop,nobarrier", os.fspath(image), os.fspath(mounted))
        # As on a systemd machine: what a test unmounts goes also from the namespaces of containers that
        # another test has just started, where it would keep an upper in use.
        _run("mount", "--make-shared", os.fspath(mounted))
        shutil.rmtree(mounted / "lost+found")
        yield mounted


def sweep(parent: Path | None = None) -> list[Path]:
    """Remove the scratch folders whose owner is dead; returns them."""
    removed = []
    for folder in sorted((parent or scratch_parent()).glob(PREFIX + "*")):
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # being made, or being removed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # in use
        else:
            remove(folder)
            removed.append(folder)
        finally:
            os.close(lock)
    return removed


def remove(folder: Path) -> None:
    """Unmount all below a folder, end what still uses it, and delete it."""
    for pid in users(folder):
        os.kill(pid, signal.SIGKILL)
    for mount in mounts_below(folder):
        if not _try("umount", os.fspath(mount)):
            _try("umount", "--lazy", os.fspath(mount))
    _delete(folder)


def end(folder: Path) -> None:
    """A test ends: delete its folder; what still runs there, or cannot be unmounted, fails the test."""
    left = users(folder)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    busy = []
    for mount in mounts_below(folder):
        done = subprocess.run(["umount", os.fspath(mount)], capture_output=True, text=True, check=False)
        if done.returncode:
            busy.append(done.stderr.strip())
    if left or busy:
        remove(folder)
    else:
        _delete(folder)
    assert not left, f"still running when the test ended: {left}"
    assert not busy, f"still in use when the test ended: {busy}"


def _delete(folder: Path) -> None:
    # GNU rm descends by directory descriptors, so no depth of folders stops it
    _run("rm", "-rf", "--one-file-system", os.fspath(folder))


def mounts_below(folder: Path) -> list[Path]:
    """Mount points at or below a folder in this mount namespace, the latest first."""
    top = os.fsencode(folder.resolve())
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = _unescape(line.split(b" ")[4])
        if point == top or point.startswith(top + b"/"):
            found.append(Path(os.fsdecode(point)))
    return found[::-1]


def users(folder: Path) -> dict[int, str]:
    """Other processes with a root, a working folder, a program or an open file below a folder."""
    top = os.fspath(folder.resolve())
    found: dict[int, str] = {}
    for name in os.listdir("/proc"):  # plain strings: every root test asks this
        if not name.isdigit() or int(name) == os.getpid():
            continue
        what = _use(f"/proc/{name}/", top)
        if what:
            found[int(name)] = f"{_command(Path('/proc', name))} ({what})"
    return found


def _use(process: str, top: str) -> str:
    try:
        os.readlink(process + "exe")
        links = ["exe", "cwd", "root", *(f"fd/{fd}" for fd in os.listdir(process + "fd"))]
    except OSError:
        return ""  # a thread of the kernel's, ended, or not ours to see
    below = top + "/"
    for link in links:
        try:
            target = os.readlink(process + link)
        except OSError:
            continue
        if target == top or target.startswith(below):
            return f"{link.rpartition('/')[2]} is {target}"
    return ""


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "?"
    return os.fsdecode(b" ".join(words)).strip()[:200]


def _unescape(name: bytes) -> bytes:
    r"""mountinfo(5) writes space, tab, newline and backslash as \040 \011 \012 \134."""
    for code in (b"040", b"011", b"012", b"134"):
        name = name.replace(b"\\" + code, bytes([int(code, 8)]))
    return name


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _try(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
