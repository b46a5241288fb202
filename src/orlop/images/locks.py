"""The locks of a store, between all its threads and processes: their names, and the order they are taken in.

Lock files under ``locks`` are named KIND-KEY: ``share-<id>`` while a share changes,
``lease-<id>`` while a lease's owner lives, ``path-<hash>``
while something happens to a prepared path, ``ref-<key>`` while a client writes content to a ref,
``blob-<hex>`` and ``layer-<hex>`` while one is fetched or made, ``maps-<name>`` shared while a root with
mapped ids is at work, exclusive while ids are mapped or unmapped, ``folder-<what>`` and ``folder-<id>``
while a folder is made, ``chain-<id>`` shared while a root is put on a chain, exclusive while it is built,
mounted or unmounted, ``disk-<id>`` while a root's disk is mounted.  A thread that holds several takes them
in that order of kinds, and several of one kind in the order of their keys; while it waits to build or mount
one chain it holds no other.  ``root-<id>``, held while a folder under ``prepared`` waits for its row, is a
new root's own, for which nobody waits.  A collector only tries.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from orlop.errors import from_oserror
from orlop.images.sharedlocks import SharedLocks
from orlop.linux.flock import FileLock
from orlop.observe import Call

__all__ = ["Locks", "root_lock"]


def root_lock(root_id: str) -> str:
    """The key of the lock that guards a root's folder; those of roots that are made at once share one.

    So a call that makes a thousand roots holds one descriptor for that, not a thousand.
    """
    return root_id[:12]


class Locks:
    """The locks of one store, as this process takes them.  Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._locks = os.fspath(folder)
        self.shared = SharedLocks()

    def lock_path(self, kind: str, key: str) -> Path:
        """The file of a lock."""
        return Path(self._lock_file(kind, key))

    def _lock_file(self, kind: str, key: str) -> str:
        if len(key) > 100 or "/" in key:
            import hashlib

            key = hashlib.sha256(os.fsencode(key)).hexdigest()
        return f"{self._locks}/{kind}-{key}"

    @contextlib.contextmanager
    def locked(
        self,
        kind: str,
        key: str,
        *,
        call: Call,
        attempted: str,
        exclusive: bool = True,
        meanwhile: Callable[[], None] | None = None,
    ) -> Iterator[FileLock]:
        """Hold a lock for the length of a ``with`` block; ``meanwhile`` is called while it is waited for."""
        lock = FileLock(self._lock_file(kind, key), unlink_on_release=True)
        try:
            lock.acquire(call=call, attempted=attempted, exclusive=exclusive, meanwhile=meanwhile)
        except OSError as exc:
            raise from_oserror(attempted, exc) from exc
        try:
            yield lock
        finally:
            lock.release()

    @contextlib.contextmanager
    def sharing(self, kind: str, key: str, *, call: Call, attempted: str) -> Iterator[None]:
        """Hold a lock as `locked` does, shared; for those that are taken very often."""
        path = self.share(kind, key, call=call, attempted=attempted)
        try:
            yield
        finally:
            self.shared.leave(path)

    def share(self, kind: str, key: str, *, call: Call, attempted: str) -> str:
        """The same without a block; returns what to tell `SharedLocks.leave`."""
        path = self._lock_file(kind, key)
        try:
            self.shared.enter(path, call=call, attempted=attempted)
        except OSError as exc:
            raise from_oserror(attempted, exc) from exc
        return path

    def try_locked(self, kind: str, key: str) -> FileLock | None:
        """A lock, if nobody has it; the caller releases it."""
        lock = FileLock(self._lock_file(kind, key), unlink_on_release=True)
        try:
            return lock if lock.acquire(call=Call(), attempted="collect", blocking=False) else None
        except OSError as exc:
            raise from_oserror(f"lock {kind} {key}", exc) from exc
