"""Rows about images: names, configs, manifests."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from orlop.hints import TYPE_CHECKING, Any
from orlop.metadata import labels, platforms
from orlop.metadata.platforms import PlatformRow
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = [
    "ImageRow",
    "ListedImage",
    "ManifestRow",
    "add_config",
    "add_manifest",
    "annotations_of",
    "config_layers",
    "config_size",
    "count_images",
    "delete_image",
    "describe_config",
    "get_image",
    "images_by_id",
    "images_by_index",
    "images_by_manifest",
    "list_images",
    "list_with_sizes",
    "manifest_of",
    "manifests_of",
    "put_annotations",
    "put_image",
    "touch_image",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """A name and what it means.

    ``platform`` and ``created`` are its config's words, None where nobody has looked yet.  ``index`` is the
    index that the name means, of which this is one image; None where it means this image alone.
    """

    name: str
    config: Digest
    manifest: Digest | None
    platform: str | None = None
    created: str | None = None
    index: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """A line of a list: ``size`` is the bytes of all tars that are on disk, ``layers`` how many that are."""

    row: ImageRow
    size: int
    layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """A manifest known for a config."""

    digest: Digest
    media_type: str
    size: int


def _row(row: Sequence[Any]) -> ImageRow:
    name, config, manifest, platform, created, index = row
    return ImageRow(
        name=name,
        config=Digest(config),
        manifest=Digest(manifest) if manifest else None,
        platform=platform,
        created=created,
        index=Digest(index) if index else None,
    )


_COLUMNS = "name, images.config_digest, manifest_digest, platform, created, index_digest"
_SELECT = f"SELECT {_COLUMNS} FROM images WHERE namespace = ?"


def get_image(tx: Transaction, namespace: str, name: str) -> ImageRow | None:
    """The image of a full name."""
    row = tx.execute(_SELECT + " AND name = ?", (namespace, name)).fetchone()
    return _row(tuple(row)) if row else None


def list_images(tx: Transaction, namespace: str) -> list[ImageRow]:
    """All images, by name."""
    return [_row(tuple(row)) for row in tx.execute(_SELECT + " ORDER BY name", (namespace,))]


def some_names(tx: Transaction, namespace: str, most: int) -> list[str]:
    """So many of the names, the first by name."""
    query = "SELECT name FROM images WHERE namespace = ? ORDER BY name LIMIT ?"
    return [str(row[0]) for row in tx.execute(query, (namespace, most))]


def list_with_sizes(tx: Transaction, namespace: str) -> list[ListedImage]:
    """All images, by name, with what a list shows of them."""
    query = (
        f"SELECT {_COLUMNS}, COALESCE(SUM(size), 0), COUNT(layers.diff_id) FROM images "
        "LEFT JOIN config_layers ON config_layers.config_digest = images.config_digest "
        "LEFT JOIN layers ON layers.diff_id = config_layers.diff_id "
        "WHERE namespace = ? GROUP BY namespace, name ORDER BY namespace, name"
    )
    return [
        ListedImage(row=_row(tuple(row)[:6]), size=row[6], layers=row[7])
        for row in tx.execute(query, (namespace,))
    ]


def count_images(tx: Transaction, namespace: str) -> int:
    """How many names there are."""
    return int(tx.execute("SELECT COUNT(*) FROM images WHERE namespace = ?", (namespace,)).fetchone()[0])


def images_by_id(tx: Transaction, namespace: str, prefix: str) -> list[ImageRow]:
    """The images whose config digest starts with ``prefix`` (``sha256:...``), by name."""
    # The plus keeps SQLite from going by the namespace, in which there may be everything.
    query = (
        f"SELECT {_COLUMNS} FROM images WHERE +namespace = ? AND config_digest >= ? AND config_digest < ? "
        "ORDER BY name"
    )
    return [_row(tuple(row)) for row in tx.execute(query, (namespace, prefix, prefix + "g"))]


def images_by_manifest(tx: Transaction, namespace: str, manifest: Digest) -> list[ImageRow]:
    """The images with a manifest, by name."""
    query = _SELECT + " AND manifest_digest = ? ORDER BY name"
    return [_row(tuple(row)) for row in tx.execute(query, (namespace, manifest))]


def images_by_index(tx: Transaction, namespace: str, index: Digest) -> list[ImageRow]:
    """The images whose names mean an index, by name."""
    query = _SELECT + " AND index_digest = ? ORDER BY name"
    return [_row(tuple(row)) for row in tx.execute(query, (namespace, index))]


def put_image(
    tx: Transaction,
    namespace: str,
    name: str,
    *,
    config: Digest,
    manifest: Digest | None,
    platform: str | None = None,
    created: str | None = None,
    index: Digest | None = None,
    held: Sequence[PlatformRow] = (),
) -> None:
    """Make a name mean an image, whatever it meant before.

    ``platform`` and ``created`` are what its config says; without them a list finds that out, once.
    With an ``index`` the name means that, and ``held`` are its images that are there, this one among them.
    """
    _tell_put(tx, namespace, name, config=config, manifest=manifest, index=index)
    now = time.time()
    tx.execute(
        "INSERT INTO images (namespace, name, config_digest, manifest_digest, platform, created, "
        "index_digest, created_at, updated_at, used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (namespace, name) DO UPDATE SET "
        "config_digest = excluded.config_digest, manifest_digest = excluded.manifest_digest, "
        "platform = excluded.platform, created = excluded.created, index_digest = excluded.index_digest, "
        "updated_at = excluded.updated_at, used_at = excluded.used_at",
        (namespace, name, config, manifest, platform, created, index, now, now, now),
    )
    platforms.put_platforms(tx, namespace, name, held if index is not None else ())


def _tell_put(
    tx: Transaction,
    namespace: str,
    name: str,
    *,
    config: Digest,
    manifest: Digest | None,
    index: Digest | None,
) -> None:
    """Write the event of a name that is to mean something, if it did not mean just that."""
    from orlop.metadata import events  # late: a list tells of nothing

    query = "SELECT config_digest, manifest_digest, index_digest FROM images WHERE namespace = ? AND name = ?"
    row = tx.execute(query, (namespace, name)).fetchone()
    if row is None:
        events.add(tx, namespace, "image.created", name, {"id": config, "digest": index or manifest})
    elif tuple(row) != (config, manifest, index):
        was = row[0] if row[0] != config else None
        about = {"id": config, "digest": index or manifest, "was": was}
        events.add(tx, namespace, "image.updated", name, about)


def describe_config(tx: Transaction, config: Digest, *, platform: str, created: str) -> None:
    """Remember what a config says in the rows of its names that do not know it."""
    tx.execute(
        "UPDATE images SET platform = ?, created = ? WHERE config_digest = ? AND platform IS NULL",
        (platform, created, config),
    )


def touch_image(tx: Transaction, namespace: str, name: str) -> None:
    """Remember that an image was asked for now; policies keep what was used lately."""
    tx.execute(
        "UPDATE images SET used_at = ? WHERE namespace = ? AND name = ?", (time.time(), namespace, name)
    )


def delete_image(tx: Transaction, namespace: str, name: str) -> bool:
    """Forget a name, and its labels; whether there was one."""
    labels.delete_image_labels(tx, namespace, name)
    platforms.put_platforms(tx, namespace, name, ())
    row = tx.execute(
        "SELECT config_digest FROM images WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    if row is not None:
        from orlop.metadata import events

        events.add(tx, namespace, "image.removed", name, {"id": row[0]})
    cursor = tx.execute("DELETE FROM images WHERE namespace = ? AND name = ?", (namespace, name))
    return cursor.rowcount > 0


def add_config(tx: Transaction, config: Digest, diff_ids: Sequence[DiffID]) -> None:
    """Remember the layers of a config.  Idempotent."""
    tx.executemany(
        "INSERT OR IGNORE INTO config_layers (config_digest, position, diff_id) VALUES (?, ?, ?)",
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
        "INSERT OR IGNORE INTO image_manifests (config_digest, digest, media_type, size) VALUES (?, ?, ?, ?)",
        (config, manifest.digest, manifest.media_type, manifest.size),
    )


def put_annotations(tx: Transaction, config: Digest, annotations: Mapping[str, str]) -> None:
    """Say what the next manifest of a config is to be annotated with; what was said before is forgotten."""
    tx.execute("DELETE FROM image_annotations WHERE config_digest = ?", (config,))
    tx.executemany(
        "INSERT INTO image_annotations (config_digest, key, value) VALUES (?, ?, ?)",
        [(config, key, value) for key, value in sorted(annotations.items())],
    )


def annotations_of(tx: Transaction, config: Digest) -> dict[str, str]:
    """The annotations for a manifest that is made of a config."""
    rows = tx.execute(
        "SELECT key, value FROM image_annotations WHERE config_digest = ? ORDER BY key", (config,)
    )
    return {row[0]: row[1] for row in rows}


def manifests_of(tx: Transaction, config: Digest) -> list[Digest]:
    """The manifests that are known of a config, in the order of their digests."""
    rows = tx.execute("SELECT digest FROM image_manifests WHERE config_digest = ? ORDER BY digest", (config,))
    return [Digest(row[0]) for row in rows]


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
