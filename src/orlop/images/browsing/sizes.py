"""A tree as a list of lines, each with the size of all that is below it."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Generator, Hashable, Iterator

from orlop.erofs.tree import Node as Merged
from orlop.images.browsing.diff import differs
from orlop.images.browsing.nodes import Node, Tree
from orlop.images.browsing.verbs import info_of
from orlop.images.comparing import TreeLine
from orlop.layers.origins import origin_of

__all__ = ["tree_lines"]


def tree_lines(tree: Tree, top: Node, depth: int | None, merged: Merged | None) -> Generator[TreeLine]:
    """What is at and below a node, depth first; ``merged`` is the tree of origins, where they are asked for.

    The tree is walked twice: what a folder's line tells is only known after all below it.
    """
    totals = _Totals(tree, top)
    number = 0  # of folders passed
    todo = [(top, 0, _below(merged, top.path))]
    while todo:
        node, level, origin = todo.pop()
        total, entries = node.size if node.is_file else 0, 0
        if node.is_folder:
            total, entries, folders = totals.of(number)
            if depth is not None and level >= depth:
                number += folders
            else:
                for child in reversed(list(tree.children(node))):
                    members = origin.children if origin is not None else None
                    todo.append((child, level + 1, (members or {}).get(child.name)))
            number += 1
        yield TreeLine(
            file=info_of(node), total=total, entries=entries, layer=_layer(node, origin), depth=level
        )


class _Totals:
    """Bytes, names and folders below each folder of a tree, by the order in which a walk meets them."""

    def __init__(self, tree: Tree, top: Node) -> None:
        self._bytes = array("Q")
        self._names = array("Q")
        self._folders = array("Q")
        seen: set[Hashable] = set()
        above: list[tuple[int, int]] = []  # of the folders on the way: the level and the number
        for level, is_folder, size, link in _walked(tree, top):
            while above and above[-1][0] >= level:
                self._leave(above)
            if above:
                self._names[above[-1][1]] += 1
            if is_folder:
                above.append((level, len(self._bytes)))
                for column in (self._bytes, self._names, self._folders):
                    column.append(0)
            elif size and above:
                if link is None or link not in seen:
                    self._bytes[above[-1][1]] += size
                if link is not None:
                    seen.add(link)
        while above:
            self._leave(above)

    def _leave(self, above: list[tuple[int, int]]) -> None:
        _, number = above.pop()
        if above:
            parent = above[-1][1]
            self._bytes[parent] += self._bytes[number]
            self._names[parent] += self._names[number]
            self._folders[parent] += self._folders[number] + 1

    def of(self, number: int) -> tuple[int, int, int]:
        """Of the folder with this number."""
        return self._bytes[number], self._names[number], self._folders[number]


def _walked(tree: Tree, top: Node) -> Iterator[tuple[int, bool, int, Hashable | None]]:
    """What the sums need of all at and below a node, in the order of `Tree.walk`.

    How deep it is, whether a folder, the bytes of a file, and the same for all names of one file (else None).
    """
    level = top.path.count(b"/") + bool(top.path)
    if top.up is None and top.lower is not None:  # as the chain has it: no node is made of each
        yield level, top.is_folder, top.size if top.is_file else 0, top.link
        view = tree.view
        stack = [view.members(top.lower)] if top.is_folder else []
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                continue
            entry = found[1]
            inode = entry.inode
            kind = inode.mode & 0o170000
            if kind == stat.S_IFDIR:
                yield level + len(stack), True, 0, None
                stack.append(view.members(entry))
            else:
                link = (entry.image, inode.nid) if inode.nlink > 1 else None
                yield level + len(stack), False, inode.size if kind == stat.S_IFREG else 0, link
            tree.look()
        return
    for node in tree.walk(top):
        level = node.path.count(b"/") + bool(node.path)
        yield level, node.is_folder, node.size if node.is_file else 0, node.link


def _below(merged: Merged | None, path: bytes) -> Merged | None:
    for part in path.split(b"/"):
        if part and merged is not None:
            merged = (merged.children or {}).get(part)
    return merged


def _layer(node: Node, origin: Merged | None) -> int:
    """The layer that brought a node; 0 where nobody asks, or where a root's own changes did."""
    if origin is None:
        return 0
    if node.changed:  # or a folder above a change, which is listed beside it
        before = Tree(node.tree.view, node.tree.devices, call=node.tree.call)
        try:
            old = before.exact(node.path)
            if old is None or differs(old, node):
                return 0
        finally:
            before.close()
    return origin_of(origin).layer + 1
