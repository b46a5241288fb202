"""What crashes leave: files of the store that no row names, and old downloads.

What a crash left is told from what is being made by locks, never by age: whoever makes a thing holds a lock
on it until a row names it.  (Only a download waits a day to be resumed.)  A name that orlop would not give is
left alone.  `strays` lists and touches nothing; `take_strays` deletes, looking again under each lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from orlop.content.writes import PREFIX as WRITE
from orlop.errors import Error, InvalidArgument, from_oserror
from orlop.hints import Literal
from orlop.images.account.measure import measure_some
from orlop.images.collection.graves import bury, is_free, is_named
from orlop.images.core import Core
from orlop.images.locks import root_lock
from orlop.images.prepared.grounds import STAMPS
from orlop.images.snapshotting.pool import pool_lock
from orlop.layers.stamps import written_since
from orlop.linux.files import remove_tree
from orlop.metadata import garbage, layers, roots, snapshots
from orlop.metadata.db import Transaction
from orlop.observe import Call
from orlop.snapshots.driver import Root
from orlop.spec.digest import Digest
from orlop.values import dataclass

__all__ = ["INGEST_AGE", "Stray", "StrayKind", "strays", "take_strays"]

ASIDE = "quarantine-"  # prefix of a lost root that was written to
INGEST_AGE = 24 * 3600.0  # seconds that an interrupted download waits to be resumed

StrayKind = Literal["unnamed", "temporary", "unfinished", "download", "grave", "root", "written root"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """Something that nobody needs, by its path from ROOT, and its bytes of disk.

    ``unnamed`` is a layer, chain, folder or blob without a row; ``temporary`` a file and ``unfinished`` a
    folder in the making; ``download`` an old one; ``grave`` what is being deleted; ``root`` the folder of a
    prepared root, or of a snapshot, without a row.  A ``written root`` has something in its upper: it is set
    aside, not deleted.
    """

    kind: StrayKind
    path: str
    size: int

    @property
    def deletable(self) -> bool:
        """Whether a collection deletes it."""
        return self.kind != "written root"


def strays(core: Core, *, call: Call) -> Iterator[Stray]:
    """All strays; what somebody is at this moment is none."""
    return _each(core, call, delete=False)


def take_strays(core: Core, *, call: Call, only: StrayKind | None = None) -> Iterator[Stray]:
    """The same, each deleted, or set aside, when it is told.  What cannot be deleted is a warning.

    ``only`` limits it to a kind, and to looking where those are.
    """
    return _each(core, call, delete=True, only=only)


def _each(core: Core, call: Call, *, delete: bool, only: StrayKind | None = None) -> Iterator[Stray]:
    root = core.layout.root
    for kind_there, candidates, take in _STEPS:
        if only not in {None, kind_there}:
            continue
        for path in _listed(partial(candidates, core)):
            call.check("collect")
            name = str(path.relative_to(root))
            try:
                size = measure_some(root, [name], call=call).get(name)
                kind = take(core, path, call, delete) if size is not None else None
            except FileNotFoundError:
                continue  # somebody else was faster
            except (Error, OSError) as exc:
                call.observer.warning(f"{path} cannot be collected: {exc}")
                continue
            if kind is not None and size is not None:
                yield Stray(kind=kind, path=name, size=size)


def _listed(candidates: Callable[[], list[Path]]) -> list[Path]:
    try:
        return sorted(candidates())
    except OSError as exc:
        raise from_oserror("collect", exc) from exc


# ------------------------------------------------------------------ where to look


def _unnamed(core: Core) -> list[Path]:
    """Layers, chains, folders and blobs on disk without a row."""
    layout = core.layout
    candidates = [*layout.layers.iterdir(), *layout.chains.glob("*.erofs")]
    candidates += [path for path in layout.folders.iterdir() if not path.name.startswith("new-")]
    candidates += (layout.content / "blobs").glob("*/*")
    below = len(os.fspath(layout.root)) + 1  # Path.relative_to takes 50 us, and there may be 100,000

    def body(tx: Transaction) -> list[Path]:
        waiting = set(garbage.trash_list(tx))  # the sweeper's
        names = [(path, os.fspath(path)[below:]) for path in candidates]
        return [path for path, name in names if name not in waiting and not is_named(tx, name)]

    return core.db.read(body)


def _temporaries(core: Core) -> list[Path]:
    """What `write_durably` was writing."""
    layout = core.layout
    folders = [layout.root, layout.chains, layout.shares, *(layout.content / "blobs").iterdir()]
    return [path for folder in folders for path in folder.glob(".tmp-*")]


def _unfinished(core: Core) -> list[Path]:
    """Layers and folders in the making."""
    return [*core.layout.layers.glob("new-*"), *core.layout.folders.glob("new-*")]


def _downloads(core: Core) -> list[Path]:
    return core.blobs.ingests()


def _graves(core: Core) -> list[Path]:
    return list(core.layout.trash.iterdir())


def _lost_roots(core: Core) -> list[Path]:
    """Folders under ``prepared`` without a row."""
    folders = [path for path in core.layout.prepared.iterdir() if not path.name.startswith(ASIDE)]

    def body(tx: Transaction) -> set[str]:
        waiting = {path.rpartition("/")[2] for path in garbage.trash_list(tx) if path.startswith("prepared/")}
        return roots.root_ids(tx) | waiting

    known = core.db.read(body)
    return [folder for folder in folders if folder.name not in known]


def _lost_snapshots(core: Core) -> list[Path]:
    """Folders under ``snapshots`` without a row."""
    folders = [path for path in core.layout.snapshots.iterdir() if not path.name.startswith(ASIDE)]

    def body(tx: Transaction) -> set[str]:
        waiting = {
            path.rpartition("/")[2] for path in garbage.trash_list(tx) if path.startswith("snapshots/")
        }
        return snapshots.snapshot_ids(tx) | waiting

    known = core.db.read(body) if folders else set()
    return [folder for folder in folders if folder.name not in known]


# ------------------------------------------------------------------ whose is it


def _take_unnamed(core: Core, path: Path, call: Call, delete: bool) -> StrayKind | None:
    name = str(path.relative_to(core.layout.root))
    taken = bury(core, name) if delete else is_free(core, name)
    return "unnamed" if taken else None


def _take_temporary(core: Core, path: Path, call: Call, delete: bool) -> StrayKind | None:
    return "temporary" if _take_flocked(path, delete) else None


def _take_unfinished(core: Core, path: Path, call: Call, delete: bool) -> StrayKind | None:
    return "unfinished" if _take_flocked(path, delete) else None


def _take_grave(core: Core, path: Path, call: Call, delete: bool) -> StrayKind | None:
    if delete:
        core.burn(path)
    return "grave"


def _take_download(core: Core, folder: Path, call: Call, delete: bool) -> StrayKind | None:
    """A download or a client's write that nobody has gone on with for a day, or whose layer is there."""
    lock = core.try_locked(*_ingest_lock(folder.name))
    if lock is None:
        return None
    try:
        age = time.time() - core.blobs.ingest_changed(folder)
        if age < INGEST_AGE and not core.db.read(lambda tx: _has_layer(tx, folder.name)):
            return None
        if delete:
            remove_tree(folder)
        return "download"
    finally:
        lock.release()


def _ingest_lock(name: str) -> tuple[str, str]:
    """The kind and the key of the lock that guards a folder of ingests."""
    return ("ref", name.removeprefix(WRITE)) if name.startswith(WRITE) else ("blob", name)


def _take_root(core: Core, folder: Path, call: Call, delete: bool) -> StrayKind | None:
    """A lost root goes if nothing was written to it; else it is set aside."""
    lock = core.try_locked("root", root_lock(folder.name))
    if lock is None:
        return None  # a Prepare stands between making the folder and naming it
    try:
        path = str(folder.relative_to(core.layout.root))
        # On the list it is no lost one: a Cleanup has given it up, and is deleting it.
        if core.db.read(lambda tx: roots.is_root(tx, folder.name) or garbage.is_trash(tx, path)):
            return None
        place = _writable(core, folder, call)
        lost = Root(id=folder.name, target="", folder=place)
        if any(driver.in_use(lost) for driver in core.drivers.values()):
            return None
        used = _was_used(place)
        core.disks.deactivate(folder.name)
        if not delete:
            return "written root" if used else "root"
        if not used:
            core.discard(folder)
            return "root"
        aside = folder.with_name(ASIDE + folder.name)
        os.rename(folder, aside)
        call.observer.warning(f"a root that nothing names was set aside: {aside}")
        return "written root"
    finally:
        lock.release()


def _take_snapshot(core: Core, folder: Path, call: Call, delete: bool) -> StrayKind | None:
    """A folder that waited for a snapshot in a process that is dead; one that was written to is set aside."""
    lock = core.try_locked("pool", pool_lock(folder.name))
    if lock is None:
        return None  # it waits still
    try:
        path = str(folder.relative_to(core.layout.root))
        if core.db.read(lambda tx: snapshots.is_snapshot(tx, folder.name) or garbage.is_trash(tx, path)):
            return None
        used = (folder / "fs").is_dir() and any((folder / "fs").iterdir())
        if not delete:
            return "written root" if used else "root"
        if not used:
            core.discard(folder)
            return "root"
        aside = folder.with_name(ASIDE + folder.name)
        os.rename(folder, aside)
        call.observer.warning(f"a snapshot that nothing names was set aside: {aside}")
        return "written root"
    finally:
        lock.release()


_Take = Callable[[Core, Path, Call, bool], StrayKind | None]
_STEPS: tuple[tuple[StrayKind, Callable[[Core], list[Path]], _Take], ...] = (
    ("unnamed", _unnamed, _take_unnamed),
    ("temporary", _temporaries, _take_temporary),
    ("unfinished", _unfinished, _take_unfinished),
    ("download", _downloads, _take_download),
    ("grave", _graves, _take_grave),
    ("root", _lost_roots, _take_root),
    ("root", _lost_snapshots, _take_snapshot),
)


def _take_flocked(path: Path, delete: bool) -> bool:
    """Delete a file or a tree; False if somebody holds a flock on it, its maker."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if delete:
            remove_tree(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _writable(core: Core, folder: Path, call: Call) -> Path:
    """Where the writable part of a root is: in its folder, or on its disk, which is mounted then."""
    if not core.disks.has(folder.name):
        return folder
    with core.locked("disk", folder.name, call=call, attempted="collect"):
        return core.disks.activate(folder.name) / "root"


def _was_used(folder: Path) -> bool:
    """Whether somebody has written to an upper, or to a copy of a tree."""
    upper, tree, stamps = folder / "upper", folder / "tree", folder / STAMPS
    if not tree.is_dir():
        return upper.is_dir() and any(upper.iterdir())
    if not stamps.exists():
        return False  # the copy was never complete
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return written_since(fd, stamps)
    finally:
        os.close(fd)


def _has_layer(tx: Transaction, encoded: str) -> bool:
    """Whether the layer is there that a blob (by the hexadecimal digits of its digest) holds."""
    for algorithm in ("sha256", "sha512"):
        with contextlib.suppress(InvalidArgument):
            found = layers.layer_of_blob(tx, Digest(f"{algorithm}:{encoded}"))
            if found is not None and layers.get_layer(tx, found.diff_id) is not None:
                return True
    return False
