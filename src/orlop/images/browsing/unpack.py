"""A tar into a folder that others may own, too: where it goes, and that it goes nowhere else.

`place` says what a destination means, as ``docker cp`` and cp(1) have it; `Unpacker` writes below one open
folder.  The names come from an image that nobody vouches for, and what is in the folder may be anybody's:

- every folder on the way is opened by its parent's descriptor, and never through a symlink;
- what is in the way of a file or a symlink is taken away if it is one itself, and never written through;
- a folder in the way of a file, or anything but a folder in that of a folder, is an error;
- files are written and changed by the descriptor that made them, all else by one that followed no link.

Without ``archive`` owners are the writer's, no setuid and setgid bits, no devices, and of xattrs only
``user.`` ones: an image must not give its programs rights on the machine that looks into it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.layers.changes import text_of
from orlop.layers.entry import Entry
from orlop.layers.tardata import TarData, Write
from orlop.linux.files import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["Place", "Unpacker", "place", "unpack"]

_STEP = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL = stat.S_ISUID | stat.S_ISGID
_REFUSED = {
    errno.EPERM,
    errno.EACCES,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOSPC,
    errno.E2BIG,
    errno.ERANGE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a copy goes: below the folder ``parent``, under a ``name``, or where that is empty its own.

    With ``content`` its names are those in a folder, else they begin with its own name.
    """

    parent: int
    name: bytes = b""
    content: bool = False


def place(
    dest: bytes,
    *,
    first: Entry,
    open_folder: Callable[[bytes], int | None],
    attempted: str,
) -> Place:
    """Where a copy goes whose first entry is ``first``.

    ``open_folder`` opens a folder by its path, following symlinks as the destination's owner would, and gives
    None where there is none.  The descriptor in the result is the caller's.  Raises `NotFound` where the
    folder that the copy would lie in is not there.
    """
    folder = stat.S_ISDIR(first.mode)
    top = first.name.rstrip(b"/")
    content = top in {b"", b"."}
    found = open_folder(dest)
    if found is not None:
        return Place(parent=found, content=content)
    if dest.endswith((b"/", b"/.")) and not folder:
        raise NotFound(attempted, f"there is no folder {text_of(dest)}")
    above, _, name = dest.rstrip(b"/").rpartition(b"/")
    if name in {b"", b".", b".."}:
        raise NotFound(attempted, f"there is no folder {text_of(dest)}")
    parent = open_folder(above or (b"/" if dest.startswith(b"/") else b"."))
    if parent is None:
        raise NotFound(attempted, f"there is no folder {text_of(above or b'/')}", hint="make it first")
    return Place(parent=parent, name=name, content=content)


class Unpacker:
    """Writes the entries of one tar below a folder.  Used once, by one thread.

    ``owner`` is who gets what is made without ``archive``; None: whoever writes.
    """

    def __init__(
        self,
        where: Place,
        *,
        archive: bool,
        owner: tuple[int, int] | None = None,
        attempted: str,
        call: Call,
    ) -> None:
        self._where = where
        self._archive = archive
        self._owner = owner
        self._attempted = attempted
        self._call = call
        self._folders: list[tuple[bytes, Entry]] = []
        self._last: tuple[bytes, int] | None = None  # the folder that was written to last, and its descriptor
        self._file = -1  # the file whose bytes come now
        self._told: set[str] = set()
        self._left: set[bytes] = set()  # devices that are left out: their further names are, too

    def begin(self, entry: Entry) -> Write:
        """Make the file whose bytes come next."""
        self._call.check(self._attempted)
        fd = self._file = self._make_file(entry)

        def write(at: int, data: bytes) -> None:
            self._call.check(self._attempted)
            view = memoryview(data)
            while view:
                done = os.pwrite(fd, view, at)
                at, view = at + done, view[done:]

        return write

    def add(self, entry: Entry) -> None:
        """An entry whose bytes, if it has some, have come."""
        self._call.check(self._attempted)
        kind = stat.S_IFMT(entry.mode)
        path = self._path(entry.name)
        if kind == stat.S_IFREG:
            self._finish_file(entry)
        elif kind == stat.S_IFDIR:
            self._make_folder(path, entry)
        elif not path:
            raise InvalidArgument(self._attempted, "the archive's root is no folder")
        elif not kind:
            self._link(path, entry)
        elif kind == stat.S_IFLNK:
            parent, name = self._clear(path)
            os.symlink(entry.link, name, dir_fd=parent)
            self._dress(parent, name, entry)
        elif kind == stat.S_IFIFO or self._archive:
            parent, name = self._clear(path)
            device = os.makedev(*entry.rdev) if kind != stat.S_IFIFO else 0
            try:
                os.mknod(name, kind | 0o600, device, dir_fd=parent)
            except PermissionError:
                self._leave(path, "devices may not be made here")
                return
            self._dress(parent, name, entry)
        else:
            self._leave(path, "a device (--archive makes it, as root)")

    def finish(self) -> None:
        """Give the folders their metadata, the deepest last made first."""
        for path, entry in reversed(self._folders):
            if not path:
                continue  # it was there, and is nobody's to change
            fd = os.dup(self._folder(path))
            try:
                self._dress_fd(fd, entry)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Let go of all but the place.  Idempotent."""
        for fd in (self._file, self._last[1] if self._last is not None else -1):
            if fd >= 0:
                os.close(fd)
        self._file, self._last = -1, None

    # -- names ----------------------------------------------------------------------------------

    def _path(self, name: bytes) -> bytes:
        """Where an entry goes, from the place's folder."""
        parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
        if b".." in parts:
            raise InvalidArgument(self._attempted, f"a name with '..' in it: {text_of(name[:100])}")
        if self._where.name:
            parts = [self._where.name, *(parts if self._where.content else parts[1:])]
        return b"/".join(parts)

    def _folder(self, path: bytes, *, make: bool = False) -> int:
        """A folder below the place; the descriptor is lent until the next call."""
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        begun = self._last is not None and path.startswith(self._last[0] + b"/")
        known, fd = self._last if begun and self._last is not None else (b"", self._where.parent)
        fd = os.dup(fd)
        try:
            for name in path.removeprefix(known).split(b"/") if path else ():
                if not name:
                    continue
                below = self._step(fd, name, path, make=make)
                os.close(fd)
                fd = below
        except BaseException:
            os.close(fd)
            raise
        if self._last is not None:
            os.close(self._last[1])
        self._last = (path, fd)
        return fd

    def _step(self, above: int, name: bytes, path: bytes, *, make: bool) -> int:
        try:
            return openat2(above, name, _FOLDER, resolve=_STEP)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(name, 0o755, dir_fd=above)
            return openat2(above, name, _FOLDER, resolve=_STEP)
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENOTDIR}:
                link = self._is_link(above, name)
                what = "a symlink" if link else "what is no folder"
                hint = "name the folder that it leads to as the destination" if link else ""
                raise FailedPrecondition(
                    self._attempted, f"{what} is in the way of the folder {text_of(path)}", hint=hint
                ) from exc
            raise

    @staticmethod
    def _is_link(above: int, name: bytes) -> bool:
        return stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)

    def _clear(self, path: bytes) -> tuple[int, bytes]:
        """The folder and the name of what is to be made, after taking away what is in its way."""
        self._left.discard(path)
        above, _, name = path.rpartition(b"/")
        parent = self._folder(above, make=True)
        try:
            about = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return parent, name
        kind = stat.S_IFMT(about.st_mode)
        if kind not in {stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO}:
            what = "a folder" if kind == stat.S_IFDIR else "a device or a socket"
            raise FailedPrecondition(self._attempted, f"{what} is in the way of {text_of(path)}")
        os.unlink(name, dir_fd=parent)
        return parent, name

    # -- making ---------------------------------------------------------------------------------

    def _make_file(self, entry: Entry) -> int:
        path = self._path(entry.name)
        if not path:
            raise InvalidArgument(self._attempted, "the archive's root is no folder")
        parent, name = self._clear(path)
        return os.open(name, _NEW, 0o600, dir_fd=parent)

    def _finish_file(self, entry: Entry) -> None:
        fd, self._file = self._file if self._file >= 0 else self._make_file(entry), -1
        try:
            if os.fstat(fd).st_size != entry.size:  # a hole at its end
                os.ftruncate(fd, entry.size)
            self._dress_fd(fd, entry)
        finally:
            os.close(fd)

    def _make_folder(self, path: bytes, entry: Entry) -> None:
        if path:
            above, _, name = path.rpartition(b"/")
            parent = self._folder(above, make=True)
            with contextlib.suppress(FileExistsError):  # merged; what it is shows when it is opened
                os.mkdir(name, 0o700, dir_fd=parent)
            self._folder(path)
        self._folders.append((path, entry))

    def _link(self, path: bytes, entry: Entry) -> None:
        """A further name of a file that has been copied."""
        target = self._path(entry.link)
        above, _, name = target.rpartition(b"/")
        if not name:
            raise InvalidArgument(self._attempted, f"{text_of(path)} is a hard link to no file")
        if target == path:
            return
        if target in self._left:
            self._leave(path, f"it is {text_of(target)}")
            return
        nothing = f"{text_of(path)} is a hard link to {text_of(target)}, which is not there"
        try:
            parent = os.dup(self._folder(above))
        except FileNotFoundError as exc:
            raise InvalidArgument(self._attempted, nothing) from exc
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise InvalidArgument(self._attempted, f"{text_of(path)} is a hard link to a folder")
            into, new = self._clear(path)
            os.link(name, new, src_dir_fd=parent, dst_dir_fd=into, follow_symlinks=False)
        except FileNotFoundError as exc:
            raise InvalidArgument(self._attempted, nothing) from exc
        finally:
            os.close(parent)

    # -- metadata -------------------------------------------------------------------------------

    def _dress(self, parent: int, name: bytes, entry: Entry) -> None:
        """The metadata of what cannot be opened, by a handle of it."""
        fd = os.open(name, _HANDLE, dir_fd=parent)
        try:
            if stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFMT(entry.mode):
                raise FailedPrecondition(self._attempted, "somebody else writes there")
            self._dress_fd(fd, entry, named=(parent, name))
        finally:
            os.close(fd)

    def _dress_fd(self, fd: int, entry: Entry, *, named: tuple[int, bytes] | None = None) -> None:
        """Owner, xattrs, mode and times, in the order in which none undoes another."""
        by = b"/proc/self/fd/%d" % fd
        link = stat.S_ISLNK(entry.mode)
        owner = (entry.uid, entry.gid) if self._archive else self._owner
        if owner is not None:
            try:
                if named is None:
                    os.fchown(fd, *owner)
                elif link:
                    os.chown(named[1], *owner, dir_fd=named[0], follow_symlinks=False)
                else:
                    os.chown(by, *owner)
            except PermissionError:
                if os.geteuid() == 0:
                    raise
                self._tell("owners are not kept: only root may give files away")
        at = by if not link or named is None else b"/proc/self/fd/%d/%s" % named
        for key, value in entry.xattrs:
            if self._archive or key.startswith(b"user."):
                try:
                    os.setxattr(at, key, value, follow_symlinks=not link)
                except OSError as exc:
                    if exc.errno not in _REFUSED:
                        raise
                    self._tell(f"xattrs {key.decode(errors='backslashreplace')} are left out: {exc.strerror}")
        if not link:
            mode = stat.S_IMODE(entry.mode)
            os.chmod(by, mode if self._archive else mode & ~_SPECIAL)
        moment = entry.mtime * 1_000_000_000 + entry.nsec
        if named is None:
            os.utime(fd, ns=(moment, moment))
        else:
            os.utime(named[1], ns=(moment, moment), dir_fd=named[0], follow_symlinks=False)

    def _leave(self, path: bytes, why: str) -> None:
        self._left.add(path)
        self._tell(f"{text_of(path)} is left out: {why}")

    def _tell(self, text: str) -> None:
        if text not in self._told and len(self._told) < 100:
            self._told.add(text)
            self._call.observer.warning(text)


def unpack(
    chunks: Iterable[bytes],
    where: Callable[[Entry], Place],
    *,
    archive: bool,
    owner: tuple[int, int] | None = None,
    attempted: str,
    call: Call,
) -> None:
    """Write a tar to where its first entry makes it go.

    What was written before an error stays.  Raises `InvalidArgument` for an empty tar.
    """
    unpacker: Unpacker | None = None
    opened: Place | None = None

    def made(entry: Entry) -> Unpacker:
        nonlocal unpacker, opened
        if unpacker is None:
            opened = where(entry)
            unpacker = Unpacker(opened, archive=archive, owner=owner, attempted=attempted, call=call)
        return unpacker

    try:
        for entry in TarData(chunks, lambda entry: made(entry).begin(entry)):
            made(entry).add(entry)
        if unpacker is None:
            raise InvalidArgument(attempted, "there is nothing in the archive")
        unpacker.finish()
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    finally:
        if unpacker is not None:
            unpacker.close()
        if opened is not None:
            os.close(opened.parent)
