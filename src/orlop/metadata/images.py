"""Rows about images: names, configs, manifests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID, Digest

__all__ = [
    "ImageRow",
    "ManifestRow",
    "add_config",
    "add_manifest",
    "config_layers",
    "config_size",
    "delete_image",
    "get_image",
    "images_by_id",
    "images_by_manifest",
    "list_images",
    "manifest_of",
    "put_image",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """A name and what it means."""

    name: str
    config: Digest
    manifest: Digest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """A manifest known for a config."""

    digest: Digest
    media_type: str
    size: int


def _row(row: tuple[str, str, str | None]) -> ImageRow:
    name, config, manifest = row
    return ImageRow(name=name, config=Digest(config), manifest=Digest(manifest) if manifest else None)


_SELECT = "SELECT name, config_digest, manifest_digest FROM images WHERE namespace = ?"


def get_image(tx: Transaction, namespace: str, name: str) -> ImageRow | None:
    """The image of a full name."""
    row = tx.execute(_SELECT + " AND name = ?", (namespace, name)).fetchone()
    return _row(tuple(row)) if row else None


def list_images(tx: Transaction, namespace: str) -> list[ImageRow]:
    """All images, by name."""
    return [_row(tuple(row)) for row in tx.execute(_SELECT + " ORDER BY name", (namespace,))]


def images_by_id(tx: Transaction, namespace: str, prefix: str) -> list[ImageRow]:
    """The images whose config digest starts with ``prefix`` (``sha256:...``), by name."""
    query = _SELECT + " AND config_digest >= ? AND config_digest < ? ORDER BY name"
    return [_row(tuple(row)) for row in tx.execute(query, (namespace, prefix, prefix + "g"))]


def images_by_manifest(tx: Transaction, namespace: str, manifest: Digest) -> list[ImageRow]:
    """The images with a manifest, by name."""
    query = _SELECT + " AND manifest_digest = ? ORDER BY name"
    return [_row(tuple(row)) for row in tx.execute(query, (namespace, manifest))]


def put_image(tx: Transaction, namespace: str, name: str, *, config: Digest, manifest: Digest | None) -> None:
    """Make a name mean an image, whatever it meant before."""
    now = time.time()
    tx.execute(
        "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, name) DO UPDATE SET "
        "config_digest = excluded.config_digest, manifest_digest = excluded.manifest_digest, "
        "updated_at = excluded.updated_at",
        (namespace, name, config, manifest, now, now),
    )


def delete_image(tx: Transaction, namespace: str, name: str) -> bool:
    """Forget a name; whether there was one."""
    cursor = tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
    return cursor.rowcount > 0


def add_config(tx: Transaction, config: Digest, diff_ids: Sequence[DiffID]) -> None:
    """Remember the layers of a config.  Idempotent."""
    tx.executemany(
        "INSERT OR IGNORE INTO config_layers VALUES (?, ?, ?)",
        [(config, position, diff_id) for position, diff_id in enumerate(diff_ids)],
    )


def config_layers(tx: Transaction, config: Digest) -> tuple[DiffID, ...]:
    """The layers of a config, bottom first."""
    rows = tx.execute(
        "SELECT diff_id FROM config_layers WHERE config_digest = ? ORDER BY position", (config,)
    )
    return tuple(DiffID(row[0]) for row in rows)


def add_manifest(tx: Transaction, config: Digest, manifest: ManifestRow) -> None:
    """Remember a manifest of a config.  Idempotent."""
    tx.execute(
        "INSERT OR IGNORE INTO image_manifests VALUES (?, ?, ?, ?)",
        (config, manifest.digest, manifest.media_type, manifest.size),
    )


def manifest_of(tx: Transaction, digest: Digest) -> ManifestRow | None:
    """A manifest by its digest."""
    row = tx.execute(
        "SELECT digest, media_type, size FROM image_manifests WHERE digest = ?", (digest,)
    ).fetchone()
    return ManifestRow(digest=Digest(row[0]), media_type=row[1], size=row[2]) if row else None


def config_size(tx: Transaction, config: Digest) -> tuple[int, int]:
    """Bytes of all tars of an image, and the number of its layers."""
    row = tx.execute(
        "SELECT COALESCE(SUM(size), 0), COUNT(*) FROM config_layers JOIN layers USING (diff_id) "
        "WHERE config_digest = ?",
        (config,),
    ).fetchone()
    return row[0], row[1]
