"""Uppers for new roots, made beforehand (`orlop.images.waiting`): a kind is a chain, in one form.

The folder of an upper shows as the root's own, so it has the image's mode, owner, times and xattrs from the
start; and it is durable before it is anybody's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from functools import partial
from pathlib import Path

from orlop.errors import Error, from_oserror
from orlop.images.core import Core
from orlop.images.locks import root_lock
from orlop.images.prepared.grounds import Grounds
from orlop.images.waiting import BATCH, Batch, Waiting
from orlop.linux.sync import Sync
from orlop.metadata import roots
from orlop.metadata.roots import RootRow
from orlop.observe import Call, reached
from orlop.snapshots.driver import Fill
from orlop.values import replace

__all__ = ["Uppers"]

_LATER = Sync(False)
_PREFIXES = 1 << 48


class _Likeness:
    """Makes a folder like an upper that is there: its mode, owner, times and xattrs.

    In a third of the time that it takes to make it from the image.  What its neighbour ``work`` has, too, is
    the kernel's own, which gives it to each folder that is made.
    """

    def __init__(self, upper: Path) -> None:
        self._about = os.stat(upper)
        kernels = _xattrs(upper.with_name("work"))
        self._xattrs = [one for one in _xattrs(upper) if one not in kernels and one[0] != "security.evm"]

    def __call__(self, folder: Path, *, whole: bool) -> None:
        """See `orlop.snapshots.driver.Fill`."""
        about = self._about
        os.chown(folder, about.st_uid, about.st_gid)
        os.chmod(folder, about.st_mode & 0o7777)
        for name, value in self._xattrs:
            os.setxattr(folder, name, value)
        os.utime(folder, ns=(about.st_mtime_ns, about.st_mtime_ns))


def _xattrs(folder: Path) -> list[tuple[str, bytes]]:
    return [(name, os.getxattr(folder, name)) for name in os.listxattr(folder)]


class Uppers(Waiting[RootRow]):
    """The uppers that wait in one open store, by rows that differ from a new root's in id and path."""

    def __init__(self, core: Core, grounds: Grounds) -> None:
        self._core = core
        self._grounds = grounds
        super().__init__("orlop-uppers")

    def _begin(self) -> None:
        super()._begin()
        self._log_grown = False
        # Ids follow one another from a number of no meaning: rows that are written together lie together, in
        # the table and in its indexes, on few pages however many roots there are.
        self._numbers = itertools.count(int.from_bytes(os.urandom(6), "big"))

    def _make(self, like: RootRow, count: int) -> list[tuple[str, Batch]]:
        core, grounds = self._core, self._grounds
        if count == BATCH and not self._log_grown:  # many are asked for, so much is going to be written
            self._log_grown = True
            core.db.grow_log()
        prefix = f"{next(self._numbers) % _PREFIXES:012x}"
        lock = core.try_locked("root", root_lock(prefix))
        if lock is None:
            return self._make(like, count)  # others make folders with these names
        rows = [replace(like, id=f"{prefix}{number:04x}") for number in range(count)]
        driver = grounds.driver(like)
        made: list[str] = []
        fill: Fill = partial(grounds.fill, like, call=Call(), sync=_LATER)
        try:
            for row in rows:
                own = grounds.own(row)
                made.append(row.id)
                driver.create(own, fill, sync=_LATER)
                if len(made) == 1 < count:
                    fill = _Likeness(driver.upper(own))
            self._settled(rows)
            reached("root.pooled")
        except BaseException:
            for root_id in made:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    self._discard(root_id)
            lock.release()
            raise
        batch = Batch(lock, count)
        return [(row.id, batch) for row in rows]

    def _settled(self, rows: list[RootRow]) -> None:
        """Have all of it on disk: the first fsync writes the file system's log, the others find that done."""
        core, sync = self._core, self._core.sync
        try:
            for row in rows:
                own = self._grounds.own(row)
                sync.folder(self._grounds.driver(row).upper(own))
                sync.folder(own.folder)
            sync.folder(core.layout.prepared)
        except OSError as exc:
            raise from_oserror("make roots", exc) from exc

    def _is_named(self, folder: str) -> bool:
        return self._core.db.read(lambda tx: roots.is_root(tx, folder))

    def _discard(self, folder: str) -> None:
        place = f"{self._core.layout.prepared}/{folder}"
        try:  # nothing was written to it
            os.rmdir(f"{place}/upper")
            os.rmdir(f"{place}/work")
            os.rmdir(place)
        except OSError:
            self._core.discard(self._core.layout.prepared / folder)
