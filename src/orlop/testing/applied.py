"""Layers applied in this process: tars in, the tree that an image of them shows out; nothing is mounted.

It runs orlop's own reader, builder, merge, EROFS writer and EROFS reader, one after the other, and
checks on the way what must hold of any bytes: an index that was built is valid and survives its own
file, and an image that was written reads back as the tree it was written from.  `AssertionError` says
that a promise was broken; the errors of `orlop.errors` are answers.

Everything is held in memory: for tests, property tests and fuzzers, not for images of real size.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.erofs.reader import Image, Inode
from orlop.erofs.tree import Node
from orlop.erofs.writer import build
from orlop.layers.builder import IndexBuilder
from orlop.layers.chainview import ChainView, LowerEntry
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import LayerIndex
from orlop.layers.merge import LowerLinkError, Merger
from orlop.layers.nested import unescape_xattrs
from orlop.layers.store import copies
from orlop.layers.tarread import TarReader
from orlop.testing.conformance.model import Entry, Tree
from orlop.values import dataclass, replace

__all__ = ["Applied", "apply_tars", "index_of", "merged", "merged_indexes", "shown", "stacked"]

_UUID = bytes(range(16))
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """Layers as one EROFS image: the bytes to mount, and the contents of its devices in order."""

    root: Node
    image: bytes
    devices: tuple[bytes, ...]


def index_of(tar: bytes, *, chunk: int = 1 << 18, limits: Limits = DEFAULT_LIMITS) -> LayerIndex:
    """The index of a tar, read in chunks of ``chunk`` bytes; checked as the worker's answer is."""
    reader = TarReader((tar[at : at + chunk] for at in range(0, len(tar), chunk)), limits=limits)
    builder = IndexBuilder(limits=limits)
    for entry in reader:
        builder.add(entry)
    assert reader.size == len(tar), "the reader lost count"
    index = builder.finish(reader.size)
    index.validate(tar_size=len(tar), limits=limits)
    encoded = index.encode()
    again = LayerIndex.decode(encoded)
    assert again == index, "the index's file is another index"
    assert again.encode() == encoded, "the index's file has two forms"
    return index


def merged(tars: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS) -> Applied:
    """Layers, bottom first, as one image."""
    return _image([(tar, index_of(tar, limits=limits)) for tar in tars], None)


def merged_indexes(layers: Iterable[tuple[bytes, LayerIndex]]) -> Applied:
    """Layers whose tars have been indexed, bottom first, as one image."""
    return _image(layers, None)


def stacked(tars: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS) -> list[Applied] | None:
    """The same, each layer as a small image on top of the one before; None where that cannot be."""
    stack: list[Applied] = []
    view: ChainView | None = None
    for tar in tars:
        try:
            stack.append(_image([(tar, index_of(tar, limits=limits))], view))
        except LowerLinkError:
            return None
        view = ChainView([Image(one.image) for one in reversed(stack)])
    return stack


def shown(stack: Sequence[Applied]) -> Tree:
    """The tree that images on top of one another show, the lowest first."""
    view = ChainView([Image(one.image) for one in reversed(stack)])
    devices = [one.devices for one in reversed(stack)]
    root = view.lookup(b"")
    assert root is not None, "an image without a root"
    found: Tree = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    todo: list[tuple[bytes, LowerEntry]] = [(b"", root)]
    while todo:
        path, entry = todo.pop()
        image = view.images[entry.image]
        found[path] = _entry(image, entry.inode, devices[entry.image], entry.raw_xattrs)
        if stat.S_ISDIR(entry.mode):
            for name in view.names(entry):
                child = view.child(entry, name)
                assert child is not None, f"{name!r} is listed in {path!r} and not there"
                todo.append((path + b"/" + name if path else name, child))
        elif entry.inode.nlink > 1:
            names.setdefault((entry.image, entry.inode.nid), []).append(path)
    for twins in names.values():
        if len(twins) > 1:
            for path in twins:
                found[path] = replace(found[path], twins=tuple(sorted(twins)))
    return found


def apply_tars(tars: Sequence[bytes], *, limits: Limits = DEFAULT_LIMITS) -> Tree:
    """The tree of an image of these layers, bottom first."""
    return shown([merged(tars, limits=limits)])


def _image(layers: Iterable[tuple[bytes, LayerIndex]], below: ChainView | None) -> Applied:
    merger = Merger(below=below)
    devices: list[bytes] = []
    for tar, index in layers:
        layout = DataLayout(index)
        merger.apply(index, _Devices(devices, tar, index, layout), layout)
    root = merger.finish()
    # Whole blocks: of a last block cut short the kernel reads nothing
    whole = tuple(data + bytes(-len(data) % 512) for data in devices)
    image = bytes(build(root, devices=[len(data) for data in whole], uuid=_UUID))
    with Image(image) as read:
        assert _names(root) == {path: inode.mode for path, inode in read.walk()}, "the image is another tree"
    return Applied(root=root, image=image, devices=whole)


class _Devices:
    """Numbers a layer's tar and its layer.data as they are asked for."""

    def __init__(self, devices: list[bytes], tar: bytes, index: LayerIndex, layout: DataLayout) -> None:
        self._devices, self._tar, self._index, self._layout = devices, tar, index, layout
        self._numbers: dict[bool, int] = {}

    def __call__(self, data: bool) -> int:
        if data not in self._numbers:
            self._devices.append(_data(self._tar, self._index, self._layout) if data else self._tar)
            self._numbers[data] = len(self._devices)
        return self._numbers[data]


def _names(root: Node) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    todo = [(b"", root)]
    while todo:
        path, node = todo.pop()
        found[path] = node.mode
        todo += [
            (path + b"/" + name if path else name, child) for name, child in (node.children or {}).items()
        ]
    return found


def _data(tar: bytes, index: LayerIndex, layout: DataLayout) -> bytes:
    """What layer.data holds."""
    data = bytearray(layout.size)
    for source, target, length in copies(index, layout):
        data[target : target + length] = tar[source : source + length]
    return bytes(data)


def _entry(
    image: Image, inode: Inode, devices: Sequence[bytes], xattrs: tuple[tuple[bytes, bytes], ...]
) -> Entry:
    kind = inode.mode & 0o170000
    digest = ""
    if kind == stat.S_IFREG:
        hasher = hashlib.sha256()
        for part in _content(image, inode, devices):
            hasher.update(part)
        digest = hasher.hexdigest()
    return Entry(
        kind=_KINDS[kind],
        mode=inode.mode & 0o7777,
        uid=inode.uid,
        gid=inode.gid,
        mtime_ns=inode.mtime * 1_000_000_000 + inode.nsec,
        size=None if kind == stat.S_IFDIR else inode.size,
        digest=digest,
        target=image.target(inode) if kind == stat.S_IFLNK else b"",
        device=(os.major(inode.rdev), os.minor(inode.rdev)),
        xattrs=tuple(
            sorted(
                (name.decode("utf-8", "surrogateescape"), value) for name, value in unescape_xattrs(xattrs)
            )
        ),
    )


def _content(image: Image, inode: Inode, devices: Sequence[bytes]) -> Iterator[bytes]:
    """A file's bytes, holes as zeros, in pieces."""
    for extent in image.extents(inode):
        if extent.device:
            yield devices[extent.device - 1][extent.offset : extent.offset + extent.length]
            continue
        left = extent.length
        while left:
            yield bytes(min(left, 1 << 20))
            left -= min(left, 1 << 20)
