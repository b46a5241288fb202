"""Folders for new snapshots, made beforehand: on disk, durable, and nobody's yet.

::

    snapshots/<id>/fs       what is written to the snapshot; its root folder is the snapshot's
    snapshots/<id>/work     overlayfs's

A snapshot takes one and names it in its transaction, so making one costs no fsync but the database's.
Folders are made in batches.  The ids of a batch begin alike, and its lock is named after that: it is held
until each folder of the batch has a row or is discarded.  So a collector tells a folder that waits from one
that a dead process left.

Invariant: what `taken` yields is in its place, empty, and durable but for what its taker changes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections import deque
from collections.abc import Iterator

from orlop.errors import Error, Unavailable, from_oserror
from orlop.images.core import Core
from orlop.linux.flock import FileLock
from orlop.metadata import snapshots as rows
from orlop.metadata.forks import watch_forks
from orlop.observe import reached

__all__ = ["Pool", "pool_lock"]


BATCH = 32  # folders that are made at a time
LOW = 24  # folders left when more are made
_PREFIX = 8  # characters that the ids of a batch have in common


def pool_lock(snapshot_id: str) -> str:
    """The key of the lock ``pool`` that guards a snapshot's folder until it has a row."""
    return snapshot_id[:_PREFIX]


class _Batch:
    """Folders that were made together."""

    __slots__ = ("lock", "open")

    def __init__(self, lock: FileLock, count: int) -> None:
        self.lock = lock
        self.open = count  # how many have no row yet


class Pool:
    """The folders that wait in one open store.  Thread-safe; its thread lives while there is work."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._begin()
        watch_forks(self)

    def _begin(self) -> None:
        self._guard = threading.Lock()  # guards the fields below
        self._ready: deque[tuple[str, _Batch]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    def before_fork(self) -> None:
        """See `orlop.metadata.forks`."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew: what waits is the parent's."""
        self._begin()

    @contextlib.contextmanager
    def taken(self) -> Iterator[str]:
        """A folder for a ``with`` block, which names it; one that it did not name is discarded."""
        snapshot_id, batch = self._take()
        try:
            yield snapshot_id
        except BaseException:
            with contextlib.suppress(Error):  # a collection takes what stays
                # An interrupt may come when the row is there already.
                if not self._core.db.read(lambda tx: rows.is_snapshot(tx, snapshot_id)):
                    self._core.discard(self._core.layout.snapshots / snapshot_id)
            raise
        finally:
            self._settle(batch)

    def close(self) -> None:
        """Discard what waits.  Idempotent; nothing is taken any more."""
        with self._guard:
            self._closed = True
            ready, self._ready = self._ready, deque()
            thread = self._thread
        if thread is not None:
            thread.join()
            with self._guard:
                ready += self._ready
                self._ready = deque()
        for snapshot_id, batch in ready:
            with contextlib.suppress(Error):  # a collection takes what stays
                self._core.discard(self._core.layout.snapshots / snapshot_id)
            self._settle(batch)

    def _take(self) -> tuple[str, _Batch]:
        with self._guard:
            if self._closed:
                raise Unavailable("make snapshot", "the store is closing")
            found = self._ready.popleft() if self._ready else None
            if len(self._ready) < LOW and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="orlop-snapshots", daemon=True)
                self._thread.start()
        return found if found is not None else self._make(1)[0]

    def _settle(self, batch: _Batch) -> None:
        with self._guard:
            batch.open -= 1
            done = not batch.open
        if done:
            batch.lock.release()

    def _run(self) -> None:
        """Make folders until enough wait."""
        while True:
            made: list[tuple[str, _Batch]] = []
            try:
                made = self._make(BATCH)
            except Error as exc:  # whoever needs one makes it, and is told why it cannot be
                logging.getLogger(__name__).debug("no folders are made beforehand: %s", exc)
            with self._guard:
                self._ready += made
                if not made or self._closed or len(self._ready) >= LOW:
                    self._thread = None
                    return

    @staticmethod
    def _prefix() -> str:
        return secrets.token_hex(_PREFIX // 2)

    def _make(self, count: int) -> list[tuple[str, _Batch]]:
        core, parent = self._core, self._core.layout.snapshots
        prefix = self._prefix()
        lock = core.try_locked("pool", prefix)
        if lock is None:
            return self._make(count)  # others make folders with these names
        ids: list[str] = []
        try:
            base = os.fspath(parent)
            for number in range(count):
                snapshot_id = f"{prefix}{number:02x}"
                place = f"{base}/{snapshot_id}"
                os.mkdir(place, 0o700)
                ids.append(snapshot_id)  # what lay there before is a snapshot of somebody's
                os.mkdir(f"{place}/fs", 0o755)
                os.chmod(f"{place}/fs", 0o755)  # noqa: S103 - whatever the umask; above it nobody passes
                os.mkdir(f"{place}/work", 0o700)
            reached("snapshot.folders")
            for snapshot_id in ids:
                core.sync.folder(f"{base}/{snapshot_id}/fs")
                core.sync.folder(f"{base}/{snapshot_id}")
            core.sync.folder(parent)
            reached("snapshot.pooled")
        except BaseException as exc:
            for snapshot_id in ids:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    core.discard(parent / snapshot_id)
            lock.release()
            if isinstance(exc, FileExistsError):
                return self._make(count)
            if isinstance(exc, OSError):
                raise from_oserror("make snapshot", exc) from exc
            raise
        batch = _Batch(lock, count)
        return [(snapshot_id, batch) for snapshot_id in ids]
