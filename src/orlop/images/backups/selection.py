"""What a backup says of its images: its rows, with its documents, verified, in their place.

What an image is, its config says, and how it came, its manifest, both by their digests.  The rows of the
backup's metadata give names, labels and pins to them, and say which blobs orlop made and where others may be
had.
"""

from __future__ import annotations

from collections.abc import Iterator

from orlop.config import Limits, over_limit
from orlop.errors import DataLoss, InvalidArgument
from orlop.images.backups.file import BackupReader, blob_name
from orlop.images.changed.changes import is_text
from orlop.images.collection.pinned import MAX_KEY, MAX_NAME, MAX_VALUE
from orlop.images.transfer.ingest import BlobLayer
from orlop.images.transfer.pull import check_image
from orlop.metadata.copies import Saved, SavedImage, SavedPin
from orlop.metadata.images import ManifestRow
from orlop.metadata.platforms import IndexBlob
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import INDEX_TYPES, ImageConfig, Index, Manifest, parse_config, parse_manifest
from orlop.spec.reference import Reference
from orlop.values import dataclass, field

__all__ = ["Image", "NamedIndex", "check_pin", "check_source", "images_of", "indexes_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A config with one manifest of it, or none; verified.  ``name`` is None for what has no name."""

    name: SavedImage | None
    config: Digest
    about: ImageConfig = field(repr=False)
    diff_ids: tuple[DiffID, ...]
    manifest: ManifestRow | None
    blobs: tuple[BlobLayer, ...]  # of the layers, where there is a manifest

    def __str__(self) -> str:
        return self.name.name if self.name else str(self.config)


def images_of(backup: BackupReader, saved: Saved, limits: Limits, what: str) -> Iterator[Image]:
    """All images of a backup: those with names first, then what else is known of them, and pinned ones."""
    covered: set[tuple[str, str | None]] = set()
    for row in saved.images:
        _check_name(row, what)
        covered.add((row.config, row.manifest))
        yield _image(backup, row, row.config, row.manifest, limits, what)
    named = {row.config for row in saved.images}
    named |= {one.config for row in saved.images for one in row.platforms}
    pinned = {pin.ref for pin in saved.pins if pin.kind == "config"}
    further: list[tuple[str, str | None]] = [
        (config, manifest) for config, manifest in saved.manifests if config in named or config in pinned
    ]
    further += [(config, None) for config in sorted(pinned - named - {config for config, _ in further})]
    for config, other in further:
        if (config, other) not in covered:
            yield _image(backup, None, config, other, limits, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedIndex:
    """The index that a name means: ``parts`` are its blobs, ``manifests`` those of images that it held."""

    name: str
    digest: Digest
    manifests: frozenset[str]
    parts: tuple[IndexBlob, ...]


def indexes_of(backup: BackupReader, saved: Saved, limits: Limits, what: str) -> Iterator[NamedIndex]:
    """The indexes that names mean; what they held must be listed in them."""
    owned: dict[str, list[tuple[str, str]]] = {}
    for owner, text, media_type in saved.parts:
        owned.setdefault(owner, []).append((text, media_type))
    for row in saved.images:
        if row.index is None:
            continue
        digest = Digest(row.index)
        parts: list[IndexBlob] = []
        listed: set[str] = set()
        for text, media_type in owned.get(row.index, ()):
            part = Digest(text)
            found = backup.find(blob_name(part))
            if found is None:
                raise DataLoss(what, f"blob {part} of the index of {row.name} is not in it")
            parts.append(IndexBlob(digest=part, media_type=media_type, size=found.size))
            if media_type in INDEX_TYPES:
                listed |= _listed(backup, part, media_type, limits, what)
        manifests = frozenset(one.manifest for one in row.platforms)
        if all(part.digest != digest for part in parts) or not manifests <= listed:
            raise InvalidArgument(what, f"{row.name} holds images that its index does not list")
        yield NamedIndex(name=row.name, digest=digest, manifests=manifests, parts=tuple(parts))


def _listed(backup: BackupReader, digest: Digest, media_type: str, limits: Limits, what: str) -> set[str]:
    data = backup.read(blob_name(digest), limit=limits.index_size, called="index_size", digest=digest)
    index = parse_manifest(data, media_type, what, limits=limits)
    return {child.digest for child in index.manifests} if isinstance(index, Index) else set()


def _image(
    backup: BackupReader,
    name: SavedImage | None,
    config_digest: str,
    manifest_digest: str | None,
    limits: Limits,
    what: str,
) -> Image:
    """An image by its documents; raises where they are not what its rows say."""
    config = Digest(config_digest)
    data = backup.read(blob_name(config), limit=limits.config_size, called="config_size", digest=config)
    about = parse_config(data, what, limits=limits)
    shown = name.name if name else str(config)
    if manifest_digest is None:
        diff_ids = about.diff_ids()
        if len(diff_ids) > limits.layers:
            raise over_limit("layers", len(diff_ids), limits.layers, attempted=what)
        return Image(name=name, config=config, about=about, diff_ids=diff_ids, manifest=None, blobs=())
    digest = Digest(manifest_digest)
    data = backup.read(blob_name(digest), limit=limits.manifest_size, called="manifest_size", digest=digest)
    manifest = parse_manifest(data, "", what, limits=limits)
    if not isinstance(manifest, Manifest) or manifest.config.digest != config:
        raise InvalidArgument(what, f"{digest} is not the manifest of {shown}")
    # Its layers are in the backup, or come from a registry: nothing is fetched from where it says.
    diff_ids = check_image(manifest, about, shown, limit=limits.layers, foreign=True)
    return Image(
        name=name,
        config=config,
        about=about,
        diff_ids=diff_ids,
        manifest=ManifestRow(digest=digest, media_type=manifest.media_type, size=len(data)),
        blobs=tuple(
            BlobLayer(
                digest=layer.checked_digest(),
                size=layer.size,
                media_type=layer.media_type,
                diff_id=diff_id,
            )
            for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
        ),
    )


def _check_name(row: SavedImage, what: str) -> None:
    if str(Reference.parse(row.name)) != row.name:
        raise InvalidArgument(what, f"{row.name!r} is not the full name of an image")
    for key, value in row.labels.items():
        fits = 0 < len(key) <= MAX_KEY and key.isprintable() and is_text(key) and "=" not in key
        if not (fits and len(value) <= MAX_VALUE and is_text(value) and "\0" not in value):
            raise InvalidArgument(what, f"{row.name} has a label that none can be")


def check_pin(pin: SavedPin, what: str) -> None:
    """Refuse a pin that cannot be one."""
    if not (0 < len(pin.name) <= MAX_NAME and pin.name.isprintable() and is_text(pin.name)):
        raise InvalidArgument(what, "a pin has a name that none can have")
    Digest(pin.ref)


def check_source(registry: str, repository: str, what: str) -> Reference:
    """A repository that a backup names."""
    ref = Reference.parse(f"{registry}/{repository}")
    if (ref.registry, ref.repository) != (registry, repository):
        raise InvalidArgument(what, f"not a repository: {registry}/{repository}"[:300])
    return ref
