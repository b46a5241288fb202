"""One thing that rows have forgotten: whose lock guards it, whether a row names it again, taking it away.

Paths are relative to ROOT, as in the list of trash.

Invariants: nothing leaves its place but under the lock of the thing, after looking once more for a row.  So
whoever makes a thing anew (a pull of the same layer) holds its lock until a row names it, and is never
disturbed.  What has left its place is deleted without a lock: it is nobody's.
"""

from __future__ import annotations

from pathlib import Path

from orlop.errors import InvalidArgument
from orlop.images.core import Core
from orlop.images.locks import root_lock
from orlop.linux.flock import FileLock
from orlop.metadata import folders, layers, roots, snapshots
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = ["Lifted", "bury", "is_free", "is_named", "lift"]

# By the folder that a thing lies in.
_LOCKS = {
    "layers": "layer",
    "chains": "chain",
    "content": "blob",
    "prepared": "root",
    "folders": "folder",
    "snapshots": "grave",  # never made anew once it is forgotten, so this is the deleters' own
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifted:
    """A thing's lock, and where the thing is to be deleted; None if it is ``named`` again, or gone."""

    lock: FileLock
    grave: Path | None
    named: bool = False


def lock_of(path: str) -> tuple[str, str]:
    """The kind and the key of the lock that guards a path."""
    parts = path.split("/")
    kind, name = _LOCKS[parts[0]], parts[-1].removesuffix(".erofs")
    return kind, root_lock(name) if kind == "root" else name


def is_named(tx: Transaction, path: str) -> bool:
    """Whether a row names what lies at a path, or it is no such thing as rows name."""
    parts = path.split("/")
    try:
        if parts[0] == "layers":
            return layers.get_layer(tx, DiffID(f"sha256:{parts[-1]}")) is not None
        if parts[0] == "content":
            return layers.has_blob(tx, Digest(f"{parts[-2]}:{parts[-1]}"))
    except InvalidArgument:
        return True
    if parts[0] == "folders":
        return folders.get_folder(tx, parts[-1]) is not None
    if parts[0] == "chains":
        return roots.get_chain(tx, parts[-1].removesuffix(".erofs")) is not None
    if parts[0] == "snapshots":
        return snapshots.is_snapshot(tx, parts[-1])
    return roots.is_root(tx, parts[-1])


def is_free(core: Core, path: str) -> bool:
    """Whether no row names a thing, and nobody is at it this moment."""
    lock = core.try_locked(*lock_of(path))
    if lock is None:
        return False
    try:
        return not core.db.read(lambda tx: is_named(tx, path))
    finally:
        lock.release()


def lift(core: Core, path: str) -> Lifted | None:
    """Take a thing out of its place, unless it is somebody's; the caller releases the lock.

    None for what somebody is at this moment: he may be making it anew, or deleting it.
    """
    kind, key = lock_of(path)
    lock = core.try_locked(kind, key)
    if lock is None:
        return None
    try:
        if core.db.read(lambda tx: is_named(tx, path)):
            return Lifted(lock=lock, grave=None, named=True)
        if kind == "chain":
            core.erofs.deactivate(key)
        elif kind == "root":
            core.disks.deactivate(path.rpartition("/")[2])
        return Lifted(lock=lock, grave=core.entomb(core.layout.root / path))
    except BaseException:
        lock.release()
        raise


def bury(core: Core, path: str) -> bool:
    """Delete a thing, unless it is somebody's; whether it was deleted."""
    lifted = lift(core, path)
    if lifted is None:
        return False
    lifted.lock.release()
    if lifted.grave is not None:
        core.burn(lifted.grave)
    return lifted.grave is not None
