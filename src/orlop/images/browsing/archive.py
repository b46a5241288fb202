"""Part of a tree as a tar: what leaves a thing, on its way to a folder or as it is.

Names in it begin with the last part of the path that was asked for; those of the content of a folder
(``/etc/.``) and of the whole root with ``./``.  Everything is there: owners, times, xattrs, hard links among
what is copied, holes.  Whoever unpacks it says what of that counts.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Hashable

from orlop.images.browsing.nodes import Node, Tree
from orlop.layers.tardata import END, padding, sparse_header
from orlop.layers.tarwrite import Member, headers

__all__ = ["LEAST_HOLE", "Batch", "tar_of", "top_name"]

_BATCH = 256 << 10  # bytes that are handed on at least, until the end
LEAST_HOLE = 4096  # bytes; smaller ones are written as zeros


class Batch:
    """Joins small pieces of bytes, so that each that is handed on is worth it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> Generator[bytes]:
        """Take a piece; what is full is yielded."""
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BATCH:
            yield from self.rest()

    def rest(self) -> Generator[bytes]:
        """What has not been yielded yet."""
        if self._size:
            data, self._parts, self._size = b"".join(self._parts), [], 0
            yield data


def top_name(path: bytes, node: Node) -> bytes:
    """What a copy of ``path``, which led to ``node``, is called; empty where only the content is meant."""
    last = path.rstrip(b"/").rpartition(b"/")[2]
    if node.is_folder and last in {b"", b".", b".."}:
        return b"" if last != b".." else node.name
    return last


def tar_of(tree: Tree, node: Node, name: bytes) -> Generator[bytes]:
    """A node and all below it, under another name."""
    batch = Batch()
    first: dict[Hashable, bytes] = {}  # of files with several names: the one that is written
    skip = len(node.path)
    for found in tree.walk(node):
        rest = found.path[skip:].removeprefix(b"/")
        path = b"/".join(part for part in (name, rest) if part)
        link = found.link
        member = _member(found, path)
        if link is not None and first.setdefault(link, path) != path:
            hard = Member(
                path=path, mode=found.mode, uid=found.uid, gid=found.gid, mtime=found.mtime, nsec=found.nsec,
                hard=True, link=first[link],
            )  # fmt: skip
            yield from batch.add(headers(hard))
            continue
        if not found.is_file or not found.size:
            yield from batch.add(headers(member))
            continue
        yield from _file(tree, found, member, batch)
    yield from batch.add(END)
    yield from batch.rest()


def _file(tree: Tree, node: Node, member: Member, batch: Batch) -> Generator[bytes]:
    extents = tree.extents(node) if node.size >= LEAST_HOLE else [(0, node.size)]
    stored = sum(length for _, length in extents)
    if node.size - stored < LEAST_HOLE:
        yield from batch.add(headers(member))
        for data in tree.chunks(node):
            yield from batch.add(data)
        yield from batch.add(padding(node.size))
        return
    yield from batch.add(sparse_header(member, extents))
    given = 0
    for _, data in tree.pieces(node):
        given += len(data)
        yield from batch.add(data)
    yield from batch.add(padding(given))


def _member(node: Node, path: bytes) -> Member:
    return Member(
        path=path,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime=node.mtime,
        nsec=node.nsec,
        size=node.size if stat.S_ISREG(node.mode) else 0,
        rdev=node.rdev,
        link=node.target,
        xattrs=node.xattrs,
    )
