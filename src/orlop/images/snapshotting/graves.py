"""Folders of removed snapshots and cleaned up roots on their way out: behind the call, many at a time.

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


_PARTS = ("fs", "work/work", "work")  # the second is made by overlayfs, when it is mounted
LINGER = 0.25  # seconds in which others may join
MOST = 512  # at a time


class Graves:
    """Deletes in one open store.  Thread-safe; its thread lives while there is work.

    The folders lie in ``place``, a folder of ROOT, and what one holds that was never written to is ``parts``,
    empty folders, those that lie in others first.
    """

    def __init__(self, core: Core, place: str = "snapshots", parts: tuple[str, ...] = _PARTS) -> None:
        self._core = core
        self._place = place
        self._parts = parts
        self._base = os.fspath(core.layout.root / place)
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

    def add(self, folder: str) -> None:
        """Have the folder of what was removed deleted soon.  Never blocks."""
        with self._change:
            self._ids.append(folder)
            self._added += 1
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="orlop-graves", daemon=True)
                try:
                    thread.start()
                except RuntimeError as exc:  # no thread is to be had: the next one takes it, or a collection
                    logging.getLogger(__name__).warning("what was removed is not deleted yet: %s", exc)
                else:
                    self._thread = thread

    def finish(self) -> None:
        """Return when all that was added until now is deleted, or left to a collection."""
        with self._change:
            upto = self._added
            self._hurry.set()
            self._change.wait_for(lambda: self._done >= upto or self._thread is None)
            self._hurry.clear()

    def rest(self) -> None:
        """As `finish`."""
        self.finish()

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
                logging.getLogger(__name__).warning("what was removed is not deleted yet: %s", exc)
            except BaseException:
                with self._change:
                    self._thread = None  # a bug; who comes next has a new thread
                    self._change.notify_all()
                raise
            with self._change:
                self._done += len(ids)
                self._change.notify_all()

    def _bury(self, ids: list[str]) -> None:
        core, root = self._core, self._core.layout.root
        graves = []
        for folder in ids:
            place = f"{self._base}/{folder}"
            try:
                for part in self._parts:
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(f"{place}/{part}")
                os.rmdir(place)
            except OSError:
                graves.append(core.entomb(root / self._place / folder))
        reached("graves.buried")
        # Else they might come back after a power cut, with nothing that says that they were given up.
        core.sync.folder(root / self._place)

        def body(tx: Transaction) -> None:
            for folder in ids:
                garbage.trash_done(tx, f"{self._place}/{folder}")

        core.db.write(body)
        reached("graves.struck")
        for grave in graves:
            if grave is not None:
                with contextlib.suppress(FileNotFoundError):
                    core.burn(grave)
        core.db.shorten_log()
