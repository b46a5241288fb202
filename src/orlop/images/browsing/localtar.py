"""A file or a folder of this machine as a tar: what goes into a root.

Read by descriptors, no symlink followed but one that the path itself names with a slash behind it; what
changes while it is read is an error for a file, and left out where it is gone.  Sockets are left out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator, Iterator

from orlop.errors import FailedPrecondition, InvalidArgument, from_oserror
from orlop.images.browsing.archive import LEAST_HOLE, Batch
from orlop.images.browsing.nodes import CHUNK, data_of
from orlop.layers.changes import text_of
from orlop.layers.tardata import END, padding, sparse_header
from orlop.layers.tarwrite import Member, headers
from orlop.layers.upper import OPEN_FILE, OPEN_FOLDER, read_xattrs
from orlop.observe import Call

__all__ = ["tar_of_path"]

_LEAF = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)


def tar_of_path(source: bytes, *, follow: bool = False, call: Call) -> Generator[bytes]:
    """What stands at a path, and all below it; named as `orlop.images.browsing.archive` names things.

    ``follow`` has a symlink at the path itself followed.  Raises as OSError's classes do.
    """
    what = f"read {text_of(source)}"
    if not source:
        raise InvalidArgument(what, "the path is empty")
    last = source.rstrip(b"/").rpartition(b"/")[2]
    place = os.path.realpath(source) if follow or source.endswith((b"/", b"/.")) else source
    folder = os.path.isdir(place) and not os.path.islink(place)
    content = folder and (last in {b"", b"."} or (last == b".." and place == source))
    name = b"" if content else last
    try:
        above = os.open(os.path.dirname(place) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    try:
        yield from _Walk(what, call).run(above, os.path.basename(place) or b".", name)
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    finally:
        os.close(above)


class _Walk:
    """One reading: depth first, names in byte order."""

    def __init__(self, what: str, call: Call) -> None:
        self._what = what
        self._call = call
        self._batch = Batch()
        self._first: dict[tuple[int, int], bytes] = {}  # inodes with several names -> the first name

    def run(self, above: int, name: bytes, shown: bytes) -> Generator[bytes]:
        stack: list[tuple[int, bytes, Iterator[bytes]]] = []
        try:
            about = os.stat(name, dir_fd=above, follow_symlinks=False)
            yield from self._entry(above, name, shown, about, stack)
            while stack:
                folder, path, names = stack[-1]
                below = next(names, None)
                if below is None:
                    os.close(stack.pop()[0])
                    continue
                try:
                    about = os.stat(below, dir_fd=folder, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield from self._entry(folder, below, path + b"/" + below if path else below, about, stack)
            yield from self._batch.add(END)
            yield from self._batch.rest()
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _entry(
        self,
        folder: int,
        name: bytes,
        path: bytes,
        about: os.stat_result,
        stack: list[tuple[int, bytes, Iterator[bytes]]],
    ) -> Generator[bytes]:
        self._call.check(self._what)
        kind = stat.S_IFMT(about.st_mode)
        if kind not in _LEAF and kind != stat.S_IFDIR:
            self._call.observer.warning(f"{text_of(path)} is left out: a socket")
            return
        if kind != stat.S_IFDIR and about.st_nlink > 1:
            first = self._first.setdefault((about.st_dev, about.st_ino), path)
            if first != path:
                yield from self._batch.add(
                    headers(Member(path=path, mode=about.st_mode, hard=True, link=first))
                )
                return
        seconds, nsec = divmod(about.st_mtime_ns, 1_000_000_000)
        member = Member(
            path=path,
            mode=about.st_mode,
            uid=about.st_uid,
            gid=about.st_gid,
            mtime=seconds,
            nsec=nsec,
            size=about.st_size if kind == stat.S_IFREG else 0,
            rdev=about.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
            link=os.readlink(name, dir_fd=folder) if kind == stat.S_IFLNK else b"",
            xattrs=_xattrs(folder, name),
        )
        if kind == stat.S_IFREG and about.st_size:
            yield from self._file(folder, name, member)
            return
        yield from self._batch.add(headers(member))
        if kind == stat.S_IFDIR:
            fd = os.open(name, OPEN_FOLDER, dir_fd=folder)
            try:
                names = sorted(os.fsencode(below) for below in os.listdir(fd))
            except BaseException:
                os.close(fd)
                raise
            stack.append((fd, path, iter(names)))

    def _file(self, folder: int, name: bytes, member: Member) -> Generator[bytes]:
        fd = os.open(name, OPEN_FILE, dir_fd=folder)
        try:
            extents = list(data_of(fd, member.size))
            stored = sum(length for _, length in extents)
            if member.size - stored < LEAST_HOLE:
                extents, stored = [(0, member.size)], member.size
                yield from self._batch.add(headers(member))
            else:
                yield from self._batch.add(sparse_header(member, extents))
            for begin, length in extents:
                done = 0
                while done < length:
                    self._call.check(self._what)
                    data = os.pread(fd, min(CHUNK, length - done), begin + done)
                    if not data:
                        raise FailedPrecondition(self._what, f"{text_of(member.path)} changed meanwhile")
                    done += len(data)
                    yield from self._batch.add(data)
            yield from self._batch.add(padding(stored))
        finally:
            os.close(fd)


def _xattrs(folder: int, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The xattrs; none where the file system has none."""
    with contextlib.suppress(OSError):
        return read_xattrs(b"/proc/self/fd/%d/%s" % (folder, name), follow=False)
    return ()
