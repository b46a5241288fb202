"""Giving names: the transaction that makes names mean images, whose bytes are durable already.

A name may mean an index.  Then it holds images of it, those of several platforms, and one of them is what
the name means without a platform.  What a name held stays if the index lists it still: so pulling a second
platform adds it, and pulling a tag that has moved leaves behind what is not in the new index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orlop.errors import AlreadyExists, FailedPrecondition
from orlop.images.api import ImageInfo
from orlop.images.core import NAMESPACE, Core
from orlop.images.indexes import IndexReader
from orlop.images.listing import info_of
from orlop.metadata import events, images, layers, platforms
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow, ManifestRow
from orlop.metadata.platforms import IndexBlob, PlatformRow
from orlop.observe import Call, reached
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Descriptor, parse_config
from orlop.spec.platform import Platform, host_platform
from orlop.values import dataclass

__all__ = [
    "NamedIndex",
    "Naming",
    "PlatformImage",
    "default_of",
    "name_image",
    "name_images",
    "named_index",
    "part_of",
]

_NOTHING: Mapping[str, str] = {}
_TOLD = 2_000  # characters of names that an error repeats
_SAID = 128  # characters of a platform or a time that a list of images repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformImage:
    """An image whose layers, config and manifest are durable; ``platform`` is its config's word."""

    config: Digest
    diff_ids: tuple[DiffID, ...]
    manifest: ManifestRow
    platform: Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedIndex:
    """An index that a name means, and what is here of it, durable already.

    ``blobs`` are itself, indexes in it, and what is no image; ``listed`` the digests of its children that are
    known.  With ``keep_default`` the name means without a platform what it did, if that is in the index.
    """

    digest: Digest
    images: tuple[PlatformImage, ...]
    blobs: tuple[IndexBlob, ...]
    listed: frozenset[str]
    keep_default: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A name for an image whose layers, config and manifest are durable already.

    With an ``index`` the name means that, and the image is what it means without a platform.
    ``annotations`` are for the manifest that it will get, where it has none; None says nothing of them.
    """

    name: str
    config: Digest
    diff_ids: tuple[DiffID, ...]
    manifest: ManifestRow | None
    index: NamedIndex | None = None
    annotations: Mapping[str, str] | None = None


def default_of(found: Sequence[PlatformImage], *, first: bool) -> tuple[PlatformImage, bool]:
    """What a name shall mean without a platform, and whether that is a choice.

    With ``first`` the first, which was asked for; else what serves this machine best.  Where nothing does,
    the first is no more than a proposal.
    """
    if first:
        return found[0], True
    ranks = [image.platform.rank(host_platform()) for image in found]
    best = max(range(len(found)), key=lambda number: ranks[number])
    return (found[best], True) if ranks[best] else (found[0], False)


def named_index(
    reader: IndexReader,
    found: Sequence[PlatformImage],
    parts: Sequence[IndexBlob],
    *,
    keep_default: bool = False,
) -> NamedIndex:
    """What a name gets to know of an index that was read; all of it is durable."""
    own = [
        IndexBlob(digest=one.digest, media_type=one.media_type, size=len(one.data))
        for one in reader.indexes.values()
    ]
    return NamedIndex(
        digest=reader.document.digest,
        images=tuple(found),
        blobs=(*own, *parts),
        listed=frozenset(reader.listed),
        keep_default=keep_default,
    )


def part_of(descriptor: Descriptor) -> IndexBlob:
    """A blob of an index by its descriptor."""
    return IndexBlob(
        digest=descriptor.checked_digest(), media_type=descriptor.media_type, size=descriptor.size
    )


def name_image(
    core: Core,
    name: str,
    *,
    config: Digest,
    diff_ids: tuple[DiffID, ...],
    manifest: ManifestRow | None,
    annotations: Mapping[str, str] | None = None,
    event: str,
    about: Mapping[str, str] = _NOTHING,
    call: Call,
) -> ImageInfo:
    """The transaction that makes a name mean an image."""
    naming = Naming(name=name, config=config, diff_ids=diff_ids, manifest=manifest, annotations=annotations)
    return name_images(core, [naming], event=event, about=about, call=call)[0]


def name_images(
    core: Core,
    namings: Sequence[Naming],
    *,
    keep_others: bool = False,
    keep_indexes: bool = False,
    event: str,
    about: Mapping[str, str] = _NOTHING,
    call: Call,
) -> list[ImageInfo]:
    """Give all of some names, or none, in one transaction; an event of this kind tells of each.

    With ``keep_others`` a name that means another image is not moved: then `AlreadyExists`.  With
    ``keep_indexes`` one that means an index in which this image is what it means without a platform goes on
    meaning that index.
    """
    says: dict[Digest, tuple[str, str]] = {}
    for naming in namings:
        for digest in (naming.config, *(one.config for one in (naming.index.images if naming.index else ()))):
            if digest not in says:
                config = parse_config(core.blobs.read(digest), f"name image {naming.name}")
                says[digest] = (str(config.platform())[:_SAID], (config.created or "")[:_SAID])

    def body(tx: Transaction) -> list[ImageInfo]:
        taken: list[str] = []
        for naming in namings:
            another = _means_another(tx, naming)
            if another and keep_others:
                taken.append(naming.name)
            elif another or not (keep_indexes and _is_named(tx, naming)):
                _put(tx, naming, says)
        if taken:
            raise _others(taken)
        for naming in namings:
            digest = naming.index.digest if naming.index else naming.manifest and naming.manifest.digest
            said = {"id": naming.config, "digest": digest, **about}
            events.add(tx, NAMESPACE, event, naming.name, said)
        return [info_of(tx, naming.name) for naming in namings]

    infos = core.db.write(body, call=call)
    reached("image.named")
    return infos


def _means_another(tx: Transaction, naming: Naming) -> bool:
    """Whether a name means an image, and another one."""
    known = images.get_image(tx, NAMESPACE, naming.name)
    if known is None:
        return False
    index = naming.index.digest if naming.index is not None else None
    indexes = known.index is not None and index is not None
    return known.index != index if indexes else known.config != naming.config


def _is_named(tx: Transaction, naming: Naming) -> bool:
    """Whether a name that means no other image means an index, and this image of it."""
    known = images.get_image(tx, NAMESPACE, naming.name)
    return known is not None and known.index is not None and naming.index is None


def _others(taken: Sequence[str]) -> AlreadyExists:
    """The error of names that mean other images; it says all of them, as far as there is room."""
    names = list(dict.fromkeys(taken))
    said, left = names[0], len(names) - 1
    while left and len(said) < _TOLD:
        said += f", {names[len(names) - left]}"
        left -= 1
    said += f" and {left} more" if left else ""
    reason = "the name means another image" if len(names) == 1 else f"names mean another image: {said}"
    return AlreadyExists(
        f"name image {names[0]}",
        reason,
        hint="give another name, or move what is there with --force (replace)",
    )


def _put(tx: Transaction, naming: Naming, says: Mapping[Digest, tuple[str, str]]) -> None:
    """Write one name's rows; ``says`` are configs' platforms and times.  What they name must have rows."""
    index = naming.index
    _put_image(tx, naming.name, naming.config, naming.diff_ids, naming.manifest)
    if naming.annotations is not None:
        images.put_annotations(tx, naming.config, naming.annotations)
    config, manifest = naming.config, naming.manifest.digest if naming.manifest else None
    held: tuple[PlatformRow, ...] = ()
    if index is not None:
        for image in index.images:
            _put_image(tx, naming.name, image.config, image.diff_ids, image.manifest)
        for blob in index.blobs:
            _check_blob(tx, naming.name, blob.digest)
        platforms.add_index_blobs(tx, index.digest, index.blobs)
        before = images.get_image(tx, NAMESPACE, naming.name)
        rows = _held_before(tx, before, index) if before is not None else {}
        if index.keep_default and before is not None and before.manifest in rows:
            config, manifest = before.config, before.manifest
        for image in index.images:
            platform, created = says[image.config]
            rows[image.manifest.digest] = PlatformRow(
                config=image.config, manifest=image.manifest.digest, platform=platform, created=created
            )
        held = tuple(rows.values())
    said = {row.config: (row.platform, row.created) for row in held} | dict(says)
    images.put_image(
        tx,
        NAMESPACE,
        naming.name,
        config=config,
        manifest=manifest,
        platform=said[config][0],
        created=said[config][1],
        index=index.digest if index is not None else None,
        held=held,
    )


def _put_image(
    tx: Transaction, name: str, config: Digest, diff_ids: tuple[DiffID, ...], manifest: ManifestRow | None
) -> None:
    """The rows of an image that a name is to get."""
    for diff_id in diff_ids:
        if layers.get_layer(tx, diff_id) is None:
            raise FailedPrecondition(f"name image {name}", f"layer {diff_id} is gone", hint="try again")
    _check_blob(tx, name, config)
    images.add_config(tx, config, diff_ids)
    if manifest is not None:
        _check_blob(tx, name, manifest.digest)
        images.add_manifest(tx, config, manifest)


def _check_blob(tx: Transaction, name: str, digest: Digest) -> None:
    if not layers.has_blob(tx, digest):
        raise FailedPrecondition(f"name image {name}", f"blob {digest} is gone", hint="try again")


def _held_before(tx: Transaction, before: ImageRow, index: NamedIndex) -> dict[Digest | None, PlatformRow]:
    """What a name held that is in its new index, too; by manifest."""
    if before.index == index.digest:
        rows = platforms.platforms_of(tx, NAMESPACE, before.name)
    elif before.index is not None:
        rows = [
            row for row in platforms.platforms_of(tx, NAMESPACE, before.name) if row.manifest in index.listed
        ]
    elif before.manifest is not None and before.manifest in index.listed and before.platform:
        rows = [  # the name meant an image alone, as those of an older orlop do
            PlatformRow(
                config=before.config,
                manifest=before.manifest,
                platform=before.platform,
                created=before.created or "",
            )
        ]
    else:
        rows = []
    return {row.manifest: row for row in rows}
