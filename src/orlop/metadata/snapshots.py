"""Rows about containerd's snapshots.

A snapshot is found by its key and namespace; its id names its folder and never changes.  A parent is
committed, and stays as long as it has children.  At the bottom of a stack of folders there may be a chain:
of the layers that a committed snapshot consists of (`layers_of`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.hints import Literal
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = [
    "SnapshotKind",
    "SnapshotRow",
    "add_snapshot",
    "candidates",
    "commit_snapshot",
    "count_snapshots",
    "delete_snapshot",
    "find_snapshot",
    "has_children",
    "is_parent",
    "is_snapshot",
    "layers_of",
    "list_snapshots",
    "require_parent",
    "require_snapshot",
    "set_labels",
    "snapshot_ids",
    "stack_of",
]

SnapshotKind = Literal["active", "view", "committed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRow:
    """A snapshot.

    ``parent`` is an id, ``parent_key`` the same one's name.  ``chain`` is that of the layers at the bottom.
    Times are nanoseconds since 1970; ``size`` and ``inodes`` are those of a committed one's folder.
    """

    id: str
    namespace: str
    key: str
    kind: SnapshotKind
    created: int
    updated: int
    parent: str | None = None
    parent_key: str = ""
    has_folder: bool = True
    chain: str | None = None
    labels: Mapping[str, str]
    size: int = 0
    inodes: int = 0


_COLUMNS = (
    "s.id, s.namespace, s.key, s.kind, s.created_at, s.updated_at, s.parent, p.key, s.has_folder, "
    "s.chain_id, s.labels, s.size, s.inodes"
)
_FROM = f"SELECT {_COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"


def _row(row: sqlite3.Row) -> SnapshotRow:
    return SnapshotRow(
        id=row[0],
        namespace=row[1],
        key=row[2],
        kind=row[3],
        created=row[4],
        updated=row[5],
        parent=row[6],
        parent_key=row[7] or "",
        has_folder=bool(row[8]),
        chain=row[9],
        labels=json.loads(row[10]),
        size=row[11],
        inodes=row[12],
    )


def _text(labels: Mapping[str, str]) -> str:
    return json.dumps(labels, ensure_ascii=False) if labels else "{}"


# -- one ----------------------------------------------------------------------------------------


def find_snapshot(tx: Transaction, namespace: str, key: str) -> SnapshotRow | None:
    """A snapshot by its name."""
    row = tx.execute(f"{_FROM} WHERE s.key = ? AND s.namespace = ?", (key, namespace)).fetchone()
    return _row(row) if row else None


def require_snapshot(tx: Transaction, namespace: str | None, key: str, what: str) -> SnapshotRow:
    """The same.  Raises `NotFound`.

    Without a namespace it is looked for in all; raises `FailedPrecondition` where several have it.
    """
    if namespace is not None:
        row = find_snapshot(tx, namespace, key)
    else:
        found = [_row(one) for one in tx.execute(f"{_FROM} WHERE s.key = ? LIMIT 2", (key,))]
        if len(found) > 1:
            raise FailedPrecondition(
                what, f"several namespaces have a snapshot {key!r}", hint="say which namespace"
            )
        row = found[0] if found else None
    if row is None:
        raise NotFound(what, f"there is no snapshot {key!r}")
    return row


def require_parent(tx: Transaction, namespace: str, key: str, what: str) -> SnapshotRow:
    """A snapshot that others may build on.  Raises `NotFound`, or `InvalidArgument` for an active one."""
    row = find_snapshot(tx, namespace, key)
    if row is None:
        raise NotFound(what, f"there is no parent {key!r}")
    if row.kind != "committed":
        raise InvalidArgument(what, f"the parent {key!r} is not a committed snapshot")
    return row


def is_parent(tx: Transaction, namespace: str, key: str, snapshot_id: str) -> bool:
    """Whether a name still means a committed snapshot."""
    query = "SELECT id FROM snapshots WHERE key = ? AND namespace = ? AND kind = 'committed'"
    row = tx.execute(query, (key, namespace)).fetchone()
    return row is not None and row[0] == snapshot_id


def is_snapshot(tx: Transaction, snapshot_id: str) -> bool:
    """Whether a row has an id."""
    return tx.execute("SELECT 1 FROM snapshots WHERE id = ?", (snapshot_id,)).fetchone() is not None


def has_children(tx: Transaction, snapshot_id: str) -> bool:
    """Whether others build on a snapshot."""
    query = "SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1"
    return tx.execute(query, (snapshot_id,)).fetchone() is not None


def stack_of(tx: Transaction, snapshot_id: str | None) -> list[str]:
    """The snapshots that have folders, from one down to the bottom: their ids."""
    if snapshot_id is None:
        return []
    query = (
        "WITH RECURSIVE below (id, parent, has_folder, depth) AS ("
        "  SELECT id, parent, has_folder, 0 FROM snapshots WHERE id = ? UNION ALL "
        "  SELECT s.id, s.parent, s.has_folder, depth + 1 FROM below JOIN snapshots s ON s.id = below.parent"
        ") SELECT id FROM below WHERE has_folder ORDER BY depth"
    )
    return [row[0] for row in tx.execute(query, (snapshot_id,))]


def layers_of(tx: Transaction, snapshot_id: str) -> tuple[DiffID, ...]:
    """The layers at the bottom of a snapshot's stack, bottom first; none where folders are all there is.

    Those of the nearest one below, or itself, that has some.
    """
    query = (
        "WITH RECURSIVE below (id, parent, depth) AS ("
        "  SELECT id, parent, 0 FROM snapshots WHERE id = ?1 UNION ALL "
        "  SELECT s.id, s.parent, depth + 1 FROM below JOIN snapshots s ON s.id = below.parent"
        ") SELECT diff_id FROM snapshot_layers WHERE snapshot = ("
        "  SELECT id FROM below WHERE EXISTS (SELECT 1 FROM snapshot_layers WHERE snapshot = below.id) "
        "  ORDER BY depth LIMIT 1) ORDER BY position"
    )
    return tuple(DiffID(row[0]) for row in tx.execute(query, (snapshot_id,)))


# -- several ------------------------------------------------------------------------------------


def list_snapshots(
    tx: Transaction, namespace: str | None, *, after: tuple[str, str] = ("", ""), most: int
) -> list[SnapshotRow]:
    """Snapshots by name, of one namespace or of all; those that come after a key and a namespace."""
    where = "(s.key, s.namespace) > (?, ?)"
    values: tuple[object, ...] = after
    if namespace is not None:
        where, values = f"{where} AND s.namespace = ?", (*after, namespace)
    query = f"{_FROM} WHERE {where} ORDER BY s.key, s.namespace LIMIT ?"
    return [_row(row) for row in tx.execute(query, (*values, most))]


def count_snapshots(tx: Transaction) -> int:
    """How many there are."""
    return int(tx.execute("SELECT COUNT(*) FROM snapshots").fetchone()[0])


def snapshot_ids(tx: Transaction) -> set[str]:
    """The folders under ``snapshots`` that have a row."""
    return {row[0] for row in tx.execute("SELECT id FROM snapshots WHERE has_folder")}


def candidates(tx: Transaction, below: Sequence[DiffID], *, most: int) -> list[DiffID]:
    """Layers that configs of the store list right above some others, or at the bottom."""
    position = len(below)
    if not below:
        query = "SELECT DISTINCT diff_id FROM config_layers WHERE position = 0 LIMIT ?"
        return [DiffID(row[0]) for row in tx.execute(query, (most,))]
    query = (
        "SELECT DISTINCT upper.diff_id FROM config_layers lower JOIN config_layers upper "
        "ON upper.config_digest = lower.config_digest AND upper.position = lower.position + 1 "
        "WHERE lower.diff_id = ? AND lower.position = ? LIMIT ?"
    )
    return [DiffID(row[0]) for row in tx.execute(query, (below[-1], position - 1, most))]


# -- changes ------------------------------------------------------------------------------------


def add_snapshot(tx: Transaction, row: SnapshotRow, what: str, layers: Sequence[DiffID] = ()) -> None:
    """Name a snapshot whose folder, if it has one, is on disk; ``layers`` are what it consists of.

    Raises `AlreadyExists` if the name is taken.
    """
    try:
        tx.execute(
            "INSERT INTO snapshots (id, namespace, key, parent, kind, has_folder, chain_id, labels, "
            "created_at, updated_at, size, inodes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.id,
                row.namespace,
                row.key,
                row.parent,
                row.kind,
                row.has_folder,
                row.chain,
                _text(row.labels),
                row.created,
                row.updated,
                row.size,
                row.inodes,
            ),
        )
    except sqlite3.IntegrityError as exc:
        raise _taken(what, row.key) from exc
    if layers:
        tx.executemany(
            "INSERT INTO snapshot_layers (snapshot, position, diff_id) VALUES (?, ?, ?)",
            [(row.id, position, diff_id) for position, diff_id in enumerate(layers)],
        )


def commit_snapshot(tx: Transaction, row: SnapshotRow, what: str) -> None:
    """Make an active snapshot a committed one: its row as it is to be.

    Raises `AlreadyExists` if the name is taken.
    """
    try:
        tx.execute(
            "UPDATE snapshots SET key = ?, kind = ?, labels = ?, created_at = ?, updated_at = ?, size = ?, "
            "inodes = ?, parent = ?, chain_id = ? WHERE id = ?",
            (
                row.key,
                row.kind,
                _text(row.labels),
                row.created,
                row.updated,
                row.size,
                row.inodes,
                row.parent,
                row.chain,
                row.id,
            ),
        )
    except sqlite3.IntegrityError as exc:
        raise _taken(what, row.key) from exc


def _taken(what: str, key: str) -> AlreadyExists:
    return AlreadyExists(what, f"there is a snapshot {key!r} already")


def set_labels(tx: Transaction, snapshot_id: str, labels: Mapping[str, str], updated: int) -> None:
    """Give a snapshot other labels."""
    tx.execute(
        "UPDATE snapshots SET labels = ?, updated_at = ? WHERE id = ?", (_text(labels), updated, snapshot_id)
    )


def delete_snapshot(tx: Transaction, snapshot_id: str) -> None:
    """Forget a snapshot that has no children."""
    tx.execute("DELETE FROM snapshots WHERE id = ?", (snapshot_id,))
