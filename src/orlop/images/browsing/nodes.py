"""Trees of files that are looked at without mounting them: a chain, and what a root's upper changes of it.

A `Tree` shows what the mounted root would: of a chain it reads a few blocks for each folder on the way, and
lies the upper's changes over it as commit finds them (`orlop.layers.diff`), so that one place says what an
upper means.  Not here: where the chain and the upper come from (`orlop.images.browsing.trees`).

Paths are bytes without a leading slash, ``b""`` the root.  No path leads out: ``..`` stops at the root and
symlinks begin there, as openat2(2) has it with RESOLVE_IN_ROOT.  A tree is used by one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from orlop.erofs.reader import Extent
from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.images.browsing.node import Node, Up
from orlop.layers.chainview import ChainView
from orlop.layers.changes import FREEZE, MOVED_AWAY, Change, text_of
from orlop.layers.sources import DeviceFiles
from orlop.layers.upper import open_below
from orlop.observe import Call

__all__ = ["CHUNK", "Node", "Tree", "data_of"]

CHUNK = 1 << 20  # bytes that a file is read by at most
_MAX_LINKS = 40  # MAXSYMLINKS, include/linux/namei.h
_OFTEN = 256  # entries between two looks at the call


class Tree:
    """What a chain, and perhaps an upper over it, shows.

    ``changes`` are the upper's, ``upper`` is a descriptor of it that stays the caller's; ``devices`` are the
    data files of the view's images.  ``close`` lets go of the files that were opened to be read.
    """

    def __init__(
        self,
        view: ChainView,
        devices: Sequence[Sequence[Path]],
        *,
        changes: Sequence[Change] = (),
        upper: int = -1,
        call: Call,
    ) -> None:
        self.view = view
        self.call = call
        self.devices = devices
        self._files = DeviceFiles(devices)
        self._upper = upper
        self._names: dict[bytes, int] = {}  # of files of the upper with several names -> how many
        self._up = self._grow(changes) if changes else None
        self._steps = 0

    def _grow(self, changes: Sequence[Change]) -> Up:
        root = Up()
        for change in changes:
            at = root
            for part in change.member.path.split(b"/"):
                if part:
                    found = at.children.get(part)
                    if found is None:
                        found = at.children[part] = Up()
                    at = found
            at.change = change
            if change.member.hard:
                first = change.member.link
                self._names[first] = self._names.get(first, 1) + 1
        return root

    # -- for nodes ------------------------------------------------------------------------------

    def change_of(self, up: Up | None) -> Change | None:
        """The upper's entry of a name; that of the first name for a file with several."""
        if up is None or up.change is None or not up.change.member.hard:
            return None if up is None else up.change
        at = self._up
        for part in up.change.member.link.split(b"/"):
            at = at.children.get(part) if at is not None else None
        if at is None or at.change is None:
            raise DataLoss("read changes", f"/{text_of(up.change.member.path)} links to nothing")
        return at.change

    def names_of(self, path: bytes) -> int:
        """How many names the upper's file has whose first name is ``path``."""
        return self._names.get(path, 1)

    # -- looking --------------------------------------------------------------------------------

    @property
    def root(self) -> Node:
        """The root folder."""
        lower = self.view.lookup(b"")
        if lower is None and self._up is None:
            raise DataLoss("read chain", "it has no root")
        return Node(self, b"", lower, self._up)

    def child(self, folder: Node, name: bytes) -> Node | None:
        """One entry of a folder; None if it has none of this name."""
        self.look()
        up = folder.up.children.get(name) if folder.up is not None else None
        path = folder.path + b"/" + name if folder.path else name
        if up is not None and up.change is not None:
            if up.change.whiteout:
                return None
            if not stat.S_ISDIR(up.change.member.mode):
                return Node(self, path, None, up)
        lower = folder.lower
        below = self.view.child(lower, name) if lower is not None and stat.S_ISDIR(lower.mode) else None
        if up is None:
            return Node(self, path, below, None) if below is not None else None
        if below is not None and not stat.S_ISDIR(below.mode):
            below = None
        return Node(self, path, below, up) if below is not None or up.change is not None else None

    def names(self, folder: Node) -> list[bytes]:
        """The names in a folder, in byte order."""
        found = set(self.view.names(folder.lower)) if folder.lower is not None else set[bytes]()
        for name, up in (folder.up.children if folder.up is not None else {}).items():
            if up.change is not None and up.change.whiteout:
                found.discard(name)
            else:
                found.add(name)
        return sorted(found)

    def children(self, folder: Node) -> Iterator[Node]:
        """The entries of a folder, names in byte order."""
        if folder.up is None and folder.lower is not None:  # as the chain has it
            prefix = folder.path + b"/" if folder.path else b""
            for name, entry in self.view.members(folder.lower):
                self.look()
                yield Node(self, prefix + name, entry, None)
            return
        for name in self.names(folder):
            node = self.child(folder, name)
            if node is not None:
                yield node

    def walk(self, node: Node) -> Iterator[Node]:
        """A node and all below it: depth first, folders before what is in them, names in byte order."""
        yield node
        stack = [self.children(node)] if node.is_folder else []
        while stack:
            child = next(stack[-1], None)
            if child is None:
                stack.pop()
                continue
            yield child
            if child.is_folder:
                stack.append(self.children(child))

    def exact(self, path: bytes) -> Node | None:
        """What has this clean path in the tree; no symlink is followed."""
        node: Node | None = self.root
        for part in path.split(b"/") if path else ():
            node = self.child(node, part) if node is not None and node.is_folder else None
        return node

    def lookup(self, path: bytes, *, follow: bool = True) -> Node | None:
        """What a path names; None if there is nothing.

        Symlinks on the way are followed within the root, that of the last name with ``follow``, or where a
        slash follows it.  Raises `FailedPrecondition` for more than 40 of them.
        """
        todo = [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]
        must_be_folder = path.endswith((b"/", b"/.")) and bool(todo)
        above, links = [self.root], 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if len(above) > 1:
                    above.pop()
                continue
            if not above[-1].is_folder:
                return None
            node = self.child(above[-1], name)
            if node is None:
                return None
            if node.is_link and (todo or follow or must_be_folder):
                links += 1
                if links > _MAX_LINKS:
                    what = f"look up /{text_of(path.lstrip(b'/'))}"
                    raise FailedPrecondition(what, "too many levels of symbolic links")
                target = node.target
                if target.startswith(b"/"):
                    del above[1:]
                must_be_folder = must_be_folder or (not todo and target.endswith((b"/", b"/.")))
                todo += [part for part in reversed(target.split(b"/")) if part not in {b"", b"."}]
                continue
            above.append(node)
        return None if must_be_folder and not above[-1].is_folder else above[-1]

    def require(self, path: bytes, attempted: str, *, follow: bool = True) -> Node:
        """As `lookup`, but raises `NotFound`."""
        node = self.lookup(path, follow=follow)
        if node is None:
            raise NotFound(attempted, f"there is no /{text_of(path.lstrip(b'/'))}")
        return node

    # -- reading --------------------------------------------------------------------------------

    def extents(self, node: Node) -> list[tuple[int, int]]:
        """What a file has between its holes: offsets and lengths, in order."""
        change = self._readable(node)
        if change is not None and change.lower is None:
            with self._upper_file(change, node.size) as fd:
                return list(data_of(fd, node.size))
        found: list[tuple[int, int]] = []
        at = 0
        for _, extent in self._lower_extents(node, change):
            if extent.device:
                if found and sum(found[-1]) == at:
                    found[-1] = (found[-1][0], found[-1][1] + extent.length)
                else:
                    found.append((at, extent.length))
            at += extent.length
        return found

    def pieces(self, node: Node) -> Generator[tuple[int, bytes]]:
        """What a file has: offsets and bytes, in order, at most `CHUNK` each; holes are left out.

        Raises `FailedPrecondition` where a root's file is not any more what it was when the tree was opened.
        """
        change = self._readable(node)
        if change is not None and change.lower is None:
            yield from self._upper_pieces(change, node.size)
            return
        at = 0
        for image, extent in self._lower_extents(node, change):
            if extent.device:
                fd = self._device(image, extent.device)
                for done in range(0, extent.length, CHUNK):
                    length = min(CHUNK, extent.length - done)
                    yield at + done, self._read(fd, extent.offset + done, length)
            at += extent.length

    def chunks(self, node: Node) -> Generator[bytes]:
        """A file's bytes, holes as zeros, at most `CHUNK` each."""
        at = 0
        for offset, data in self.pieces(node):
            yield from _zeros(offset - at)
            yield data
            at = offset + len(data)
        yield from _zeros(node.size - at)

    def _readable(self, node: Node) -> Change | None:
        """The upper's entry of a file, if it has one.  Raises `InvalidArgument` for what has no bytes."""
        if not node.is_file:
            raise InvalidArgument(f"read /{text_of(node.path)}", "it is no regular file")
        return self.change_of(node.up)

    def _lower_extents(self, node: Node, change: Change | None) -> Iterator[tuple[int, Extent]]:
        entry = change.lower if change is not None else node.lower
        assert entry is not None
        for extent in self.view.images[entry.image].extents(entry.inode):
            yield entry.image, extent

    def _device(self, image: int, device: int) -> int:
        try:
            return self._files.fd(image, device)
        except FileNotFoundError as exc:
            raise NotFound("read layer", "it was removed meanwhile") from exc

    def _read(self, fd: int, at: int, length: int) -> bytes:
        self.call.check("read a file")
        data = os.pread(fd, length, at)
        while len(data) < length:
            more = os.pread(fd, length - len(data), at + len(data))
            if not more:
                raise DataLoss("read layer", "a layer's tar is shorter than its index says")
            data += more
        return data

    @contextlib.contextmanager
    def _upper_file(self, change: Change, size: int) -> Iterator[int]:
        what = f"read /{text_of(change.member.path)}"
        try:
            fd = open_below(self._upper, change.member.path)
        except OSError as exc:
            raise _moved(what, exc) from exc
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode) or about.st_size != size:
                raise FailedPrecondition(what, "it changed meanwhile", hint=FREEZE)
            yield fd
        except OSError as exc:
            raise _moved(what, exc) from exc
        finally:
            os.close(fd)

    def _upper_pieces(self, change: Change, size: int) -> Iterator[tuple[int, bytes]]:
        with self._upper_file(change, size) as fd:
            for begin, length in data_of(fd, size):
                done = 0
                while done < length:
                    self.call.check("read a file")
                    data = os.pread(fd, min(CHUNK, length - done), begin + done)
                    if not data:
                        what = f"read /{text_of(change.member.path)}"
                        raise FailedPrecondition(what, "it changed meanwhile", hint=FREEZE)
                    yield begin + done, data
                    done += len(data)

    def look(self) -> None:
        """Let the call be cancelled; asked at each entry."""
        self._steps += 1
        if not self._steps % _OFTEN:
            self.call.check("look at files")

    def close(self) -> None:
        """Let go of what was opened to be read.  Idempotent."""
        self._files.__exit__(None, None, None)


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of an open file that are no holes: offsets and lengths."""
    end = 0
    while (begin := _seek(fd, end, os.SEEK_DATA, size)) < size:
        end = min(_seek(fd, begin, os.SEEK_HOLE, size), size)
        yield begin, end - begin


def _seek(fd: int, at: int, whence: int, size: int) -> int:
    """Where data or a hole begins; the end of the file where there is none any more."""
    try:
        return os.lseek(fd, at, whence)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return size
        raise


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, CHUNK))
        count -= CHUNK


def _moved(what: str, exc: OSError) -> Exception:
    if exc.errno in MOVED_AWAY:
        return FailedPrecondition(what, f"it changed meanwhile: {exc.strerror}", hint=FREEZE)
    return from_oserror(what, exc)
