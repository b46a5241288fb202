"""Where the entries of a folder come from: one layer's index, or a chain as it shows.

A layer's folder does not depend on what lies below it: whiteouts and opaque marks stand in it as overlayfs
knows them, and what a layer cannot say alone (folders it only implies, hard links to lower layers) is left
to the glue that `orlop.layers.stacking` plans.  A chain's tree, or a part of it, has none of that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from orlop.hints import Self
from orlop.layers.chainview import ChainView, LowerEntry
from orlop.layers.folder import Item, Piece
from orlop.layers.index import COPIED, HIDES, IMPLIED, LINK, OPAQUE, LayerIndex
from orlop.layers.nested import unescape_xattrs

__all__ = ["DeviceFiles", "is_left_out", "layer_items", "tree_items"]


class DeviceFiles:
    """The data files of a chain's images, opened when first needed.  A context manager."""

    def __init__(self, devices: Sequence[Sequence[Path]]) -> None:
        self._paths = devices
        self._open: dict[tuple[int, int], int] = {}
        self._exit = ExitStack()

    def fd(self, image: int, device: int) -> int:
        """The descriptor of a device of an image, by their numbers."""
        found = self._open.get((image, device))
        if found is None:
            found = os.open(self._paths[image][device - 1], os.O_RDONLY | os.O_CLOEXEC)
            self._exit.callback(os.close, found)
            self._open[image, device] = found
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()


def layer_items(index: LayerIndex, tar: int) -> Iterator[Item]:
    """The entries of one layer, for a lower of an overlay; ``tar`` is a descriptor of its tar."""
    modes, all_flags, offsets = index.mode, index.flags, index.offset
    linked = {offsets[node] for node, flags in enumerate(all_flags) if flags & LINK}
    columns = zip(
        index.parent, index.names, index.uid, index.gid, index.mtime, index.nsec, index.size, strict=True
    )
    for node, (parent, name, uid, gid, mtime, nsec, size) in enumerate(columns):
        mode, flags = modes[node], all_flags[node]
        kind = mode & 0o170000
        left_out = is_left_out(index, node)
        if left_out and not flags & HIDES:
            continue
        item = Item(node, parent, name, mode)
        item.uid, item.gid, item.mtime, item.nsec = uid, gid, mtime, nsec
        if left_out:
            item.whiteout = True
        elif flags & LINK:
            item.hard = offsets[node]
        elif not kind:
            item.whiteout = True  # also in the place of a link to a lower layer: the glue has the file
        elif kind == stat.S_IFREG:
            item.size = size
            item.pieces = _pieces(index, node, tar, flags)
        elif kind == stat.S_IFLNK:
            item.target = index.targets[node]
        elif kind == stat.S_IFDIR:
            item.opaque = bool(flags & (OPAQUE | HIDES)) and node > 0  # overlayfs asks no root
            if flags & IMPLIED:
                item.mtime, item.nsec = index.time, index.time_nsec
        else:
            item.rdev = offsets[node]
        if node in index.xattrs:
            item.xattrs = index.xattrs[node]
        item.shared = node in linked
        yield item


def is_left_out(index: LayerIndex, node: int) -> bool:
    """Whether a node is a device 0/0, or a link to one: a whiteout to overlayfs, so no driver has it."""
    if index.flags[node] & LINK:
        node = index.offset[node]
    return stat.S_ISCHR(index.mode[node]) and index.offset[node] == 0


def _pieces(index: LayerIndex, node: int, tar: int, flags: int) -> tuple[Piece, ...]:
    if flags & COPIED and node in index.sparse:
        return tuple((tar, source, offset, length) for offset, length, source in index.sparse[node] if length)
    return ((tar, index.offset[node], 0, index.size[node]),) if index.size[node] else ()


def tree_items(
    view: ChainView, files: DeviceFiles, *, only: frozenset[bytes] | None = None
) -> Iterator[Item]:
    """The entries of a chain as it shows, names in byte order; of ``only`` some paths and what lies above.

    Of a file with several names, those among ``only`` are one file again.
    """
    root = view.lookup(b"")
    if root is None:
        return
    first: dict[tuple[int, int], int] = {}  # an inode with several names -> the key of its first
    wanted = None if only is None else _with_folders(only)
    key = 0
    todo: list[tuple[int, bytes, bytes, LowerEntry]] = [(0, b"", b"", root)]
    while todo:
        parent, name, path, entry = todo.pop()
        item = Item(key, parent, name, entry.mode)
        place = (entry.image, entry.inode.nid)
        folder = stat.S_ISDIR(entry.mode)
        if not folder and entry.inode.nlink > 1:
            item.hard = first.setdefault(place, key)
            item.hard, item.shared = (-1, True) if item.hard == key else (item.hard, False)
        _fill(item, view, entry, files)
        yield item
        if folder and wanted != {b""}:
            names = sorted(view.names(entry), reverse=True)
            for below in names:
                # Without a choice nobody asks for the paths, which would be long in a deep folder of many.
                deeper = b"" if wanted is None else path + b"/" + below if path else below
                if wanted is not None and deeper not in wanted:
                    continue
                child = view.child(entry, below)
                if child is not None:
                    todo.append((key, below, deeper, child))
        key += 1


def _with_folders(paths: frozenset[bytes]) -> set[bytes]:
    """The paths, and all above them."""
    found: set[bytes] = {b""}
    for path in paths:
        while path not in found:
            found.add(path)
            path = path.rpartition(b"/")[0]  # noqa: PLW2901
    return found


def _fill(item: Item, view: ChainView, entry: LowerEntry, files: DeviceFiles) -> None:
    kind = entry.mode & 0o170000
    item.uid, item.gid, item.mtime, item.nsec = entry.uid, entry.gid, entry.mtime, entry.nsec
    item.xattrs = unescape_xattrs(entry.raw_xattrs)
    if kind == stat.S_IFREG:
        item.size = entry.size
        pieces: list[Piece] = []
        at = 0
        for extent in view.images[entry.image].extents(entry.inode):
            if extent.device:
                pieces.append((files.fd(entry.image, extent.device), extent.offset, at, extent.length))
            at += extent.length
        item.pieces = tuple(pieces)
    elif kind == stat.S_IFLNK:
        item.target = entry.target
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        item.rdev = entry.rdev
