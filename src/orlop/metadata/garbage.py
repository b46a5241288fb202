"""Leases, and what nothing needs any more: mark and sweep over the rows, and the list of trash.

Roots of collection are image names, prepared roots and leases.  What they do not reach is forgotten in
one transaction, which writes the paths to delete into ``trash``; files go only after that is on disk.

A lease lasts as long as its owner holds the flock named after it (`orlop.images.core.Lease`), not for a
time: a pull may take hours, and the clock may jump.  Which owners are dead is the caller's to find out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from orlop.metadata.db import Transaction

__all__ = [
    "Forgotten",
    "forget",
    "lease_add",
    "lease_end",
    "lease_ids",
    "trash_add",
    "trash_done",
    "trash_list",
]

_LIVE = """
CREATE TEMP TABLE live_configs AS
  SELECT config_digest AS ref FROM images UNION SELECT config_digest FROM prepared
  UNION SELECT config_digest FROM root_mounts WHERE config_digest IS NOT NULL
  UNION SELECT ref FROM lease_refs WHERE kind = 'config';
CREATE TEMP TABLE live_chains AS
  WITH RECURSIVE used(id) AS (
    SELECT chain_id FROM prepared UNION SELECT ref FROM lease_refs WHERE kind = 'chain'
    UNION SELECT chain_id FROM root_mounts WHERE chain_id IS NOT NULL
    UNION SELECT parent FROM chains JOIN used ON chain_id = id WHERE parent IS NOT NULL)
  SELECT id AS ref FROM used;
CREATE TEMP TABLE live_layers AS
  SELECT diff_id AS ref FROM config_layers WHERE config_digest IN (SELECT ref FROM live_configs)
  UNION SELECT diff_id FROM chain_layers WHERE chain_id IN (SELECT ref FROM live_chains)
  UNION SELECT ref FROM lease_refs WHERE kind = 'layer';
CREATE TEMP TABLE live_blobs AS
  SELECT ref FROM live_configs
  UNION SELECT digest FROM image_manifests WHERE config_digest IN (SELECT ref FROM live_configs)
  UNION SELECT digest FROM layer_blobs WHERE diff_id IN (SELECT ref FROM live_layers)
  UNION SELECT ref FROM lease_refs WHERE kind = 'blob';
"""
_TABLES = ("live_configs", "live_chains", "live_layers", "live_blobs")

# A chain is a cache: it stays while all its layers and its parents stay.
_DEAD_CHAINS = """
WITH RECURSIVE dead(id) AS (
  SELECT DISTINCT chain_id FROM chain_layers WHERE diff_id NOT IN (SELECT ref FROM live_layers)
  UNION SELECT chain_id FROM chains JOIN dead ON parent = id)
SELECT chain_id, size FROM chains
WHERE chain_id IN (SELECT id FROM dead) AND chain_id NOT IN (SELECT ref FROM live_chains)
ORDER BY depth DESC
"""


# So is a folder.  Roots on it keep its layers alive.
_DEAD_FOLDERS = """
SELECT id, size FROM folders WHERE id IN
  (SELECT folder FROM folder_layers WHERE diff_id NOT IN (SELECT ref FROM live_layers))
"""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One thing that no row names any more: its kind, its name, its bytes, its path in the store."""

    kind: str
    name: str
    size: int
    path: str


def forget(tx: Transaction, dead_leases: Iterable[str] = ()) -> list[Forgotten]:
    """Delete the rows of all that nothing needs, and write their files into ``trash``.

    ``dead_leases`` are those whose owner is gone.  To see what would go, run it in a transaction that
    is rolled back.
    """
    for lease in dead_leases:
        lease_end(tx, lease)
    for statement in _LIVE.split(";\n"):
        if statement.strip():
            tx.execute(statement)
    found = _sweep(tx)
    for table in _TABLES:  # where an error came first, the rollback undoes them
        tx.execute(f"DROP TABLE temp.{table}")
    return found


def _sweep(tx: Transaction) -> list[Forgotten]:
    found: list[Forgotten] = []
    for chain, size in tx.execute(_DEAD_CHAINS).fetchall():
        found.append(Forgotten("chain", chain, size, f"chains/{chain}.erofs"))
        tx.execute("DELETE FROM chains WHERE chain_id = ?", (chain,))
    for folder, size in tx.execute(_DEAD_FOLDERS).fetchall():
        found.append(Forgotten("folder", folder, size, f"folders/{folder}"))
        tx.execute("DELETE FROM folders WHERE id = ?", (folder,))
    layers = tx.execute(
        "SELECT diff_id, size + data_size + index_size FROM layers "
        "WHERE diff_id NOT IN (SELECT ref FROM live_layers)"
    ).fetchall()
    for diff_id, size in layers:
        found.append(Forgotten("layer", diff_id, size, f"layers/{diff_id.partition(':')[2]}"))
    blobs = tx.execute(
        "SELECT digest, size FROM blobs WHERE digest NOT IN (SELECT ref FROM live_blobs)"
    ).fetchall()
    for digest, size in blobs:
        algorithm, _, encoded = digest.partition(":")
        found.append(Forgotten("blob", digest, size, f"content/blobs/{algorithm}/{encoded}"))
    for statement in (
        "DELETE FROM layers WHERE diff_id NOT IN (SELECT ref FROM live_layers)",
        "DELETE FROM layer_blobs WHERE diff_id NOT IN (SELECT ref FROM live_layers)",
        "DELETE FROM blobs WHERE digest NOT IN (SELECT ref FROM live_blobs)",
        "DELETE FROM blob_sources WHERE digest NOT IN (SELECT ref FROM live_blobs)",
        "DELETE FROM config_layers WHERE config_digest NOT IN (SELECT ref FROM live_configs)",
        "DELETE FROM image_manifests WHERE config_digest NOT IN (SELECT ref FROM live_configs)",
    ):
        tx.execute(statement)
    for item in found:
        trash_add(tx, item.path)
    return found


def trash_add(tx: Transaction, path: str) -> None:
    """Remember a path, relative to the store, that is to be deleted."""
    tx.execute("INSERT OR IGNORE INTO trash VALUES (?)", (path,))


def trash_list(tx: Transaction) -> list[str]:
    """The paths still to be deleted."""
    return [row[0] for row in tx.execute("SELECT path FROM trash ORDER BY path")]


def trash_done(tx: Transaction, path: str) -> None:
    """A path is gone from its place."""
    tx.execute("DELETE FROM trash WHERE path = ?", (path,))


def lease_add(tx: Transaction, lease: str, kind: str, ref: str) -> None:
    """Keep a thing (``layer``, ``blob``, ``chain`` or ``config``) while the lease lasts."""
    tx.execute("INSERT OR IGNORE INTO leases VALUES (?, ?)", (lease, time.time()))
    tx.execute("INSERT OR IGNORE INTO lease_refs VALUES (?, ?, ?)", (lease, kind, ref))


def lease_ids(tx: Transaction) -> list[str]:
    """All leases, those of the dead included."""
    return [row[0] for row in tx.execute("SELECT id FROM leases")]


def lease_end(tx: Transaction, lease: str) -> None:
    """The operation is over."""
    tx.execute("DELETE FROM leases WHERE id = ?", (lease,))
