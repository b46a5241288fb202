"""Trees as folders: entries in, files on disk out, each made below a directory descriptor.

The target is a new, private folder, and every entry comes with the number of a parent that was made before
as a folder; so no name is ever resolved through anything but folders of our own making, and no link is
followed.  Even somebody who may write there cannot turn us elsewhere: a folder is opened one name at a time
(`openat2`, no symlink and no mount allowed), a file is written by the descriptor that made it, and the
metadata of all else are set by a descriptor of what was made.  Where entries come from is
`orlop.layers.sources`'.

Folders get their metadata last, the deepest first.  With ``durable`` all is on disk when `write` returns.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable

from orlop.errors import DataLoss
from orlop.layers.forms import OVERRIDE, REAL, Form, Stat, apply, record
from orlop.linux.files import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    clone_file,
    copy_range,
    openat2,
    walk_folders,
)
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["FolderWriter", "Item", "Piece", "Written", "sync_tree"]

_OPEN_FOLDERS = 256
_SMALL = 256 << 10  # a file of this size is copied through memory: one read and one write
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LITTLE_LEFT = 256  # blocks; with more, ENOSPC says that an xattr has no room in its inode
_CHILD = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SYNCS = 8
_CHECK_EVERY = 64  # entries between two looks at the cancel token
# An xattr that the file system or our privileges refuse, and that is left out with a word about it.
_REFUSED = {
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOSPC,
    errno.E2BIG,
    errno.ERANGE,
}

Piece = tuple[int, int, int, int]
"""Bytes of a file: a descriptor, the offset there, the offset in the file, the length."""


class Item:
    """One entry to make.

    ``key`` is a number of its own, ``parent`` the key of the folder it lies in; the root has key 0.
    ``hard`` is the key of an entry made before that this is a further name of, or -1; that entry has
    ``shared`` set.  ``whiteout`` and ``opaque`` are overlayfs's marks.
    """

    __slots__ = (
        "gid", "hard", "key", "mode", "mtime", "name", "nsec", "opaque", "parent", "pieces", "rdev", "shared",
        "size", "target", "uid", "whiteout", "xattrs",
    )  # fmt: skip

    def __init__(self, key: int, parent: int, name: bytes, mode: int) -> None:
        self.key = key
        self.parent = parent
        self.name = name
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.nsec = 0
        self.size = 0
        self.rdev = 0
        self.hard = -1
        self.target = b""
        self.xattrs: tuple[tuple[bytes, bytes], ...] = ()
        self.pieces: tuple[Piece, ...] = ()
        self.shared = False
        self.opaque = False
        self.whiteout = False


@dataclass(slots=True, kw_only=True)
class Written:
    """What was made: entries, the bytes of files, and how many xattrs were refused."""

    entries: int = 0
    size: int = 0
    refused: int = 0


class _OpenFolders:
    """Descriptors of the folders of a tree, by key; only so many are open at a time."""

    def __init__(self, root: int, places: dict[int, tuple[int, bytes]]) -> None:
        self._root = root
        self._places = places
        self._fds: OrderedDict[int, int] = OrderedDict()  # the last used last

    def get(self, key: int) -> int:
        """The descriptor of a folder; valid until some others were asked for."""
        if not key:
            return self._root
        fd = self._fds.get(key)
        if fd is not None:
            self._fds.move_to_end(key)
            return fd
        missing: list[int] = []
        at = key
        while at and at not in self._fds:
            missing.append(at)
            at = self._places[at][0]
        fd = self._fds[at] if at else self._root
        for step in reversed(missing):
            fd = openat2(fd, self._places[step][1], _FOLDER, resolve=_CHILD)
            self._fds[step] = fd
        while len(self._fds) > _OPEN_FOLDERS and next(iter(self._fds)) != key:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def close(self) -> None:
        """Let go of all.  Idempotent."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class FolderWriter:
    """Fills one folder, given by a descriptor.  Used once, by one thread.

    With ``template``, another folder that holds the same entries, files share its blocks (reflinks).
    """

    def __init__(
        self,
        folder: int,
        *,
        form: Form = REAL,
        durable: bool = True,
        template: int | None = None,
        call: Call | None = None,
    ) -> None:
        self._root = folder
        self._form = form
        self._durable = durable
        self._call = call or Call()
        self._places: dict[int, tuple[int, bytes]] = {}  # folders and shared files: parent and name
        self._open = _OpenFolders(folder, self._places)
        self._template = _OpenFolders(template, self._places) if template is not None else None
        self._folders: list[Item] = []
        self._umask = _umask()
        self.written = Written()

    def write(self, items: Iterable[Item]) -> Written:
        """Make all entries, parents before what is in them.  Raises OSError, `DataLoss`, `Cancelled`."""
        try:
            for number, item in enumerate(items):
                if not number % _CHECK_EVERY:
                    self._call.check("unpack layer")
                self._make(item)
            self._finish_folders()
        finally:
            self._open.close()
            if self._template is not None:
                self._template.close()
        if self._durable:
            sync_tree(self._root, call=self._call)
        return self.written

    # -- entries --------------------------------------------------------------------------------

    def _make(self, item: Item) -> None:
        self.written.entries += 1
        kind = item.mode & 0o170000
        if not item.key:
            self._folders.append(item)
            return
        parent = self._open.get(item.parent)
        name = item.name
        if item.hard >= 0:
            self._link(item)
            return
        if item.shared:
            self._places[item.key] = (item.parent, name)
        if item.whiteout:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._places[item.key] = (item.parent, name)
            self._folders.append(item)
        elif kind == stat.S_IFREG:
            self._file(parent, item)
        else:
            self._special(parent, item)

    def _link(self, item: Item) -> None:
        above, first = self._places[item.hard]
        source = os.dup(self._open.get(above))  # asking for the other folder may close this one
        try:
            target = self._open.get(item.parent)
            os.link(first, item.name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        finally:
            os.close(source)

    def _file(self, parent: int, item: Item) -> None:
        want = item if self._form.real and not item.xattrs else self._applied(item)
        permissions = want.mode & 0o7777
        fd = os.open(item.name, _NEW_FILE, permissions & 0o777, dir_fd=parent)
        try:
            if self._template is not None and item.size:
                self._clone(self._template.get(item.parent), item.name, fd)
            else:
                _copy(item, fd)
            self.written.size += item.size
            given = not self._form.owners or self._give(fd, want)
            if permissions & (0o7000 | self._umask):
                os.fchmod(fd, permissions)
            if want.xattrs:
                self._set_xattrs(fd, want.xattrs)
            if not given:
                os.setxattr(fd, OVERRIDE, record(_stat(item)))
            moment = item.mtime * 1_000_000_000 + item.nsec
            os.utime(fd, ns=(moment, moment))
        finally:
            os.close(fd)

    @staticmethod
    def _clone(folder: int, name: bytes, fd: int) -> None:
        source = os.open(name, _FILE, dir_fd=folder)
        try:
            clone_file(source, fd)
        finally:
            os.close(source)

    def _special(self, parent: int, item: Item) -> None:
        """A symlink, a FIFO, a device, or the file that stands for a device."""
        want, name = self._applied(item), item.name
        if item.mode & 0o170000 == stat.S_IFLNK:
            os.symlink(item.target, name, dir_fd=parent)
        else:
            want = self._node(parent, name, want)
        fd = os.open(name, _HANDLE, dir_fd=parent)
        try:
            # By this path every call reaches the very inode, a symlink's too: a magic link is the last to be
            # followed (path_resolution(7), proc(5)).
            where = b"/proc/self/fd/%d" % fd
            _check_made(os.fstat(fd), want)
            given = not self._form.owners or self._give(where, want)
            if not given and want.mode & 0o170000 == stat.S_IFREG:
                os.setxattr(where, OVERRIDE, record(_stat(item)))
            if item.mode & 0o170000 != stat.S_IFLNK:
                os.chmod(where, want.mode & 0o7777)
            for key, value in want.xattrs:
                self._set_xattr(where, key, value)
            moment = item.mtime * 1_000_000_000 + item.nsec
            os.utime(where, ns=(moment, moment))
        finally:
            os.close(fd)

    def _node(self, parent: int, name: bytes, want: Stat) -> Stat:
        """Make what is no file, folder or symlink; a device that may not be made becomes an empty file."""
        try:
            os.mknod(name, want.mode & 0o170000 | 0o600, want.rdev, dir_fd=parent)
        except PermissionError:
            if self._form.real or want.mode & 0o170000 not in (stat.S_IFCHR, stat.S_IFBLK):
                raise
            kept = (*want.xattrs, (OVERRIDE, record(want)))
            want = Stat(stat.S_IFREG | want.mode & 0o7777, want.uid, want.gid, 0, kept)
            os.mknod(name, stat.S_IFREG | 0o600, 0, dir_fd=parent)
        return want

    def _applied(self, item: Item) -> Stat:
        return apply(self._form, _stat(item))

    def _give(self, where: int | bytes, want: Item | Stat) -> bool:
        """Give an entry its owner; False if the user namespace that we are in does not map it."""
        try:
            os.chown(where, want.uid, want.gid)
        except OSError as exc:
            if exc.errno == errno.EINVAL and not self._form.real:
                return False
            raise
        return True

    def _set_xattrs(self, fd: int, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        for key, value in pairs:
            self._set_xattr(fd, key, value)

    def _set_xattr(self, where: int | bytes, key: bytes, value: bytes) -> None:
        try:
            os.setxattr(where, key, value)
        except OSError as exc:
            full = exc.errno == errno.ENOSPC and os.fstatvfs(self._root).f_bavail < _LITTLE_LEFT
            if exc.errno not in _REFUSED or full:
                raise
            self.written.refused += 1

    # -- folders --------------------------------------------------------------------------------

    def _finish_folders(self) -> None:
        for number, item in enumerate(reversed(self._folders)):
            if not number % _CHECK_EVERY:
                self._call.check("unpack layer")
            fd = self._open.get(item.key)
            want = self._applied(item)
            given = not self._form.owners or self._give(fd, want)
            os.fchmod(fd, want.mode & 0o7777)
            self._set_xattrs(fd, want.xattrs)
            if not given:
                os.setxattr(fd, OVERRIDE, record(_stat(item)))
            if item.opaque:
                os.setxattr(fd, self._form.marks + b"opaque", b"y")
            moment = item.mtime * 1_000_000_000 + item.nsec
            os.utime(fd, ns=(moment, moment))


def _check_made(about: os.stat_result, want: Stat) -> None:
    """Refuse what is not what was just made: somebody writes to this folder, too."""
    kind = want.mode & 0o170000
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    same = about.st_mode & 0o170000 == kind and about.st_nlink == 1
    if not same or (device and about.st_rdev != want.rdev):
        raise DataLoss("unpack layer", "somebody else writes to the folder it is unpacked into")


def _stat(item: Item) -> Stat:
    return Stat(item.mode, item.uid, item.gid, item.rdev, item.xattrs)


def _copy(item: Item, fd: int) -> None:
    for source, at, offset, length in item.pieces:
        if length <= _SMALL and not offset:
            data = os.pread(source, length, at)
            if len(data) == length and os.write(fd, data) == length:
                continue
        copy_range(source, at, fd, offset, length)
    if item.size and (not item.pieces or item.pieces[-1][2] + item.pieces[-1][3] != item.size):
        os.ftruncate(fd, item.size)


def sync_tree(top: int, *, call: Call) -> None:
    """Have all files and folders below a folder on disk: each is synced, several at a time.

    Side by side, because the file system then writes its journal once for many (measured: a third less
    time than one by one).  Raises OSError.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=_SYNCS, thread_name_prefix="sync") as pool:
        for _, fd, entries in walk_folders(top):
            call.check("sync files")
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
            list(pool.map(_sync_file, [fd] * len(names), names))
            os.fsync(fd)


def _sync_file(folder: int, name: str) -> None:
    fd = os.open(name, _FILE, dir_fd=folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _umask() -> int:
    """This process's umask; os.umask would change it for all threads, to tell it."""
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    raise DataLoss("read umask", "/proc/self/status does not tell it")
