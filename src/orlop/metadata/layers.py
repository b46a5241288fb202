"""Rows about layers and blobs: what is on disk, and what came from where."""

from __future__ import annotations

import time
from collections.abc import Iterable

from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = [
    "LayerBlob",
    "LayerRow",
    "add_blob",
    "add_layer",
    "add_layer_blob",
    "add_source",
    "blob_sizes",
    "blobs_of_layer",
    "get_layer",
    "has_blob",
    "layer_of_blob",
    "sources_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A layer that is on disk, whole.  Sizes in bytes."""

    diff_id: DiffID
    size: int
    data_size: int
    index_size: int
    entries: int

    @property
    def disk(self) -> int:
        """All its files together."""
        return self.size + self.data_size + self.index_size


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBlob:
    """A blob that a layer is known to come as.  ``recipe`` says how orlop made it, where it did."""

    diff_id: DiffID
    digest: Digest
    size: int
    media_type: str
    recipe: str | None = None


def add_layer(tx: Transaction, layer: LayerRow) -> None:
    """Name a layer that is on disk.  Idempotent."""
    tx.execute(
        "INSERT OR IGNORE INTO layers (diff_id, size, data_size, index_size, entries, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (layer.diff_id, layer.size, layer.data_size, layer.index_size, layer.entries, time.time()),
    )


def get_layer(tx: Transaction, diff_id: DiffID) -> LayerRow | None:
    """A layer, if it is on disk."""
    row = tx.execute(
        "SELECT size, data_size, index_size, entries FROM layers WHERE diff_id = ?", (diff_id,)
    ).fetchone()
    if row is None:
        return None
    return LayerRow(diff_id=diff_id, size=row[0], data_size=row[1], index_size=row[2], entries=row[3])


def add_layer_blob(tx: Transaction, blob: LayerBlob) -> None:
    """Remember that a layer comes as this blob; both digests were verified.  Idempotent."""
    tx.execute(
        "INSERT INTO layer_blobs (diff_id, digest, size, media_type, recipe) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (diff_id, digest) DO UPDATE SET "
        "recipe = COALESCE(excluded.recipe, recipe)",
        (blob.diff_id, blob.digest, blob.size, blob.media_type, blob.recipe),
    )


def _blob(row: tuple[str, str, int, str, str | None]) -> LayerBlob:
    diff_id, digest, size, media_type, recipe = row
    return LayerBlob(
        diff_id=DiffID(diff_id), digest=Digest(digest), size=size, media_type=media_type, recipe=recipe
    )


def blobs_of_layer(tx: Transaction, diff_id: DiffID) -> list[LayerBlob]:
    """The blobs that a layer is known to come as, those of other makers first."""
    query = "SELECT * FROM layer_blobs WHERE diff_id = ? ORDER BY recipe IS NOT NULL, digest"
    return [_blob(tuple(row)) for row in tx.execute(query, (diff_id,))]


def layer_of_blob(tx: Transaction, digest: Digest) -> LayerBlob | None:
    """The layer that a blob is known to hold."""
    row = tx.execute("SELECT * FROM layer_blobs WHERE digest = ?", (digest,)).fetchone()
    return _blob(tuple(row)) if row else None


def add_blob(tx: Transaction, digest: Digest, size: int) -> None:
    """Name a blob that is on disk.  Idempotent."""
    tx.execute(
        "INSERT OR IGNORE INTO blobs (digest, size, created_at) VALUES (?, ?, ?)", (digest, size, time.time())
    )


def has_blob(tx: Transaction, digest: Digest) -> bool:
    """Whether a blob is on disk."""
    return tx.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is not None


def blob_sizes(tx: Transaction, digests: Iterable[Digest]) -> dict[Digest, int]:
    """The sizes of those of some blobs that are on disk."""
    found: dict[Digest, int] = {}
    for digest in digests:
        row = tx.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row:
            found[digest] = row[0]
    return found


def add_source(tx: Transaction, digest: Digest, registry: str, repository: str) -> None:
    """Remember a repository that has a blob."""
    tx.execute(
        "INSERT INTO blob_sources (digest, registry, repository, seen_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (digest, registry, repository) DO UPDATE SET seen_at = excluded.seen_at",
        (digest, registry, repository, time.time()),
    )


def sources_of(tx: Transaction, digest: Digest) -> list[tuple[str, str]]:
    """Registries and repositories that have had a blob, the latest first."""
    query = "SELECT registry, repository FROM blob_sources WHERE digest = ? ORDER BY seen_at DESC"
    return [(row[0], row[1]) for row in tx.execute(query, (digest,))]
