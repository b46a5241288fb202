"""Deleting: names, what nothing needs, and what crashes left behind.

Two phases: a transaction forgets, and writes what to delete into ``trash``; then each thing is moved to the
folder ``trash`` under its own lock, after looking once more for a row, and deleted there.

What a crash left behind is told from what is being made by locks, never by age: whoever makes a thing holds
a lock on it until a row names it.  (Only a download waits a day to be resumed.)  A name that orlop would
not give is left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orlop.errors import Error, FailedPrecondition, InvalidArgument, from_oserror
from orlop.images import names
from orlop.images.api import Collected, Removed
from orlop.images.core import NAMESPACE, Core
from orlop.images.grounds import STAMPS
from orlop.linux.files import remove_tree, walk_folders
from orlop.linux.flock import FileLock
from orlop.metadata import folders, garbage, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Forgotten
from orlop.observe import Call
from orlop.snapshots.driver import Root
from orlop.snapshots.mappings import mapping_name
from orlop.spec.digest import DiffID, Digest

__all__ = ["Collector"]

_ASIDE = "quarantine-"  # prefix of a lost root that was written to
INGEST_AGE = 24 * 3600.0  # seconds that an interrupted download waits to be resumed


class _RolledBackError(Exception):
    """Undoes a transaction whose result is all that was wanted."""

    def __init__(self, found: list[Forgotten]) -> None:
        super().__init__()
        self.found = found


class Collector:
    """Deletes from one store.  Thread-safe; never in the way of a pull of the same layer."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def remove(self, text: str, *, force: bool) -> Removed:
        """See `orlop.images.api.Images.remove`."""
        what = f"remove {text}"
        dead = self._dead_leases()

        def body(tx: Transaction) -> tuple[list[str], list[Forgotten]]:
            row = names.require(tx, NAMESPACE, text, what)
            gone = [row.name]
            if not names.is_name_of(text, row.name):
                gone = [other.name for other in images.images_by_id(tx, NAMESPACE, row.config)]
                if len(gone) > 1 and not force:
                    raise FailedPrecondition(
                        what, f"the image has several names: {', '.join(gone)}", hint="name one, or use force"
                    )
            for name in gone:
                images.delete_image(tx, NAMESPACE, name)
            return gone, garbage.forget(tx, dead)

        gone, found = self._core.db.write(body)
        self._empty_trash()
        return Removed(names=tuple(gone), freed=sum(item.size for item in found))

    def collect(self, *, dry_run: bool, call: Call) -> Collected:
        """See `orlop.images.api.Upkeep.collect`."""
        dead = self._dead_leases()
        if dry_run:
            found = self._would_forget(dead, call)
        else:
            found = self._core.db.write(lambda tx: garbage.forget(tx, dead), call=call)
            self._empty_trash()
        items = tuple((f"{item.kind} {item.name}", item.size) for item in found)
        strays = tuple(self._strays(delete=not dry_run, call=call))
        if not dry_run:
            self._idle_activations()
            self._old_locks()
        return Collected(items=items + strays)

    def _would_forget(self, dead: list[str], call: Call) -> list[Forgotten]:
        def body(tx: Transaction) -> None:
            raise _RolledBackError(garbage.forget(tx, dead))

        try:
            self._core.db.write(body, call=call)
        except _RolledBackError as exc:
            return exc.found
        return []

    def _dead_leases(self) -> list[str]:
        """Leases whose owner is gone: their locks, taken before the row was made, are free."""
        dead: list[str] = []
        for lease in self._core.db.read(garbage.lease_ids):
            lock = self._core.try_locked("lease", lease)
            if lock is not None:
                lock.release()
                dead.append(lease)
        return dead

    # -- the second phase -----------------------------------------------------------------------

    def _empty_trash(self) -> None:
        for path in self._core.db.read(garbage.trash_list):
            self._bury(path)

    def _bury(self, path: str, *, delete: bool = True) -> bool:
        """Delete one forgotten thing; False if it is in use this moment, or somebody's again."""
        core = self._core
        kind, key = _lock_of(path)
        lock = core.try_locked(kind, key)
        if lock is None:
            return False  # the next collection looks again
        try:
            named = core.db.read(lambda tx: _is_named(tx, path))
            if not delete:
                return not named
            if not named:
                if kind == "chain":
                    core.erofs.deactivate(key)
                core.discard(core.layout.root / path)
            core.db.write(lambda tx: garbage.trash_done(tx, path))
            return not named
        finally:
            lock.release()

    # -- what crashes left ----------------------------------------------------------------------

    def _strays(self, *, delete: bool, call: Call) -> Iterator[tuple[str, int]]:
        """Files that no row names, and old downloads; each is deleted if ``delete`` says so."""
        root = self._core.layout.root
        steps: list[tuple[Callable[[], list[Path]], Callable[[Path], bool]]] = [
            (self._unnamed, lambda path: self._bury(str(path.relative_to(root)), delete=delete)),
            (self._temporaries, lambda path: _take(path, path, delete=delete)),
            (self._unfinished, lambda path: _take(path, path, delete=delete)),
            (self._ingests, lambda path: self._take_ingest(path, delete=delete)),
            (self._graves, lambda path: _take(path, None, delete=delete)),
            (self._lost_roots, lambda path: self._take_root(path, delete=delete, call=call)),
        ]
        for candidates, take in steps:
            for path in _listed(candidates):
                call.check("collect")
                size = _size(path)
                try:
                    taken = take(path)
                except FileNotFoundError:
                    continue  # somebody else was faster
                except (Error, OSError) as exc:
                    call.observer.warning(f"{path} cannot be collected: {exc}")
                    continue
                if taken:
                    yield f"stray {path.relative_to(root)}", size

    def _unnamed(self) -> list[Path]:
        """Layers, chains, folders and blobs on disk without a row."""
        layout = self._core.layout
        candidates = [*layout.layers.iterdir(), *layout.chains.glob("*.erofs")]
        candidates += [path for path in layout.folders.iterdir() if not path.name.startswith("new-")]
        candidates += (layout.content / "blobs").glob("*/*")
        root = layout.root

        def body(tx: Transaction) -> list[Path]:
            return [path for path in candidates if not _is_named(tx, str(path.relative_to(root)))]

        return self._core.db.read(body)

    def _temporaries(self) -> list[Path]:
        """What `write_durably` was writing."""
        layout = self._core.layout
        folders = [layout.root, layout.chains, *(layout.content / "blobs").iterdir()]
        return [path for folder in folders for path in folder.glob(".tmp-*")]

    def _unfinished(self) -> list[Path]:
        """Layers and folders in the making."""
        layout = self._core.layout
        return [*layout.layers.glob("new-*"), *layout.folders.glob("new-*")]

    def _ingests(self) -> list[Path]:
        return self._core.blobs.ingests()

    def _take_ingest(self, folder: Path, *, delete: bool) -> bool:
        """A download that nobody has gone on with for a day, or whose layer is there."""
        lock = self._core.try_locked("blob", folder.name)
        if lock is None:
            return False
        try:
            age = time.time() - self._core.blobs.ingest_changed(folder)
            if age < INGEST_AGE and not self._core.db.read(lambda tx: _has_layer(tx, folder.name)):
                return False
            if delete:
                remove_tree(folder)
            return True
        finally:
            lock.release()

    def _graves(self) -> list[Path]:
        return list(self._core.layout.trash.iterdir())

    def _lost_roots(self) -> list[Path]:
        """Folders under ``prepared`` without a row."""
        folders = [path for path in self._core.layout.prepared.iterdir() if not path.name.startswith(_ASIDE)]
        known = self._core.db.read(roots.root_ids)
        return [folder for folder in folders if folder.name not in known]

    def _take_root(self, folder: Path, *, delete: bool, call: Call) -> bool:
        """Delete a lost root if nothing was written to it, else set it aside."""
        core = self._core
        lock = core.try_locked("root", folder.name)
        if lock is None:
            return False  # a Prepare stands between making the folder and naming it
        try:
            if folder.name in core.db.read(roots.root_ids):
                return False
            place = self._writable(folder, call)
            lost = Root(id=folder.name, target="", folder=place)
            if any(driver.in_use(lost) for driver in core.drivers.values()):
                return False
            used = _was_used(place)
            core.disks.deactivate(folder.name)
            if not used:
                if delete:
                    core.discard(folder)
                return True
            if delete:
                aside = folder.with_name(_ASIDE + folder.name)
                os.rename(folder, aside)
                call.observer.warning(f"a root that nothing names was set aside: {aside}")
            return False
        finally:
            lock.release()

    def _idle_activations(self) -> None:
        """Unmount the chains that no prepared root stands on, and what else nobody needs."""
        for chain in self._core.erofs.activations():
            lock = self._core.try_locked("chain", chain)
            if lock is None:
                continue
            try:
                used = self._core.db.read(lambda tx, chain=chain: roots.chain_users(tx, chain))  # type: ignore[misc]  # bound now
                needed = {mapping_name(*maps) for maps in used}
                self._core.erofs.deactivate(chain, keep=needed.__contains__)
            finally:
                lock.release()

        self._idle_mappings()
        self._idle_disks()

    def _idle_mappings(self) -> None:
        core = self._core

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

    def _idle_disks(self) -> None:
        core = self._core
        for root_id in core.disks.activations():
            lock = core.try_locked("root", root_id)
            if lock is not None:
                try:
                    if root_id not in core.db.read(roots.root_ids):
                        core.disks.deactivate(root_id)
                finally:
                    lock.release()

    def _writable(self, folder: Path, call: Call) -> Path:
        """Where the writable part of a root is: in its folder, or on its disk, which is mounted then."""
        core = self._core
        if not core.disks.has(folder.name):
            return folder
        with core.locked("disk", folder.name, call=call, attempted="collect"):
            return core.disks.activate(folder.name) / "root"

    def _old_locks(self) -> None:
        """Remove the lock files of the dead: whoever has a lock, if only for a moment, removes its file."""
        for path in self._core.layout.locks.glob("*-*"):
            lock = FileLock(path, unlink_on_release=True)
            if lock.acquire(call=Call(), attempted="collect", blocking=False):
                lock.release()


def _listed(candidates: Callable[[], list[Path]]) -> list[Path]:
    try:
        return sorted(candidates())
    except OSError as exc:
        raise from_oserror("collect", exc) from exc


def _take(path: Path, locked: Path | None, *, delete: bool) -> bool:
    """Delete a file or a tree; False if somebody holds a flock on ``locked``, its maker."""
    if locked is None:
        if delete:
            remove_tree(path)
        return True
    fd = os.open(locked, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if delete:
            remove_tree(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _was_used(folder: Path) -> bool:
    """Whether somebody has written to an upper, or to a copy of a tree."""
    upper, tree, stamps = folder / "upper", folder / "tree", folder / STAMPS
    if not tree.is_dir():
        return upper.is_dir() and any(upper.iterdir())
    if not stamps.exists():
        return False  # the copy was never complete
    complete = stamps.stat().st_ctime_ns
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.fstat(fd).st_ctime_ns > complete or any(
            entry.stat(follow_symlinks=False).st_ctime_ns > complete
            for _, _, entries in walk_folders(fd)
            for entry in entries
        )
    finally:
        os.close(fd)


def _lock_of(path: str) -> tuple[str, str]:
    """The lock that guards a path of the store."""
    parts = path.split("/")
    kinds = {"layers": "layer", "chains": "chain", "content": "blob", "prepared": "root", "folders": "folder"}
    kind = kinds[parts[0]]
    return kind, parts[-1].removesuffix(".erofs")


def _is_named(tx: Transaction, path: str) -> bool:
    """Whether a row names what lies at a path of the store, or it is no such thing as rows name."""
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
    return parts[-1] in roots.root_ids(tx)


def _has_layer(tx: Transaction, encoded: str) -> bool:
    """Whether the layer is there that a blob (by the hexadecimal digits of its digest) holds."""
    for algorithm in ("sha256", "sha512"):
        with contextlib.suppress(InvalidArgument):
            found = layers.layer_of_blob(tx, Digest(f"{algorithm}:{encoded}"))
            if found is not None and layers.get_layer(tx, found.diff_id) is not None:
                return True
    return False


def _size(path: Path) -> int:
    """The bytes of a file, or of all files right in a folder."""
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir():
            return path.stat(follow_symlinks=False).st_size
        with os.scandir(path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries if not entry.is_dir())
    return 0
