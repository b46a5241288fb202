"""Two trees beside each other: what one has and the other has not, and what differs in what both have.

Nothing is mounted, and what is the very same is not looked at twice: a folder that is the same inode of the
same image of a chain is skipped with all below it, and of two folders that lie on one image only the names
are looked at that something above that image is about.  So an image beside its commit of ten files costs ten
files, whatever its size.  Contents that lie at the same place of the same layer are equal without being read.

Each name is compared as a file of its own: which names share an inode is not compared, since overlayfs itself
breaks hard links when it copies up.  Of folders the metadata are compared, not their sizes.
"""

from __future__ import annotations

import stat
from collections.abc import Hashable, Iterator
from typing import Literal

from orlop.images.browsing.nodes import Node, Tree
from orlop.layers.chainview import LowerEntry
from orlop.values import dataclass

__all__ = ["Pair", "What", "compare", "differs"]

What = Literal["added", "changed", "deleted"]
Key = tuple[tuple[bytes, int], ...]  # of each image of a chain that takes part: its UUID and an inode of it


@dataclass(frozen=True, slots=True)
class Pair:
    """One path at which two trees differ; ``fields`` say in what, where both have it.

    The fields are ``type``, ``mode``, ``owner``, ``mtime``, ``xattrs``, ``target``, ``device``, ``content``.
    """

    path: bytes
    old: Node | None
    new: Node | None
    fields: tuple[str, ...] = ()

    @property
    def what(self) -> What:
        """What became of the path."""
        if self.old is None:
            return "added"
        return "changed" if self.new is not None else "deleted"


def differs(old: Node, new: Node) -> tuple[str, ...]:
    """In what two nodes differ, whatever is below them."""
    return tuple(_Comparison(old.tree, new.tree, times=True).fields(old, new))


def compare(
    old: Tree, new: Tree, old_top: Node | None, new_top: Node | None, *, times: bool = True
) -> Iterator[Pair]:
    """The differences at and below two nodes, each folder before what is in it, names in byte order.

    Without ``times`` a difference that is only one of mtimes is none.
    """
    return _Comparison(old, new, times=times).run(old_top, new_top)


class _Comparison:
    def __init__(self, old: Tree, new: Tree, *, times: bool) -> None:
        self._old, self._new = old, new
        self._times = times

    def run(self, old: Node | None, new: Node | None) -> Iterator[Pair]:
        stack = [iter([(old, new)])]
        while stack:
            pair = next(stack[-1], None)
            if pair is None:
                stack.pop()
                continue
            one, other = pair
            if one is None or other is None:
                yield from _whole(one, other)
            elif not _same(one, other):
                if fields := tuple(self.fields(one, other)):
                    yield Pair(other.path, one, other, fields)
                if one.is_folder or other.is_folder:
                    stack.append(self._below(one, other))

    def _below(self, old: Node, new: Node) -> Iterator[tuple[Node | None, Node | None]]:
        """What is in two folders, by name in byte order; what is the very same in both may be left out."""
        shared = _shared(old, new) if old.is_folder and new.is_folder else 0
        if shared:
            for name in sorted(_names_above(old, shared) | _names_above(new, shared)):
                yield self._old.child(old, name), self._new.child(new, name)
            return
        ones = self._old.children(old) if old.is_folder else iter(())
        others = self._new.children(new) if new.is_folder else iter(())
        one, other = next(ones, None), next(others, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one.name < other.name):
                yield one, None
                one = next(ones, None)
            elif one is None or other.name < one.name:
                yield None, other
                other = next(others, None)
            else:
                yield one, other
                one, other = next(ones, None), next(others, None)

    def fields(self, old: Node, new: Node) -> Iterator[str]:
        """In what two nodes differ, whatever is below them."""
        kind = stat.S_IFMT(old.mode)
        alike = kind == stat.S_IFMT(new.mode)
        if not alike:
            yield "type"
        if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode):
            yield "mode"
        if (old.uid, old.gid) != (new.uid, new.gid):
            yield "owner"
        if self._times and (old.mtime, old.nsec) != (new.mtime, new.nsec):
            yield "mtime"
        if old.xattrs != new.xattrs:
            yield "xattrs"
        if not alike:
            return
        if kind == stat.S_IFLNK and old.target != new.target:
            yield "target"
        elif kind in (stat.S_IFCHR, stat.S_IFBLK) and old.rdev != new.rdev:
            yield "device"
        elif kind == stat.S_IFREG and not self._same_content(old, new):
            yield "content"

    def _same_content(self, old: Node, new: Node) -> bool:
        if old.size != new.size:
            return False
        place = _place(old)
        if not old.size or (place is not None and place == _place(new)):
            return True
        return _same_bytes(self._old.chunks(old), self._new.chunks(new))


def _whole(old: Node | None, new: Node | None) -> Iterator[Pair]:
    """What only one of two trees has, and all below it."""
    if new is not None:
        yield from (Pair(node.path, None, node) for node in new.tree.walk(new))
    elif old is not None:
        yield from (Pair(node.path, node, None) for node in old.tree.walk(old))


# ------------------------------------------------------------------ what need not be looked at


def _key(node: Node) -> Key:
    """The inodes of a chain that a node is; empty where that tells nothing."""
    return _key_of(node.lower) if node.lower is not None else ()


def _key_of(entry: LowerEntry) -> Key:
    images = entry.view.images
    merged = entry.merged or ((entry.image, entry.inode),)
    key = tuple((images[image].uuid, inode.nid) for image, inode in merged)
    return key if all(any(uuid) for uuid, _ in key) else ()  # a layer read alone has no UUID


def _same(old: Node, new: Node) -> bool:
    """Whether two nodes are the same inodes of the same images, and so are all things below them."""
    if old.up is not None or new.up is not None:
        return False
    key = _key(old)
    return bool(key) and key == _key(new)


def _shared(old: Node, new: Node) -> int:
    """How many folders of a chain two folders lie on together."""
    count = 0
    for one, other in zip(reversed(_key(old)), reversed(_key(new)), strict=False):
        if one != other:
            break
        count += 1
    return count


def _names_above(folder: Node, shared: int) -> set[bytes]:
    """The names that are said something of above the lowest ``shared`` folders of a chain."""
    names = set(folder.up.children) if folder.up is not None else set[bytes]()
    entry = folder.lower
    if entry is not None:
        for number, inode in entry.merged[: len(entry.merged) - shared]:
            names.update(name for name, _, _ in entry.view.images[number].entries(inode))
    return names


# ------------------------------------------------------------------ contents


def _place(node: Node) -> Hashable | None:
    """Where a file's bytes lie: the layers' files, offsets and lengths; None for a file of an upper."""
    change = node.tree.change_of(node.up)
    entry = change.lower if change is not None else node.lower
    if entry is None:
        return None
    devices = node.tree.devices[entry.image]
    return tuple(
        (devices[extent.device - 1] if extent.device else None, extent.offset, extent.length)
        for extent in entry.view.images[entry.image].extents(entry.inode)
    )


def _same_bytes(one: Iterator[bytes], other: Iterator[bytes]) -> bool:
    """Whether two files of one size have the same bytes, which come in pieces of any length."""
    left, right = memoryview(b""), memoryview(b"")
    while True:
        left = left or memoryview(next(one, b""))
        right = right or memoryview(next(other, b""))
        if not left or not right:
            return not left and not right
        length = min(len(left), len(right))
        if left[:length] != right[:length]:
            return False
        left, right = left[length:], right[length:]
