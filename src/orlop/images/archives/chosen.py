"""Which images an export is of, and under which names they stand in the archive.

A name that the caller gave is the image's name there.  An image that was named by its ID or by a digest has
none there, as in what `docker save` writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument
from orlop.images import names
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.platforms import choose
from orlop.images.transfer.forms import Wish
from orlop.metadata import images, layers
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow, ManifestRow
from orlop.metadata.layers import LayerBlob
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Manifest, parse_manifest
from orlop.values import dataclass

__all__ = ["Chosen", "check_form", "choose_images", "manifest_of", "remember"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An image to export: what the store knows of it, and its name in the archive, or None."""

    row: ImageRow
    name: str | None


def choose_images(
    core: Core, things: Sequence[str], *, platform: str | None, all_platforms: bool, what: str
) -> list[Chosen]:
    """The images that are meant, each once for each of its names, in the order given.

    Raises `NotFound`; `FailedPrecondition` where an index is wanted of a name that means none.
    """
    if not things:
        raise InvalidArgument(what, "no image is named")
    if platform and all_platforms:
        raise InvalidArgument(what, "a platform and all platforms", hint="ask for the one or the other")
    found: dict[tuple[Digest, str | None], Chosen] = {}
    for thing in things:
        row = core.db.read(lambda tx, thing=thing: names.require(tx, NAMESPACE, thing, what))  # type: ignore[misc]  # bound now
        name = row.name if names.is_name_of(thing, row.name) else None
        if all_platforms and row.index is None:
            raise FailedPrecondition(
                what,
                f"{row.name} means one image, not an index of several",
                hint=f"'orlop pull --all-platforms {row.name}' gets the index, if there is one",
            )
        row = choose(core, row, platform, what)
        key = (row.index if all_platforms and row.index is not None else row.config, name)
        found.setdefault(key, Chosen(row=row, name=name))
    return list(found.values())


def manifest_of(core: Core, digest: Digest, what: str) -> tuple[Manifest, bytes]:
    """An image's manifest as it is known.  Raises `DataLoss` where it is none."""
    row = core.db.read(lambda tx: images.manifest_of(tx, digest))
    data = core.blobs.read(digest)
    document = parse_manifest(data, row.media_type if row else "", what)
    if not isinstance(document, Manifest):
        raise DataLoss(what, f"{digest} is not a manifest")
    return document, data


def check_form(core: Core, wish: Wish, known: Manifest, diff_ids: Sequence[DiffID], what: str) -> None:
    """A manifest that is known is never changed, so a compression that is asked for must be what it has."""
    blobs: list[LayerBlob] = []
    for descriptor, diff_id in zip(known.layers, diff_ids, strict=True):
        digest = descriptor.checked_digest()
        rows = core.db.read(lambda tx, diff_id=diff_id: layers.blobs_of_layer(tx, diff_id))  # type: ignore[misc]  # bound now
        fresh = LayerBlob(
            diff_id=diff_id, digest=digest, size=descriptor.size, media_type=descriptor.media_type
        )
        blobs.append(next((blob for blob in rows if blob.digest == digest), fresh))
    if not wish.fits(blobs):
        raise FailedPrecondition(
            what,
            "the image's manifest is known, and its layers are in another form",
            hint="export with --recompress to make them anew, with a new digest",
        )


def remember(
    core: Core, config: Digest, digest: Digest, document: bytes, media_type: str, *, lease: Lease, call: Call
) -> None:
    """Know a manifest that was made for an image without one from now on, under all its names."""
    core.write_document(digest, document, lease=lease, call=call)

    def body(tx: Transaction) -> None:
        images.add_manifest(tx, config, ManifestRow(digest=digest, media_type=media_type, size=len(document)))
        for image in images.images_by_id(tx, NAMESPACE, config):
            if image.index is None and image.manifest is None:
                images.put_image(
                    tx,
                    NAMESPACE,
                    image.name,
                    config=config,
                    manifest=digest,
                    platform=image.platform,
                    created=image.created,
                )

    core.db.write(body, call=call)
