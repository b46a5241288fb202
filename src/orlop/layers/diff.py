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
from pathlib import Path

from orlop.errors import FailedPrecondition, from_oserror
from orlop.layers.builder import WHITEOUT
from orlop.layers.chainview import ChainView, LowerEntry, LowerReader
from orlop.layers.changes import (
    FREEZE,
    MOVED_AWAY,
    Change,
    MovedAway,
    link_to,
    lower_member,
    moment,
    same_metadata,
    text_of,
    with_parents,
)
from orlop.layers.excludes import Excludes
from orlop.layers.forms import REAL, Form, told
from orlop.layers.index import Xattrs
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
from orlop.values import dataclass, field, replace

__all__ = [
    "Again",
    "Upper",
    "changes",
]

_WHAT = "read changes"
_WINDOW = 64  # folders of one path kept open at a time
_LOOKS = 4  # at one name that becomes something else while it is looked at
_LEAF = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)


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

    def __init__(
        self,
        view: ChainView,
        devices: Sequence[Sequence[Path]],
        kind: Upper,
        call: Call,
        excludes: Excludes | None = None,
    ) -> None:
        self._excludes = excludes
        self._below = excludes if excludes is not None and excludes.all_below else None
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
                name = folder.todo.pop()
                try:
                    child = self._visit(folder, name)
                except OSError as exc:
                    if exc.errno not in MOVED_AWAY:
                        raise
                    child = self._visit_again(folder, name)
                if child is not None:
                    if len(stack) >= _WINDOW:
                        os.close(folder.fd)
                        folder.fd = -1
                    stack.append(child)
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
        if self._below is not None and path in self._below:
            return None
        orig = self._view.child(folder.orig, name) if folder.orig is not None else None
        base = orig
        if folder.base is not folder.orig:
            base = self._view.child(folder.base, name) if folder.base is not None else None
        try:
            about = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
        except FileNotFoundError as exc:
            if base is not None and folder.base is folder.orig:
                # It was listed, and overlayfs puts a whiteout in its place: the folder is another by now.
                raise MovedAway(
                    _WHAT, f"/{text_of(path)} went away while it was looked at", hint=FREEZE
                ) from exc
            self._untouched(path, base, orig)
            return None
        where = b"/proc/self/fd/%d/%s" % (folder.fd, name)
        kind = about.st_mode & 0o170000
        plain = kind == stat.S_IFCHR and about.st_rdev == 0  # a whiteout whatever its xattrs say
        xattrs = () if plain else read_xattrs(where, follow=False)
        if plain or is_whiteout(about, xattrs, self._marks):
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

    def _visit_again(self, folder: _Folder, name: bytes) -> _Folder | None:
        """Look at a name that became something else between two looks, or went away."""
        path = folder.path + b"/" + name if folder.path else name
        for left in reversed(range(_LOOKS)):
            if self._found and self._found[-1].member.path == path:
                del self._found[-1]
            try:
                return self._visit(folder, name)
            except OSError as exc:
                if exc.errno not in MOVED_AWAY:
                    raise
                if not left:
                    raise FailedPrecondition(
                        _WHAT, f"/{text_of(path)} changed each time it was looked at", hint=FREEZE
                    ) from exc
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
        child = _Folder(path, -1, (about.st_dev, about.st_ino), base, orig)
        child.fd = os.open(name, OPEN_FOLDER, dir_fd=folder.fd)
        try:
            self._list(child)
            now = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            if (now.st_dev, now.st_ino) != child.identity:  # which may hide what is below, or no more
                raise FileNotFoundError(errno.ENOENT, "another folder has its name")
        except BaseException:
            os.close(child.fd)
            raise
        return child

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
        change = Change(member=member, lower=lower, stamp=about.st_ctime_ns)
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
        if not same_metadata(member, orig):
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
        seconds, nsec = moment(about, orig)
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
        if orig is None or not same_metadata(member, orig):
            self._found.append(Change(member=member))

    def _leave_out(self, path: bytes, what: str) -> None:
        self._call.observer.warning(f"/{text_of(path)} is left out: {what}")

    def _gone(self, path: bytes, orig: LowerEntry | None) -> None:
        if orig is None:
            return
        paths = [path]
        if self._excludes is not None and stat.S_ISDIR(orig.mode):
            paths = self._gone_of(self._excludes, path, orig)
        for gone in paths:
            self._found.append(Change(member=Member(path=gone, mode=stat.S_IFREG), whiteout=True))

    def _gone_of(self, excludes: Excludes, path: bytes, orig: LowerEntry) -> list[bytes]:
        """What to hide of a folder that is gone: all but what is excluded in it, and the folders above."""
        seen: list[bytes] = []
        stays: set[bytes] = set()
        todo = [(path, orig)]
        while todo:
            self._call.check(_WHAT)
            at, entry = todo.pop()
            seen.append(at)
            if at in excludes:
                above = at
                while above not in stays:
                    stays.add(above)
                    above = above.rpartition(b"/")[0] if above != path else path
                if excludes.all_below:
                    continue
            if stat.S_ISDIR(entry.mode):
                for name in sorted(self._view.names(entry), reverse=True):
                    child = self._view.child(entry, name)
                    if child is not None:
                        todo.append((at + b"/" + name, child))
        return [at for at in seen if at not in stays and (at == path or at.rpartition(b"/")[0] in stays)]

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
            member, inode = lower_member(at, entry), entry.inode
            if inode.nlink > 1 and not inode.is_folder:
                first = self._moved.setdefault((entry.image, inode.nid), at)
                if first != at:
                    member = link_to(first, member)
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
        inodes: dict[int, tuple[int, int]] = {}
        spare: dict[bytes, Change] = {}
        if self._excludes is not None:
            for place, change in enumerate(self._found):
                if change.member.path in self._excludes:
                    drop.add(place)
                    spare[change.member.path] = change
        for inode, group in self._groups.items():
            places = [place for place in group if place not in drop] if drop else group
            if all(place in self._same for place in places):
                drop.update(places)
                continue
            for place in places[1:]:
                hard[place] = self._found[places[0]].member.path
                inodes[places[0]] = inode
        result: list[Change] = []
        for place, change in enumerate(self._found):
            if place in drop:
                continue
            if place in hard:
                result.append(Change(member=link_to(hard[place], change.member)))
            elif place in inodes:
                result.append(replace(change, inode=inodes[place]))
            else:
                result.append(change)
        return with_parents(result, self._view, spare)


def changes(
    upper: int,
    view: ChainView,
    devices: Sequence[Sequence[Path]],
    *,
    kind: Upper = _OVERLAY,
    excludes: Excludes | None = None,
    call: Call,
) -> list[Change]:
    """What an upper changes of a chain, in the order of the layer's tar.

    ``upper`` is a descriptor of the upper folder; ``devices`` are the data files of each image of the
    view, in the order of their device numbers.  What ``excludes`` has counts as not changed.
    """
    try:
        return _Walk(view, devices, kind, call, excludes).run(upper)
    except OSError as exc:
        if exc.errno in MOVED_AWAY:
            raise MovedAway(_WHAT, f"it changed meanwhile: {exc.strerror}", hint=FREEZE) from exc
        raise from_oserror(_WHAT, exc) from exc


class Again:
    """Looks at regular files of an upper once more, when one is not what it was.

    ``newest`` is the time (seconds) that later ones become, as in the changes that it goes with.
    """

    def __init__(self, view: ChainView, kind: Upper = _OVERLAY, *, newest: int | None = None) -> None:
        self._view = view
        self._walk = _Walk(view, (), kind, Call())
        self._newest = newest

    def has_lower(self, path: bytes) -> bool:
        """Whether the chain has something at a path."""
        return self._view.lookup(path) is not None

    def member(self, path: bytes, fd: int, about: os.stat_result) -> Member:
        """What an open file is; ``about`` is its status."""
        xattrs = read_xattrs(b"/proc/self/fd/%d" % fd, follow=True)
        member = self._walk._member(path, about, xattrs, self._view.lookup(path))
        newest = self._newest
        if newest is not None and (member.mtime, member.nsec) > (newest, 0):
            return replace(member, mtime=newest, nsec=0)
        return member


def _reopen(parent: _Folder, child: _Folder) -> None:
    """Get a folder's descriptor back from the folder below it."""
    parent.fd = os.open("..", OPEN_FOLDER, dir_fd=child.fd)
    about = os.fstat(parent.fd)
    if (about.st_dev, about.st_ino) != parent.identity:
        raise MovedAway(_WHAT, f"/{text_of(child.path)} was moved while it was read", hint=FREEZE)
