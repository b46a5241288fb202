"""What changed: an overlay's upper compared with the chain below it, as entries of a layer.

An entry belongs to the layer if and only if its type, mode, owner, mtime, xattrs, link target, device
or content differ from what the chain shows; the folders above such an entry come with it.  Contents
are compared only where all else is equal.  Opaque folders are resolved: what the chain has and the
folder does not becomes a whiteout each, so the result does not depend on how the change was made, nor
on the driver.  Redirects and metacopy files, which our own mounts never make, are understood, for
uppers mounted by others.

The same walk reads a whole tree (`Upper.whole`), the native driver's: there what is missing is gone.  What
the entries mean where the kernel did not let us write them as they are is `orlop.layers.forms`'s.

The upper may belong to a running container: every name is resolved from a directory descriptor and no
link is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orlop.errors import FailedPrecondition, from_oserror
from orlop.layers.builder import WHITEOUT
from orlop.layers.chainview import ChainView, LowerEntry, LowerReader
from orlop.layers.forms import REAL, Form, told
from orlop.layers.index import Xattrs
from orlop.layers.nested import unescape_xattrs
from orlop.layers.tarwrite import Member
from orlop.layers.upper import (
    OPEN_FILE,
    OPEN_FOLDER,
    is_opaque,
    is_whiteout,
    overlay_xattr,
    read_xattrs,
)
from orlop.observe import Call

__all__ = ["FREEZE", "MOVED_AWAY", "Change", "Upper", "changes", "text_of"]

_WHAT = "read changes"
FREEZE = "stop or freeze what runs there"
MOVED_AWAY = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL}  # found otherwise before
_WINDOW = 64  # folders of one path kept open at a time
_EVER = 1 << 62
# Where the times of file systems end (s_time_min and s_time_max of ext4, xfs), and what is past that.
_TIME_ENDS = {
    -(1 << 31): (-_EVER, -(1 << 31)),
    (1 << 31) - 1: ((1 << 31) - 1, _EVER),
    15_032_385_535: (15_032_385_535, _EVER),
    16_299_260_424: (16_299_260_424, _EVER),
}
_LEAF = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One entry of the layer to be.

    ``lower`` is set where the bytes are the chain's, not the upper's.  ``whiteout`` entries have a
    path only.
    """

    member: Member
    whiteout: bool = False
    lower: LowerEntry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upper:
    """How to read what was changed.

    ``whole`` tells that it is a tree of its own, not an overlay's upper.  ``untouched`` knows whether the
    regular file at a path has certainly not been written since the tree was made.
    """

    form: Form = REAL
    whole: bool = False
    untouched: Callable[[bytes, os.stat_result], bool] | None = None


_OVERLAY = Upper()


@dataclass(slots=True)
class _Folder:
    """A folder of the walk: its path, its descriptor (-1 when lent back), what lies below it.

    ``base`` is the chain's folder that shows through, ``orig`` what the chain has at this path; they
    are the same unless the folder is opaque, new, or redirected.
    """

    path: bytes
    fd: int
    identity: tuple[int, int]
    base: LowerEntry | None
    orig: LowerEntry | None
    todo: list[bytes] = field(default_factory=list)


class _Walk:
    """Collects the changes of one upper, depth first, names in byte order."""

    def __init__(self, view: ChainView, devices: Sequence[Sequence[Path]], kind: Upper, call: Call) -> None:
        self._kind = kind
        self._marks = kind.form.marks
        self._view = view
        self._lower = LowerReader(view, devices)
        self._call = call
        self._found: list[Change] = []
        self._same: dict[int, Change] = {}  # place in _found -> an unchanged name of a shared inode
        self._groups: dict[tuple[int, int], list[int]] = {}
        self._moved: dict[tuple[int, int], bytes] = {}  # (image, nid) with several names -> the first moved

    def run(self, upper: int) -> list[Change]:
        root = self._view.lookup(b"")
        about = os.fstat(upper)
        xattrs = read_xattrs(b"/proc/self/fd/%d" % upper, follow=True)
        orig = root if root is not None and stat.S_ISDIR(root.mode) else None
        self._compare(self._member(b"", about, xattrs, orig), orig)
        base = None if self._kind.whole or is_opaque(xattrs, self._marks) else orig
        stack = [_Folder(b"", os.dup(upper), (about.st_dev, about.st_ino), base, orig)]
        try:
            self._list(stack[-1])
            while stack:
                self._call.check(_WHAT)
                folder = stack[-1]
                if not folder.todo:
                    stack.pop()
                    if stack and stack[-1].fd < 0:
                        _reopen(stack[-1], folder)
                    os.close(folder.fd)
                    folder.fd = -1
                    continue
                child = self._visit(folder, folder.todo.pop())
                if child is not None:
                    if len(stack) >= _WINDOW:
                        os.close(folder.fd)
                        folder.fd = -1
                    stack.append(child)
                    self._list(child)
        finally:
            for folder in stack:
                if folder.fd >= 0:
                    os.close(folder.fd)
        return self._settle()

    # -- one folder -----------------------------------------------------------------------------

    def _list(self, folder: _Folder) -> None:
        names = {os.fsencode(name) for name in os.listdir(folder.fd)}
        if folder.base is not folder.orig:
            if folder.base is not None:
                names.update(self._view.names(folder.base))
            if folder.orig is not None:
                names.update(self._view.names(folder.orig))
        folder.todo = sorted(names, reverse=True)

    def _visit(self, folder: _Folder, name: bytes) -> _Folder | None:
        """Look at one name; a folder of the upper is returned, to be walked next."""
        path = folder.path + b"/" + name if folder.path else name
        orig = self._view.child(folder.orig, name) if folder.orig is not None else None
        base = orig
        if folder.base is not folder.orig:
            base = self._view.child(folder.base, name) if folder.base is not None else None
        try:
            about = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except FileNotFoundError:
            self._untouched(path, base, orig)
            return None
        where = b"/proc/self/fd/%d/%s" % (folder.fd, name)
        kind = about.st_mode & 0o170000
        xattrs = read_xattrs(where, follow=False)
        if is_whiteout(about, xattrs, self._marks):
            self._gone(path, orig)
            return None
        if name.startswith(WHITEOUT):
            self._leave_out(path, "its name means a whiteout")
            return None
        if kind == stat.S_IFDIR:
            return self._enter(folder, name, path, about, xattrs, base, orig)
        if kind in _LEAF:
            self._leaf(folder, where, path, about, xattrs, base, orig)
        else:
            self._leave_out(path, "a socket")
            self._gone(path, orig)  # what it replaced is gone
        return None

    def _enter(
        self,
        folder: _Folder,
        name: bytes,
        path: bytes,
        about: os.stat_result,
        xattrs: Xattrs,
        base: LowerEntry | None,
        orig: LowerEntry | None,
    ) -> _Folder:
        self._compare(self._member(path, about, xattrs, orig), orig)
        redirect = overlay_xattr(xattrs, b"redirect", self._marks)
        if redirect is not None:
            base = self._redirected(folder, redirect)
        if is_opaque(xattrs, self._marks) or base is None or not stat.S_ISDIR(base.mode):
            base = None
        if orig is not None and not stat.S_ISDIR(orig.mode):
            orig = None
        fd = os.open(name, OPEN_FOLDER, dir_fd=folder.fd)
        return _Folder(path, fd, (about.st_dev, about.st_ino), base, orig)

    def _redirected(self, folder: _Folder, redirect: bytes) -> LowerEntry | None:
        if redirect.startswith(b"/"):
            return self._view.lookup(redirect.strip(b"/"))
        return self._view.child(folder.base, redirect) if folder.base is not None else None

    def _leaf(
        self,
        folder: _Folder,
        where: bytes,
        path: bytes,
        about: os.stat_result,
        xattrs: Xattrs,
        base: LowerEntry | None,
        orig: LowerEntry | None,
    ) -> None:
        member = self._member(path, about, xattrs, orig)
        kind = member.mode & 0o170000
        lower: LowerEntry | None = None
        if kind == stat.S_IFLNK:
            member = replace(member, link=os.readlink(where), size=0)
        elif kind == stat.S_IFREG and overlay_xattr(xattrs, b"metacopy", self._marks) is not None:
            redirect = overlay_xattr(xattrs, b"redirect", self._marks)
            lower = base if redirect is None else self._redirected(folder, redirect)
            if lower is None or not stat.S_ISREG(lower.mode):
                raise FailedPrecondition(
                    _WHAT, f"/{text_of(path)} has its bytes in a layer that is not there"
                )
        same = orig is not None and self._same_file(member, orig, about, where, lower)
        change = Change(member=member, lower=lower)
        if about.st_nlink > 1:
            self._groups.setdefault((about.st_dev, about.st_ino), []).append(len(self._found))
            if same:
                self._same[len(self._found)] = change
            self._found.append(change)
        elif not same:
            self._found.append(change)

    def _same_file(
        self,
        member: Member,
        orig: LowerEntry,
        about: os.stat_result,
        where: bytes,
        lower: LowerEntry | None,
    ) -> bool:
        if not _same_metadata(member, orig):
            return False
        kind = member.mode & 0o170000
        if kind == stat.S_IFLNK:
            return member.link == orig.target
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            return member.rdev == orig.rdev
        if kind != stat.S_IFREG:
            return True
        if member.size != orig.size:
            return False
        if lower is not None:
            return (lower.image, lower.inode.nid) == (orig.image, orig.inode.nid)
        if self._kind.untouched is not None and self._kind.untouched(member.path, about):
            return True
        fd = os.open(where, OPEN_FILE)
        try:
            return self._lower.equals(orig, fd, self._call)
        finally:
            os.close(fd)

    def _member(self, path: bytes, about: os.stat_result, xattrs: Xattrs, orig: LowerEntry | None) -> Member:
        entry = told(self._kind.form, about, xattrs, orig)
        seconds, nsec = _moment(about, orig)
        return Member(
            path=path,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime=seconds,
            nsec=nsec,
            size=about.st_size if stat.S_ISREG(entry.mode) else 0,
            rdev=entry.rdev,
            xattrs=entry.xattrs,
        )

    def _compare(self, member: Member, orig: LowerEntry | None) -> None:
        """A folder: in the layer if its own metadata differ."""
        if orig is None or not _same_metadata(member, orig):
            self._found.append(Change(member=member))

    def _leave_out(self, path: bytes, what: str) -> None:
        self._call.observer.warning(f"/{text_of(path)} is left out: {what}")

    def _gone(self, path: bytes, orig: LowerEntry | None) -> None:
        if orig is not None:
            self._found.append(Change(member=Member(path=path, mode=stat.S_IFREG), whiteout=True))

    def _untouched(self, path: bytes, base: LowerEntry | None, orig: LowerEntry | None) -> None:
        """A name that the upper does not have: what shows through, if anything, is the chain's."""
        if base is None:
            self._gone(path, orig)
            return
        if orig is not None and (base.image, base.inode.nid) == (orig.image, orig.inode.nid):
            return
        todo: list[tuple[bytes, LowerEntry]] = [(path, base)]
        while todo:
            at, entry = todo.pop()
            member, inode = _lower_member(at, entry), entry.inode
            if inode.nlink > 1 and not inode.is_folder:
                first = self._moved.setdefault((entry.image, inode.nid), at)
                if first != at:
                    member = _link_to(first, member)
            self._found.append(Change(member=member, lower=entry))
            if stat.S_ISDIR(entry.mode):
                for name in sorted(self._view.names(entry), reverse=True):
                    child = self._view.child(entry, name)
                    if child is not None:
                        todo.append((at + b"/" + name, child))

    # -- the result -----------------------------------------------------------------------------

    def _settle(self) -> list[Change]:
        """Decide about shared inodes, and add the folders above every change.

        If one name of an inode changed, all its names are written: a layer must not link into
        another, since most tools unpack layers apart.
        """
        drop: set[int] = set()
        hard: dict[int, bytes] = {}
        for places in self._groups.values():
            if all(place in self._same for place in places):
                drop.update(places)
                continue
            for place in places[1:]:
                hard[place] = self._found[places[0]].member.path
        result: list[Change] = []
        for place, change in enumerate(self._found):
            if place in drop:
                continue
            if place in hard:
                result.append(Change(member=_link_to(hard[place], change.member)))
            else:
                result.append(change)
        return _with_parents(result, self._view)


def changes(
    upper: int,
    view: ChainView,
    devices: Sequence[Sequence[Path]],
    *,
    kind: Upper = _OVERLAY,
    call: Call,
) -> list[Change]:
    """What an upper changes of a chain, in the order of the layer's tar.

    ``upper`` is a descriptor of the upper folder; ``devices`` are the data files of each image of the
    view, in the order of their device numbers.
    """
    try:
        return _Walk(view, devices, kind, call).run(upper)
    except OSError as exc:
        if exc.errno in MOVED_AWAY:
            raise FailedPrecondition(_WHAT, f"it changed meanwhile: {exc.strerror}", hint=FREEZE) from exc
        raise from_oserror(_WHAT, exc) from exc


def _moment(about: os.stat_result, orig: LowerEntry | None) -> tuple[int, int]:
    """The mtime; the chain's where the file system could not hold that, and has the end of its own range."""
    seconds, nsec = divmod(about.st_mtime_ns, 1_000_000_000)
    if orig is not None and not nsec and seconds in _TIME_ENDS:
        first, last = _TIME_ENDS[seconds]
        if first <= orig.mtime <= last:
            return orig.mtime, orig.nsec
    return seconds, nsec


def _lower_member(path: bytes, entry: LowerEntry) -> Member:
    kind = entry.mode & 0o170000
    return Member(
        path=path,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime,
        nsec=entry.nsec,
        size=entry.size if kind == stat.S_IFREG else 0,
        rdev=entry.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        link=entry.target if kind == stat.S_IFLNK else b"",
        xattrs=unescape_xattrs(entry.raw_xattrs),
    )


def _link_to(path: bytes, member: Member) -> Member:
    """A further name of the file at ``path``."""
    return replace(member, hard=True, link=path, xattrs=(), size=0)


def _same_metadata(member: Member, orig: LowerEntry) -> bool:
    return (
        member.mode == orig.mode
        and member.uid == orig.uid
        and member.gid == orig.gid
        and member.mtime == orig.mtime
        and member.nsec == orig.nsec
        and tuple(sorted(member.xattrs)) == tuple(sorted(unescape_xattrs(orig.raw_xattrs)))
    )


def _with_parents(found: list[Change], view: ChainView) -> list[Change]:
    """Add the unchanged folders above each change.

    Tools that unpack layers apart (podman) would make such a folder anew with mode 0755 if the layer
    only implied it.
    """
    present = {change.member.path for change in found if stat.S_ISDIR(change.member.mode)}
    result: list[Change] = []
    for change in found:
        missing: list[Change] = []
        path = change.member.path
        while path:
            path = path.rpartition(b"/")[0]
            if path in present:
                continue
            present.add(path)
            lower = view.lookup(path)
            if lower is not None and stat.S_ISDIR(lower.mode):
                missing.append(Change(member=_lower_member(path, lower)))
        result.extend(reversed(missing))
        result.append(change)
    return result


def _reopen(parent: _Folder, child: _Folder) -> None:
    """Get a folder's descriptor back from the folder below it."""
    parent.fd = os.open("..", OPEN_FOLDER, dir_fd=child.fd)
    about = os.fstat(parent.fd)
    if (about.st_dev, about.st_ino) != parent.identity:
        raise FailedPrecondition(_WHAT, f"/{text_of(child.path)} was moved while it was read", hint=FREEZE)


def text_of(path: bytes) -> str:
    """A path for people."""
    return path.decode(errors="backslashreplace")
