"""The system calls of the new mount API (Linux 5.2 and later), one small function each.

A mount is first a descriptor that nobody else sees (*detached*), then attached with `move_mount`;
closing the descriptor before that dissolves it.  `orlop.linux.mount` builds whole mounts of these.

Every function raises OSError with the kernel's errno; where the file system context kept a log of
its reasons, the log is in ``strerror``.  Source: include/uapi/linux/mount.h.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import ExitStack
from types import TracebackType

from orlop.hints import Self
from orlop.linux._syscall import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    AT_SYMLINK_NOFOLLOW,
    Path,
    call,
)

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR__ATIME = 0x70  # the field that holds relatime (0), noatime and strictatime
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

# A key or value of fsconfig(2) is at most this long (strndup_user with 256 in fs/fsopen.c).
FSCONFIG_STRING_MAX = 255

_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_SET_FD, _FSCONFIG_CMD_CREATE = 0, 1, 5, 6
_FSMOUNT_CLOEXEC = 1
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x10, 0x40
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_MOUNT_ATTR = struct.Struct("=QQQQ")  # attr_set, attr_clr, propagation, userns_fd
_LOG_MESSAGE = 8192  # bytes; a message is a printk line, so far shorter


class FsContext:
    """A file system being set up: fsopen(2), fsconfig(2)…, fsmount(2).  A context manager.

    Paths given with `set_path` stay open until the context closes, so that a value can name them by
    descriptor.  Used by one thread.
    """

    def __init__(self, fs_type: str) -> None:
        self.fs_type = fs_type
        self._stack = ExitStack()
        try:
            self._fd = call("fsopen", os.fsencode(fs_type), _FSOPEN_CLOEXEC)
        except OSError as exc:
            reason = (
                f"the kernel has no file system {fs_type!r}" if exc.errno == errno.ENODEV else exc.strerror
            )
            raise OSError(exc.errno, reason) from exc
        self._stack.callback(os.close, self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the context.  Mounts made from it stay.  Idempotent."""
        self._stack.close()

    def set_flag(self, key: str) -> None:
        """Give an option without a value."""
        self._config(_FSCONFIG_SET_FLAG, key, None, 0)

    def set_string(self, key: str, value: str | bytes) -> None:
        """Give an option its value, of at most 255 bytes."""
        self._config(_FSCONFIG_SET_STRING, key, os.fsencode(value), 0)

    def set_fd(self, key: str, fd: int) -> None:
        """Give an option a descriptor as its value."""
        self._config(_FSCONFIG_SET_FD, key, None, fd)

    def set_option(self, option: str) -> None:
        """Give an option in mount(8)'s form: ``key=value`` or ``flag``."""
        key, equals, value = option.partition("=")
        if equals:
            self.set_string(key, value)
        else:
            self.set_flag(key)

    def set_path(self, key: str, path: Path, *, unescaped: bool = True) -> None:
        """Give an option a path of any length.

        A long path is opened and named ``/proc/self/fd/N``.  So is, unless ``unescaped``, one with a
        backslash, for options in which the file system would take that for an escape.
        """
        raw = os.fsencode(path)
        if len(raw) <= FSCONFIG_STRING_MAX and (unescaped or b"\\" not in raw):
            self.set_string(key, raw)
        else:
            self.set_string(key, f"/proc/self/fd/{self.keep_open(raw)}")

    def keep_open(self, path: Path) -> int:
        """Open a path (O_PATH) until the context closes."""
        fd = open_path(path)
        self._stack.callback(os.close, fd)
        return fd

    def create(self) -> None:
        """Make the superblock from what was set."""
        self._config(_FSCONFIG_CMD_CREATE, None, None, 0)

    def mount(self, attrs: int = 0) -> int:
        """A detached mount of the superblock with these MOUNT_ATTR_ bits: a CLOEXEC descriptor."""
        try:
            return call("fsmount", self._fd, _FSMOUNT_CLOEXEC, attrs)
        except OSError as exc:
            raise self._explained(exc, "") from exc

    def _config(self, command: int, key: str | None, value: bytes | None, aux: int) -> None:
        name = None if key is None else os.fsencode(key)
        try:
            call("fsconfig", self._fd, command, name, value, aux)
        except OSError as exc:
            raise self._explained(exc, key or "") from exc

    def _explained(self, exc: OSError, key: str) -> OSError:
        log = "; ".join(self._log())
        what = f"{self.fs_type} option {key!r}" if key else self.fs_type
        reason = f"{exc.strerror} ({what})"
        return OSError(exc.errno, f"{reason}: {log}" if log else reason)

    def _log(self) -> list[str]:
        """The messages the kernel kept: errors, or if there are none, warnings and notes."""
        messages: list[bytes] = []
        while True:
            try:
                messages.append(os.read(self._fd, _LOG_MESSAGE))
            except OSError:
                break  # ENODATA ends the log; EMSGSIZE or ENOMEM must not hide the error itself
        chosen = [m for m in messages if m.startswith(b"e ")] or messages
        return [m[2:].strip().decode("utf-8", "backslashreplace") for m in chosen]


def open_path(path: Path) -> int:
    """An O_PATH descriptor of a path; symlinks are followed, as mount(2) does."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def open_tree(path: Path | int, *, recursive: bool = False) -> int:
    """A detached copy of the mount that shows at ``path``, rooted there (a bind mount to be).

    With ``recursive``, of the mounts below it, too.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    if isinstance(path, int):
        return call("open_tree", path, b"", flags | AT_EMPTY_PATH)
    return call("open_tree", AT_FDCWD, os.fsencode(path), flags, path=path)


def move_mount(fd: int, target: Path | int, *, follow: bool = True) -> None:
    """Attach a detached mount at ``target``: a path, or a descriptor of one.

    A symlink as the last component is followed as mount(2) does, unless told not to.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_T_SYMLINKS if follow else 0)
    if isinstance(target, int):
        call("move_mount", fd, b"", target, b"", flags | _MOVE_MOUNT_T_EMPTY_PATH)
    else:
        call("move_mount", fd, b"", AT_FDCWD, os.fsencode(target), flags, path=target)


def mount_setattr(
    mount: Path | int,
    *,
    set: int = 0,  # noqa: A002 - the kernel's word: attr_set
    clear: int = 0,
    recursive: bool = False,
    propagation: int | None = None,
    userns_fd: int | None = None,
) -> None:
    """Change a mount: set and clear MOUNT_ATTR_ bits, its propagation (MS_PRIVATE…), its id mapping.

    ``userns_fd`` goes with MOUNT_ATTR_IDMAP and needs a detached mount.
    """
    if set & MOUNT_ATTR__ATIME:
        clear |= MOUNT_ATTR__ATIME  # mount_setattr(2): the field is cleared whole or not at all
    attr = bytearray(_MOUNT_ATTR.pack(set, clear, propagation or 0, 0 if userns_fd is None else userns_fd))
    flags = AT_RECURSIVE if recursive else 0
    if isinstance(mount, int):
        call("mount_setattr", mount, b"", flags | AT_EMPTY_PATH, attr, _MOUNT_ATTR.size)
    else:
        flags |= AT_SYMLINK_NOFOLLOW
        call("mount_setattr", AT_FDCWD, os.fsencode(mount), flags, attr, _MOUNT_ATTR.size, path=mount)


def umount(path: Path, *, detach: bool = False, nofollow: bool = True) -> None:
    """Unmount what is on top at ``path``.

    ``detach`` takes it out of the tree now and frees it once nothing uses it (a lazy unmount); else
    EBUSY while it is used.  EINVAL where nothing is mounted, or at a symlink if ``nofollow``.
    """
    flags = (_MNT_DETACH if detach else 0) | (_UMOUNT_NOFOLLOW if nofollow else 0)
    call("umount2", os.fsencode(path), flags, path=path)
