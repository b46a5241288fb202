"""What is mounted where: asked of the kernel, never remembered.

`mount_table` reads mountinfo; the other functions look at one path.  Nothing here mounts anything.

Sources: Documentation/filesystems/proc.rst (mountinfo), include/uapi/linux/{stat,magic,fs}.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct

from orlop.linux._syscall import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_SYMLINK_NOFOLLOW,
    Path,
    call,
)
from orlop.values import dataclass

__all__ = [
    "BTRFS_MAGIC",
    "EROFS_MAGIC",
    "EXT_MAGIC",
    "FUSE_MAGIC",
    "NFS_MAGIC",
    "OVERLAYFS_MAGIC",
    "TMPFS_MAGIC",
    "XFS_MAGIC",
    "MountEntry",
    "erofs_uuid",
    "filesystem_magic",
    "is_bind_of",
    "is_mount_point",
    "mount_id_of",
    "mount_namespace",
    "mount_table",
    "mounted_type",
    "mounts_by_id",
    "option_of",
    "parse_mountinfo",
    "path_in_filesystem",
    "shown_at",
    "source_of",
    "unique_mount_id",
]

BTRFS_MAGIC = 0x9123683E
EROFS_MAGIC = 0xE0F5E1E2
EXT_MAGIC = 0xEF53  # ext2, ext3 and ext4
FUSE_MAGIC = 0x65735546
NFS_MAGIC = 0x6969
OVERLAYFS_MAGIC = 0x794C7630
TMPFS_MAGIC = 0x01021994
XFS_MAGIC = 0x58465342

_STATFS_SIZE = 120  # struct statfs on 64-bit machines; f_type is its first word
_STATX_SIZE = 256
_AT_STATX_DONT_SYNC = 0x4000
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_ATTR_MOUNT_ROOT = 0x2000
# struct mnt_id_req and struct statmount: sizes, and where the strings begin (include/uapi/linux/mount.h).
_MNT_ID_REQ_SIZE, _STATMOUNT_STRINGS, _STATMOUNT_SIZE = 24, 512, 16 << 10
_STATMOUNT_FS_TYPE, _STATMOUNT_MNT_OPTS = 0x20, 0x80
_FS_IOC_GETFSUUID = 0x80111500  # _IOR(0x15, 0, struct fsuuid2): a length, then 16 bytes
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line of mountinfo.  ``device`` is a st_dev; ``options`` are the superblock's, as shown."""

    mount_id: int
    parent_id: int
    device: int
    root: bytes
    target: bytes
    type: str
    source: bytes
    options: bytes

    def option(self, key: bytes) -> bytes | None:
        """The value of ``key=`` among the superblock's options, unescaped; None if it has none."""
        return option_of(self.options, key)


def option_of(options: bytes, key: bytes) -> bytes | None:
    """The value of ``key=`` among a superblock's options, as they are shown; None if it is not there."""
    for part in _split_options(options):
        name, equals, value = part.partition(b"=")
        if equals and name == key:
            return re.sub(rb"\\(.)", rb"\1", _unescape(value))
    return None


def _unescape(field: bytes) -> bytes:
    """Undo the octal escapes of seq_path and seq_escape (space, tab, newline, backslash, ``#``)."""
    return _ESCAPE.sub(lambda m: bytes([int(m[1], 8)]), field)


def _split_options(options: bytes) -> list[bytes]:
    # overlayfs shows a comma inside a path as an octal escape, so a plain split is right.
    return options.split(b",")


def parse_mountinfo(text: bytes) -> list[MountEntry]:
    """The entries of a mountinfo file, in its order; a line that is cut short is left out."""
    entries = []
    for line in text.splitlines():
        head, dash, tail = line.partition(b" - ")
        fields, rest = head.split(b" "), tail.split(b" ")
        if not dash or len(fields) < 6 or len(rest) < 3:
            continue
        major, _, minor = fields[2].partition(b":")
        entries.append(
            MountEntry(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=os.makedev(int(major), int(minor)),
                root=_unescape(fields[3]),
                target=_unescape(fields[4]),
                type=rest[0].decode("ascii", "backslashreplace"),
                source=_unescape(rest[1]),
                options=rest[2],
            )
        )
    return entries


def mount_table(pid: int | None = None) -> list[MountEntry]:
    """The mounts that a process sees below its root; our own by default.  Raises OSError."""
    who = "self" if pid is None else str(pid)
    with open(f"/proc/{who}/mountinfo", "rb") as file:
        return parse_mountinfo(file.read())


def mounts_by_id() -> dict[int, MountEntry]:
    """Our mounts by their IDs (`mount_id_of`), for those who look at many places: the table is read once."""
    return {entry.mount_id: entry for entry in mount_table()}


def shown_at(path: Path) -> tuple[str, bytes] | None:
    """The type of the mount that holds a path, and its file system's own options; None if it is none of ours.

    The kernel is asked about this one mount (statmount(2), Linux 6.11): with a thousand others mounted, the
    table costs milliseconds.  Links are followed, also /proc's.
    """
    try:
        given, number = _mount_ids(path, _STATX_MNT_ID_UNIQUE)
        if given & _STATX_MNT_ID_UNIQUE:
            found = _statmount(number)
            if found is not None:
                return found
    except OSError as exc:
        if exc.errno not in {errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOENT, errno.EOVERFLOW}:
            raise
    mount_id = mount_id_of(path)
    entry = next((entry for entry in mount_table() if entry.mount_id == mount_id), None)
    return None if entry is None else (entry.type, entry.options)


def _statmount(number: int) -> tuple[str, bytes] | None:
    """The same by a mount's unique number; None where the kernel does not say all of it."""
    buffer = bytearray(_STATMOUNT_SIZE)
    wanted = _STATMOUNT_FS_TYPE | _STATMOUNT_MNT_OPTS
    request = bytearray(struct.pack("=IIQQ", _MNT_ID_REQ_SIZE, 0, number, wanted))
    call("statmount", request, buffer, len(buffer), 0)
    options, mask = struct.unpack_from("=IQ", buffer, 4)
    kind: int = struct.unpack_from("=I", buffer, 36)[0]
    name = _string(buffer, kind).decode("ascii", "backslashreplace") if mask & _STATMOUNT_FS_TYPE else ""
    if not mask & _STATMOUNT_MNT_OPTS:  # it has none of its own, or Linux before 6.11 says none
        return (name, b"") if name not in {"", "overlay"} else None
    return name, _string(buffer, options)


def _string(buffer: bytearray, offset: int) -> bytes:
    start = _STATMOUNT_STRINGS + offset
    return bytes(buffer[start : buffer.index(0, start)])


def mount_namespace(pid: int | None = None) -> int:
    """The inode number of a process's mount namespace; our own by default.  Raises OSError.

    The calling thread's, as a thread may have left the process's.
    """
    who = "thread-self" if pid is None else str(pid)
    return os.stat(f"/proc/{who}/ns/mnt").st_ino


def _statx(path: Path | int, mask: int) -> bytearray:
    buffer = bytearray(_STATX_SIZE)
    if isinstance(path, int):
        call("statx", path, b"", AT_EMPTY_PATH | AT_NO_AUTOMOUNT, mask, buffer)
    else:
        flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT
        call("statx", AT_FDCWD, os.fsencode(path), flags, mask, buffer, path=path)
    return buffer


def _is_root(statx: bytearray) -> bool:
    attributes: int = struct.unpack_from("=Q", statx, 8)[0]
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def _mount_id(statx: bytearray) -> int:
    mount_id: int = struct.unpack_from("=Q", statx, 144)[0]
    return mount_id


def is_mount_point(path: Path | int) -> bool:
    """Whether something is mounted at ``path`` itself; False if it is missing or a symlink.

    Unlike `os.path.ismount`, right for bind mounts within one file system.
    """
    try:
        return _is_root(_statx(path, 0))
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
            return False
        raise


def is_bind_of(place: Path, source: Path) -> bool:
    """Whether what is mounted at ``place`` is a bind mount of ``source``, or a mount of the same folder."""
    return is_mount_point(place) and os.path.samestat(os.stat(place), os.stat(source))


def source_of(path: Path) -> bytes | None:
    """The source of the mount that holds a path, as mount tables show it; None if it is in none of ours."""
    mount_id = mount_id_of(path)
    return next((entry.source for entry in mount_table() if entry.mount_id == mount_id), None)


def path_in_filesystem(path: Path) -> tuple[int, bytes]:
    """The st_dev of the file system that holds a path, and where in it the path is.

    In these terms mount tables name a bind mount's folder, in whatever mount namespace.
    """
    real = os.path.realpath(os.fsencode(path))
    mount_id = mount_id_of(real)
    entry = next((entry for entry in mount_table() if entry.mount_id == mount_id), None)
    if entry is None:
        raise OSError(errno.ENOENT, "its mount is not in this mount namespace", path)
    below = real[len(entry.target.rstrip(b"/")) :]
    return entry.device, (entry.root.rstrip(b"/") + below) or b"/"


def mounted_type(path: Path) -> str | None:
    """The type of the file system on top at a mount point; None if nothing is mounted there."""
    try:
        statx = _statx(path, _STATX_MNT_ID)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ENOTDIR}:
            return None
        raise
    if not _is_root(statx):
        return None
    mount_id = _mount_id(statx)
    return next((entry.type for entry in mount_table() if entry.mount_id == mount_id), None)


def unique_mount_id(path: Path) -> int | None:
    """A number for the mount that holds a path which no other mount of this boot ever has.

    None where the kernel gives none (before Linux 6.8), or the path is missing.
    """
    try:
        buffer = _statx(path, _STATX_MNT_ID_UNIQUE)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.EINVAL}:
            return None
        raise
    given: int = struct.unpack_from("=I", buffer)[0]
    return _mount_id(buffer) if given & _STATX_MNT_ID_UNIQUE else None


def mount_id_of(path: Path) -> int:
    """The ID of the mount that holds a path, as in mountinfo.  Links are followed, also /proc's.

    Asks no file server (AT_STATX_DONT_SYNC): one that is dead would hang us.
    """
    return _mount_ids(path, _STATX_MNT_ID)[1]


def _mount_ids(path: Path, which: int) -> tuple[int, int]:
    """Which number the kernel gives, and the number."""
    buffer = bytearray(_STATX_SIZE)
    flags = AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    call("statx", AT_FDCWD, os.fsencode(path), flags, which, buffer, path=path)
    given: int = struct.unpack_from("=I", buffer)[0]
    return given, _mount_id(buffer)


def filesystem_magic(path: Path | int) -> int:
    """The magic number of the file system that holds a path or a descriptor (statfs f_type)."""
    buffer = bytearray(_STATFS_SIZE)
    if isinstance(path, int):
        call("fstatfs", path, buffer)
    else:
        call("statfs", os.fsencode(path), buffer, path=path)
    magic: int = struct.unpack_from("=Q", buffer)[0]
    return magic & 0xFFFF_FFFF


def erofs_uuid(path: Path) -> bytes | None:
    """The UUID (16 bytes) of the EROFS mounted *at* ``path``; None if that is not what is there.

    One descriptor answers all three questions (a mount's root? EROFS? which?), so a mount that
    changes meanwhile cannot mix them.  FS_IOC_GETFSUUID is in Linux 6.9 and later.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            return None
        raise
    try:
        if filesystem_magic(fd) != EROFS_MAGIC or not is_mount_point(fd):
            return None
        answer = fcntl.ioctl(fd, _FS_IOC_GETFSUUID, bytes(17))
        return answer[1 : 1 + answer[0]]
    finally:
        os.close(fd)
