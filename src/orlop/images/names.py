"""From what a user typed to an image of the store."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.metadata import images, platforms
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.metadata.platforms import PlatformRow
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.values import replace

__all__ = ["find", "is_name_of", "new_name", "require"]

_HEX = r"(?:sha256:)?([0-9a-f]{12,64})"


def find(tx: Transaction, namespace: str, text: str) -> ImageRow | None:
    """The image that a name or an ID means, or None.

    A name is tried first, then the digest in it (``alpine@sha256:...`` finds ``alpine:3``), then an ID of at
    least 12 hexadecimal digits.  Raises `InvalidArgument` for what can be neither, and
    `FailedPrecondition` for an ID that fits several images.
    """
    match = re.fullmatch(_HEX, text)
    try:
        ref = Reference.parse(text)
    except InvalidArgument:
        if match is None:
            raise
    else:
        row = images.get_image(tx, namespace, str(ref))
        if row is not None:
            return row
        if ref.digest is not None:
            for row in _by_digest(tx, namespace, ref.digest):
                if Reference.parse(row.name).name == ref.name:
                    return row
    if match is None:
        return None
    rows = images.images_by_id(tx, namespace, f"sha256:{match[1]}")
    if len({row.config for row in rows}) > 1:
        raise FailedPrecondition(f"find image {text}", "the ID fits several images", hint="give more of it")
    return rows[0] if rows else _of_platform(tx, namespace, f"sha256:{match[1]}", text)


def _by_digest(tx: Transaction, namespace: str, digest: Digest) -> Iterator[ImageRow]:
    """The images of a manifest, or of an index; also those that a name holds of its index."""
    yield from images.images_by_manifest(tx, namespace, digest)
    yield from images.images_by_index(tx, namespace, digest)
    for name, one in platforms.names_of_manifest(tx, namespace, digest):
        yield _alone(tx, namespace, name, one)


def _of_platform(tx: Transaction, namespace: str, prefix: str, text: str) -> ImageRow | None:
    """An image that is not what any name means without a platform."""
    found = platforms.names_of_config(tx, namespace, prefix)
    if len({one.config for _, one in found}) > 1:
        raise FailedPrecondition(f"find image {text}", "the ID fits several images", hint="give more of it")
    return _alone(tx, namespace, *found[0]) if found else None


def _alone(tx: Transaction, namespace: str, name: str, one: PlatformRow) -> ImageRow:
    """One image of an index, without the index."""
    row = images.get_image(tx, namespace, name)
    assert row is not None
    return replace(
        row,
        config=one.config,
        manifest=one.manifest,
        platform=one.platform,
        created=one.created,
        index=None,
    )


def require(tx: Transaction, namespace: str, text: str, attempted: str) -> ImageRow:
    """As `find`, but raises `NotFound`."""
    row = find(tx, namespace, text)
    if row is None:
        try:
            full = str(Reference.parse(text))
        except InvalidArgument:
            full = text
        from orlop.images.nearby import image_hint

        hint = image_hint(tx, namespace, text)
        raise NotFound(attempted, f"no image {full} in the store", hint=hint)
    return row


def new_name(text: str, attempted: str) -> str:
    """The full name that an image is to be given.

    Raises `InvalidArgument` for a name with a digest: it says already what it means.
    """
    ref = Reference.parse(text)
    if ref.digest is not None:
        raise InvalidArgument(
            attempted, f"{text} names an image by its digest", hint="give a name with a tag"
        )
    return str(ref)


def is_name_of(text: str, full: str) -> bool:
    """Whether what the user typed is the name itself, and not an ID or a digest of the image."""
    try:
        return str(Reference.parse(text)) == full
    except InvalidArgument:
        return False
