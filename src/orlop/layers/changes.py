"""Changes: the entries of a layer to be, as values, and how they come from what a chain shows.

What finds them is `orlop.layers.diff`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from orlop.errors import FailedPrecondition
from orlop.layers.chainview import ChainView, LowerEntry
from orlop.layers.nested import unescape_xattrs
from orlop.layers.tarwrite import Member
from orlop.values import dataclass, replace

__all__ = [
    "FREEZE",
    "MOVED_AWAY",
    "Change",
    "MovedAway",
    "link_to",
    "lower_change",
    "lower_member",
    "moment",
    "same_metadata",
    "text_of",
    "with_parents",
]

FREEZE = "stop or freeze what runs there"
MOVED_AWAY = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EINVAL}  # found otherwise before
_EVER = 1 << 62
# Where the times of file systems end (s_time_min and s_time_max of ext4, xfs), and what is past that.
_TIME_ENDS = {
    -(1 << 31): (-_EVER, -(1 << 31)),
    (1 << 31) - 1: ((1 << 31) - 1, _EVER),
    15_032_385_535: (15_032_385_535, _EVER),
    16_299_260_424: (16_299_260_424, _EVER),
}


class MovedAway(FailedPrecondition):
    """Something is not where it was seen.  Who looks at the whole again may see where it went."""


@dataclass(slots=True, kw_only=True)
class Change:
    """One entry of the layer to be; not to be changed.

    ``lower`` is set where the bytes are the chain's, not the upper's.  ``whiteout`` entries have a
    path only.  ``stamp`` is the ctime (ns) that the upper's file had when it was looked at, so that who reads
    it later sees whether it is the same still.  ``inode`` (device, number) is of a file that other entries
    link to: another in its place would not be theirs.  ``above`` marks a folder that is here only because
    something below it has changed.
    """

    member: Member
    whiteout: bool
    lower: LowerEntry | None
    stamp: int
    inode: tuple[int, int] | None
    above: bool

    def __init__(  # by hand, as that of `Member`
        self,
        *,
        member: Member,
        whiteout: bool = False,
        lower: LowerEntry | None = None,
        stamp: int = 0,
        inode: tuple[int, int] | None = None,
        above: bool = False,
    ) -> None:
        self.member = member
        self.whiteout = whiteout
        self.lower = lower
        self.stamp = stamp
        self.inode = inode
        self.above = above


def moment(about: os.stat_result, orig: LowerEntry | None) -> tuple[int, int]:
    """The mtime; the chain's where the file system could not hold that, and has the end of its own range."""
    seconds, nsec = divmod(about.st_mtime_ns, 1_000_000_000)
    if orig is not None and not nsec and seconds in _TIME_ENDS:
        first, last = _TIME_ENDS[seconds]
        if first <= orig.mtime <= last:
            return orig.mtime, orig.nsec
    return seconds, nsec


def lower_change(path: bytes, entry: LowerEntry) -> Change:
    """An entry of the chain, as it is."""
    return Change(member=lower_member(path, entry), lower=entry)


def lower_member(path: bytes, entry: LowerEntry) -> Member:
    """What a tar says of an entry of the chain."""
    kind = entry.mode & 0o170000
    return Member(
        path=path,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime=entry.mtime,
        nsec=entry.nsec,
        size=entry.size if kind == stat.S_IFREG else 0,
        rdev=entry.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        link=entry.target if kind == stat.S_IFLNK else b"",
        xattrs=unescape_xattrs(entry.raw_xattrs),
    )


def link_to(path: bytes, member: Member) -> Member:
    """A further name of the file at ``path``."""
    return replace(member, hard=True, link=path, xattrs=(), size=0)


def same_metadata(member: Member, orig: LowerEntry) -> bool:
    """Whether mode, owner, mtime and xattrs are those of an entry of the chain."""
    return (
        member.mode == orig.mode
        and member.uid == orig.uid
        and member.gid == orig.gid
        and member.mtime == orig.mtime
        and member.nsec == orig.nsec
        and tuple(sorted(member.xattrs)) == tuple(sorted(unescape_xattrs(orig.raw_xattrs)))
    )


def with_parents(
    found: Sequence[Change], view: ChainView, spare: Mapping[bytes, Change] | None = None
) -> list[Change]:
    """Add the unchanged folders above each change; one that the chain has not is taken from ``spare``.

    Tools that unpack layers apart (podman) would make such a folder anew with mode 0755 if the layer
    only implied it.
    """
    present = {change.member.path for change in found if stat.S_ISDIR(change.member.mode)}
    result: list[Change] = []
    for change in found:
        missing: list[Change] = []
        path = change.member.path
        while path:
            path = path.rpartition(b"/")[0]
            if path in present:
                continue
            present.add(path)
            lower = view.lookup(path)
            if lower is not None and stat.S_ISDIR(lower.mode):
                missing.append(Change(member=lower_member(path, lower), above=True))
            elif spare and path in spare and stat.S_ISDIR(spare[path].member.mode):
                missing.append(spare[path])
        result.extend(reversed(missing))
        result.append(change)
    return result


def text_of(path: bytes) -> str:
    """A path for people."""
    return path.decode(errors="backslashreplace")
