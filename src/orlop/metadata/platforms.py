"""Rows about names that mean an index: the images that they hold of it, and its own blobs.

Not which image of an index is chosen (`orlop.images.platforms`).  Invariant: a name with such rows has an
index in its row of ``images``, and that row is one of them; `orlop.metadata.images.put_image` sees to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from orlop.hints import TYPE_CHECKING
from orlop.spec.digest import Digest
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = [
    "IndexBlob",
    "PlatformRow",
    "add_index_blobs",
    "all_platforms",
    "index_blob",
    "index_blobs",
    "names_of_config",
    "names_of_manifest",
    "platforms_of",
    "put_platforms",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformRow:
    """One image of a name's index.  ``platform`` and ``created`` are its config's words."""

    config: Digest
    manifest: Digest
    platform: str
    created: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexBlob:
    """A blob of an index beyond its images.  ``size`` is in bytes."""

    digest: Digest
    media_type: str
    size: int


_SELECT = "SELECT config_digest, manifest_digest, platform, created FROM image_platforms WHERE namespace = ?"


def platforms_of(tx: Transaction, namespace: str, name: str) -> list[PlatformRow]:
    """The images that a name holds of its index, by platform; none for a name that means no index."""
    rows = tx.execute(_SELECT + " AND name = ? ORDER BY platform, manifest_digest", (namespace, name))
    return [_row(tuple(row)) for row in rows]


def all_platforms(tx: Transaction, namespace: str) -> dict[str, list[PlatformRow]]:
    """The images of all names that mean an index, by name and platform."""
    found: dict[str, list[PlatformRow]] = {}
    query = (
        "SELECT name, config_digest, manifest_digest, platform, created FROM image_platforms "
        "WHERE namespace = ? ORDER BY name, platform, manifest_digest"
    )
    for name, *rest in tx.execute(query, (namespace,)):
        found.setdefault(name, []).append(_row(tuple(rest)))
    return found


def names_of_config(tx: Transaction, namespace: str, prefix: str) -> list[tuple[str, PlatformRow]]:
    """The names that hold an image whose config digest starts with ``prefix``, by name."""
    rows = tx.execute(
        "SELECT name, config_digest, manifest_digest, platform, created FROM image_platforms "
        "WHERE +namespace = ? AND config_digest >= ? AND config_digest < ? ORDER BY name, manifest_digest",
        (namespace, prefix, prefix + "g"),
    )
    return [(row[0], _row(tuple(row)[1:])) for row in rows]


def names_of_manifest(tx: Transaction, namespace: str, manifest: Digest) -> list[tuple[str, PlatformRow]]:
    """The names that hold the image of a manifest, by name."""
    rows = tx.execute(
        "SELECT name, config_digest, manifest_digest, platform, created FROM image_platforms "
        "WHERE +namespace = ? AND manifest_digest = ? ORDER BY name",
        (namespace, manifest),
    )
    return [(row[0], _row(tuple(row)[1:])) for row in rows]


def _row(row: tuple[str, str, str, str]) -> PlatformRow:
    config, manifest, platform, created = row
    return PlatformRow(config=Digest(config), manifest=Digest(manifest), platform=platform, created=created)


def put_platforms(tx: Transaction, namespace: str, name: str, rows: Iterable[PlatformRow]) -> None:
    """Say which images a name holds of its index, whatever it held before."""
    tx.execute("DELETE FROM image_platforms WHERE namespace = ? AND name = ?", (namespace, name))
    tx.executemany(
        "INSERT OR REPLACE INTO image_platforms "
        "(namespace, name, manifest_digest, config_digest, platform, created) VALUES (?, ?, ?, ?, ?, ?)",
        [(namespace, name, row.manifest, row.config, row.platform, row.created) for row in rows],
    )


def add_index_blobs(tx: Transaction, index: Digest, blobs: Iterable[IndexBlob]) -> None:
    """Remember blobs that an index needs; itself is one of them.  Idempotent."""
    tx.executemany(
        "INSERT OR IGNORE INTO index_blobs (index_digest, digest, media_type, size) VALUES (?, ?, ?, ?)",
        [(index, blob.digest, blob.media_type, blob.size) for blob in blobs],
    )


def index_blobs(tx: Transaction, index: Digest) -> list[IndexBlob]:
    """The blobs that an index needs beyond its images, by digest."""
    rows = tx.execute(
        "SELECT digest, media_type, size FROM index_blobs WHERE index_digest = ? ORDER BY digest", (index,)
    )
    return [IndexBlob(digest=Digest(row[0]), media_type=row[1], size=row[2]) for row in rows]


def index_blob(tx: Transaction, digest: Digest) -> IndexBlob | None:
    """A blob that some index needs."""
    row = tx.execute(
        "SELECT digest, media_type, size FROM index_blobs WHERE digest = ?", (digest,)
    ).fetchone()
    return IndexBlob(digest=Digest(row[0]), media_type=row[1], size=row[2]) if row else None
