"""The folders of a store, and the disk that it lies on: who owns them, what it can do, what is left of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from orlop.diagnosis.findings import Finding, Subject, note, ok, problem
from orlop.errors import Error
from orlop.images.layout import check_root_path
from orlop.linux import mountinfo
from orlop.linux.files import can_reflink
from orlop.values import dataclass

__all__ = ["Disk", "check_root", "check_run", "disk_of", "judge_disk"]

_GOOD = frozenset({"ext4", "xfs", "btrfs"})
_LITTLE, _FEW = 1 << 30, 0.05  # bytes, and a part of the disk, below which it is said to be nearly full
_NONE = 64 << 20  # bytes with which nothing can be done any more
_FEW_FILES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system that a folder lies on.

    Sizes are bytes; ``files`` and ``free_files`` are 0 where it counts none (btrfs).  ``options`` are those
    of the mount that harm.  ``journal`` and ``reflink`` are None where that is not known.
    """

    mount: str
    type: str
    source: str
    options: tuple[str, ...]
    size: int
    free: int
    files: int
    free_files: int
    reflink: bool | None = None
    journal: bool | None = None


def disk_of(folder: str) -> Disk:
    """Look at a folder's disk.  Raises OSError where the folder is not there."""
    about = os.statvfs(folder)
    place = os.stat(folder).st_dev
    number = mountinfo.mount_id_of(Path(folder))
    entry = mountinfo.mounts_by_id().get(number)
    kind = entry.type if entry is not None else ""
    flags = about.f_flag
    named = (("ro", os.ST_RDONLY), ("nosuid", os.ST_NOSUID), ("nodev", os.ST_NODEV), ("noexec", os.ST_NOEXEC))
    options = tuple(name for name, bit in named if flags & bit)
    try:
        reflink: bool | None = can_reflink(Path(folder))
    except (OSError, Error):
        reflink = None
    return Disk(
        mount=os.fsdecode(entry.target) if entry is not None else "",
        type=kind,
        source=os.fsdecode(entry.source) if entry is not None else "",
        options=options,
        size=about.f_blocks * about.f_frsize,
        free=about.f_bavail * about.f_frsize,
        files=about.f_files,
        free_files=about.f_favail,
        reflink=reflink,
        journal=_journal(place) if kind in {"ext4", "ext3"} else False if kind == "ext2" else None,
    )


def _journal(device: int) -> bool | None:
    """Whether an ext4 has a journal: its threads show in /proc/fs/jbd2."""
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        journals = os.listdir("/proc/fs/jbd2")
    except OSError:
        return None if not os.path.isdir("/proc/fs/ext4") else False
    return any(one.rpartition("-")[0] == name for one in journals)


def judge_disk(disk: Disk, *, durable: bool, root: bool = True) -> Iterator[Finding]:
    """Findings of a store's disk: one that is to outlast power cuts or not, root's or a user's."""
    where = f"{disk.type or 'unknown'} at {disk.mount}" if disk.mount else disk.type or "unknown"
    check = "folders.file-system"
    if "ro" in disk.options:
        yield problem(
            check, f"the store's disk is mounted read-only ({where})", f"mount -o remount,rw {disk.mount}"
        )
    if disk.type in _GOOD:
        yield ok(check, f"the store lies on {where}")
    elif disk.type in {"tmpfs", "ramfs"}:
        text = f"the store lies on {where}: it is gone with the next reboot, and takes memory"
        yield note(check, text, "choose a folder on a disk with --root")
    elif disk.type == "overlay":
        text = f"the store lies on {where}, on which no overlay can have an upper: roots are copied"
        yield note(check, text, "give the container a volume for the store, and name it with --root")
    elif disk.type.startswith(("nfs", "cifs", "smb", "fuse", "9p", "ceph", "afs", "lustre", "virtiofs")):
        text = f"the store lies on {where}: locks, xattrs and mounts may not work as orlop needs them"
        yield problem(check, text, "choose a folder on a local ext4, xfs or btrfs with --root")
    else:
        text = f"the store lies on {where}, which orlop is not tried on"
        yield note(check, text, "ext4, xfs and btrfs are: docs/platforms.md")
    if disk.journal is False and durable:
        text = f"{where} has no journal: a power cut may spoil what was written"
        yield note("folders.journal", text, "tune2fs -O has_journal on the unmounted device")
    for option, check_name, harm in (
        ("noexec", "folders.noexec", "programs in views and in copies of images cannot be run"),
        ("nosuid", "folders.nosuid", "set-user-ID programs of images do not work in copies"),
        ("nodev", "folders.nodev", "devices of images do not work in copies"),
    ):
        if option in disk.options and (root or option == "noexec"):  # a user has no devices anyway
            yield note(check_name, f"{disk.mount} is mounted {option}: {harm}", _remount(disk.mount, option))
    yield from _room(disk)
    if disk.reflink:
        yield ok("folders.reflink", "files can share their blocks (reflink)")


def _remount(mount: str, option: str) -> str:
    return f"mount -o remount,{option.removeprefix('no')} {mount}"


def _room(disk: Disk) -> Iterator[Finding]:
    free, size = disk.free, disk.size
    shown = f"{free / 1e9:.1f} of {size / 1e9:.1f} GB are free"
    advice = "`orlop gc` deletes what nothing needs; `orlop gc --keep-age 30d` old images, too"
    if free < _NONE:
        yield problem("folders.space", f"the disk is full: {shown}", advice)
    elif free < min(_LITTLE, size * _FEW) or free < size * _FEW / 5:
        yield note("folders.space", f"the disk is nearly full: {shown}", advice)
    else:
        yield ok("folders.space", shown)
    if disk.files and disk.free_files < 100:
        text = f"the disk has no inodes left ({disk.free_files} of {disk.files})"
        yield problem("folders.inodes", text, advice)
    elif disk.files and disk.free_files < min(_FEW_FILES, disk.files * _FEW):
        yield note("folders.inodes", f"{disk.free_files} of {disk.files} inodes are free", advice)
    elif disk.files:
        yield ok("folders.inodes", f"{disk.free_files} of {disk.files} inodes are free")


def check_root(subject: Subject) -> Iterable[Finding]:
    """The store's folder and its disk."""
    yield from _path(subject.root, "folders.root", "--root")
    try:
        about = os.lstat(subject.root)
    except FileNotFoundError:
        yield from _not_there(subject.root)
    except OSError as exc:
        advice = "name a folder of your own with --root"
        yield problem("folders.root", f"{subject.root} cannot be looked at: {exc.strerror}", advice)
        return
    else:
        yield from _owned(subject.root, about, "folders.root", "--root")
    place = subject.root
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    yield from judge_disk(disk_of(place), durable=subject.settings.durable, root=subject.uid == 0)


def _path(path: str, check: str, option: str) -> Iterator[Finding]:
    try:
        check_root_path(Path(path), "")
    except Error as exc:
        yield problem(check, exc.reason, f"name another folder with {option}")


def _not_there(root: str) -> Iterator[Finding]:
    parent = root
    while not os.path.lexists(parent) and parent != "/":
        parent = os.path.dirname(parent)
    if os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
        yield ok("folders.root", f"{root} is not there yet: the first use makes it")
    else:
        text = f"{root} is not there, and may not be made in {parent}"
        yield problem(
            "folders.root", text, "name a folder of your own with --root, or ask a daemon with --host"
        )


def _owned(path: str, about: os.stat_result, check: str, option: str) -> Iterator[Finding]:
    try:
        real = os.stat(path) if stat.S_ISLNK(about.st_mode) else about
    except OSError as exc:
        text = f"{path} is a link that leads nowhere: {exc.strerror}"
        yield problem(check, text, f"mount what it leads to, or name another folder with {option}")
        return
    mode = stat.S_IMODE(real.st_mode)
    if not stat.S_ISDIR(real.st_mode):
        yield problem(check, f"{path} is not a folder", f"name another with {option}")
    elif real.st_uid != os.geteuid():
        advice = f"name a folder of your own with {option}, or ask a daemon with --host"
        yield problem(check, f"{path} belongs to user {real.st_uid}", advice)
    elif check == "folders.root" and mode & 0o077:
        text = f"{path} has mode {mode:04o}: others could run set-user-ID files of images"
        yield problem(check, text, f"chmod 700 {path}")
    else:
        yield ok(check, f"{path} is yours, mode {mode:04o}")


def check_run(subject: Subject) -> Iterable[Finding]:
    """The folder of mount points."""
    check = "folders.run"
    if not subject.run:
        yield problem(
            check, subject.run_fault or "there is no run folder", "name one with --run DIR or ORLOP_RUN"
        )
        return
    yield from _path(subject.run, check, "--run")
    root, run = (os.path.realpath(path) for path in (subject.root, subject.run))
    if f"{root}/".startswith(f"{run}/") or f"{run}/".startswith(f"{root}/"):
        text = f"one of {subject.root} and {subject.run} lies in the other"
        yield problem(check, text, "name two folders apart with --root and --run")
    try:
        about = os.lstat(subject.run)
    except FileNotFoundError:
        parent = os.path.dirname(subject.run)
        while not os.path.lexists(parent) and parent != "/":
            parent = os.path.dirname(parent)
        if os.access(parent, os.W_OK | os.X_OK):
            yield ok(check, f"{subject.run} is not there yet: the first use makes it")
        else:
            text = f"{subject.run} is not there, and may not be made in {parent}"
            yield problem(check, text, "name a folder of your own with --run")
        return
    except OSError as exc:
        yield problem(check, f"{subject.run} cannot be looked at: {exc.strerror}", "name another with --run")
        return
    yield from _owned(subject.run, about, check, "--run")
