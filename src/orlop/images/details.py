"""One image, whole: what a list shows of it, its documents, its layers and the blobs that they came as."""

from __future__ import annotations

import re

from orlop.images import names
from orlop.images.api import Blob, HeldPlatform, ImageDetails, ImageInfo
from orlop.images.core import NAMESPACE, Core
from orlop.images.listing import describe, held_of, noted
from orlop.images.platforms import choose
from orlop.metadata import images, layers, platforms, roots, uses
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.spec.digest import Digest
from orlop.spec.documents import Manifest, parse_manifest
from orlop.values import replace

__all__ = ["details_of", "info_in_full"]


def info_in_full(core: Core, row: ImageRow) -> ImageInfo:
    """An image of a name; of an index, with all that the name holds."""

    def body(tx: Transaction) -> tuple[tuple[int, int], uses.ImageUse | None, tuple[HeldPlatform, ...]]:
        held = platforms.platforms_of(tx, NAMESPACE, row.name) if row.index is not None else []
        use = uses.image_use(tx, NAMESPACE, row.name)
        return images.config_size(tx, row.config), use, held_of(row, held)

    size, use, held = core.db.read(body)
    return replace(noted(describe(core, row, *size), use), platforms=held)


def _named(tx: Transaction, name: str, what: str) -> ImageRow:
    """What a name or an ID means; also the whole ID of what a prepared root stands on.

    That may have no name: what was captured for forks, and an image whose names were all taken away.
    """
    if re.fullmatch("sha256:[0-9a-f]{64}", name) and names.find(tx, NAMESPACE, name) is None:
        digest = Digest(name)
        if roots.is_config_of_root(tx, NAMESPACE, digest):
            return ImageRow(name="", config=digest, manifest=None)
    return names.require(tx, NAMESPACE, name, what)


def details_of(core: Core, name: str, platform: str | None) -> ImageDetails:
    """See `orlop.images.api.Images.inspect`."""
    what = f"inspect {name}"
    row = choose(core, core.db.read(lambda tx: _named(tx, name, what)), platform, what)

    def names_of(tx: Transaction) -> list[str]:
        named = {other.name for other in images.images_by_id(tx, NAMESPACE, row.config)}
        return sorted(named | {other for other, _ in platforms.names_of_config(tx, NAMESPACE, row.config)})

    all_names = core.db.read(names_of)
    manifest = core.blobs.read(row.manifest) if row.manifest is not None else None
    descriptors: dict[int, tuple[Digest, int, str]] = {}
    if manifest is not None:
        document = parse_manifest(manifest, "", what)
        if isinstance(document, Manifest):
            descriptors = {
                position: (layer.checked_digest(), layer.size, layer.media_type)
                for position, layer in enumerate(document.layers)
            }

    def blobs(tx: Transaction) -> tuple[Blob, ...]:
        found: list[Blob] = []
        for position, diff_id in enumerate(images.config_layers(tx, row.config)):
            layer = layers.get_layer(tx, diff_id)
            digest, size, media_type = descriptors.get(position, (None, 0, ""))
            found.append(
                Blob(
                    diff_id=diff_id,
                    size=layer.size if layer else 0,
                    entries=layer.entries if layer else 0,
                    blob=digest,
                    blob_size=size,
                    media_type=media_type,
                    blob_present=digest is not None and layers.has_blob(tx, digest),
                )
            )
        return tuple(found)

    return ImageDetails(
        info=info_in_full(core, row),
        names=tuple(all_names),
        config=core.blobs.read(row.config),
        manifest=manifest,
        layers=core.db.read(blobs),
    )
