"""A chain read without mounting it: what overlayfs would show of a stack of EROFS images.

Commit compares an upper with it, and a small top is built above it, each touching only the paths it
asks for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from orlop.erofs.reader import Image, Inode, open_image
from orlop.errors import FailedPrecondition
from orlop.hints import Any, Self
from orlop.layers.index import Xattrs
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["ChainView", "LowerEntry", "LowerReader", "Steps", "joined"]

CHUNK = 1 << 20

Steps = tuple[Any, bytes] | None
"""A path as what lies above it and its last name: in a deep folder of many, thousands share the long part."""
_OPAQUE = (b"trusted.overlay.opaque", b"y")


@dataclass(frozen=True, slots=True)
class LowerEntry:
    """One thing in the merged view: the inode that shows, and where it comes from.

    ``image`` is its number in the stack, 0 the top.  For a folder ``merged`` lists every folder of
    the stack that takes part, top first.
    """

    view: ChainView
    image: int
    inode: Inode
    merged: tuple[tuple[int, Inode], ...] = ()

    @property
    def mode(self) -> int:
        """The whole st_mode."""
        return self.inode.mode

    @property
    def uid(self) -> int:
        """The owner."""
        return self.inode.uid

    @property
    def gid(self) -> int:
        """The group."""
        return self.inode.gid

    @property
    def size(self) -> int:
        """Bytes of a file or of a symlink's target."""
        return self.inode.size

    @property
    def mtime(self) -> int:
        """Seconds since 1970."""
        return self.inode.mtime

    @property
    def nsec(self) -> int:
        """Nanoseconds of the mtime."""
        return self.inode.nsec

    @property
    def rdev(self) -> int:
        """A device's number."""
        return self.inode.rdev

    @property
    def target(self) -> bytes:
        """A symlink's target."""
        return self.view.images[self.image].target(self.inode)

    @property
    def raw_xattrs(self) -> Xattrs:
        """The xattrs as they stand in the image, without our own opaque mark."""
        return tuple(pair for pair in self.view.images[self.image].xattrs(self.inode) if pair != _OPAQUE)


class ChainView:
    """The merged view of a stack of images, top first.  Close it, or use it as a context manager."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.images = tuple(images)
        self._exit = ExitStack()

    @classmethod
    def open(cls, images: Sequence[Path | bytes | bytearray]) -> ChainView:
        """Open the images of a chain, top first: files, or what would be in them."""
        with ExitStack() as stack:
            view = cls(
                [
                    stack.enter_context(
                        Image(image) if isinstance(image, (bytes, bytearray)) else open_image(image)
                    )
                    for image in images
                ]
            )
            view._exit = stack.pop_all()
        return view

    def _root(self) -> LowerEntry | None:
        merged: list[tuple[int, Inode]] = []
        for number, image in enumerate(self.images):
            inode = image.lookup(b"root")
            if inode is not None:
                merged.append((number, inode))
        if not merged:
            return None
        return LowerEntry(self, *merged[0], merged=tuple(merged))

    def lookup(self, path: bytes) -> LowerEntry | None:
        """What stands at a path without leading slash; ``b""`` is the root.  Follows no symlink."""
        entry = self._root()
        for part in path.split(b"/"):
            if not part:
                continue
            if entry is None or not stat.S_ISDIR(entry.mode):
                return None
            entry = self.child(entry, part)
        return entry

    def child(self, folder: LowerEntry, name: bytes) -> LowerEntry | None:
        """One entry of a merged folder."""
        merged: list[tuple[int, Inode]] = []
        for number, inode in folder.merged:
            image = self.images[number]
            found = image.child(inode, name)
            if found is None:
                continue
            if stat.S_ISCHR(found.mode) and found.rdev == 0:
                break  # a whiteout
            if not stat.S_ISDIR(found.mode):
                if not merged:
                    return LowerEntry(self, number, found)
                break
            merged.append((number, found))
            if _OPAQUE in image.xattrs(found):
                break
        if not merged:
            return None
        return LowerEntry(self, *merged[0], merged=tuple(merged))

    def names(self, folder: LowerEntry) -> Iterator[bytes]:
        """The names in a merged folder, each once, in no order."""
        if len(folder.merged) == 1:
            number, inode = folder.merged[0]
            for name, nid, _ in self.images[number].entries(inode):
                if len(self.images) == 1 or not _is_whiteout(self.images[number], nid):
                    yield name
            return
        seen: set[bytes] = set()
        for number, inode in folder.merged:
            image = self.images[number]
            for name, nid, _ in image.entries(inode):
                if name not in seen:
                    seen.add(name)
                    if not _is_whiteout(image, nid):
                        yield name

    def members(self, folder: LowerEntry) -> Iterator[tuple[bytes, LowerEntry]]:
        """The entries of a merged folder, names in byte order."""
        if len(folder.merged) == 1:
            ((number, inode),) = folder.merged
            for name, found in self.images[number].members(inode):
                if stat.S_ISDIR(found.mode):
                    yield name, LowerEntry(self, number, found, merged=((number, found),))
                elif not (stat.S_ISCHR(found.mode) and found.rdev == 0):
                    yield name, LowerEntry(self, number, found)
            return
        for name in sorted(self.names(folder)):
            entry = self.child(folder, name)
            if entry is not None:
                yield name, entry

    def shared(self, entry: LowerEntry, path: bytes) -> Iterator[tuple[tuple[int, int], bytes]]:
        """The files with several names at or below an entry: (image, nid), and the path of each name."""
        start: Steps = (None, path) if path else None
        todo: list[tuple[LowerEntry, Steps]] = [(entry, start)]
        while todo:
            at, steps = todo.pop()
            if not stat.S_ISDIR(at.mode):
                if at.inode.nlink > 1:
                    yield (at.image, at.inode.nid), joined(steps)
                continue
            for name in self.names(at):
                child = self.child(at, name)
                if child is not None and (child.inode.nlink > 1 or stat.S_ISDIR(child.mode)):
                    todo.append((child, (steps, name)))

    def close(self) -> None:
        """Let go of the files.  Idempotent."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class LowerReader:
    """Reads files of a chain through the tars that its images point into."""

    def __init__(self, view: ChainView, devices: Sequence[Sequence[Path]]) -> None:
        self._view = view
        self._devices = devices

    def chunks(self, entry: LowerEntry) -> Iterator[bytes]:
        """A file's bytes, holes as zeros, in chunks of at most 1 MiB."""
        for extent in self._view.images[entry.image].extents(entry.inode):
            left, at = extent.length, extent.offset
            if not extent.device:
                while left:
                    yield bytes(min(left, CHUNK))
                    left -= min(left, CHUNK)
                continue
            with open(self._devices[entry.image][extent.device - 1], "rb", buffering=0) as data:
                while left:
                    chunk = os.pread(data.fileno(), min(left, CHUNK), at)
                    if not chunk:
                        raise FailedPrecondition("read layer", "a layer's tar is shorter than its index says")
                    yield chunk
                    left -= len(chunk)
                    at += len(chunk)

    def equals(self, entry: LowerEntry, fd: int, call: Call) -> bool:
        """Whether an open file of the same size has the same bytes."""
        at = 0
        for chunk in self.chunks(entry):
            call.check("compare files")
            if os.pread(fd, len(chunk), at) != chunk:
                return False
            at += len(chunk)
        return True


def joined(steps: Steps) -> bytes:
    """The text of a path."""
    parts: list[bytes] = []
    while steps is not None:
        steps, name = steps
        parts.append(name)
    return b"/".join(reversed(parts))


def _is_whiteout(image: Image, nid: int) -> bool:
    inode = image.inode(nid)
    return stat.S_ISCHR(inode.mode) and inode.rdev == 0
