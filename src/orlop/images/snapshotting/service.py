"""Snapshots in one store: see `orlop.images.snapshots.Snapshots`.

A snapshot is a row, and a folder of the pool where something can be written to it.  The row comes last when
it is made and goes first when it is removed; what was written to it is synced before a row says that it is
committed.  A key needs no lock: the transaction decides, and looks again at what it was told.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING

from orlop.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.api import Mount
from orlop.images.filters import label_field, parse_filters
from orlop.images.parts import Parts, verb
from orlop.images.snapshots import LABEL_REF, SnapshotInfo, SnapshotUsage
from orlop.images.snapshotting import names, settle
from orlop.images.snapshotting.graves import Graves
from orlop.images.snapshotting.pool import Pool
from orlop.images.snapshotting.stack import Stacks
from orlop.metadata import garbage, roots
from orlop.metadata import snapshots as rows
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Suspects
from orlop.metadata.snapshots import SnapshotKind, SnapshotRow
from orlop.observe import Call, reached
from orlop.spec.digest import DiffID
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.core import Core
    from orlop.images.snapshotting.remote import Remote

__all__ = ["SnapshotService"]

_Below = tuple[str | None, list[str], tuple[DiffID, ...]]  # a parent, the folders and the layers below
_NOTHING: _Below = (None, [], ())
PART = 500  # snapshots that one transaction lists
MOST_KNOWN = 4_096  # parents that are remembered
_TRIES = 3  # how often a call begins when a collection takes its chain away


class SnapshotService(Parts):
    """The snapshots of one open store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._pool = Pool(core)
        self._graves = Graves(core)
        self._known: dict[tuple[str, str], _Below] = {}  # by namespace and name of the parent
        self._stacked: dict[str, list[str]] = {}  # folders from a parent downwards, by its id

    @cached_property
    def _stacks(self) -> Stacks:
        return Stacks(self._core, self._chains)

    @cached_property
    def _remote(self) -> Remote:
        from orlop.images.snapshotting.remote import Remote

        return Remote(self._core, self._ingest)

    def close(self) -> None:
        """Discard what was made beforehand.  Idempotent."""
        self._pool.close()
        self._graves.close()

    # -- making ---------------------------------------------------------------------------------

    @verb("prepare snapshot")
    def prepare(
        self, namespace: str, key: str, parent: str, *, labels: Mapping[str, str], call: Call
    ) -> list[Mount]:
        """See `orlop.images.snapshots.Snapshots.prepare`."""
        what = f"prepare snapshot {key}"
        labels = self._checked(namespace, key, labels, what)
        if labels.get(LABEL_REF) and self._remote.offer(namespace, key, parent, labels, what, call=call):
            raise AlreadyExists(what, f"there is a snapshot of {labels[LABEL_REF]} already")
        return self._make("active", namespace, key, parent, labels, what, call)

    @verb("view snapshot")
    def view(
        self, namespace: str, key: str, parent: str, *, labels: Mapping[str, str], call: Call
    ) -> list[Mount]:
        """See `orlop.images.snapshots.Snapshots.view`."""
        what = f"view snapshot {parent}"
        labels = self._checked(namespace, key, labels, what)
        return self._make("view", namespace, key, parent, labels, what, call)

    @staticmethod
    def _checked(namespace: str, key: str, labels: Mapping[str, str], what: str) -> Mapping[str, str]:
        names.check_namespace(namespace, what)
        names.check_key(key, what)
        return names.checked_labels(labels, what)

    def _make(
        self,
        kind: SnapshotKind,
        namespace: str,
        key: str,
        parent: str,
        labels: Mapping[str, str],
        what: str,
        call: Call,
    ) -> list[Mount]:
        within = names.parents_namespace(namespace, key, parent)
        for attempt in range(1, _TRIES + 1):
            under, folders, layers = self._below(within, parent, what) if parent else _NOTHING
            # A view of something has nothing of its own.
            owned = self._pool.taken() if kind == "active" or under is None else nullcontext()
            try:
                with owned as taken, self._stacks.ready(layers, call=call) as bottom:
                    snapshot_id = taken or secrets.token_hex(8)
                    mounts = self._stacks.mounts(kind, snapshot_id, folders, bottom, what)
                    if taken:
                        self._stacks.take_after(taken, self._stacks.lowers(folders, bottom))
                    now = time.time_ns()
                    row = SnapshotRow(
                        id=snapshot_id,
                        namespace=namespace,
                        key=key,
                        kind=kind,
                        created=now,
                        updated=now,
                        parent=under,
                        parent_key=parent,
                        has_folder=taken is not None,
                        chain=bottom.chain,
                        labels=labels,
                    )
                    self._core.db.write(lambda tx, row=row: self._name(tx, row, what), call=call)  # type: ignore[misc]  # bound now
                    reached("snapshot.named")
                return mounts
            except (Aborted, NotFound) as exc:  # not there: perhaps of what the parent's name meant before
                remembered = self._known.pop((within, parent), None)
                if attempt == _TRIES or (remembered is None and isinstance(exc, NotFound)):
                    raise
        raise AssertionError("unreachable")

    def _below(self, namespace: str, parent: str, what: str) -> _Below:
        """What a snapshot on a parent lies on.

        That of an id never changes; whether the name still means it, the transaction looks that names what is
        made.
        """
        found = self._known.get((namespace, parent))
        if found is None:

            def body(tx: Transaction) -> _Below:
                row = rows.require_parent(tx, namespace, parent, what)
                layers = rows.layers_of(tx, row.id) if row.chain else ()
                return row.id, self._folders(tx, row.id), layers

            found = self._core.db.read(body)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[namespace, parent] = found
        return found

    def _folders(self, tx: Transaction, parent: str | None) -> list[str]:
        """The folders from a parent downwards: they never change, and its id is never another's."""
        if parent is None:
            return []
        found = self._stacked.get(parent)
        if found is None:
            found = rows.stack_of(tx, parent)
            if len(self._stacked) >= MOST_KNOWN:
                self._stacked.clear()
            self._stacked[parent] = found
        return found

    @staticmethod
    def _name(tx: Transaction, row: SnapshotRow, what: str) -> None:
        """Raises `Aborted` where a removal or a collection was faster."""
        within = names.parents_namespace(row.namespace, row.key, row.parent_key)
        if row.parent is not None and not rows.is_parent(tx, within, row.parent_key, row.parent):
            raise Aborted(what, f"the parent {row.parent_key!r} was removed meanwhile", hint="try again")
        if row.chain is not None and not roots.chain_stack(tx, row.chain):
            raise Aborted(what, "its chain was collected meanwhile", hint="try again")
        rows.add_snapshot(tx, row, what)

    # -- what there is --------------------------------------------------------------------------

    @verb("list mounts of snapshot")
    def mounts(self, namespace: str, key: str, *, call: Call) -> list[Mount]:
        """See `orlop.images.snapshots.Snapshots.mounts`."""
        what = f"list mounts of snapshot {key}"
        names.check_namespace(namespace, what)

        def body(tx: Transaction) -> tuple[SnapshotRow, list[str], tuple[DiffID, ...]]:
            row = rows.require_snapshot(tx, namespace, key, what)
            if row.kind == "committed":
                raise FailedPrecondition(what, "it is committed: only active snapshots and views have mounts")
            return row, self._folders(tx, row.parent), rows.layers_of(tx, row.id) if row.chain else ()

        row, folders, layers = self._core.db.read(body)
        with self._stacks.ready(layers, call=call) as bottom:
            return self._stacks.mounts(row.kind, row.id, folders, bottom, what)

    def stat(self, namespace: str, key: str) -> SnapshotInfo:
        """See `orlop.images.snapshots.Snapshots.stat`."""
        what = f"look at snapshot {key}"
        names.check_namespace(namespace, what)
        return _info(self._core.db.read(lambda tx: rows.require_snapshot(tx, namespace, key, what)))

    def walk(self, namespace: str | None, filters: Sequence[str] = ()) -> Iterator[list[SnapshotInfo]]:
        """See `orlop.images.snapshots.Snapshots.walk`."""
        what = "list snapshots"
        if namespace is not None:
            names.check_namespace(namespace, what)
        return self._listed(namespace, parse_filters(filters, what).matches)

    def _listed(self, namespace: str | None, matches: names.Matches) -> Iterator[list[SnapshotInfo]]:
        after = ("", "")
        while True:
            found = self._core.db.read(
                lambda tx, after=after: rows.list_snapshots(tx, namespace, after=after, most=PART)  # type: ignore[misc]  # bound now
            )
            shown = [info for info in map(_info, found) if matches(_Fields(info))]
            if shown:
                yield shown
            if len(found) < PART:
                return
            after = (found[-1].key, found[-1].namespace)

    @verb("measure snapshot")
    def usage(self, namespace: str, key: str, *, call: Call) -> SnapshotUsage:
        """See `orlop.images.snapshots.Snapshots.usage`."""
        what = f"measure snapshot {key}"
        names.check_namespace(namespace, what)
        row = self._core.db.read(lambda tx: rows.require_snapshot(tx, namespace, key, what))
        if row.kind == "active":
            try:
                return settle.count(os.fsencode(self._stacks.folder(row.id)), call=call)
            except FileNotFoundError as exc:
                raise NotFound(what, "it was removed meanwhile") from exc
        return SnapshotUsage(size=row.size, inodes=row.inodes)

    # -- changing -------------------------------------------------------------------------------

    @verb("commit snapshot")
    def commit(self, namespace: str, name: str, key: str, *, labels: Mapping[str, str], call: Call) -> None:
        """See `orlop.images.snapshots.Snapshots.commit`."""
        what = f"commit snapshot {key}"
        labels = self._checked(namespace, name, labels, what)

        def look(tx: Transaction) -> SnapshotRow:
            if rows.find_snapshot(tx, namespace, name) is not None:
                raise AlreadyExists(what, f"there is a snapshot {name!r} already")
            row = rows.require_snapshot(tx, namespace, key, what)
            if row.kind != "active":
                raise FailedPrecondition(what, f"it is not active but {_ARTICLES[row.kind]}")
            return row

        row = self._core.db.read(look)
        folder = self._stacks.folder(row.id)
        try:
            usage = settle.settle(os.fsencode(folder), sync=self._core.sync, call=call)
        except FileNotFoundError as exc:
            raise NotFound(what, "it was removed meanwhile") from exc
        reached("snapshot.settled")

        def body(tx: Transaction) -> None:
            if look(tx).id != row.id:
                raise NotFound(what, "it was removed meanwhile")
            now = time.time_ns()
            done = replace(
                row,
                key=name,
                kind="committed",
                labels=labels,
                created=now,
                updated=now,
                size=usage.size,
                inodes=usage.inodes,
            )
            rows.commit_snapshot(tx, done, what)

        self._core.db.write(body, call=call)
        reached("snapshot.committed")

    @verb("remove snapshot", deletes=True)
    def remove(self, namespace: str | None, key: str, *, call: Call) -> None:
        """See `orlop.images.snapshots.Snapshots.remove`."""
        what = f"remove snapshot {key}"
        if namespace is not None:
            names.check_namespace(namespace, what)

        def body(tx: Transaction) -> tuple[SnapshotRow, list[str], bool]:
            row = rows.require_snapshot(tx, namespace, key, what)
            if rows.has_children(tx, row.id):
                raise FailedPrecondition(what, "cannot remove it: other snapshots build on it")
            # Of a view or an active one, the activation that may be needed no more.
            chains = [image.id for image in roots.chain_stack(tx, row.chain)] if row.chain else []
            layers = rows.layers_of(tx, row.id) if row.kind == "committed" and not row.has_folder else ()
            rows.delete_snapshot(tx, row.id)
            if row.has_folder:
                garbage.trash_add(tx, f"snapshots/{row.id}")
            forgotten = garbage.forget(tx, Suspects(layers=set(layers))) if layers else []
            return row, chains, bool(forgotten)

        row, chains, waste = self._core.db.write(body, call=call)
        reached("snapshot.forgotten")
        if row.has_folder:
            self._graves.add(row.id)
        if row.kind != "committed":
            self._release(chains)
        if waste:
            self._core.sweeper.wake()

    def _release(self, chains: Sequence[str]) -> None:
        """Unmount chains that nothing stands on any more, unless somebody is at them this moment."""
        core = self._core
        for chain in chains:
            lock = core.try_locked("chain", chain)
            if lock is None:
                continue
            try:
                if not core.db.read(lambda tx, chain=chain: roots.chain_users(tx, chain)):  # type: ignore[misc]  # bound now
                    core.erofs.deactivate(chain)
            finally:
                lock.release()

    def update(
        self, namespace: str, key: str, labels: Mapping[str, str], *, fields: Sequence[str] = ()
    ) -> SnapshotInfo:
        """See `orlop.images.snapshots.Snapshots.update`."""
        what = f"update snapshot {key}"
        labels = self._checked(namespace, key, labels, what)
        for field in fields:
            if field != "labels" and not field.startswith("labels."):
                raise InvalidArgument(what, f"the field {field!r} cannot be changed")

        def body(tx: Transaction) -> SnapshotRow:
            row = rows.require_snapshot(tx, namespace, key, what)
            found = dict(row.labels)
            for field in fields or ("labels",):
                if field == "labels":
                    found = dict(labels)
                    continue
                name = field.removeprefix("labels.")
                found.pop(name, None)
                if name in labels:
                    found[name] = labels[name]
            done = replace(row, labels=found, updated=time.time_ns())
            rows.set_labels(tx, row.id, done.labels, done.updated)
            return done

        return _info(self._core.db.write(body))

    @verb("clean up snapshots", deletes=True)
    def cleanup(self, *, call: Call) -> None:
        """See `orlop.images.snapshots.Snapshots.cleanup`."""
        self._graves.finish()
        self._core.sweeper.sweep(call=call)


_ARTICLES = {"view": "a view", "committed": "committed", "active": "active"}


def _info(row: SnapshotRow) -> SnapshotInfo:
    return SnapshotInfo(
        name=row.key,
        kind=row.kind,
        parent=row.parent_key,
        created=row.created,
        updated=row.updated,
        labels=row.labels,
    )


class _Fields:
    """What a filter may ask of a snapshot."""

    __slots__ = ("_info",)

    def __init__(self, info: SnapshotInfo) -> None:
        self._info = info

    def __call__(self, path: Sequence[str]) -> str | None:
        field, rest = path[0], path[1:]
        if field == "labels":
            return label_field(self._info.labels, rest)
        if field == "name":
            return self._info.name
        if field == "parent":
            return self._info.parent
        return self._info.kind if field == "kind" else None
