"""Layers applied to one another: the rules that need to know what lies below.

`Merger` makes one tree of a list of layers, bottom first.  Given a view of a chain below, it makes a
small top for it instead, in overlay form: whiteouts and opaque marks that still matter are kept as
overlayfs knows them, and folders that the layers only imply carry the metadata they have below.

The rules (docs: "What a layer means"):

- a whiteout or opaque mark hides what lower layers brought, never what its own layer brings;
- a folder that a layer only implies keeps the lower layer's mode, owner, times and xattrs; a new one
  gets 0755, root, and the layer's own time;
- a folder over anything else replaces it, also a symlink; anything else over a folder replaces it;
- a hard link to a file of a lower layer is that file, under a further name;
- xattrs that would steer overlayfs are escaped as overlayfs nests them;
- a device 0/0, which would be a whiteout to overlayfs, is left out as if the tar did not have it.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orlop.erofs.tree import HOLE, Chunks, Node
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.layers.builder import MAX_FOLLOW
from orlop.layers.chainview import ChainView, LowerEntry
from orlop.layers.index import (
    BLOCK,
    COPIED,
    HIDES,
    IMPLIED,
    LINK,
    LOWER_LINK,
    OPAQUE,
    LayerIndex,
    Xattrs,
)

__all__ = ["DataLayout", "LowerLinkError", "Merger", "escape_xattrs", "unescape_xattrs"]

_OVERLAY = b"trusted.overlay."
_KEPT = (b"user.", b"trusted.", b"security.")
_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_MAX_NAME = 255  # XATTR_NAME_MAX (include/uapi/linux/limits.h)
OPAQUE_XATTR = (b"trusted.overlay.opaque", b"y")
_MAX_CHUNKS = 65_535  # of one file
_FEW_CHUNKS = 16  # of each file once a layer's files have used up its share
_LAYER_CHUNKS = 4 << 20  # of one layer: 32 MiB of chunk indexes
_MIN_CHUNK = 4096


class LowerLinkError(FailedPrecondition):
    """A small top cannot hold a hard link into the chain below; merge the whole instead."""


def escape_xattrs(pairs: Xattrs) -> Xattrs:
    """The xattrs as EROFS holds them: what could steer overlayfs is nested one level deeper.

    Names that Linux has no handler for, or no room, cannot be kept by any file system and are left out.
    """
    return tuple((name, value) for name, value in map(_escape, pairs) if _holdable(name))


def _escape(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    name, value = pair
    return (_OVERLAY + b"overlay." + name[len(_OVERLAY) :], value) if name.startswith(_OVERLAY) else pair


def _holdable(name: bytes) -> bool:
    """Whether setxattr(2) knows what to do with a name."""
    return name in _ACLS or (name.startswith(_KEPT) and name not in _KEPT and len(name) <= _MAX_NAME)


def unescape_xattrs(pairs: Xattrs) -> Xattrs:
    """The inverse of `escape_xattrs`; overlayfs's own xattrs are left out."""
    found: list[tuple[bytes, bytes]] = []
    for name, value in pairs:
        if name.startswith(_OVERLAY):
            rest = name[len(_OVERLAY) :]
            if not rest.startswith(b"overlay."):
                continue
            name = _OVERLAY + rest[len(b"overlay.") :]  # noqa: PLW2901
        found.append((name, value))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Copied:
    """One file of layer.data: where its bytes start there, and its chunks if it has holes."""

    offset: int
    chunks: Chunks | None


class DataLayout:
    """Where the files that cannot be pointed at in the tar lie in ``layer.data``.

    Derived from the index alone, so it never has to be stored.  ``size`` is that of layer.data.
    A file with holes is cut into equal chunks, large enough that it has fewer than 65,536; a chunk
    without data is a hole, the others follow one another.  A layer has a budget of chunks, of which
    each file may take an eighth of what is left: a tar of many huge empty files stays cheap.
    """

    def __init__(self, index: LayerIndex) -> None:
        self.files: dict[int, Copied] = {}
        at = 0
        left = _LAYER_CHUNKS
        for node, flags in enumerate(index.flags):
            if not flags & COPIED:
                continue
            size = index.size[node]
            extents = index.sparse.get(node)
            if extents is None:
                self.files[node] = Copied(at, None)
                at += -(-size // BLOCK) * BLOCK
                continue
            chunk = _MIN_CHUNK
            while -(-size // chunk) > min(_MAX_CHUNKS, max(left // 8, _FEW_CHUNKS)):
                chunk *= 2
            used = _used_chunks(extents, chunk)
            starts = [HOLE] * -(-size // chunk)
            left -= len(starts)
            start = at
            for number in used:
                starts[number] = at // BLOCK
                at += min(chunk, -(-(size - number * chunk) // BLOCK) * BLOCK)
            self.files[node] = Copied(start, Chunks((chunk // BLOCK).bit_length() - 1, starts))
        self.size = at


def _used_chunks(extents: Iterable[tuple[int, int, int]], chunk: int) -> list[int]:
    """The numbers of the chunks that hold any data, in order."""
    used: list[int] = []
    for offset, length, _ in extents:
        if length:
            first = max(offset // chunk, used[-1] + 1 if used else 0)
            used.extend(range(first, (offset + length - 1) // chunk + 1))
    return used


class Merger:
    """Applies layers one after the other to a tree of EROFS nodes.

    ``device`` is asked for the number of a layer's tar or data as an EROFS device when a file first
    needs it.  ``below`` is the chain that the result will lie on, or None.
    """

    def __init__(self, *, below: ChainView | None = None) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.warnings: list[str] = []
        self._below = below
        self._opaque: dict[int, Node] = {}  # by id(): the folders that hide the chain below, kept alive
        self._fresh = True
        if below is not None:
            self._take_below(self.root, below.lookup(b""))

    # -- one layer ------------------------------------------------------------------------------

    def apply(
        self, index: LayerIndex, device: Callable[[bool], int], layout: DataLayout | None = None
    ) -> None:
        """Lay one more layer on top.

        ``device(False)`` is the number of its tar, ``device(True)`` that of its layer.data.
        Raises `InvalidArgument` for a hard link to nothing, `LowerLinkError` for one that only a
        whole merge can make.
        """
        links = self._lower_links(index)
        layout = layout or DataLayout(index)
        made: list[Node | None] = [None] * len(index)
        tar = -1
        regular, folder = stat.S_IFREG, stat.S_IFDIR
        self._root_metadata(index)
        made[0] = self.root
        parents, names, modes, flag_column = index.parent, index.names, index.mode, index.flags
        xattrs = index.xattrs
        columns = zip(index.uid, index.gid, index.mtime, index.nsec, index.size, index.offset, strict=True)
        late: list[int] = []
        for node, (uid, gid, mtime, nsec, size, offset) in enumerate(columns):
            if not node:
                continue
            mode, flags = modes[node], flag_column[node]
            above = made[parents[node]]
            assert above is not None  # validated: a parent is a folder before it
            children = above.children
            assert children is not None
            kind = mode & 0o170000
            if kind == regular and not flags:
                if size and tar < 0:
                    tar = device(False)
                fresh = Node(mode, uid, gid, mtime, nsec, size, tar if size else 0, offset if size else 0)
                if node in xattrs:
                    fresh.xattrs = escape_xattrs(xattrs[node])
                children[names[node]] = made[node] = fresh
            elif kind == folder:
                made[node] = self._folder(index, node, above)
            elif flags & LINK:
                target = made[offset]
                if target is not None:
                    children[names[node]] = target
                elif flags & HIDES:
                    self._hide(index, node, above)
            elif flags & LOWER_LINK:
                linked = links.get(node)
                if linked is None:
                    late.append(node)
                else:
                    made[node] = children[names[node]] = linked
            else:
                made[node] = self._special(index, node, above, device, layout)
        for node in late:
            self._late_link(index, node, made)

    def _root_metadata(self, index: LayerIndex) -> None:
        flags = index.flags[0]
        if flags & OPAQUE:
            self._clear(self.root)
        if not flags & IMPLIED:
            _fill(self.root, index, 0)
        elif self._fresh and self._below is None:
            self.root.mtime, self.root.nsec = index.time, index.time_nsec
        self._fresh = False

    def _folder(self, index: LayerIndex, node: int, above: Node) -> Node:
        flags, name = index.flags[node], index.names[node]
        children = above.children
        assert children is not None
        found = children.get(name)
        below = None
        if flags & HIDES:
            found = None
        elif found is None:
            below = self._seen_below(index, node, above)
            if below is not None and not stat.S_ISDIR(below.mode):
                below = None
        if found is None or found.children is None:
            hides = bool(flags & HIDES) or (found is not None)
            found = Node(stat.S_IFDIR | 0o755, 0, 0, index.time, index.time_nsec)
            if below is not None:
                self._take_below(found, below)
            elif self._below is not None and (hides or id(above) in self._opaque):
                self._opaque[id(found)] = found
            children[name] = found
        if flags & OPAQUE:
            self._clear(found)
        if not flags & IMPLIED:
            _fill(found, index, node)
        return found

    def _special(
        self,
        index: LayerIndex,
        node: int,
        above: Node,
        device: Callable[[bool], int],
        layout: DataLayout,
    ) -> Node | None:
        """Everything that is neither a plain file nor a folder nor a link."""
        mode, flags, name = index.mode[node], index.flags[node], index.names[node]
        kind = mode & 0o170000
        left_out = kind == stat.S_IFCHR and index.offset[node] == 0
        if left_out:
            self.warnings.append(f"/{index.path(node).decode(errors='replace')}: a device 0/0 is left out")
        if left_out or not kind:
            if flags & HIDES:
                self._hide(index, node, above)
            return None
        fresh = Node(mode)
        _fill(fresh, index, node)
        if kind == stat.S_IFLNK:
            fresh.target = index.targets[node]
            fresh.size = len(fresh.target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            fresh.rdev = index.offset[node]
        elif kind == stat.S_IFREG:
            fresh.size = index.size[node]
            if fresh.size and flags & COPIED:
                copied = layout.files[node]
                if layout.size:
                    fresh.device = device(True)
                    fresh.offset = copied.offset
                fresh.chunks = copied.chunks
            elif fresh.size:
                fresh.device = device(False)
                fresh.offset = index.offset[node]
        assert above.children is not None
        above.children[name] = fresh
        return fresh

    # -- what lies below ------------------------------------------------------------------------

    def _hide(self, index: LayerIndex, node: int, above: Node) -> None:
        """Take a lower layer's thing away, and hide the chain's if it has one.

        A whiteout over nothing would show in a folder that only the top has: there overlayfs looks for
        none (fs/overlayfs/readdir.c).
        """
        assert above.children is not None
        name = index.names[node]
        above.children.pop(name, None)
        if self._seen_below(index, node, above) is not None:
            above.children[name] = Node(stat.S_IFCHR)  # overlayfs's whiteout: a device 0/0

    def _clear(self, folder: Node) -> None:
        folder.children = {}
        if self._below is not None:
            self._opaque[id(folder)] = folder

    def _seen_below(self, index: LayerIndex, node: int, above: Node) -> LowerEntry | None:
        """What the chain below shows at a node's path, if nothing of this top hides it."""
        if self._below is None or id(above) in self._opaque:
            return None
        return self._below.lookup(index.path(node))

    @staticmethod
    def _take_below(node: Node, lower: LowerEntry | None) -> None:
        if lower is None:
            return
        node.mode, node.uid, node.gid = lower.mode, lower.uid, lower.gid
        node.mtime, node.nsec = lower.mtime, lower.nsec
        node.xattrs = lower.raw_xattrs

    # -- hard links to lower layers -------------------------------------------------------------

    def _lower_links(self, index: LayerIndex) -> dict[int, Node]:
        """The nodes that links to lower layers mean, looked up before this layer hides any."""
        found: dict[int, Node] = {}
        for node, flags in enumerate(index.flags):
            if flags & LOWER_LINK:
                target = self._lookup(index.targets[node].split(b"/"))
                if target is not None and target.children is None:
                    found[node] = target
                elif self._below is not None:
                    raise LowerLinkError("stack layer", "it links to a file of a layer further below")
        return found

    def _lookup(self, parts: Sequence[bytes]) -> Node | None:
        """A path in the tree so far, following symlinks in all but the last component."""
        todo = list(reversed(parts))
        node, above, followed = self.root, list[Node](), 0
        while todo:
            part = todo.pop()
            if part == b"..":
                node = above.pop() if above else self.root
                continue
            child = node.children.get(part) if node.children is not None else None
            if child is None:
                return None
            if todo and stat.S_ISLNK(child.mode):
                followed += 1
                if followed > MAX_FOLLOW:
                    return None
                if child.target.startswith(b"/"):
                    node, above = self.root, []
                todo.extend(p for p in reversed(child.target.split(b"/")) if p not in (b"", b"."))
                continue
            above.append(node)
            node = child
        return None if stat.S_ISCHR(node.mode) and node.rdev == 0 else node

    def _late_link(self, index: LayerIndex, node: int, made: list[Node | None]) -> None:
        """A link to a file that no lower layer has: the one this layer brings later, if it does."""
        parts = index.targets[node].split(b"/")
        target = self._lookup(parts)
        above = made[index.parent[node]]
        if target is None or target.children is not None or above is None or above.children is None:
            raise InvalidArgument(
                "merge layers",
                f"/{index.path(node).decode(errors='replace')} is a hard link to "
                f"/{index.targets[node].decode(errors='replace')}, which no layer has",
            )
        above.children[index.names[node]] = target
        made[node] = target

    # -- the result -----------------------------------------------------------------------------

    def finish(self) -> Node:
        """The tree under ``root/``, as every chain's image holds it."""
        if self._below is not None:
            self._mark_opaque()
        top = Node(stat.S_IFDIR | 0o755)
        assert top.children is not None
        top.children[b"root"] = self.root
        return top

    def _mark_opaque(self) -> None:
        todo = [self.root]
        while todo:
            node = todo.pop()
            if id(node) in self._opaque:
                node.xattrs = (*node.xattrs, OPAQUE_XATTR)
            todo.extend(child for child in (node.children or {}).values() if child.children is not None)


def _fill(node: Node, index: LayerIndex, number: int) -> None:
    """Metadata of one entry."""
    node.mode = index.mode[number]
    node.uid, node.gid = index.uid[number], index.gid[number]
    node.mtime, node.nsec = index.mtime[number], index.nsec[number]
    pairs = index.xattrs.get(number)
    node.xattrs = escape_xattrs(pairs) if pairs else ()
