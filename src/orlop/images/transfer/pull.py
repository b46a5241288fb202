"""Pull: from a name to verified, durable images, one or one for each of several platforms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orlop.config import over_limit
from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.ahead import Ahead
from orlop.images.api import ImageInfo
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.indexes import CONFIG_TYPES, Child, Document, IndexReader
from orlop.images.naming import Naming, PlatformImage, default_of, name_images, named_index, part_of
from orlop.images.transfer.ingest import BlobLayer, LayerIngest
from orlop.images.transfer.plainblobs import fetch_plain
from orlop.layers.index import LayerIndex
from orlop.metadata import images
from orlop.metadata.images import ManifestRow
from orlop.metadata.platforms import IndexBlob
from orlop.observe import Call, Progress, stepped
from orlop.registry.finding.search import first_found
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import ImageConfig, Manifest, parse_config, parse_manifest
from orlop.spec.platform import Platform, host_platform
from orlop.spec.reference import Reference
from orlop.values import dataclass, field

__all__ = ["Pulled", "Puller", "check_image", "wanted_platforms"]

# Tars, compressed or not: what a layer is but for those that a kernel would mount or a key would open.
_LAYER_TYPE = re.compile(r"application/[a-z0-9.-]*\btar(?:[.+](?:gzip|gz|zstd|xz|bzip2))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A pulled image as it was named, its config's digest, and the indexes that were made on the way.

    Of several platforms it is the first one.
    """

    name: str
    info: ImageInfo
    config: Digest
    diff_ids: tuple[DiffID, ...]
    indexes: Mapping[DiffID, LayerIndex] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One pull: of what, on which lease."""

    ref: Reference
    what: str
    lease: Lease
    call: Call
    indexes: dict[DiffID, LayerIndex]
    ahead: Ahead | None  # where the image's chain will be asked for


class Puller:
    """Pulls into one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._ingest = ingest

    def pull_name(
        self,
        name: str,
        *,
        platform: str | Sequence[str] | None,
        all_platforms: bool = False,
        keep_default: bool = False,
        ahead: Ahead | None = None,
        call: Call,
    ) -> Pulled:
        """Pull what a user typed: a short name is looked for where the settings say.  Raises as `pull`."""

        def pull(ref: Reference) -> Pulled:
            return self.pull(
                ref,
                platform=platform,
                all_platforms=all_platforms,
                keep_default=keep_default,
                ahead=ahead,
                call=call,
            )

        return first_found(self._core.registry.names(name), pull, f"pull {name}")

    @stepped("pull", of=1)
    def pull(
        self,
        ref: Reference,
        *,
        platform: str | Sequence[str] | None,
        all_platforms: bool = False,
        keep_default: bool = False,
        ahead: Ahead | None = None,
        call: Call,
    ) -> Pulled:
        """Fetch what is missing of an image, or of those of several platforms, and name it.

        With ``keep_default`` the name goes on to mean what it did where no platform is said, if that is still
        in its index.  ``ahead`` is told of the layers as they come.

        Raises `NotFound`, `Unauthenticated`, `Unavailable` as the registry answers; `DataLoss` for bytes that
        do not have their digest; `InvalidArgument` for what is not an image.
        """
        core = self._core
        name = str(ref)
        what = f"pull {name}"
        wanted = wanted_platforms(platform, what, all_platforms=all_platforms)
        asked = wanted if platform else ()
        call.observer.progress(Progress(item=name, phase="resolving"))
        if core.db.read(lambda tx: images.get_image(tx, NAMESPACE, name)) is None:
            core.template.start()  # there will be layers: it gets ready while the registry answers
        fetched = core.registry.resolve(ref, call=call)
        digest = Digest(fetched.descriptor.digest)
        limits = core.settings.limits
        found = parse_manifest(fetched.data, fetched.descriptor.media_type, what, limits=limits)
        document = Document(digest=digest, media_type=found.media_type, data=fetched.data)
        with core.lease(what) as lease:
            job = _Job(ref=ref, what=what, lease=lease, call=call, indexes={}, ahead=ahead)
            if isinstance(found, Manifest):
                image = self._image(Child(manifest=found, document=document), asked, job)
                naming = Naming(
                    name=name, config=image.config, diff_ids=image.diff_ids, manifest=image.manifest
                )
            else:
                reader = IndexReader(
                    found,
                    document,
                    lambda descriptor: core.registry.manifest(ref, descriptor, call=call),
                    limits=limits,
                    attempted=what,
                    call=call,
                )
                naming = self._several(reader, wanted, job, asked=bool(asked), keep=keep_default)
            info = name_images(core, [naming], event="image.pulled", call=call)[0]
        call.observer.progress(Progress(item=name, phase="done"))
        return Pulled(
            name=name, info=info, config=naming.config, diff_ids=naming.diff_ids, indexes=job.indexes
        )

    def _several(
        self,
        reader: IndexReader,
        wanted: tuple[Platform, ...],
        job: _Job,
        *,
        asked: bool,
        keep: bool,
    ) -> Naming:
        """The images of an index that are ``wanted``; without any all, and whatever else it needs."""
        found: dict[Digest, PlatformImage] = {}
        if not wanted:
            reader.read_all()
            if not reader.images:
                raise NotFound(job.what, "its index lists no image")
            for child in reader.images:
                found[child.document.digest] = self._image(child, (), job)
        for one in wanted:
            child = reader.choose(one)
            if child.document.digest not in found:
                found[child.document.digest] = self._image(child, (one,) if asked else (), job)
        for document in reader.indexes.values():
            self._core.write_document(document.digest, document.data, lease=job.lease, call=job.call)
        parts = [blob for child in reader.artifacts for blob in self._artifact(child, job)]
        chosen, host = default_of(list(found.values()), first=bool(wanted))
        return Naming(
            name=str(job.ref),
            config=chosen.config,
            diff_ids=chosen.diff_ids,
            manifest=chosen.manifest,
            index=named_index(reader, list(found.values()), parts, keep_default=keep or not host),
        )

    def _image(self, child: Child, wanted: tuple[Platform, ...], job: _Job) -> PlatformImage:
        """One image, whole and durable on the lease; it must serve all platforms of ``wanted``."""
        core, call, manifest = self._core, job.call, child.manifest
        config_digest = manifest.config.checked_digest()
        config, config_data = self._config(manifest, config_digest, job)
        foreign = core.settings.foreign_layers
        diff_ids = check_image(
            manifest, config, str(job.ref), limit=core.settings.limits.layers, foreign=foreign
        )
        for platform in wanted:
            if not config.platform().rank(platform):
                raise FailedPrecondition(
                    job.what, f"the image is for {config.platform()}, not for {platform}"
                )
        document = child.document
        blobs = [
            BlobLayer(
                digest=descriptor.checked_digest(),
                size=descriptor.size,
                media_type=descriptor.media_type,
                diff_id=diff_id,
                urls=tuple(descriptor.urls or ()) if foreign else (),
            )
            for descriptor, diff_id in zip(manifest.layers, diff_ids, strict=True)
        ]
        ahead = job.ahead
        if ahead is not None:
            ahead.expect(diff_ids)

        def meanwhile() -> None:
            core.write_document(config_digest, config_data, lease=job.lease, call=call)
            core.write_document(document.digest, document.data, lease=job.lease, call=call)
            if ahead is not None:
                ahead.meanwhile()

        job.indexes.update(
            self._ingest.fetch_all(
                job.ref,
                blobs,
                call=call,
                lease=job.lease,
                seen=ahead.seen if ahead is not None else lambda diff_id, index: None,
                meanwhile=meanwhile,
            )
        )
        row = ManifestRow(digest=document.digest, media_type=document.media_type, size=len(document.data))
        return PlatformImage(
            config=config_digest, diff_ids=diff_ids, manifest=row, platform=config.platform()
        )

    def _config(self, manifest: Manifest, digest: Digest, job: _Job) -> tuple[ImageConfig, bytes]:
        """The image's config, from the store or the registry, and its bytes."""
        core = self._core
        if manifest.config.media_type not in CONFIG_TYPES:
            raise InvalidArgument(
                job.what,
                f"it is an artifact of type {manifest.config.media_type[:100]!r}, not a container image",
                hint="'orlop artifact pull' gets the files of an artifact",
            )
        limit = core.settings.limits.config_size
        if manifest.config.size > limit:
            raise over_limit("config_size", manifest.config.size, limit, attempted=job.what)
        try:
            data = core.blobs.read(digest)
        except (NotFound, DataLoss):  # collected at this moment, or gone bad
            data = core.registry.blob(job.ref, manifest.config, call=job.call)
        return parse_config(data, job.what, limits=core.settings.limits), data

    def _artifact(self, child: Child, job: _Job) -> list[IndexBlob]:
        """What an index lists that is no image: its manifest, and its blobs as they are."""
        core, document, manifest = self._core, child.document, child.manifest
        core.write_document(document.digest, document.data, lease=job.lease, call=job.call)
        found = [IndexBlob(digest=document.digest, media_type=document.media_type, size=len(document.data))]
        for descriptor in (manifest.config, *manifest.layers):
            fetch_plain(core, job.ref, descriptor, lease=job.lease, call=job.call)
            found.append(part_of(descriptor))
        return found


def wanted_platforms(
    platform: str | Sequence[str] | None, attempted: str, *, all_platforms: bool
) -> tuple[Platform, ...]:
    """The platforms that a caller wants; none of them with all, this machine's where it says nothing."""
    texts = (platform,) if isinstance(platform, str) else tuple(platform or ())
    if all_platforms and texts:
        raise InvalidArgument(attempted, "platforms and all platforms", hint="ask for the one or the other")
    if all_platforms:
        return ()
    return tuple(dict.fromkeys(Platform.parse(text) for text in texts)) or (host_platform(),)


def check_image(
    manifest: Manifest, config: ImageConfig, name: str, *, limit: int, foreign: bool = False
) -> tuple[DiffID, ...]:
    """The diff IDs of an image whose manifest and config agree; raises where they do not.

    ``foreign`` lets layers be of the kinds that are not to be distributed.
    """
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
        if not foreign and (
            "foreign" in descriptor.media_type or "nondistributable" in descriptor.media_type
        ):
            raise InvalidArgument(
                what,
                f"layer {descriptor.digest} is not distributable",
                hint="foreign_layers in the settings allows to fetch it from where the manifest says",
            )
        if descriptor.media_type and not _LAYER_TYPE.fullmatch(descriptor.media_type):
            raise InvalidArgument(
                what, f"layer {descriptor.digest} is no tar, but of type {descriptor.media_type[:100]!r}"
            )
    return diff_ids
