"""Archives and layouts to import from: names in, open files out; nothing is unpacked.

A folder is read through a directory descriptor, never through a symlink.  A tar is indexed by the confined
worker, like a layer, and its members are then read where they lie; a compressed one is decompressed into
the store's own ingest folder first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orlop.config import over_limit
from orlop.errors import InvalidArgument, NotFound, from_oserror
from orlop.images.core import Core
from orlop.layers.builder import MAX_FOLLOW, clean
from orlop.layers.compression import detect
from orlop.layers.index import COPIED, LINK, LayerIndex
from orlop.layers.worker.client import Feed, Unpacked, unpack
from orlop.linux.files import open_beneath
from orlop.observe import Call

__all__ = ["Member", "Source", "open_source", "read_member"]

_SHOWN = 300  # characters of a name in an archive that an error repeats


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: a descriptor (owned by the source), where its bytes start, how many."""

    fd: int
    offset: int
    size: int


class Source(Protocol):
    """An archive or a folder that images are imported from."""

    def find(self, name: str) -> Member | None:
        """A regular file by its path, or None; good until the next `release`."""
        ...

    def release(self) -> None:
        """Let go of the files that were found."""
        ...


def read_member(source: Source, name: str, *, limit: str, most: int, attempted: str) -> bytes:
    """A small file's bytes.  Raises `NotFound`, or `ResourceExhausted` past ``most``, the limit ``limit``."""
    shown = name[:_SHOWN]
    member = source.find(name)
    if member is None:
        raise NotFound(attempted, f"there is no {shown} in it")
    try:
        if member.size > most:
            raise over_limit(limit, member.size, most, attempted=f"{attempted}: read {shown}")
        return os.pread(member.fd, member.size, member.offset)
    except OSError as exc:
        raise from_oserror(f"read {shown}", exc) from exc
    finally:
        source.release()


@contextmanager
def open_source(core: Core, path: Path, *, call: Call) -> Iterator[Source]:
    """Open a folder or a tar.  Raises `NotFound`, `InvalidArgument`."""
    what = f"import {path}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            with _Folder(fd) as folder:
                yield folder
        elif stat.S_ISREG(mode):
            with _archive(core, fd, what, call) as archive:
                yield archive
        else:
            raise InvalidArgument(what, "it is neither a folder nor a file")
    finally:
        os.close(fd)


class _Folder:
    """A folder, read without following any symlink in it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._open: dict[str, int] = {}

    def find(self, name: str) -> Member | None:
        fd = self._open.get(name)
        if fd is None:
            what = f"read {name[:_SHOWN]!r}"
            if "\0" in name:
                raise InvalidArgument(what, "no file has that name")
            try:
                fd = open_beneath(self._fd, name)
            except FileNotFoundError:
                return None
            except OSError as exc:
                if exc.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
                    return None
                if exc.errno in (errno.ELOOP, errno.EXDEV):
                    raise InvalidArgument(what, "symlinks in a layout are not followed") from exc
                if exc.errno == errno.EINVAL:
                    raise InvalidArgument(what, "it is not a regular file") from exc
                raise from_oserror(what, exc) from exc
            self._open[name] = fd
        return Member(fd, 0, os.fstat(fd).st_size)

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()

    def release(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


@contextmanager
def _archive(core: Core, fd: int, what: str, call: Call) -> Iterator[Source]:
    """A tar, plain or compressed."""
    size = os.fstat(fd).st_size
    plain = detect(os.pread(fd, 6, 0)) == "plain"
    core.template.start()
    feed = Feed.whole(size)
    try:
        if plain:
            found = _indexed(core, fd, feed, None, what, call)
            if found.index.tar_size != size:
                raise InvalidArgument("read archive", "its index does not fit it")
            yield _Tar(fd, found.index)
            return
        with core.layers.new() as scratch:
            found = _indexed(core, fd, feed, scratch.tar, what, call)
            yield _Tar(scratch.tar, found.index)
    finally:
        feed.close()


def _indexed(core: Core, fd: int, feed: Feed, tar: int | None, what: str, call: Call) -> Unpacked:
    try:
        return unpack(core.template, fd, feed, tar=tar, limits=core.settings.limits, call=call)
    except InvalidArgument as exc:
        raise InvalidArgument(what, exc.reason, hint=exc.hint) from exc


class _Tar:
    """An indexed tar; symlinks and hard links in it are followed within it."""

    def __init__(self, fd: int, index: LayerIndex) -> None:
        self._fd = fd
        self._index = index
        self._nodes = {(index.parent[node], index.names[node]): node for node in range(1, len(index))}

    def find(self, name: str) -> Member | None:
        index = self._index
        node = self._walk(clean(os.fsencode(name)))
        if node is None or not stat.S_ISREG(index.mode[node]):
            return None
        if index.flags[node] & COPIED and node in index.sparse:
            raise InvalidArgument(f"read {name}", "it is a sparse member")
        return Member(self._fd, index.offset[node], index.size[node])

    def release(self) -> None:
        """Nothing is open but the archive itself."""

    def _walk(self, parts: list[bytes]) -> int | None:
        index, followed = self._index, 0
        at: list[bytes] = []
        todo = parts[::-1]
        node = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                at = at[:-1]
                node = self._walk(at) or 0
                continue
            child = self._nodes.get((node, part))
            if child is not None and index.flags[child] & LINK:
                child = index.offset[child]
            if child is None:
                return None
            if stat.S_ISLNK(index.mode[child]):
                followed += 1
                if followed > MAX_FOLLOW:
                    return None
                target = index.targets[child]
                if target.startswith(b"/"):
                    node, at = 0, []
                todo.extend(p for p in reversed(target.split(b"/")) if p not in (b"", b"."))
                continue
            at.append(part)
            node = child
        return node
