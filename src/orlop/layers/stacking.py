"""What overlayfs would get wrong about a stack of layers' folders, and so must stand in a glue folder on top.

A layer's folder knows nothing of the layers below it.  Stacked, it shows most of an image right, but for:

- a folder that the topmost layer only implies shows that layer's stand-in metadata, not the lower layers';
- a hard link to a file of a lower layer is missing: the two names must be one inode;
- a file with several names of which upper layers hide some still counts them all (st_nlink);
- a whiteout in a folder that only one layer has shows as a device, for overlayfs looks for whiteouts only
  where it merges (fs/overlayfs/readdir.c).

`Stack` follows the indexes as overlayfs would look at their folders and tells the paths at which the two
differ; what is true there, the chain says (`orlop.layers.chainview`).
"""

from __future__ import annotations

import stat

from orlop.errors import ResourceExhausted
from orlop.layers.chainview import ChainView, Steps, joined
from orlop.layers.index import HIDES, IMPLIED, LINK, LOWER_LINK, OPAQUE, LayerIndex
from orlop.layers.sources import is_left_out
from orlop.values import dataclass, field

__all__ = ["Stack"]

# Bytes of the paths that may stand in a glue folder, and of those above them; 10^5 usual ones are 20 MiB.
_MOST_TEXT = 256 << 20
_BOTTOM = -1  # the number of a merged folder below all layers

Inode = tuple[int, int]  # the layer's number, the node in its index


@dataclass(slots=True)
class _Folder:
    """A folder as overlayfs shows it.

    ``parts`` counts the layers whose folders are merged; ``stale`` tells that the topmost only implies
    it, where a lower one has more to say; ``marks`` that there are whiteouts in it.
    """

    children: dict[bytes, _Folder | Inode] = field(default_factory=dict)
    parts: int = 1
    stale: bool = False
    marks: bool = False


class Stack:
    """The stack so far.  `add` layers, bottom first; `glue` is what must lie on top."""

    def __init__(self) -> None:
        self._root = _Folder(parts=0)
        self._count = 0
        self._names: dict[Inode, int] = {}  # inodes with several names in their folder -> how many
        self._links: set[bytes] = set()  # paths that are hard links to lower layers, as long as they show
        self._text = 0  # bytes of them

    @classmethod
    def above(cls, view: ChainView) -> Stack:
        """A stack whose bottom is a chain, as it shows, in one folder."""
        stack = cls()
        stack._root.parts = 1
        root = view.lookup(b"")
        todo = [(stack._root, root)] if root is not None else []
        while todo:
            folder, lower = todo.pop()
            for name in view.names(lower):
                child = view.child(lower, name)
                if child is None:
                    continue
                if stat.S_ISDIR(child.mode):
                    made = folder.children[name] = _Folder()
                    todo.append((made, child))
                else:
                    inode = (_BOTTOM - child.image, child.inode.nid)
                    folder.children[name] = inode
                    if child.inode.nlink > 1:
                        stack._names[inode] = child.inode.nlink
        return stack

    def add(self, index: LayerIndex) -> None:
        """Lay one more layer's folder on top."""
        layer = self._count
        self._count += 1
        made: list[_Folder | None] = [None] * len(index)
        root = made[0] = self._root
        root.stale = bool(index.flags[0] & IMPLIED) and root.parts > 0
        root.parts += 1
        if index.flags[0] & OPAQUE:
            root.children.clear()
            root.parts = 1
        for node in range(1, len(index)):
            above = made[index.parent[node]]
            assert above is not None  # validated: a parent is a folder before it
            made[node] = self._node(index, layer, node, above)

    def _node(self, index: LayerIndex, layer: int, node: int, above: _Folder) -> _Folder | None:
        flags, name = index.flags[node], index.names[node]
        kind = index.mode[node] & 0o170000
        if is_left_out(index, node) or (not kind and not flags & (LINK | LOWER_LINK)):
            if flags & HIDES:
                above.children.pop(name, None)
                above.marks = True
            return None
        if flags & LOWER_LINK:
            above.children.pop(name, None)
            above.marks = True
            self._note(self._links, index.path(node))
            return None
        if kind == stat.S_IFDIR:
            below = above.children.get(name)
            merges = isinstance(below, _Folder) and not flags & HIDES
            found = (
                below if isinstance(below, _Folder) and merges and not flags & OPAQUE else _Folder(parts=0)
            )
            found.parts += 1
            found.stale = merges and bool(flags & IMPLIED)
            above.children[name] = found
            return found
        inode = (layer, index.offset[node] if flags & LINK else node)
        above.children[name] = inode
        if flags & LINK:
            self._names[inode] = self._names.get(inode, 1) + 1
        return None

    def glue(self, view: ChainView) -> frozenset[bytes]:
        """The paths, of folders and of files with all their names, that must stand in the glue folder."""
        folders: set[bytes] = set()
        shown: dict[Inode, list[Steps]] = {}
        self._text = sum(map(_cost, self._links))
        todo: list[tuple[Steps, _Folder]] = [(None, self._root)]
        while todo:
            steps, folder = todo.pop()
            if folder.stale or (folder.marks and folder.parts == 1):
                self._note(folders, joined(steps))
            for name, child in folder.children.items():
                if isinstance(child, _Folder):
                    todo.append(((steps, name), child))
                elif child in self._names:
                    shown.setdefault(child, []).append((steps, name))
        files = {path for path in self._links if _is_file(view, path)}
        for inode, paths in shown.items():
            if len(paths) != self._names[inode]:
                for steps in paths:
                    self._note(files, joined(steps))
        return frozenset(folders | _whole_groups(view, files))

    def _note(self, paths: set[bytes], path: bytes) -> None:
        """Remember a path that must stand in the glue folder, within bounds: deep folders have long ones."""
        paths.add(path)
        self._text += _cost(path)
        if self._text > _MOST_TEXT:
            raise ResourceExhausted(
                "stack layers",
                f"what overlayfs would show wrong has paths of more than {_MOST_TEXT} bytes",
                hint="use the driver erofs or native",
            )


def _cost(path: bytes) -> int:
    """The bytes of a path and of all above it."""
    return len(path) * (2 + path.count(b"/")) // 2


def _is_file(view: ChainView, path: bytes) -> bool:
    entry = view.lookup(path)
    return entry is not None and not stat.S_ISDIR(entry.mode)


def _whole_groups(view: ChainView, files: set[bytes]) -> set[bytes]:
    """The files, with all the names that each of them has in the chain."""
    wanted: set[tuple[int, int]] = set()
    for path in files:
        entry = view.lookup(path)
        if entry is not None and entry.inode.nlink > 1:
            wanted.add((entry.image, entry.inode.nid))
    root = view.lookup(b"") if wanted else None
    if root is None:
        return files
    return files | {path for place, path in view.shared(root, b"") if place in wanted}
