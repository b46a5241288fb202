"""What becomes of changes before they are written as a layer: clamped, put on another base, squashed.

Each takes the changes of `orlop.layers.diff` and gives others, in the same order: depth first, names in byte
order.  Nothing is read but the indexes of chains.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from orlop.layers.chainview import ChainView, LowerEntry
from orlop.layers.changes import Change, lower_change, with_parents
from orlop.values import replace

__all__ = ["clamped", "rebased", "squashed"]


def clamped(found: Sequence[Change], newest: int) -> list[Change]:
    """Times after ``newest`` (seconds since 1970) become it, as SOURCE_DATE_EPOCH demands."""
    return [
        replace(change, member=replace(change.member, mtime=newest, nsec=0))
        if (change.member.mtime, change.member.nsec) > (newest, 0)
        else change
        for change in found
    ]


def rebased(found: Sequence[Change], old: ChainView, base: ChainView) -> list[Change]:
    """Changes of the chain ``old`` for another one: what is gone there already need not be hidden.

    Folders that are there only because something below them changed are as the new base has them; one that
    it has not stays as it was.  Of a folder that both have, what differs from the old chain is the change's,
    and all else the new one's: a file made in it changes its time and nothing more.
    """
    spare = {change.member.path: change for change in found if change.above}
    own: list[Change] = []
    for change in found:
        path = change.member.path
        if change.whiteout:
            if base.lookup(path) is not None:
                own.append(change)
        elif not change.above:
            is_folder = stat.S_ISDIR(change.member.mode)
            own.append(_merged(change, old.lookup(path), base.lookup(path)) if is_folder else change)
    return with_parents(own, base, spare)


def _merged(change: Change, old: LowerEntry | None, base: LowerEntry | None) -> Change:
    """A folder with what a change has made of it on top of what a new base says."""
    if old is None or base is None or not (stat.S_ISDIR(old.mode) and stat.S_ISDIR(base.mode)):
        return change
    path, mine = change.member.path, change.member
    before, there = lower_change(path, old).member, lower_change(path, base).member
    return replace(
        change,
        member=replace(
            mine,
            mode=there.mode if mine.mode == before.mode else mine.mode,
            uid=there.uid if mine.uid == before.uid else mine.uid,
            gid=there.gid if mine.gid == before.gid else mine.gid,
            xattrs=there.xattrs if sorted(mine.xattrs) == sorted(before.xattrs) else mine.xattrs,
        ),
    )


def squashed(found: Sequence[Change], view: ChainView) -> list[Change]:
    """All of a chain with the changes laid over it, as one layer that needs none below.

    Files of one inode in the chain are one file of several names still, but for those that have changed.
    """
    return list(_merge(found, view))


def _merge(found: Sequence[Change], view: ChainView) -> Iterator[Change]:
    changed = {change.member.path: change for change in found}
    below: dict[bytes, set[bytes]] = {}
    for path in changed:
        if path:
            folder, _, name = path.rpartition(b"/")
            below.setdefault(folder, set()).add(name)
    first: dict[tuple[int, int], bytes] = {}  # (image, nid) of a shared inode -> its first name
    todo: list[tuple[bytes, LowerEntry | None]] = [(b"", view.lookup(b""))]
    while todo:
        path, lower = todo.pop()
        change = changed.get(path)
        if change is not None:
            if change.whiteout:
                continue
            yield replace(change, above=False)
            is_folder = stat.S_ISDIR(change.member.mode)
            if lower is not None and not stat.S_ISDIR(lower.mode):
                lower = None
        elif lower is not None:
            is_folder = stat.S_ISDIR(lower.mode)
            yield _kept(path, lower, first)
        else:
            is_folder = True  # the root of a chain that has none
        if is_folder:
            names = set(view.names(lower)) if lower is not None else set()
            for name in sorted(names | below.get(path, set()), reverse=True):
                child = view.child(lower, name) if lower is not None else None
                todo.append((path + b"/" + name if path else name, child))


def _kept(path: bytes, lower: LowerEntry, first: dict[tuple[int, int], bytes]) -> Change:
    change = lower_change(path, lower)
    if lower.inode.nlink > 1 and not lower.inode.is_folder:
        name = first.setdefault((lower.image, lower.inode.nid), path)
        if name != path:
            return Change(member=replace(change.member, hard=True, link=name, xattrs=(), size=0))
    return change
