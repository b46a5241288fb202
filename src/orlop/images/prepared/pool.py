"""Uppers for new roots, made beforehand (`orlop.images.waiting`): a kind is a chain, in one form.

The folder of an upper shows as the root's own, so it has the image's mode, owner, times and xattrs from the
start; and it is durable before it is anybody's.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from orlop.errors import Error, from_oserror
from orlop.images.core import Core, root_lock
from orlop.images.prepared.grounds import Grounds
from orlop.images.waiting import Batch, Waiting
from orlop.linux.sync import Sync
from orlop.metadata import roots
from orlop.metadata.roots import RootRow
from orlop.observe import Call, reached
from orlop.values import replace

__all__ = ["Uppers"]

_LATER = Sync(False)


class Uppers(Waiting[RootRow]):
    """The uppers that wait in one open store, by rows that differ from a new root's in id and path."""

    def __init__(self, core: Core, grounds: Grounds) -> None:
        self._core = core
        self._grounds = grounds
        super().__init__("orlop-uppers")

    def _make(self, like: RootRow, count: int) -> list[tuple[str, Batch]]:
        core, grounds = self._core, self._grounds
        prefix = os.urandom(6).hex()
        lock = core.try_locked("root", root_lock(prefix))
        if lock is None:
            return self._make(like, count)  # others make folders with these names
        rows = [replace(like, id=f"{prefix}{number:04x}") for number in range(count)]
        driver = grounds.driver(like)
        made: list[str] = []
        try:
            for row in rows:
                own = grounds.own(row)
                made.append(row.id)
                driver.create(own, partial(grounds.fill, row, call=Call(), sync=_LATER), sync=_LATER)
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
