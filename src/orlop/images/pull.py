"""Pull: from a name to a verified, durable image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orlop.config import over_limit
from orlop.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from orlop.images.api import ImageInfo
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.ingest import BlobLayer, LayerIngest
from orlop.images.listing import info_of
from orlop.layers.index import LayerIndex
from orlop.metadata import images, layers
from orlop.metadata.db import Transaction
from orlop.metadata.images import ManifestRow
from orlop.observe import Call, Progress, reached
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
)
from orlop.spec.platform import Platform, host_platform
from orlop.spec.reference import Reference

__all__ = ["Naming", "Pulled", "Puller", "check_image", "choose_manifest", "name_image", "name_images"]

_CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG, "")
# Tars, compressed or not: what a layer is but for those that a kernel would mount or a key would open.
_LAYER_TYPE = re.compile(r"application/[a-z0-9.-]*\btar(?:[.+](?:gzip|gz|zstd|xz|bzip2))?")
_OFFERED = 20  # platforms that an error lists
_SAID = 128  # characters of a platform or a time that a list of images repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest or config with its own bytes."""

    digest: Digest
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A pulled image as it was named, its config's digest, and the indexes that were made on the way."""

    name: str
    info: ImageInfo
    config: Digest
    diff_ids: tuple[DiffID, ...]
    indexes: Mapping[DiffID, LayerIndex] = field(default_factory=dict)


class Puller:
    """Pulls into one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._ingest = ingest

    def pull(self, ref: Reference, *, platform: str | None, call: Call) -> Pulled:
        """Fetch what is missing of an image and name it.

        Raises `NotFound`, `Unauthenticated`, `Unavailable` as the registry answers; `DataLoss` for
        bytes that do not have their digest; `InvalidArgument` for what is not an image.
        """
        core = self._core
        name = str(ref)
        wanted = Platform.parse(platform) if platform else host_platform()
        call.observer.progress(Progress(item=name, phase="resolving"))
        manifest, document = self._resolve(ref, wanted, call)
        with core.lease(f"pull {name}") as lease:
            config_digest = manifest.config.checked_digest()
            config = self._config(ref, manifest, config_digest, name, lease, call)
            diff_ids = check_image(manifest, config, name, limit=core.settings.limits.layers)
            if platform and not config.platform().rank(wanted):
                raise FailedPrecondition(
                    f"pull {name}", f"the image is for {config.platform()}, not for {wanted}"
                )
            core.write_document(document.digest, document.data, lease=lease, call=call)
            wanted_layers = [
                BlobLayer(
                    digest=descriptor.checked_digest(),
                    size=descriptor.size,
                    media_type=descriptor.media_type,
                    diff_id=diff_id,
                )
                for descriptor, diff_id in zip(manifest.layers, diff_ids, strict=True)
            ]
            indexes = self._ingest.fetch_all(ref, wanted_layers, call=call, lease=lease)
            info = name_image(
                core,
                name,
                config=config_digest,
                diff_ids=diff_ids,
                manifest=ManifestRow(
                    digest=document.digest, media_type=document.media_type, size=len(document.data)
                ),
                call=call,
            )
        call.observer.progress(Progress(item=name, phase="done"))
        return Pulled(name=name, info=info, config=config_digest, diff_ids=diff_ids, indexes=indexes)

    def _resolve(self, ref: Reference, wanted: Platform, call: Call) -> tuple[Manifest, Document]:
        """The manifest that serves a platform, through indexes."""
        registry = self._core.registry
        limits = self._core.settings.limits
        fetched = registry.resolve(ref, call=call)
        data, media_type = fetched.data, fetched.descriptor.media_type
        digest = Digest(fetched.descriptor.digest)
        for _ in range(limits.index_nesting + 1):
            document = parse_manifest(data, media_type, f"pull {ref}", limits=limits)
            if isinstance(document, Manifest):
                return document, Document(digest=digest, media_type=document.media_type, data=data)
            descriptor = choose_manifest(document, wanted, f"pull {ref}")
            data = registry.manifest(ref, descriptor, call=call)
            media_type, digest = descriptor.media_type, descriptor.checked_digest()
        most = limits.index_nesting
        raise over_limit("index_nesting", f"more than {most}", most, attempted=f"pull {ref}")

    def _config(
        self, ref: Reference, manifest: Manifest, digest: Digest, name: str, lease: Lease, call: Call
    ) -> ImageConfig:
        """The image's config, from the store or the registry; durable on return."""
        core = self._core
        what = f"pull {name}"
        if manifest.config.media_type not in _CONFIG_TYPES:
            raise InvalidArgument(
                what,
                f"it is an artifact of type {manifest.config.media_type[:100]!r}, not a container image",
            )
        limit = core.settings.limits.config_size
        if manifest.config.size > limit:
            raise over_limit("config_size", manifest.config.size, limit, attempted=what)
        try:
            data = core.blobs.read(digest)
        except (NotFound, DataLoss):  # collected at this moment, or gone bad
            data = core.registry.blob(ref, manifest.config, call=call)
        config = parse_config(data, what, limits=core.settings.limits)
        core.write_document(digest, data, lease=lease, call=call)
        return config


def choose_manifest(index: Index, wanted: Platform, attempted: str) -> Descriptor:
    """The manifest of an index that serves a platform.  Raises `NotFound`, listing what there is."""
    chosen = index.choose(wanted)
    if chosen is None:
        offered = sorted(
            {str(p)[:100] for d in index.manifests if (p := d.platform_value()) and p.os != "unknown"}
        )
        more = f" and {len(offered) - _OFFERED} more" if len(offered) > _OFFERED else ""
        raise NotFound(
            attempted,
            f"no image for {wanted}; there are {', '.join(offered[:_OFFERED]) or 'none'}{more}",
            hint="choose one with --platform",
        )
    return chosen


def check_image(manifest: Manifest, config: ImageConfig, name: str, *, limit: int) -> tuple[DiffID, ...]:
    """The diff IDs of an image whose manifest and config agree; raises where they do not."""
    what = f"read image {name}"
    diff_ids = config.diff_ids()
    if len(diff_ids) > limit:
        raise over_limit("layers", len(diff_ids), limit, attempted=what)
    if len(diff_ids) != len(manifest.layers):
        raise InvalidArgument(
            what, f"the manifest has {len(manifest.layers)} layers, the config {len(diff_ids)} diff IDs"
        )
    seen: dict[str, DiffID] = {}
    for descriptor, diff_id in zip(manifest.layers, diff_ids, strict=True):
        if seen.setdefault(descriptor.digest, diff_id) != diff_id:
            raise InvalidArgument(what, f"one blob stands for two different layers: {descriptor.digest}")
        if "foreign" in descriptor.media_type or "nondistributable" in descriptor.media_type:
            raise InvalidArgument(what, f"layer {descriptor.digest} is not distributable")
        if descriptor.media_type and not _LAYER_TYPE.fullmatch(descriptor.media_type):
            raise InvalidArgument(
                what, f"layer {descriptor.digest} is no tar, but of type {descriptor.media_type[:100]!r}"
            )
    return diff_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """A name for an image whose layers, config and manifest are durable already."""

    name: str
    config: Digest
    diff_ids: tuple[DiffID, ...]
    manifest: ManifestRow | None


def name_image(
    core: Core,
    name: str,
    *,
    config: Digest,
    diff_ids: tuple[DiffID, ...],
    manifest: ManifestRow | None,
    call: Call,
) -> ImageInfo:
    """The transaction that makes a name mean an image."""
    naming = Naming(name=name, config=config, diff_ids=diff_ids, manifest=manifest)
    return name_images(core, [naming], call=call)[0]


def name_images(
    core: Core, namings: Sequence[Naming], *, keep_others: bool = False, call: Call
) -> list[ImageInfo]:
    """Give all of some names, or none, in one transaction.

    With ``keep_others`` a name that means another image is not moved: then `AlreadyExists`.
    """
    says: dict[Digest, tuple[str, str]] = {}
    for naming in namings:
        if naming.config not in says:
            data = core.blobs.read(naming.config)
            config = parse_config(data, f"name image {naming.name}")
            says[naming.config] = (str(config.platform())[:_SAID], (config.created or "")[:_SAID])

    def body(tx: Transaction) -> list[ImageInfo]:
        for naming in namings:
            if keep_others:
                _check_name_is_free(tx, naming)
            _put(tx, naming, says[naming.config])
        return [info_of(tx, naming.name) for naming in namings]

    infos = core.db.write(body, call=call)
    reached("image.named")
    return infos


def _check_name_is_free(tx: Transaction, naming: Naming) -> None:
    known = images.get_image(tx, NAMESPACE, naming.name)
    if known is not None and known.config != naming.config:
        raise AlreadyExists(
            f"name image {naming.name}", "the name means another image", hint="give another name"
        )


def _put(tx: Transaction, naming: Naming, says: tuple[str, str]) -> None:
    """Write one name's rows; ``says`` are its platform and time.  What they name must have rows."""
    what = f"name image {naming.name}"
    for diff_id in naming.diff_ids:
        if layers.get_layer(tx, diff_id) is None:
            raise FailedPrecondition(what, f"layer {diff_id} is gone", hint="try again")
    manifest = naming.manifest
    for digest in (naming.config, *((manifest.digest,) if manifest is not None else ())):
        if not layers.has_blob(tx, digest):
            raise FailedPrecondition(what, f"blob {digest} is gone", hint="try again")
    images.add_config(tx, naming.config, naming.diff_ids)
    if manifest is not None:
        images.add_manifest(tx, naming.config, manifest)
    images.put_image(
        tx,
        NAMESPACE,
        naming.name,
        config=naming.config,
        manifest=manifest.digest if manifest else None,
        platform=says[0],
        created=says[1],
    )
