"""Archives and layouts to import from: names in, open files out; nothing is unpacked.

A folder is read through a directory descriptor, never through a symlink.  A tar is indexed by the confined
worker, like a layer, and its members are then read where they lie; a compressed one is decompressed into
a file of the store first, and so is spooled what comes as a stream (`orlop.images.archives.spool`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Protocol

from orlop.config import over_limit
from orlop.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable, from_oserror
from orlop.images.archives.spool import Spooled, spooled
from orlop.images.core import Core
from orlop.images.imports import ImportSource
from orlop.layers.builder import MAX_FOLLOW, clean
from orlop.layers.compression import detect
from orlop.layers.index import COPIED, LINK, LayerIndex
from orlop.layers.store import NewLayer
from orlop.layers.worker.client import Feed, Unpacked, unpack
from orlop.linux.files import open_beneath
from orlop.observe import Call
from orlop.values import dataclass, replace

__all__ = ["Member", "Opened", "Source", "open_source", "read_member"]

_NOT_ONE = "--format rootfs takes the folder as a root file system"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What is imported: its files by their paths, and what it is where it turns out to be a root file system.

    That is a ``folder``'s descriptor; or a tar that is a layer but for its name already (``ready``); or one
    that lies in a ``file``: its descriptor and its size.
    """

    files: Source
    folder: int | None = None
    ready: tuple[NewLayer, Unpacked] | None = None
    file: tuple[int, int] | None = None


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
def open_source(
    core: Core, source: ImportSource, what: str, *, rootfs: bool = False, call: Call
) -> Iterator[Opened]:
    """Open a folder, a tar, or a stream that is one.  ``rootfs``: it is known to be no archive of images.

    Raises `NotFound`, `PermissionDenied` (both with ``unreadable`` in their details, where it is the source
    itself), `InvalidArgument`.
    """
    if not isinstance(source, str):
        with spooled(core, source, what, call=call) as spool, _spool(core, spool, what, call) as opened:
            yield opened
        return
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        error = from_oserror(what, exc)
        error.details["unreadable"] = "source"
        raise error from exc
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            with _Folder(fd) as folder:
                yield Opened(files=folder, folder=fd)
        elif stat.S_ISREG(mode):
            with _archive(core, fd, what, call, rootfs=rootfs) as archive:
                yield archive
        else:
            raise InvalidArgument(what, "it is neither a folder nor a file", hint="'-' reads a pipe")
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
                    raise InvalidArgument(
                        what, "symlinks in a layout are not followed", hint=_NOT_ONE
                    ) from exc
                if exc.errno == errno.EINVAL:
                    raise InvalidArgument(what, "it is not a regular file", hint=_NOT_ONE) from exc
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
def _archive(core: Core, fd: int, what: str, call: Call, *, rootfs: bool) -> Iterator[Opened]:
    """A tar in a file, plain or compressed."""
    size = os.fstat(fd).st_size
    if not size:
        raise InvalidArgument(what, "it is empty")
    if not rootfs and detect(os.pread(fd, 6, 0)) == "plain":
        yield Opened(files=_Tar(fd, _plain_index(core, fd, size, what, call).index), file=(fd, size))
        return
    with core.layers.new() as scratch, closing(Feed.whole(size)) as feed:
        found = _indexed(core, fd, feed, scratch.tar, what, call)
        yield Opened(files=_Tar(scratch.tar, found.index), ready=(scratch, found))


@contextmanager
def _spool(core: Core, spool: Spooled, what: str, call: Call) -> Iterator[Opened]:
    """A tar that came as a stream."""
    if spool.diff_id is None:
        with _archive(core, spool.new.tar, what, call, rootfs=True) as opened:
            yield opened
        return
    found = replace(
        _plain_index(core, spool.new.tar, spool.size, what, call), diff_id=spool.diff_id, tar_size=spool.size
    )
    yield Opened(files=_Tar(spool.new.tar, found.index), ready=(spool.new, found))


def _plain_index(core: Core, fd: int, size: int, what: str, call: Call) -> Unpacked:
    """The index of a tar that lies in a file; its diff ID is not computed."""
    with closing(Feed.whole(size)) as feed:
        found = _indexed(core, fd, feed, None, what, call)
    if found.index.tar_size != size:
        raise InvalidArgument("read archive", "its index does not fit it")
    return found


def _indexed(core: Core, fd: int, feed: Feed, tar: int | None, what: str, call: Call) -> Unpacked:
    core.template.start()
    try:
        return unpack(core.template, fd, feed, tar=tar, limits=core.settings.limits, call=call)
    except (InvalidArgument, ResourceExhausted, Unavailable) as exc:
        raise type(exc)(what, exc.reason, hint=exc.hint, details=exc.details) from exc


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
        todo = parts[::-1]
        node = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                node = index.parent[node]
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
                    node = 0
                todo.extend(p for p in reversed(target.split(b"/")) if p not in (b"", b"."))
                continue
            node = child
        return node
