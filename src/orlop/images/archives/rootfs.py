"""One root file system as a plain tar: whiteouts resolved, nothing mounted, from the tree as it shows.

Written by the writer of layers' headers, so ids, xattrs, nanoseconds, devices and hard links are kept, and
the same tree is the same bytes.  A file with several names stands under the first one in byte order.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Hashable

from orlop.errors import DataLoss
from orlop.images.archives.tarstream import BLOCK, TarStream
from orlop.images.browsing.nodes import Node, Tree
from orlop.layers.tarwrite import Member, headers

__all__ = ["write_tree"]


def write_tree(
    tree: Tree, out: TarStream, *, change: Callable[[Member], Member | None] = lambda member: member
) -> None:
    """Write all of a tree and the end of the archive.  ``change`` may edit members, or leave some out."""
    first: dict[Hashable, bytes] = {}
    for node in tree.walk(tree.root):
        member = change(_member(node, first))
        if member is None:
            continue
        out.write(headers(member))
        if member.size and not member.hard and stat.S_ISREG(member.mode):
            start = out.size
            for chunk in tree.chunks(node):
                out.write(chunk)
            if out.size - start != member.size:
                raise DataLoss(f"read /{node.path.decode(errors='replace')}", "its size is not what it was")
            out.write(bytes(-member.size % BLOCK))
    out.finish()


def _member(node: Node, first: dict[Hashable, bytes]) -> Member:
    link = node.link
    if link is not None:
        there = first.setdefault(link, node.path)
        if there != node.path:
            return Member(path=node.path, mode=node.mode, link=there, hard=True)
    return Member(
        path=node.path,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime=node.mtime,
        nsec=node.nsec,
        size=node.size if node.is_file else 0,
        rdev=node.rdev,
        link=node.target,
        xattrs=node.xattrs,
    )
