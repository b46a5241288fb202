"""Rows about what was captured of roots: the last capture of each, and its checkpoints.

A capture keeps nothing and may name a layer that is gone; a checkpoint keeps its config, with all layers.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from orlop.errors import AlreadyExists
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = [
    "CaptureRow",
    "CheckpointRow",
    "add_checkpoint",
    "check_new",
    "checkpoints_of",
    "delete_checkpoint",
    "get_capture",
    "get_checkpoint",
    "set_capture",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRow:
    """What an upper with this fingerprint is as a layer; None where it changes nothing."""

    fingerprint: bytes
    diff_id: DiffID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """A named point of a root; ``created`` is seconds since 1970."""

    name: str
    config: Digest
    created: float


def get_capture(tx: Transaction, root_id: str) -> CaptureRow | None:
    """The last capture of a root, if its layer is there."""
    row = tx.execute("SELECT fingerprint, diff_id FROM captures WHERE root = ?", (root_id,)).fetchone()
    if row is None:
        return None
    diff_id = DiffID(row[1]) if row[1] is not None else None
    if diff_id is not None and layers.get_layer(tx, diff_id) is None:
        return None
    return CaptureRow(fingerprint=row[0], diff_id=diff_id)


def set_capture(tx: Transaction, root_id: str, row: CaptureRow) -> None:
    """Remember a capture, unless the root is gone."""
    tx.execute(
        "INSERT INTO captures (root, diff_id, fingerprint, created_at) "
        "SELECT id, ?, ?, ? FROM prepared WHERE id = ? ON CONFLICT (root) DO UPDATE SET "
        "diff_id = excluded.diff_id, fingerprint = excluded.fingerprint, created_at = excluded.created_at",
        (row.diff_id, row.fingerprint, time.time(), root_id),
    )


def check_new(tx: Transaction, root_id: str, name: str) -> None:
    """Raise `AlreadyExists` for a name that a point of the root has."""
    if get_checkpoint(tx, root_id, name) is not None:
        raise AlreadyExists(
            f"make checkpoint {name}", "the root has one of that name", hint="drop it, or choose another"
        )


def add_checkpoint(tx: Transaction, root_id: str, rows: Iterable[CheckpointRow]) -> None:
    """Name points of a root.  Raises `AlreadyExists` for a name that it has."""
    for row in rows:
        check_new(tx, root_id, row.name)
        tx.execute(
            "INSERT INTO checkpoints (root, name, config_digest, created_at) VALUES (?, ?, ?, ?)",
            (root_id, row.name, row.config, row.created),
        )


def get_checkpoint(tx: Transaction, root_id: str, name: str) -> CheckpointRow | None:
    """One point of a root."""
    row = tx.execute(
        "SELECT name, config_digest, created_at FROM checkpoints WHERE root = ? AND name = ?", (root_id, name)
    ).fetchone()
    return CheckpointRow(name=row[0], config=Digest(row[1]), created=row[2]) if row else None


def checkpoints_of(tx: Transaction, root_id: str) -> list[CheckpointRow]:
    """The points of a root, in the order in which they were made."""
    query = "SELECT name, config_digest, created_at FROM checkpoints WHERE root = ? ORDER BY created_at, name"
    return [
        CheckpointRow(name=row[0], config=Digest(row[1]), created=row[2])
        for row in tx.execute(query, (root_id,))
    ]


def delete_checkpoint(tx: Transaction, root_id: str, name: str) -> bool:
    """Forget a point; whether there was one."""
    done = tx.execute("DELETE FROM checkpoints WHERE root = ? AND name = ?", (root_id, name))
    return done.rowcount > 0
