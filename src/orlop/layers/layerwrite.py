"""Changes as a layer's tar: the second half of a commit, after `orlop.layers.diff` has said what changed.

Files of the upper are opened by their path, no link followed on the way, and written once.  Each is whole:
as it was at one moment between the first look and the last.  One that is not the same after it was read as
before is taken back out of the tar and read again, a few times; then it is an error that names it.  (What a
process writes through a mapping has no time that could tell of it: only freezing it helps.)
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.layers.chainview import ChainView, LowerReader
from orlop.layers.changes import FREEZE, MOVED_AWAY, Change, MovedAway, text_of
from orlop.layers.diff import Again
from orlop.layers.index import BLOCK
from orlop.layers.tarwrite import Member, TarWriter, WrittenTar
from orlop.layers.upper import Below
from orlop.observe import Call

__all__ = ["least_size", "write_layer"]

CHUNK = 1 << 20
READS = 4  # of one file that keeps changing
_COARSE = (
    5  # CLOCK_REALTIME_COARSE, linux/time.h: what times of files are taken from; time has no name for it
)


def least_size(found: Sequence[Change]) -> int:
    """The bytes that the tar of some changes has at least."""
    files = (c.member.size for c in found if stat.S_ISREG(c.member.mode) and not c.member.hard)
    return BLOCK * (len(found) + 2) + sum(files)


def write_layer(
    found: Sequence[Change],
    upper: int,
    out: int,
    view: ChainView,
    devices: Sequence[Sequence[Path]],
    *,
    again: Again | None = None,
    others: Mapping[ChainView, Sequence[Sequence[Path]]] | None = None,
    drop: bool = False,
    write_back: bool = False,
    written: Callable[[int], None] = lambda total: None,
    call: Call,
) -> WrittenTar:
    """Write changes as a layer's tar; returns its diff ID and its index.

    ``again`` looks at files that have changed since they were found (the default is for an upper of root's).
    ``others`` are further chains, with their devices, that changes may have their bytes in.
    Raises `MovedAway` for a file that is gone, and with ``drop`` leaves it out instead, with a warning, where
    nothing else is wrong without it.  Raises `FailedPrecondition` naming a file that changes all the time.
    ``write_back`` begins to write to the disk before the end.  ``written`` is told the bytes of tar so far.
    """
    again = again or Again(view)
    writer = TarWriter(out, write_back=write_back)
    lowers = {view: LowerReader(view, devices)}
    lowers |= {one: LowerReader(one, files) for one, files in (others or {}).items()}
    dropped: set[bytes] = set()
    with Below(upper) as below:
        for change in found:
            call.check("write layer")
            member = change.member
            if change.whiteout:
                folder, slash, name = member.path.rpartition(b"/")
                writer.add(Member(path=folder + slash + b".wh." + name, mode=stat.S_IFREG))
            elif member.hard or not stat.S_ISREG(member.mode) or not member.size:
                if member.hard and member.link in dropped:
                    raise _gone(member.path)
                writer.add(member)
            elif change.lower is not None:
                chunks = lowers[change.lower.view].chunks(change.lower)
                writer.add(member, lambda chunks=chunks: next(chunks, b""))  # type: ignore[misc]  # bound now
            else:
                try:
                    _write_file(writer, change, below, again, written, call)
                except MovedAway:
                    if not drop or again.has_lower(member.path):
                        raise
                    dropped.add(member.path)
                    call.observer.warning(
                        f"/{text_of(member.path)} is left out: it is gone since it was seen"
                    )
    return writer.finish()


def _write_file(
    writer: TarWriter, change: Change, below: Below, again: Again, written: Callable[[int], None], call: Call
) -> None:
    """One file of the upper, by its path, no link followed on the way."""
    member, stamp = change.member, change.stamp
    for _ in range(READS):
        try:
            fd = below.open(member.path)
        except OSError as exc:
            if exc.errno in MOVED_AWAY:
                raise _gone(member.path) from exc
            raise
        try:
            about = os.fstat(fd)
            if not stat.S_ISREG(about.st_mode):
                raise _gone(member.path)
            if change.inode is not None and (about.st_dev, about.st_ino) != change.inode:
                raise _gone(member.path)
            if about.st_ctime_ns >= time.clock_gettime_ns(_COARSE):
                about = _settled(fd)
            if about.st_ctime_ns != stamp or about.st_size != member.size:
                member, stamp = again.member(member.path, fd, about), about.st_ctime_ns
            if _copy(writer, member, fd, about, written, call):
                return
        finally:
            os.close(fd)
    raise FailedPrecondition(
        "commit", f"/{text_of(member.path)} changed while it was read, {READS} times", hint=FREEZE
    )


def _copy(
    writer: TarWriter,
    member: Member,
    fd: int,
    before: os.stat_result,
    written: Callable[[int], None],
    call: Call,
) -> bool:
    """Write a file as it is; False, and nothing is written, if it was not the same all the while."""
    left = member.size

    def read() -> bytes:
        nonlocal left
        if left > CHUNK:
            call.check("write layer")
        written(writer.size)
        chunk = os.read(fd, min(CHUNK, left))
        left -= len(chunk)
        return chunk

    def unchanged() -> bool:
        after = os.fstat(fd)
        return (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (
            before.st_size,
            before.st_mtime_ns,
            before.st_ctime_ns,
        )

    return writer.add(member, read, unchanged)


def _settled(fd: int) -> os.stat_result:
    """A file's status once its times are past: what is written in the same tick would leave no trace in them.

    A tick is some milliseconds; two of them are enough, or the clock has been set back since.
    """
    time.sleep(2 * time.clock_getres(_COARSE))
    return os.fstat(fd)


def _gone(path: bytes) -> MovedAway:
    return MovedAway("commit", f"/{text_of(path)} went away while it was read", hint=FREEZE)
