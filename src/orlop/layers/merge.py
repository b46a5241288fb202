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
from collections.abc import Callable, Sequence

from orlop.erofs.tree import Node
from orlop.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from orlop.layers.builder import MAX_FOLLOW
from orlop.layers.chainview import ChainView, LowerEntry
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import (
    COPIED,
    HIDES,
    IMPLIED,
    LINK,
    LOWER_LINK,
    OPAQUE,
    LayerIndex,
)
from orlop.layers.nested import escape_xattrs

__all__ = ["DataLayout", "LowerLinkError", "Merger"]

_STEPS, _STEPS_PER_ENTRY = 5_000_000, 64  # that all the hard links of a layer may take to be looked up
OPAQUE_XATTR = (b"trusted.overlay.opaque", b"y")


class LowerLinkError(FailedPrecondition):
    """A small top cannot add a name to a file of the chain below, take one of several away, or hide all.

    The whole is to be merged instead.
    """


class _Top(Node):
    """A folder of a small top.

    ``lower`` is the chain's folder that shows through it, or None; ``opaque`` tells that the chain has
    something at this path which must not show.
    """

    __slots__ = ("lower", "opaque")

    def __init__(self, mode: int, uid: int, gid: int, mtime: int, nsec: int) -> None:
        super().__init__(mode, uid, gid, mtime, nsec)
        self.lower: LowerEntry | None = None
        self.opaque = False


class Merger:
    """Applies layers one after the other to a tree of EROFS nodes.

    ``device`` is asked for the number of a layer's tar or data as an EROFS device when a file first
    needs it.  ``below`` is the chain that the result will lie on, or None.
    """

    def __init__(self, *, below: ChainView | None = None) -> None:
        self.root = Node(stat.S_IFDIR | 0o755)
        self.warnings: list[str] = []
        self._below = below
        # (image, nid) with names -> those that went, as hashes: two alike would cost a whole merge, no more
        self._hidden: dict[tuple[int, int], set[int]] = {}
        self._fresh = True
        self._steps = 0  # that looking up this layer's hard links may still take
        if below is not None:
            self.root = _Top(stat.S_IFDIR | 0o755, 0, 0, 0, 0)
            _take_below(self.root, below.lookup(b""))

    # -- one layer ------------------------------------------------------------------------------

    def apply(
        self, index: LayerIndex, device: Callable[[bool], int], layout: DataLayout | None = None
    ) -> None:
        """Lay one more layer on top.

        ``device(False)`` is the number of its tar, ``device(True)`` that of its layer.data.
        Raises `InvalidArgument` for a hard link to nothing, `LowerLinkError` for one that only a
        whole merge can make.
        """
        self._steps = _STEPS + _STEPS_PER_ENTRY * len(index)
        links = self._lower_links(index)
        layout = layout or DataLayout(index)
        made: list[Node | None] = [None] * len(index)
        tar = -1
        regular, folder = stat.S_IFREG, stat.S_IFDIR
        lowers: dict[int, LowerEntry] = {}  # node -> the chain's folder that showed through before
        made[0] = self._root(index, lowers)
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
                made[node] = self._folder(index, node, above, lowers)
            elif flags & (LINK | LOWER_LINK):
                linked = made[offset] if flags & LINK else links.get(node)
                if linked is not None:
                    children[names[node]] = linked
                elif flags & LOWER_LINK:
                    late.append(node)
                elif flags & HIDES:  # a link to a device that was left out
                    self._hide(above, names[node])
            else:
                made[node] = self._special(index, node, above, device, layout)
        for node in late:
            self._late_link(index, node, made)
        if self._below is not None:
            self._check_names(index, lowers)

    def _root(self, index: LayerIndex, lowers: dict[int, LowerEntry]) -> Node:
        flags = index.flags[0]
        if isinstance(self.root, _Top) and self.root.lower is not None:
            lowers[0] = self.root.lower
            if flags & OPAQUE:  # overlayfs merges the roots whatever they say
                raise LowerLinkError("stack layer", "it hides all that lies below")
        if flags & OPAQUE:
            self._clear(self.root)
        if not flags & IMPLIED:
            _fill(self.root, index, 0)
        elif self._fresh and self._below is None:
            self.root.mtime, self.root.nsec = index.time, index.time_nsec
        self._fresh = False
        return self.root

    def _folder(self, index: LayerIndex, node: int, above: Node, lowers: dict[int, LowerEntry]) -> Node:
        flags, name = index.flags[node], index.names[node]
        children = above.children
        assert children is not None
        found = children.get(name)
        if found is None or found.children is None or flags & HIDES:
            replaces = found is not None or bool(flags & HIDES)
            found = children[name] = self._new_folder(index, name, above, replaces=replaces)
        if isinstance(found, _Top) and found.lower is not None:
            lowers[node] = found.lower
        if flags & OPAQUE:
            self._clear(found)
        if not flags & IMPLIED:
            _fill(found, index, node)
        return found

    def _new_folder(self, index: LayerIndex, name: bytes, above: Node, *, replaces: bool) -> Node:
        mode = stat.S_IFDIR | 0o755
        if self._below is None:
            return Node(mode, 0, 0, index.time, index.time_nsec)
        fresh = _Top(mode, 0, 0, index.time, index.time_nsec)
        below = self._seen_below(above, name)
        if replaces:
            fresh.opaque = below is not None and stat.S_ISDIR(below.mode)
        elif below is not None and stat.S_ISDIR(below.mode):
            _take_below(fresh, below)
        return fresh

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
                self._hide(above, name)
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

    def _hide(self, above: Node, name: bytes) -> None:
        """Take a lower layer's thing away, and hide the chain's if it has one.

        A whiteout over nothing would show in a folder that only the top has: there overlayfs looks for
        none (fs/overlayfs/readdir.c).
        """
        assert above.children is not None
        above.children.pop(name, None)
        if self._seen_below(above, name) is not None:
            above.children[name] = Node(stat.S_IFCHR)  # overlayfs's whiteout: a device 0/0

    @staticmethod
    def _clear(folder: Node) -> None:
        folder.children = {}
        if isinstance(folder, _Top):
            folder.opaque = folder.opaque or folder.lower is not None
            folder.lower = None

    def _seen_below(self, above: Node, name: bytes) -> LowerEntry | None:
        """What the chain below has of this name where it shows through a folder of this top."""
        if self._below is None or not isinstance(above, _Top) or above.lower is None:
            return None
        return self._below.child(above.lower, name)

    def _check_names(self, index: LayerIndex, lowers: dict[int, LowerEntry]) -> None:
        """No file of the chain may lose some of its names and keep others.

        Its inode would go on counting them all (st_nlink): a top cannot change it.
        """
        view = self._below
        assert view is not None
        for node in range(1, len(index)):
            lower = lowers.get(index.parent[node])
            gone = view.child(lower, index.names[node]) if lower is not None else None
            if gone is not None and not (node in lowers and stat.S_ISDIR(gone.mode)):
                self._note_gone(gone, index.path(node))
        for node, lower in lowers.items():
            if index.flags[node] & OPAQUE:
                self._note_gone(lower, index.path(node))
        for (image, nid), names in self._hidden.items():
            if len(names) != view.images[image].inode(nid).nlink:
                raise LowerLinkError("stack layer", "it hides some names of a file below, and not all")

    def _note_gone(self, entry: LowerEntry, path: bytes) -> None:
        assert self._below is not None
        for place, name in self._below.shared(entry, path):
            self._hidden.setdefault(place, set()).add(hash(name))

    # -- hard links to lower layers -------------------------------------------------------------

    def _lower_links(self, index: LayerIndex) -> dict[int, Node]:
        """The nodes that links to lower layers mean, looked up before this layer hides any."""
        found: dict[int, Node] = {}
        for node in index.targets:  # symlinks', too
            if index.flags[node] & LOWER_LINK:
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
            self._steps -= 1
            if self._steps < 0:  # 40 symlinks of 2,000 components each, for every one of very many links
                raise ResourceExhausted("merge layers", "its hard links lead through too many symlinks")
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
            if isinstance(node, _Top) and node.opaque:
                node.xattrs = (*node.xattrs, OPAQUE_XATTR)
            todo.extend(child for child in (node.children or {}).values() if child.children is not None)


def _take_below(node: Node, lower: LowerEntry | None) -> None:
    """A folder that the chain has, too: merged with it, and the same until an entry says otherwise."""
    if lower is not None and isinstance(node, _Top):
        node.mode, node.uid, node.gid = lower.mode, lower.uid, lower.gid
        node.mtime, node.nsec = lower.mtime, lower.nsec
        node.xattrs = lower.raw_xattrs
        node.lower = lower


def _fill(node: Node, index: LayerIndex, number: int) -> None:
    """Metadata of one entry."""
    node.mode = index.mode[number]
    node.uid, node.gid = index.uid[number], index.gid[number]
    node.mtime, node.nsec = index.mtime[number], index.nsec[number]
    pairs = index.xattrs.get(number)
    node.xattrs = escape_xattrs(pairs) if pairs else ()
