"""Roots made together: all their folders, one round of fsyncs, then the transaction that names them all.

Until that the folders belong to nobody, and one lock, which their ids share, keeps collectors away from them.
So whatever dies in between leaves folders without rows, which a collection takes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial

from orlop.errors import Error, InvalidArgument, from_oserror
from orlop.images.core import Core
from orlop.images.locks import root_lock
from orlop.images.prepared.extras import Extras
from orlop.images.prepared.grounds import Grounds
from orlop.linux.sync import Sync
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.observe import Call, reached
from orlop.snapshots.driver import MountSpec
from orlop.values import dataclass

__all__ = ["MOST", "Batch", "Made", "new_ids"]

MOST = 10_000  # roots that one call makes
_LATER = Sync(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What is to be named: the mounts of each root, in order, and the folders that all stand on."""

    specs: tuple[list[MountSpec], ...]
    folders: list[str]


def new_ids(count: int, what: str) -> list[str]:
    """Ids of roots that are made together: one lock guards them all."""
    if count > MOST:
        raise InvalidArgument(what, f"{count} roots at once; {MOST} is the most", hint="make several calls")
    prefix = os.urandom(6).hex()
    return [f"{prefix}{number:04x}" for number in range(count)]


class Batch:
    """Makes roots of one store.  Thread-safe."""

    def __init__(self, core: Core, grounds: Grounds, extras: Extras) -> None:
        self._core = core
        self._grounds = grounds
        self._extras = extras

    @contextlib.contextmanager
    def made(
        self,
        rows: Sequence[RootRow],
        stack: Sequence[ChainRow],
        extras: Sequence[MountRow],
        *,
        call: Call,
    ) -> Iterator[Made]:
        """The writable parts of roots that differ in path and id alone, durable, for a ``with`` block.

        The block names them.  Those that it did not name are discarded.
        """
        core, grounds, first = self._core, self._grounds, rows[0]
        driver, what = grounds.driver(first), f"make root {first.path}"
        views = self._extras.views(first, extras, call)
        with (
            grounds.held(first, stack, views=views, call=call) as (ground, *below),
            core.locked("root", root_lock(first.id), call=call, attempted=what),
        ):
            specs = tuple(
                driver.mounts(grounds.root(row), ground) + self._extras.specs(row, extras, below)
                for row in rows
            )
            try:
                for row in rows:
                    call.check(what)
                    self._make(row, call)
                    reached("fork.made")
                self._settle(rows)
                reached("fork.settled")
                yield Made(specs=specs, folders=[folder.name for folder in ground.folders])
            except BaseException:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    self._discard(rows)
                raise

    def _make(self, row: RootRow, call: Call) -> None:
        """One writable part.  Plain uppers are not synced one by one; disks and copies of trees are."""
        grounds, sync = self._grounds, _LATER
        if row.quota is not None or row.driver == "native":
            sync = self._core.sync
        grounds.make_disk(row, call)
        fill = partial(grounds.fill, row, call=call, sync=sync)
        grounds.driver(row).create(grounds.own(row), fill, sync=sync)

    def _settle(self, rows: Sequence[RootRow]) -> None:
        """Have all of it on disk: the first fsync writes the file system's log, the others find that done."""
        core = self._core
        try:
            for row in rows:
                if row.quota is None and row.driver != "native":
                    own = self._grounds.own(row)
                    core.sync.folder(self._grounds.driver(row).upper(own))
                    core.sync.folder(own.folder)
            core.sync.folder(core.layout.prepared)
        except OSError as exc:
            raise from_oserror("make roots", exc) from exc

    def _discard(self, rows: Sequence[RootRow]) -> None:
        core = self._core

        def unnamed(tx: Transaction) -> list[RootRow]:
            return [row for row in rows if not roots.is_root(tx, row.id)]

        for row in core.db.read(unnamed):  # an interrupt may come when the rows are there already
            if row.quota is not None:
                core.disks.deactivate(row.id)
            if os.path.lexists(core.layout.prepared / row.id):
                core.discard(core.layout.prepared / row.id)
