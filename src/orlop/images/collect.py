"""Deleting: names, what nothing needs, and what crashes left behind.

Two phases: a transaction forgets, and writes what to delete into ``trash``; then each thing is moved to the
folder ``trash`` under its own lock, after looking once more for a row, and deleted there.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.images import names
from orlop.images.api import Collected, Removed
from orlop.images.core import NAMESPACE, Core
from orlop.linux.files import remove_tree
from orlop.metadata import garbage, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Forgotten
from orlop.observe import Call
from orlop.snapshots.erofs import ErofsDriver
from orlop.spec.digest import DiffID, Digest

__all__ = ["Collector"]

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
            return gone, garbage.forget(tx)

        gone, found = self._core.db.write(body)
        self._empty_trash()
        return Removed(names=tuple(gone), freed=sum(item.size for item in found))

    def collect(self, *, dry_run: bool, call: Call) -> Collected:
        """See `orlop.images.api.Upkeep.collect`."""
        if dry_run:
            return Collected(items=self._would_forget() + self._strays(delete=False, call=call))
        found = self._core.db.write(garbage.forget, call=call)
        items = tuple((f"{item.kind} {item.name}", item.size) for item in found)
        self._empty_trash()
        return Collected(items=items + self._strays(delete=True, call=call))

    def _would_forget(self) -> tuple[tuple[str, int], ...]:
        def body(tx: Transaction) -> None:
            raise _RolledBackError(garbage.forget(tx))

        try:
            self._core.db.write(body)
        except _RolledBackError as exc:
            return tuple((f"{item.kind} {item.name}", item.size) for item in exc.found)
        return ()

    # -- the second phase -----------------------------------------------------------------------

    def _empty_trash(self) -> None:
        for path in self._core.db.read(garbage.trash_list):
            self._bury(path)

    def _bury(self, path: str) -> None:
        """Delete one forgotten thing, unless it is somebody's again."""
        core = self._core
        kind, key = _lock_of(path)
        lock = core.try_locked(kind, key)
        if lock is None:
            return  # in use this moment: the next collection looks again
        try:
            if not core.db.read(lambda tx: _is_named(tx, path)):
                if kind == "chain":
                    core.driver.deactivate(key)
                core.discard(core.layout.root / path)
            core.db.write(lambda tx: garbage.trash_done(tx, path))
        finally:
            lock.release()

    # -- what crashes left ----------------------------------------------------------------------

    def _strays(self, *, delete: bool, call: Call) -> tuple[tuple[str, int], ...]:
        """Files that no row names; also old downloads and activations of nobody."""
        core = self._core
        found: list[tuple[str, int]] = []
        for path in self._unnamed():
            call.check("collect")
            found.append((f"stray {path.relative_to(core.layout.root)}", _size(path)))
            if delete:
                self._bury(str(path.relative_to(core.layout.root)))
        for path in core.layers.abandoned() + self._old_ingests() + sorted(core.layout.trash.iterdir()):
            call.check("collect")
            found.append((f"stray {path.relative_to(core.layout.root)}", _size(path)))
            if delete:
                remove_tree(path, missing_ok=True) if path.is_dir() else path.unlink(missing_ok=True)
        if delete:
            self._idle_activations(core.driver)
            self._lost_roots(call)
        return tuple(found)

    def _unnamed(self) -> list[Path]:
        """Layers, chains and blobs on disk without a row."""
        layout = self._core.layout
        candidates = [path for path in layout.layers.iterdir() if not path.name.startswith("new-")]
        candidates += layout.chains.glob("*.erofs")
        candidates += (layout.content / "blobs").glob("*/*")
        root = layout.root

        def body(tx: Transaction) -> list[Path]:
            return [path for path in candidates if not _is_named(tx, str(path.relative_to(root)))]

        return sorted(self._core.db.read(body))

    def _old_ingests(self) -> list[Path]:
        """Downloads that nobody has gone on with for a day."""
        found: list[Path] = []
        for folder in self._core.blobs.ingests():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - (folder / "data").stat().st_mtime > INGEST_AGE:
                    lock = self._core.try_locked("blob", folder.name)
                    if lock is not None:
                        found.append(folder)
                        lock.release()
        return found

    def _idle_activations(self, driver: ErofsDriver) -> None:
        for chain in driver.activations():
            lock = self._core.try_locked("chain", chain)
            if lock is None:
                continue
            try:
                if not self._core.db.read(lambda tx, chain=chain: roots.chain_users(tx, chain)):  # type: ignore[misc]  # bound now
                    driver.deactivate(chain)
            finally:
                lock.release()

    def _lost_roots(self, call: Call) -> None:
        """Folders under ``prepared`` without a row: deleted if nothing was written, else set aside."""
        layout = self._core.layout
        known = self._core.db.read(roots.root_ids)
        for folder in layout.prepared.iterdir():
            if folder.name in known or folder.name.startswith("quarantine-") or _young(folder):
                continue
            upper = folder / "upper"
            if upper.is_dir() and any(upper.iterdir()):
                aside = folder.with_name(f"quarantine-{folder.name}")
                os.rename(folder, aside)
                call.observer.warning(f"a root that nothing names was set aside: {aside}")
            else:
                self._core.discard(folder)


def _young(folder: Path) -> bool:
    """Whether a Prepare may be standing between making the folder and naming it."""
    try:
        return time.time() - folder.stat().st_mtime < 300
    except FileNotFoundError:
        return True


def _lock_of(path: str) -> tuple[str, str]:
    """The lock that guards a path of the store."""
    parts = path.split("/")
    kind = {"layers": "layer", "chains": "chain", "content": "blob", "prepared": "root"}[parts[0]]
    return kind, parts[-1].removesuffix(".erofs")


def _is_named(tx: Transaction, path: str) -> bool:
    """Whether a row names what lies at a path of the store."""
    parts = path.split("/")
    if parts[0] == "layers":
        return layers.get_layer(tx, DiffID(f"sha256:{parts[-1]}")) is not None
    if parts[0] == "chains":
        return roots.get_chain(tx, parts[-1].removesuffix(".erofs")) is not None
    if parts[0] == "content":
        return layers.has_blob(tx, Digest(f"{parts[-2]}:{parts[-1]}"))
    return parts[-1] in roots.root_ids(tx)


def _size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    with contextlib.suppress(FileNotFoundError):
        if not path.is_dir():
            return path.stat().st_size
        return sum(
            entry.stat(follow_symlinks=False).st_size for entry in os.scandir(path) if not entry.is_dir()
        )
    return 0
