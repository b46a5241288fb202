"""One name of a tree that is looked at without mounting it; see `orlop.images.browsing.nodes`."""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable

from orlop.hints import TYPE_CHECKING
from orlop.images.contents import FileInfo
from orlop.layers.chainview import LowerEntry
from orlop.layers.changes import Change
from orlop.layers.index import Xattrs
from orlop.layers.nested import unescape_xattrs

if TYPE_CHECKING:
    from orlop.images.browsing.nodes import Tree

__all__ = ["Node", "Up"]


class Up:
    """What an upper says of one name: an entry, a whiteout, or only something below it."""

    __slots__ = ("change", "children")

    def __init__(self) -> None:
        self.change: Change | None = None
        self.children: dict[bytes, Up] = {}


class Node:
    """One name of a tree, and the file that it means.

    ``mode`` is a whole st_mode; ``mtime`` seconds since 1970 and ``nsec``; ``size`` bytes of a file or of a
    symlink's target, 0 for all else; ``rdev`` a device's number.
    """

    __slots__ = ("gid", "lower", "mode", "mtime", "nsec", "path", "rdev", "size", "tree", "uid", "up")

    def __init__(self, tree: Tree, path: bytes, lower: LowerEntry | None, up: Up | None) -> None:
        self.tree = tree
        self.path = path
        self.lower = lower  # what the chain has here; of a folder, what shows through
        self.up = up
        change = tree.change_of(up)
        if change is not None:
            member = change.member
            self.mode, self.uid, self.gid = member.mode, member.uid, member.gid
            self.mtime, self.nsec, self.rdev = member.mtime, member.nsec, member.rdev
            self.size = len(member.link) if stat.S_ISLNK(member.mode) else member.size
        else:
            assert lower is not None
            self.mode, self.uid, self.gid = lower.mode, lower.uid, lower.gid
            self.mtime, self.nsec, self.rdev = lower.mtime, lower.nsec, lower.rdev
            self.size = 0 if stat.S_ISDIR(lower.mode) else lower.size

    @property
    def name(self) -> bytes:
        """The last part of the path; the root has none."""
        return self.path.rpartition(b"/")[2]

    @property
    def is_folder(self) -> bool:
        """Whether it has entries."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it has bytes to read."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symlink."""
        return stat.S_ISLNK(self.mode)

    @property
    def changed(self) -> bool:
        """Whether the upper has it, and not the chain."""
        return self.tree.change_of(self.up) is not None

    @property
    def target(self) -> bytes:
        """A symlink's target; nothing for all else."""
        if not self.is_link:
            return b""
        change = self.tree.change_of(self.up)
        if change is not None:
            return change.member.link
        assert self.lower is not None
        return self.lower.target

    @property
    def xattrs(self) -> Xattrs:
        """Names and values as a tar would have them, sorted; overlayfs's own are not among them."""
        change = self.tree.change_of(self.up)
        if change is not None:
            return tuple(sorted(change.member.xattrs))
        assert self.lower is not None
        if not self.lower.inode.xattr_size:  # as nearly all
            return ()
        return tuple(sorted(unescape_xattrs(self.lower.raw_xattrs)))

    @property
    def link(self) -> Hashable | None:
        """The same for all names of one file in this tree; None for a file with one name, and for folders."""
        if self.is_folder:
            return None
        change = self.tree.change_of(self.up)
        if change is not None:
            path = change.member.path
            return path if self.tree.names_of(path) > 1 else None
        assert self.lower is not None
        return (self.lower.image, self.lower.inode.nid) if self.lower.inode.nlink > 1 else None

    @property
    def nlink(self) -> int:
        """How many names the file has; 1 for folders, where file systems differ."""
        if self.is_folder:
            return 1
        change = self.tree.change_of(self.up)
        if change is not None:
            return self.tree.names_of(change.member.path)
        assert self.lower is not None
        return self.lower.inode.nlink

    def info(self) -> FileInfo:
        """The node as a value."""
        return FileInfo(
            path=self.path,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            size=self.size,
            mtime=self.mtime,
            nsec=self.nsec,
            links=self.nlink,
            target=self.target,
            device=(os.major(self.rdev), os.minor(self.rdev)) if self.rdev else (0, 0),
            xattrs=self.xattrs,
        )
