"""The end of a restore: rows that give a backup's images and pins their names.

Each function is a part of one transaction; all that the rows name is durable already.
"""

from __future__ import annotations

from collections.abc import Mapping

from orlop.errors import FailedPrecondition
from orlop.images.backups.selection import Image, NamedIndex
from orlop.images.core import NAMESPACE
from orlop.metadata import images, labels, layers, pins, platforms
from orlop.metadata.copies import SavedImage, SavedPin
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.metadata.platforms import PlatformRow
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = ["MissingImage", "check_whole", "means_another", "put_index", "put_name", "put_pin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingImage:
    """An image of a backup that was not restored, or a pin (``pin NAME``), and why.

    ``digest`` is that of the image's manifest, if it has one.
    """

    name: str
    digest: str | None
    reason: str


def check_whole(tx: Transaction, image: Image) -> None:
    """Refuse to name what is not all there.  Raises `FailedPrecondition`."""
    documents = (image.config, *((image.manifest.digest,) if image.manifest else ()))
    there = all(layers.get_layer(tx, diff_id) for diff_id in image.diff_ids)
    if not there or not all(layers.has_blob(tx, digest) for digest in documents):
        raise FailedPrecondition(f"restore image {image}", "a part of it is gone", hint="try again")


def means_another(known: ImageRow, row: SavedImage) -> bool:
    """Whether what a name means here is not what it meant in a backup."""
    return known.config != row.config or (None not in (known.index, row.index) and known.index != row.index)


def put_name(tx: Transaction, image: Image, row: SavedImage) -> None:
    """Make a name mean its image, with those of its labels that the name does not have.

    Of one that means an index with this image here, nothing is taken away.
    """
    known = images.get_image(tx, NAMESPACE, row.name)
    if (
        known is None
        or means_another(known, row)
        or (known.index is None and image.manifest is not None)  # else it may have got a manifest since
    ):
        images.put_image(
            tx,
            NAMESPACE,
            row.name,
            config=image.config,
            manifest=image.manifest.digest if image.manifest else None,
            platform=str(image.about.platform()),
            created=image.about.created or "",
        )
    there = labels.image_labels(tx, NAMESPACE, row.name)
    labels.change_image_labels(
        tx, NAMESPACE, row.name, {key: value for key, value in row.labels.items() if key not in there}
    )


def put_index(tx: Transaction, index: NamedIndex, complete: Mapping[str, Image]) -> None:
    """Make a name that has its image mean the index, too, with those of its images that are ``complete``.

    Those are told by their manifests.
    """
    row = images.get_image(tx, NAMESPACE, index.name)
    if row is None:
        return
    held = {}
    if row.index == index.digest:
        held = {one.manifest: one for one in platforms.platforms_of(tx, NAMESPACE, row.name)}
    for manifest in index.manifests & complete.keys():
        image = complete[manifest]
        held[Digest(manifest)] = PlatformRow(
            config=image.config,
            manifest=Digest(manifest),
            platform=str(image.about.platform()),
            created=image.about.created or "",
        )
    if row.manifest not in held:  # the name means another image of its own
        return
    if not all(layers.has_blob(tx, part.digest) for part in index.parts):
        raise FailedPrecondition(f"restore image {index.name}", "a part of it is gone", hint="try again")
    platforms.add_index_blobs(tx, index.digest, index.parts)
    images.put_image(
        tx,
        NAMESPACE,
        row.name,
        config=row.config,
        manifest=row.manifest,
        platform=row.platform,
        created=row.created,
        index=index.digest,
        held=tuple(held.values()),
    )


def put_pin(tx: Transaction, pin: SavedPin) -> str:
    """Pin a thing again; returns why not."""
    if pin.kind == "layer":
        there = layers.get_layer(tx, DiffID(pin.ref)) is not None
    else:
        there = layers.has_blob(tx, Digest(pin.ref))
    if not there:
        return f"{pin.kind} {pin.ref} is not in the backup"
    known = pins.get_pin(tx, NAMESPACE, pin.name)
    if known is not None and (known.kind, known.ref) != (pin.kind, pin.ref):
        return f"the name is that of a pin of {known.kind} {known.ref} here"
    if known is None:
        pins.put_pin(tx, NAMESPACE, pin.name, kind=pin.kind, ref=pin.ref, expires=pin.expires)
    return ""
