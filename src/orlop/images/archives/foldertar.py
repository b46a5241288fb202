"""A folder of this machine as a tar: a root file system that nobody packed.

The walk is ours: no link is followed, no mount in the folder is entered, nothing but regular files is ever
opened, depth first and names in byte order, so that the same folder gives the same bytes.  One folder is
open at a time, so no depth is too much.  Left out, with a warning each: sockets, names that mean whiteouts in
a layer, and what is mounted in the folder; and silently the marks of the host's own security modules.

Holes of files are written as zeros.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from orlop.config import DEFAULT_LIMITS, Limits, over_limit
from orlop.errors import FailedPrecondition, from_oserror
from orlop.layers.builder import WHITEOUT
from orlop.layers.index import Xattrs
from orlop.layers.nested import holdable
from orlop.layers.tarwrite import Member, TarWriter, WrittenTar
from orlop.layers.upper import OPEN_FILE, OPEN_FOLDER, read_xattrs
from orlop.linux.files import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from orlop.observe import Call, Progress, Rate
from orlop.values import dataclass

__all__ = ["FolderTar"]

_WHAT = "read folder"
_CHUNK = 1 << 20
_INTO = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
_LEAVES = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
_MOVED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL, errno.ENODATA})
_CLOSED = frozenset({errno.EACCES, errno.EPERM})
# What the host's policy says of its files, which is no part of them.
_HOSTS = (b"security.selinux", b"security.SMACK64", b"security.ima", b"security.evm", b"security.apparmor")


@dataclass(slots=True)
class _Level:
    """A folder of the walk: its path, which one it is, the names still to come."""

    path: bytes
    identity: tuple[int, int]
    todo: list[bytes]


class FolderTar:
    """Writes one folder's tar to a descriptor.

    ``owner`` replaces all ids, ``newest`` all later times (seconds).  ``store`` is the store's own folder
    (device and inode), which stays empty.
    """

    def __init__(
        self,
        out: int,
        *,
        owner: tuple[int, int] | None = None,
        newest: int | None = None,
        store: tuple[int, int] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        call: Call,
    ) -> None:
        self._writer = TarWriter(out, limits=limits)
        self._owner = owner
        self._newest = newest
        self._store = store
        self._limits = limits
        self._call = call
        self._first: dict[tuple[int, int], bytes] = {}  # inodes with several names -> the first of them
        self._rate = Rate()
        self.size = 0  # bytes of files so far
        self.needed = 0  # with all of the one that is read

    def write(self, folder: int) -> WrittenTar:
        """Write all that is below a folder, and the folder itself as the root.

        Raises `FailedPrecondition` for what changes while it is read, `PermissionDenied` for what may not be
        read, both naming it; `ResourceExhausted` past a limit; OSError.
        """
        about = os.fstat(folder)
        self._writer.add(self._member(b"", about, read_xattrs(b"/proc/self/fd/%d" % folder, follow=True)))
        here = os.open(b".", OPEN_FOLDER, dir_fd=folder)
        try:
            stack = [_Level(b"", (about.st_dev, about.st_ino), _names(here))]
            while stack:
                self._call.check(_WHAT)
                level = stack[-1]
                if level.todo:
                    name = level.todo.pop()
                    path = level.path + b"/" + name if level.path else name
                    there = self._visit(here, name, path)
                    if there >= 0:
                        os.close(here)
                        here = there
                        found = os.fstat(here)
                        stack.append(_Level(path, (found.st_dev, found.st_ino), _names(here)))
                    continue
                stack.pop()
                if stack:
                    here = _back(here, level, stack[-1])
        finally:
            os.close(here)
        return self._writer.finish()

    def _visit(self, here: int, name: bytes, path: bytes) -> int:
        """Write one thing; a folder's descriptor, else -1."""
        try:
            about = os.stat(name, dir_fd=here, follow_symlinks=False)
            kind = about.st_mode & 0o170000
            if name.startswith(WHITEOUT):
                return self._leave_out(path, "its name means a whiteout")
            if kind == stat.S_IFCHR and not about.st_rdev:
                return self._leave_out(path, "a device 0/0, which is overlayfs's own")
            if kind == stat.S_IFDIR:
                return self._folder(here, name, path, about)
            if kind not in _LEAVES:
                return self._leave_out(path, "a socket")
            self._leaf(here, name, path, about)
        except OSError as exc:
            if exc.errno in _MOVED:
                raise _changed(path) from exc
            if exc.errno in _CLOSED:
                raise from_oserror(f"read /{_text(path)}", exc) from exc
            raise
        return -1

    def _folder(self, here: int, name: bytes, path: bytes, about: os.stat_result) -> int:
        where = b"/proc/self/fd/%d/%s" % (here, name)
        self._writer.add(self._member(path, about, read_xattrs(where, follow=False)))
        if (about.st_dev, about.st_ino) == self._store:
            return self._leave_out(path, "it is this store; the folder stays, empty")
        try:
            return openat2(here, name, OPEN_FOLDER, resolve=_INTO)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
        return self._leave_out(path, "something is mounted there; the folder stays, empty")

    def _leaf(self, here: int, name: bytes, path: bytes, about: os.stat_result) -> None:
        identity = (about.st_dev, about.st_ino)
        first = self._first.get(identity) if about.st_nlink > 1 else None
        if first is not None:
            self._writer.add(self._member(path, about, (), link=first, hard=True))
            return
        if about.st_nlink > 1:
            self._first[identity] = path
        where = b"/proc/self/fd/%d/%s" % (here, name)
        xattrs = read_xattrs(where, follow=False)
        kind = about.st_mode & 0o170000
        if kind == stat.S_IFLNK:
            self._writer.add(self._member(path, about, xattrs, link=os.readlink(name, dir_fd=here)))
        elif kind == stat.S_IFREG:
            self._file(here, name, self._member(path, about, xattrs), about)
        else:
            self._writer.add(self._member(path, about, xattrs))

    def _file(self, here: int, name: bytes, member: Member, about: os.stat_result) -> None:
        if member.size > self._limits.file_size:
            raise over_limit("file_size", member.size, self._limits.file_size, attempted=_WHAT)
        if self.size + member.size > self._limits.layer_size:
            raise over_limit("layer_size", self.size + member.size, self._limits.layer_size, attempted=_WHAT)
        self.needed = self.size + member.size
        fd = os.open(name, OPEN_FILE, dir_fd=here)
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino, found.st_size) != (about.st_dev, about.st_ino, about.st_size):
                raise _changed(member.path)
            left = member.size

            def read() -> bytes:
                nonlocal left
                self._call.check(_WHAT)
                chunk = os.read(fd, min(_CHUNK, left))
                if not chunk:
                    raise _changed(member.path)
                left -= len(chunk)
                self._told(len(chunk))
                return chunk

            self._writer.add(member, read)
            after = os.fstat(fd)
            if (after.st_size, after.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                raise _changed(member.path)
        finally:
            os.close(fd)

    def _told(self, count: int) -> None:
        self.size += count
        if self._rate.add(count):
            self._call.observer.progress(
                Progress(item="/", phase="reading", done=self.size, rate=self._rate.rate)
            )

    def _member(self, path: bytes, about: os.stat_result, xattrs: Xattrs, **more: Any) -> Member:  # noqa: ANN401
        seconds, nsec = divmod(about.st_mtime_ns, 1_000_000_000)
        if self._newest is not None and seconds >= self._newest:
            seconds, nsec = self._newest, 0
        kind = about.st_mode & 0o170000
        uid, gid = self._owner or (about.st_uid, about.st_gid)
        return Member(
            path=path,
            mode=about.st_mode,
            uid=uid,
            gid=gid,
            mtime=seconds,
            nsec=nsec,
            size=about.st_size if kind == stat.S_IFREG and not more.get("hard") else 0,
            rdev=about.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            xattrs=tuple(pair for pair in xattrs if holdable(pair[0]) and not pair[0].startswith(_HOSTS)),
            **more,
        )

    def _leave_out(self, path: bytes, what: str) -> int:
        self._call.observer.warning(f"/{_text(path)} is left out: {what}")
        return -1


def _names(folder: int) -> list[bytes]:
    """The names in a folder, the first one last."""
    return sorted((os.fsencode(name) for name in os.listdir(folder)), reverse=True)


def _back(here: int, child: _Level, parent: _Level) -> int:
    """Out of a folder, into the one that it was entered from; if it is, the descriptor is used up."""
    there = os.open(b"..", OPEN_FOLDER, dir_fd=here)
    about = os.fstat(there)
    if (about.st_dev, about.st_ino) != parent.identity:
        os.close(there)
        raise _changed(child.path)
    os.close(here)
    return there


def _changed(path: bytes) -> FailedPrecondition:
    return FailedPrecondition(
        _WHAT, f"/{_text(path)} changed while it was read", hint="stop what writes there"
    )


def _text(path: bytes) -> str:
    return path.decode(errors="backslashreplace")
