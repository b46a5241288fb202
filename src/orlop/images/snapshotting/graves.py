"""Folders of removed snapshots on their way out: behind the call, many at a time.

A removal's transaction has put them on the list of trash, so whatever dies here, a collection takes them.
Most were never written to: three empty folders, deleted where they are.  The others go as all trash does: out
of their place at once, then bit by bit.  One sync and one transaction serve all that came in a moment.

Nobody's lock is needed: an id is never used again, and who else deletes the same finds it gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading

from orlop.errors import Error
from orlop.images.core import Core
from orlop.metadata import garbage
from orlop.metadata.db import Transaction
from orlop.metadata.forks import watch_forks
from orlop.observe import reached

__all__ = ["Graves"]

_log = logging.getLogger(__name__)

LINGER = 0.25  # seconds in which others may join
MOST = 512  # at a time


class Graves:
    """Deletes in one open store.  Thread-safe; its thread lives while there is work."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._base = os.fspath(core.layout.snapshots)
        self._begin()
        watch_forks(self)

    def _begin(self) -> None:
        self._change = threading.Condition()  # guards the fields below
        self._ids: list[str] = []
        self._added = 0  # of all times
        self._done = 0  # the same: deleted, or left to a collection
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()  # set while somebody waits for the end

    def before_fork(self) -> None:
        """See `orlop.metadata.forks`."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew: what was removed is the parent's to delete."""
        self._begin()

    def add(self, snapshot_id: str) -> None:
        """Have a removed snapshot's folder deleted soon.  Never blocks."""
        with self._change:
            self._ids.append(snapshot_id)
            self._added += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="orlop-graves", daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Return when all that was added until now is deleted, or left to a collection."""
        with self._change:
            upto = self._added
            self._hurry.set()
            self._change.wait_for(lambda: self._done >= upto or self._thread is None)
            self._hurry.clear()

    def close(self) -> None:
        """Wait for the thread's end; nothing is added any more."""
        with self._change:
            self._hurry.set()
            self._change.wait_for(lambda: self._thread is None)

    def _run(self) -> None:
        while True:
            self._hurry.wait(LINGER)
            with self._change:
                ids, self._ids = self._ids[:MOST], self._ids[MOST:]
                if not ids:
                    self._thread = None
                    self._change.notify_all()
                    return
            try:
                with self._core.reserve.deleting():
                    self._bury(ids)
            except (Error, OSError) as exc:
                _log.warning("what was removed is not deleted yet: %s", exc)
            except BaseException:
                with self._change:
                    self._thread = None  # a bug; who comes next has a new thread
                    self._change.notify_all()
                raise
            with self._change:
                self._done += len(ids)
                self._change.notify_all()

    def _bury(self, ids: list[str]) -> None:
        core = self._core
        graves = []
        for snapshot_id in ids:
            place = f"{self._base}/{snapshot_id}"
            try:
                os.rmdir(f"{place}/fs")
                os.rmdir(f"{place}/work")
                os.rmdir(place)
            except OSError:
                graves.append(core.entomb(core.layout.snapshots / snapshot_id))
        reached("snapshot.buried")
        # Else they might come back after a power cut, with nothing that says that they were given up.
        core.sync.folder(core.layout.snapshots)

        def body(tx: Transaction) -> None:
            for snapshot_id in ids:
                garbage.trash_done(tx, f"snapshots/{snapshot_id}")

        core.db.write(body)
        reached("snapshot.struck")
        for grave in graves:
            if grave is not None:
                with contextlib.suppress(FileNotFoundError):
                    core.burn(grave)
