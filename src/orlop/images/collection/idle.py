"""What no prepared root needs any more and is no file of the store: mounts, and the locks of the dead.

Prepare and Cleanup undo what they need themselves; this is for what killed processes leave.  Each thing is
looked at under its lock, without waiting: who holds it is using it.
"""

from __future__ import annotations

from orlop.images.core import NAMESPACE, Core
from orlop.images.locks import root_lock
from orlop.linux.flock import FileLock
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.observe import Call
from orlop.snapshots.mappings import mapping_name

__all__ = ["release_idle"]


def release_idle(core: Core) -> None:
    """Unmount chains, id mappings and disks that no root stands on, and remove what is left of locks."""
    _chains(core)
    _mappings(core)
    _disks(core)
    _locks(core)


def _chains(core: Core) -> None:
    for chain in core.erofs.activations():
        lock = core.try_locked("chain", chain)
        if lock is None:
            continue
        try:
            used = core.db.read(lambda tx, chain=chain: roots.chain_users(tx, chain))  # type: ignore[misc]  # bound now
            needed = {mapping_name(*maps) for maps in used}
            core.erofs.deactivate(chain, keep=needed.__contains__)
        finally:
            lock.release()


def _mappings(core: Core) -> None:
    def used(tx: Transaction) -> set[str]:
        return {mapping_name(root.uid_map, root.gid_map) for root in roots.list_roots(tx, NAMESPACE)}

    for mapping in core.mappings.activations():
        lock = core.try_locked("maps", mapping)
        if lock is not None:
            try:
                if mapping not in core.db.read(used):
                    core.mappings.deactivate(mapping)
            finally:
                lock.release()


def _disks(core: Core) -> None:
    for root_id in core.disks.activations():
        lock = core.try_locked("root", root_lock(root_id))
        if lock is not None:
            try:
                if not core.db.read(lambda tx, root_id=root_id: roots.is_root(tx, root_id)):  # type: ignore[misc]  # bound now
                    core.disks.deactivate(root_id)
            finally:
                lock.release()


def _locks(core: Core) -> None:
    """Remove the lock files of the dead: whoever has a lock, if only for a moment, removes its file."""
    for path in core.layout.locks.glob("*-*"):
        lock = FileLock(path, unlink_on_release=True)
        if lock.acquire(call=Call(), attempted="collect", blocking=False):
            lock.release()
