"""Entries in, a layer's index out: what the entries of one layer mean together.

The rules that concern one layer alone stand here (docs: "What a layer means"):

- names and hard links' targets are cleaned by their text and stop at the root;
- the same path twice: the last wins;
- an entry below a symlink of the same layer follows it within the layer's own root;
- a whiteout or an opaque mark speaks of lower layers only, wherever it stands in the tar;
- a hard link's own header does not change the file it links to.

The rules that need the lower layers are `orlop.layers.merge`'s.
"""

from __future__ import annotations

import os
import stat
from array import array

from orlop.config import DEFAULT_LIMITS, Limits, over_limit, too_long
from orlop.errors import InvalidArgument
from orlop.layers.entry import Entry
from orlop.layers.index import (
    COPIED,
    HIDES,
    IMPLIED,
    LINK,
    LOWER_LINK,
    MAX_ID,
    MAX_TIME,
    OPAQUE,
    LayerIndex,
)
from orlop.layers.nested import holdable

__all__ = ["IndexBuilder", "clean"]

_WHAT = "read layer"
WHITEOUT = b".wh."
OPAQUE_MARK = b".wh..wh..opq"
META = b".wh..wh."  # aufs's own bookkeeping; the image spec reserves it
MAX_FOLLOW = 40  # symlinks in one path, as the kernel has it (MAXSYMLINKS)
_ODD = (b"", b".", b"..")
_PIECE = 64  # bytes that an xattr or a piece of a sparse file takes in memory, beside its own


def clean(path: bytes) -> list[bytes]:
    """The components of a name, with ``.`` and ``..`` resolved by text, stopping at the root.

    >>> clean(b"./a//b/../c/")
    [b'a', b'c']
    >>> clean(b"/../../etc")
    [b'etc']
    """
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return parts


class IndexBuilder:
    """Collects the entries of one layer; `finish` gives its index.

    Raises `InvalidArgument` for an entry that can mean nothing, `ResourceExhausted` past a limit.
    """

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._path_size, self._name_size = limits.path_size, limits.name_size
        self._most_entries, self._most_said = limits.layer_entries, limits.metadata_size
        self._index = LayerIndex()
        self._children: dict[int, dict[bytes, int]] = {0: {}}
        self._folders: dict[bytes, int] = {}  # raw text of a parent path -> node; a cache
        self._dead = False  # whether some node was replaced by a later one
        self._dropped: dict[str, int] = {}
        self._newest: tuple[int, int] | None = None
        self._newest_second = -MAX_TIME - 1
        self._said = 0  # bytes of names, targets, xattrs and maps; a global header repeats them for nothing
        self._append(0, b"", stat.S_IFDIR | 0o755, IMPLIED)

    # -- entries --------------------------------------------------------------------------------

    def add(self, entry: Entry) -> None:
        """Take one entry of the tar, in the tar's order."""
        if len(entry.name) > self._path_size or len(entry.link) > self._path_size:
            longest = max(len(entry.name), len(entry.link))
            raise over_limit("path_size", longest, self._path_size)
        parent_path, _, name = entry.name.rpartition(b"/")
        parent = self._folders.get(parent_path) if name not in _ODD else None
        if parent is None:
            parts = clean(entry.name)
            if not parts:
                self._root(entry)
                return
            name = parts.pop()
            parent = self._folder(parts, entry.name)
            if len(self._folders) < 65_536 and entry.name.endswith(name):
                self._folders[parent_path] = parent
        if name[0] == 0x2E and name.startswith(WHITEOUT):
            self._mark(parent, name, entry)
            return
        if 0 in name or len(name) > self._name_size:  # a byte is found in a tenth of what bytes take
            self._check_name(name)
        if entry.mode >> 12 == 0:
            self._hard_link(parent, name, entry)
            return
        self._put(parent, name, entry)

    def _root(self, entry: Entry) -> None:
        if not stat.S_ISDIR(entry.mode):
            raise InvalidArgument(_WHAT, f"the root entry {entry.name[:40]!r} is not a folder")
        self._index.flags[0] &= ~IMPLIED
        self._fill(0, entry)

    def _put(self, parent: int, name: bytes, entry: Entry) -> None:
        index = self._index
        siblings = self._children[parent]
        kind = entry.mode & 0o170000
        node = siblings.get(name)
        if (
            node is None
            and (kind == stat.S_IFREG or kind == stat.S_IFDIR)  # noqa: PLR1714 - a set would be made each time
            and not (entry.xattrs or entry.dirty)
            and entry.extents is None
        ):
            siblings[name] = self._plain(parent, name, entry)
            return
        if node is not None:
            old = index.mode[node] & 0o170000
            if old == kind == stat.S_IFDIR:
                index.flags[node] &= ~IMPLIED
                self._fill(node, entry)
                return
            if old or index.flags[node] & (LINK | LOWER_LINK):
                self._replace(node)
                node = self._append(parent, name, entry.mode, index.flags[node] & HIDES)
            else:
                index.mode[node] = entry.mode  # until now only a whiteout
        else:
            node = self._append(parent, name, entry.mode, 0)
        siblings[name] = node
        if kind == stat.S_IFDIR:
            self._children[node] = {}
        elif kind == stat.S_IFLNK:
            if not entry.link or b"\0" in entry.link:
                raise InvalidArgument(_WHAT, f"{entry.name[:100]!r} is a symlink to {entry.link[:100]!r}")
            if len(entry.link) > self._limits.link_size:
                raise too_long("link_size", entry.link, self._limits.link_size)
            index.targets[node] = entry.link
            self._spend(len(entry.link))
        self._fill(node, entry)

    def _plain(self, parent: int, name: bytes, entry: Entry) -> int:
        """The node of a plain file or folder that the layer did not have: as nine of ten are."""
        index = self._index
        node = len(index.names)
        if node >= self._most_entries:
            raise over_limit("layer_entries", node + 1, self._most_entries)
        self._said += len(name)
        if self._said > self._most_said:
            raise over_limit("metadata_size", self._said, self._most_said)
        mode, uid, gid, mtime = entry.mode, entry.uid, entry.gid, entry.mtime
        if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
            raise _no_owner(entry)
        index.names.append(name)
        index.parent.append(parent)
        index.mode.append(mode)
        index.flags.append(0)
        index.uid.append(uid)
        index.gid.append(gid)
        index.mtime.append(mtime)
        index.nsec.append(entry.nsec)
        if mode >> 12 == 4:
            self._children[node] = {}
            index.size.append(0)
            index.offset.append(0)
        else:
            index.size.append(entry.size)
            index.offset.append(entry.offset)
        if mtime >= self._newest_second:
            self._see_time(entry)
        return node

    def _replace(self, node: int) -> None:
        """Make room where a later entry says something else of the same path."""
        self._dead = True
        kind = self._index.mode[node] & 0o170000
        if kind == stat.S_IFDIR:
            del self._children[node]
        if kind in (stat.S_IFDIR, stat.S_IFLNK) or self._index.flags[node] & LINK:  # perhaps to a symlink
            self._folders.clear()

    def _fill(self, node: int, entry: Entry) -> None:
        index = self._index
        if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
            raise _no_owner(entry)
        index.mode[node] = entry.mode
        index.uid[node] = entry.uid
        index.gid[node] = entry.gid
        index.mtime[node] = entry.mtime
        index.nsec[node] = entry.nsec
        if entry.mtime >= self._newest_second:
            self._see_time(entry)
        if entry.xattrs:
            index.xattrs[node] = entry.xattrs
            self._spend(sum(_PIECE + len(name) + len(value) for name, value in entry.xattrs))
            if not all(holdable(name) for name, _ in entry.xattrs):
                self._warn("xattrs of names that Linux does not know")
        elif node in index.xattrs:
            del index.xattrs[node]
        kind = entry.mode & 0o170000
        if kind == stat.S_IFREG:
            index.size[node] = entry.size
            index.offset[node] = entry.offset
            if entry.extents is not None:
                index.sparse[node] = entry.extents
                self._spend(_PIECE * len(entry.extents))
                index.flags[node] |= COPIED
            elif entry.dirty:
                index.flags[node] |= COPIED
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            major, minor = entry.rdev
            if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
                raise InvalidArgument(
                    _WHAT, f"{entry.name[:100]!r} has the device number {major}:{minor}, which Linux has not"
                )
            index.offset[node] = os.makedev(major, minor)

    def _see_time(self, entry: Entry) -> None:
        moment = (entry.mtime, entry.nsec)
        if self._newest is None or moment > self._newest:
            self._newest, self._newest_second = moment, entry.mtime

    # -- marks and links ------------------------------------------------------------------------

    def _mark(self, parent: int, name: bytes, entry: Entry) -> None:
        index = self._index
        if name == OPAQUE_MARK:
            index.flags[parent] |= OPAQUE
            return
        if name.startswith(META):
            self._warn("aufs bookkeeping")
            return
        hidden = name[len(WHITEOUT) :]
        if hidden in _ODD or b"\0" in hidden:
            raise InvalidArgument(_WHAT, f"a whiteout of nothing: {entry.name[:100]!r}")
        self._check_name(hidden)
        node = self._children[parent].get(hidden)
        if node is None:
            self._children[parent][hidden] = self._append(parent, hidden, 0, HIDES)
        else:
            index.flags[node] |= HIDES

    def _hard_link(self, parent: int, name: bytes, entry: Entry) -> None:
        index = self._index
        parts = clean(entry.link)
        if not parts:
            raise InvalidArgument(_WHAT, f"{entry.name[:100]!r} is a hard link to the root")
        target = self._find(parts)
        if target is not None and index.flags[target] & LINK:
            target = index.offset[target]
        if target is not None and stat.S_ISDIR(index.mode[target]):
            if not index.flags[target] & IMPLIED:
                raise InvalidArgument(_WHAT, f"{entry.name[:100]!r} is a hard link to a folder")
            target = None
        lower: bytes | None = None
        if target is not None and index.flags[target] & LOWER_LINK:
            lower, target = index.targets[target], None
        elif target is None or not index.mode[target]:
            lower, target = b"/".join(parts), None
        siblings = self._children[parent]
        node = siblings.get(name)
        hides = 0
        if node is not None:
            if node == target:
                return  # a link to itself
            hides = index.flags[node] & HIDES
            self._replace(node)
        if lower is not None:
            node = self._append(parent, name, 0, hides | LOWER_LINK)
            index.targets[node] = lower
            self._spend(len(lower))
        else:
            node = self._append(parent, name, 0, hides | LINK)
            index.offset[node] = target or 0
        siblings[name] = node

    # -- paths ----------------------------------------------------------------------------------

    def _folder(self, parts: list[bytes], said: bytes) -> int:
        """The node of a parent folder, following this layer's symlinks, made where it is missing."""
        index = self._index
        node = 0
        followed = 0
        todo = parts[::-1]
        above: list[int] = []  # the folders passed, for ``..`` in symlinks
        while todo:
            part = todo.pop()
            if part == b"..":
                node = above.pop() if above else 0
                continue
            child = self._children[node].get(part)
            if child is not None and index.flags[child] & LINK:
                child = index.offset[child]
            kind = index.mode[child] & 0o170000 if child is not None else 0
            if child is not None and kind == stat.S_IFLNK:
                followed += 1
                if followed > MAX_FOLLOW:
                    raise InvalidArgument(_WHAT, f"{said[:100]!r} leads through too many symlinks")
                target = index.targets[child]
                if target.startswith(b"/"):
                    node, above = 0, []
                todo.extend(
                    component for component in reversed(target.split(b"/")) if component not in (b"", b".")
                )
                continue
            if kind != stat.S_IFDIR:
                child = self._imply(node, part, said)
            above.append(node)
            node = child if child is not None else 0
        return node

    def _check_name(self, name: bytes) -> None:
        if b"\0" in name:
            raise InvalidArgument(_WHAT, f"not a file name: {name[:100]!r}")
        if len(name) > self._limits.name_size:
            raise too_long("name_size", name, self._limits.name_size)

    def _imply(self, parent: int, name: bytes, said: bytes) -> int:
        """A folder that no entry is about, until one is."""
        index = self._index
        self._check_name(name)
        if name.startswith(WHITEOUT):
            raise InvalidArgument(_WHAT, f"{said[:100]!r} lies below a whiteout")
        hides = 0
        node = self._children[parent].get(name)
        if node is not None:
            hides = index.flags[node] & HIDES
            self._replace(node)
        node = self._append(parent, name, stat.S_IFDIR | 0o755, IMPLIED | hides)
        self._children[parent][name] = node
        self._children[node] = {}
        return node

    def _find(self, parts: list[bytes]) -> int | None:
        """The node of a path in this layer, following its symlinks in all but the last component."""
        index = self._index
        node, followed = 0, 0
        todo = parts[::-1]
        above: list[int] = []
        while todo:
            part = todo.pop()
            if part == b"..":
                node = above.pop() if above else 0
                continue
            if not stat.S_ISDIR(index.mode[node]):
                return None
            child = self._children[node].get(part)
            if child is None:
                return None
            if todo and index.flags[child] & LINK:
                child = index.offset[child]
            if todo and stat.S_ISLNK(index.mode[child]):
                followed += 1
                if followed > MAX_FOLLOW:
                    return None
                target = index.targets[child]
                if target.startswith(b"/"):
                    node, above = 0, []
                todo.extend(
                    component for component in reversed(target.split(b"/")) if component not in (b"", b".")
                )
                continue
            above.append(node)
            node = child
        return node

    # -- the table ------------------------------------------------------------------------------

    def _append(self, parent: int, name: bytes, mode: int, flags: int) -> int:
        index = self._index
        node = len(index.names)
        if node >= self._most_entries:
            raise over_limit("layer_entries", node + 1, self._most_entries)
        self._spend(len(name))
        index.parent.append(parent)
        index.names.append(name)
        index.mode.append(mode)
        index.flags.append(flags)
        index.uid.append(0)
        index.gid.append(0)
        index.mtime.append(0)
        index.nsec.append(0)
        index.size.append(0)
        index.offset.append(0)
        return node

    def _spend(self, count: int) -> None:
        self._said += count
        if self._said > self._most_said:
            raise over_limit("metadata_size", self._said, self._most_said)

    def _warn(self, what: str) -> None:
        self._dropped[what] = self._dropped.get(what, 0) + 1

    def finish(self, tar_size: int) -> LayerIndex:
        """The index of all entries taken; the builder is used up."""
        index = self._index
        index.tar_size = tar_size
        index.time, index.time_nsec = self._newest or (0, 0)
        index.warnings = [f"{what}: {count} left out" for what, count in self._dropped.items()]
        self._children, self._folders = {0: {}}, {}
        return _compact(index) if self._dead else index


def _no_owner(entry: Entry) -> InvalidArgument:
    return InvalidArgument(_WHAT, f"{entry.name[:100]!r} has an owner that no system has")


def _compact(index: LayerIndex) -> LayerIndex:
    """Drop the nodes that later entries replaced.

    A file that is gone under its own name but lives on under a hard link moves there.
    """
    count = len(index)
    last: dict[tuple[int, bytes], int] = {}
    for node in range(1, count):
        last[index.parent[node], index.names[node]] = node
    alive = bytearray(count)
    alive[0] = 1
    for node in range(1, count):
        above = index.parent[node]
        alive[node] = alive[above] and last[above, index.names[node]] == node
    moved: dict[int, int] = {}  # a dead file -> the link that took it over
    fresh = LayerIndex(
        tar_size=index.tar_size, time=index.time, time_nsec=index.time_nsec, warnings=index.warnings
    )
    number = array("I", bytes(4 * count))
    for node in range(count):
        if not alive[node]:
            continue
        source = node
        flags = index.flags[node]
        if flags & LINK:
            target = index.offset[node]
            if not alive[target] and target not in moved:
                moved[target] = node
                source = target
                flags = (flags & ~LINK) | (index.flags[target] & COPIED)
        new = number[node] = len(fresh)
        fresh.parent.append(number[index.parent[node]])
        fresh.names.append(index.names[node])
        fresh.mode.append(index.mode[source])
        fresh.flags.append(flags)
        fresh.uid.append(index.uid[source])
        fresh.gid.append(index.gid[source])
        fresh.mtime.append(index.mtime[source])
        fresh.nsec.append(index.nsec[source])
        fresh.size.append(index.size[source])
        offset = index.offset[source]
        if flags & LINK:
            offset = number[moved.get(offset, offset)]
        fresh.offset.append(offset)
        if source in index.targets:
            fresh.targets[new] = index.targets[source]
        if source in index.xattrs:
            fresh.xattrs[new] = index.xattrs[source]
        if source in index.sparse:
            fresh.sparse[new] = index.sparse[source]
    return fresh
