"""Rows about pins: roots of collection that a caller made, under a name, until a time or for good.

An expired pin keeps nothing from that moment on (`orlop.metadata.needs`); its row goes with the next
collection.  Its kinds are ``config``, ``layer``, ``chain`` and ``blob``.
"""

from __future__ import annotations

import sqlite3
import time

from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Suspects
from orlop.values import dataclass

__all__ = [
    "PinRow",
    "expire_pins",
    "get_pin",
    "list_pins",
    "pinned_configs",
    "put_pin",
    "some_expired",
    "take_pin",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinRow:
    """A pin.  Times are seconds since 1970; ``expires`` is None for one that stays."""

    name: str
    kind: str
    ref: str
    created: float
    expires: float | None


_COLUMNS = "name, kind, ref, created_at, expires_at"


def _pin(row: sqlite3.Row) -> PinRow:
    return PinRow(name=row[0], kind=row[1], ref=row[2], created=row[3], expires=row[4])


def put_pin(
    tx: Transaction, namespace: str, name: str, *, kind: str, ref: str, expires: float | None
) -> tuple[PinRow, Suspects]:
    """Pin a thing; a name that is taken moves.  Returns what it kept before, too."""
    before = take_pin(tx, namespace, name)
    row = PinRow(name=name, kind=kind, ref=ref, created=time.time(), expires=expires)
    tx.execute(
        f"INSERT INTO pins ({_COLUMNS}, namespace) VALUES (?, ?, ?, ?, ?, ?)",
        (row.name, row.kind, row.ref, row.created, row.expires, namespace),
    )
    return row, before or Suspects()


def take_pin(tx: Transaction, namespace: str, name: str) -> Suspects | None:
    """Take a pin back; what it kept, or None if there is no such pin."""
    row = get_pin(tx, namespace, name)
    if row is None:
        return None
    tx.execute("DELETE FROM pins WHERE namespace = ? AND name = ?", (namespace, name))
    found = Suspects()
    found.add(row.kind, row.ref)
    return found


def get_pin(tx: Transaction, namespace: str, name: str) -> PinRow | None:
    """A pin by its name, expired or not."""
    query = f"SELECT {_COLUMNS} FROM pins WHERE namespace = ? AND name = ?"
    row = tx.execute(query, (namespace, name)).fetchone()
    return _pin(row) if row else None


def list_pins(tx: Transaction, namespace: str, *, now: float) -> list[PinRow]:
    """The pins that have not expired, by name."""
    query = (
        f"SELECT {_COLUMNS} FROM pins WHERE namespace = ? AND (expires_at IS NULL OR expires_at > ?) "
        "ORDER BY name"
    )
    return [_pin(row) for row in tx.execute(query, (namespace, now))]


def pinned_configs(tx: Transaction, *, now: float) -> set[str]:
    """The configs that pins keep."""
    query = "SELECT ref FROM pins WHERE kind = 'config' AND (expires_at IS NULL OR expires_at > ?)"
    return {row[0] for row in tx.execute(query, (now,))}


def some_expired(tx: Transaction, *, now: float) -> bool:
    """Whether there is a pin that has expired."""
    return tx.execute("SELECT 1 FROM pins WHERE expires_at <= ? LIMIT 1", (now,)).fetchone() is not None


def expire_pins(tx: Transaction, *, now: float) -> Suspects:
    """Delete the pins of all namespaces that have expired; what they kept."""
    found = Suspects()
    for kind, ref in tx.execute("SELECT kind, ref FROM pins WHERE expires_at <= ?", (now,)):
        found.add(kind, ref)
    tx.execute("DELETE FROM pins WHERE expires_at <= ?", (now,))
    return found
