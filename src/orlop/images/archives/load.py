"""Import: OCI layouts (folder or tar) and ``docker save`` archives, old and new.

Sources: OCI image-layout.md and image-index.md; Docker's image spec v1.2 (manifest.json).

Invariants:

- An archive never moves a name that means another image, as `docker load` would: what a user has is not
  another's to replace.  Nor does it give a name with the digest of something else.
- All images of an archive get their names in one transaction, or none gets any.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from orlop.config import over_limit
from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.api import ImageInfo
from orlop.images.archives.archive import Member, Source, open_source, read_member
from orlop.images.core import Core, Lease
from orlop.images.indexes import Child, Document, IndexReader
from orlop.images.names import new_name
from orlop.images.naming import Naming, PlatformImage, default_of, name_images, named_index, part_of
from orlop.images.space import needing
from orlop.images.transfer.ingest import BlobLayer, LayerIngest
from orlop.images.transfer.plainblobs import bring_plain
from orlop.images.transfer.pull import check_image, wanted_platforms
from orlop.metadata.images import ManifestRow
from orlop.metadata.platforms import IndexBlob
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import (
    INDEX_TYPES,
    OCI_INDEX,
    OCI_LAYER,
    Descriptor,
    DockerImage,
    Index,
    Manifest,
    parse_config,
    parse_docker_list,
    parse_manifest,
)
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference

__all__ = ["Loader"]

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")
_CHUNK = 1 << 20
_Limit = Literal["manifest_size", "index_size", "config_size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Platforms:
    """Those that are wanted of an index, none for all; ``asked`` by the caller, and not this machine's."""

    wanted: tuple[Platform, ...]
    asked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One import: from where, on which lease."""

    source: Source
    lease: Lease
    call: Call
    what: str


class Loader:
    """Imports into one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._ingest = ingest

    def load(
        self,
        path: str,
        *,
        name: str | None,
        platform: str | Sequence[str] | None = None,
        all_platforms: bool = False,
        call: Call,
    ) -> list[ImageInfo]:
        """See `orlop.images.api.Images.load`."""
        what = f"import {path}"
        platforms = _Platforms(
            wanted=wanted_platforms(platform, what, all_platforms=all_platforms), asked=bool(platform)
        )
        if not path.startswith("/"):
            raise InvalidArgument(what, "the path is relative", hint="give an absolute path")
        wanted = new_name(name, what) if name else None
        with open_source(self._core, Path(path), call=call) as source, self._core.lease(what) as lease:
            if source.find("index.json") is not None:
                job = _Job(source=source, lease=lease, call=call, what=what)
                namings = self._layout(job, Path(path), wanted, platforms)
            elif source.find("manifest.json") is not None:
                namings = self._docker(source, Path(path), wanted, lease, call, what)
            else:
                raise InvalidArgument(
                    what,
                    "neither an OCI layout nor a docker archive: no index.json and no manifest.json in it",
                )
            return name_images(self._core, namings, keep_others=True, call=call)

    def _check_count(self, what: str, count: int) -> None:
        """Refuse more names than an archive may give; an image without one counts as one."""
        limit = self._core.settings.limits.archive_names
        if count > limit:
            raise over_limit("archive_names", count, limit, attempted=what)

    # -- OCI layouts ----------------------------------------------------------------------------

    def _layout(self, job: _Job, path: Path, wanted: str | None, platforms: _Platforms) -> list[Naming]:
        source, what = job.source, job.what
        limits = self._core.settings.limits
        data = self._read(source, "index.json", "index_size", what)
        index = parse_manifest(data, OCI_INDEX, what, limits=limits)
        if not isinstance(index, Index) or not index.manifests:
            raise InvalidArgument(what, "its index.json lists no image")
        if wanted and len(index.manifests) > 1:
            raise InvalidArgument(what, f"it holds {len(index.manifests)} images; a single name fits none")
        self._check_count(what, len(index.manifests))
        names = [wanted or _layout_name(descriptor, path, what) for descriptor in index.manifests]
        return [
            self._layout_name(job, descriptor, name, platforms)
            for descriptor, name in zip(index.manifests, names, strict=True)
        ]

    def _layout_name(self, job: _Job, descriptor: Descriptor, name: str, platforms: _Platforms) -> Naming:
        """One name of a layout, with its image, or with those of its index that are wanted."""
        limits, what = self._core.settings.limits, job.what
        data = self._manifest(job, descriptor)
        found = parse_manifest(data, descriptor.media_type, what, limits=limits)
        document = Document(digest=descriptor.checked_digest(), media_type=found.media_type, data=data)
        asked = platforms.wanted if platforms.asked else ()
        if isinstance(found, Manifest):
            image = self._layout_image(job, Child(manifest=found, document=document), name, asked)
            return Naming(name=name, config=image.config, diff_ids=image.diff_ids, manifest=image.manifest)
        reader = IndexReader(
            found,
            document,
            lambda child: self._manifest(job, child),
            limits=limits,
            attempted=what,
            call=job.call,
        )
        images: dict[Digest, PlatformImage] = {}
        if not platforms.wanted:
            reader.read_all()
            if not reader.images:
                raise NotFound(what, "its index lists no image")
            for child in reader.images:
                images[child.document.digest] = self._layout_image(job, child, name, ())
        for one in platforms.wanted:
            child = reader.choose(one)
            if child.document.digest not in images:
                images[child.document.digest] = self._layout_image(
                    job, child, name, (one,) if platforms.asked else ()
                )
        self._keep(job.lease, {one.digest: one.data for one in reader.indexes.values()}, job.call)
        parts = [blob for child in reader.artifacts for blob in self._artifact(job, child)]
        chosen, host = default_of(list(images.values()), first=bool(platforms.wanted))
        return Naming(
            name=name,
            config=chosen.config,
            diff_ids=chosen.diff_ids,
            manifest=chosen.manifest,
            index=named_index(reader, list(images.values()), parts, keep_default=not host),
        )

    def _manifest(self, job: _Job, descriptor: Descriptor) -> bytes:
        job.call.check(job.what)
        kind: _Limit = "index_size" if descriptor.media_type in INDEX_TYPES else "manifest_size"
        return self._document(job.source, descriptor, kind, job.what)

    def _layout_image(self, job: _Job, child: Child, name: str, asked: tuple[Platform, ...]) -> PlatformImage:
        limits, source, what = self._core.settings.limits, job.source, job.what
        document = child.manifest
        config_data = self._document(source, document.config, "config_size", what)
        config = parse_config(config_data, what, limits=limits)
        foreign = self._core.settings.foreign_layers
        diff_ids = check_image(document, config, name, limit=limits.layers, foreign=foreign)
        for platform in asked:
            if not config.platform().rank(platform):
                raise FailedPrecondition(what, f"the image is for {config.platform()}, not for {platform}")
        wanted: list[tuple[str, BlobLayer]] = []
        for layer, diff_id in zip(document.layers, diff_ids, strict=True):
            name_of_blob = _blob_name(layer.checked_digest())
            size = _size_of(source, name_of_blob, what)
            if size != layer.size:
                raise DataLoss(what, f"{layer.digest} has {size} bytes, its descriptor says {layer.size}")
            blob = BlobLayer(
                digest=layer.checked_digest(), size=size, media_type=layer.media_type, diff_id=diff_id
            )
            wanted.append((name_of_blob, blob))
        self._read_layers(source, wanted, job.lease, job.call, what, verify=True)
        own, config_digest = child.document, document.config.checked_digest()
        self._keep(job.lease, {own.digest: own.data, config_digest: config_data}, job.call)
        return PlatformImage(
            config=config_digest,
            diff_ids=diff_ids,
            manifest=ManifestRow(digest=own.digest, media_type=own.media_type, size=len(own.data)),
            platform=config.platform(),
        )

    def _artifact(self, job: _Job, child: Child) -> list[IndexBlob]:
        """What an index lists that is no image: its manifest, and its blobs as they are."""
        own = child.document
        self._keep(job.lease, {own.digest: own.data}, job.call)
        found = [IndexBlob(digest=own.digest, media_type=own.media_type, size=len(own.data))]
        for descriptor in (child.manifest.config, *child.manifest.layers):
            member = _member(job.source, _blob_name(descriptor.checked_digest()), job.what)
            source = partial(_chunks, member)
            bring_plain(self._core, source, descriptor, job.what, lease=job.lease, call=job.call)
            job.source.release()
            found.append(part_of(descriptor))
        return found

    def _read_layers(
        self,
        source: Source,
        wanted: list[tuple[str, BlobLayer]],
        lease: Lease,
        call: Call,
        what: str,
        *,
        verify: bool,
    ) -> None:
        """Bring in the layers of an image, named by their paths in the archive; one is open at a time."""
        least = self._ingest.least_size([blob for _, blob in wanted])
        with needing(self._core.layout.root, least, what):
            for name, blob in wanted:
                member = _member(source, name, what)
                self._ingest.read_file(
                    member.fd, blob, offset=member.offset, verify=verify, call=call, lease=lease
                )
                source.release()

    def _read(self, source: Source, name: str, limit: _Limit, what: str) -> bytes:
        """A document of the archive, if it is within a limit."""
        most: int = getattr(self._core.settings.limits, limit)
        return read_member(source, name, limit=limit, most=most, attempted=what)

    def _document(self, source: Source, descriptor: Descriptor, limit: _Limit, what: str) -> bytes:
        digest = descriptor.checked_digest()
        data = self._read(source, _blob_name(digest), limit, what)
        if len(data) != descriptor.size or not digest.verifies(data):
            raise DataLoss(what, f"{digest} has other bytes than its descriptor says")
        return data

    def _keep(self, lease: Lease, documents: dict[Digest, bytes], call: Call) -> None:
        for digest, data in documents.items():
            self._core.write_document(digest, data, lease=lease, call=call)

    # -- docker archives ------------------------------------------------------------------------

    def _docker(
        self, source: Source, path: Path, wanted: str | None, lease: Lease, call: Call, what: str
    ) -> list[Naming]:
        data = self._read(source, "manifest.json", "manifest_size", what)
        images = parse_docker_list(data, what, limits=self._core.settings.limits)
        if not images:
            raise InvalidArgument(what, "its manifest.json lists no image")
        if wanted and len(images) > 1:
            raise InvalidArgument(what, f"it holds {len(images)} images; a single name fits none")
        self._check_count(what, sum(max(1, len(image.repo_tags or ())) for image in images))
        names = [
            [wanted] if wanted else [new_name(tag, what) for tag in image.repo_tags or ()] for image in images
        ]
        found: list[Naming] = []
        for image, own in zip(images, names, strict=True):
            found += self._docker_image(source, image, own, path, lease, call, what)
        return found

    def _docker_image(
        self,
        source: Source,
        image: DockerImage,
        names: list[str],
        path: Path,
        lease: Lease,
        call: Call,
        what: str,
    ) -> list[Naming]:
        limits = self._core.settings.limits
        call.check(what)
        data = self._read(source, image.config, "config_size", what)
        config = parse_config(data, what, limits=limits)
        diff_ids = config.diff_ids()
        if len(diff_ids) > limits.layers:
            raise over_limit("layers", len(diff_ids), limits.layers, attempted=what)
        if len(diff_ids) != len(image.layers):
            raise InvalidArgument(what, f"{len(image.layers)} layers for {len(diff_ids)} diff IDs")
        wanted: list[tuple[str, BlobLayer]] = []
        for layer_name, diff_id in zip(image.layers, diff_ids, strict=True):
            # An archive's layers have no digest but their diff ID, which is computed anyway.
            size = _size_of(source, layer_name, what)
            blob = BlobLayer(digest=Digest(diff_id), size=size, media_type=OCI_LAYER, diff_id=diff_id)
            wanted.append((layer_name, blob))
        self._read_layers(source, wanted, lease, call, what, verify=False)
        digest = Digest.of(data)
        self._keep(lease, {digest: data}, call)
        names = names or [str(Reference.parse(f"localhost/{_plain(path)}:{digest.hex[:12]}"))]
        return [Naming(name=name, config=digest, diff_ids=diff_ids, manifest=None) for name in names]


def _chunks(member: Member, offset: int) -> Iterator[bytes]:
    """The bytes of a file of the archive, from an offset on."""
    at, end = member.offset + offset, member.offset + member.size
    while at < end and (chunk := os.pread(member.fd, min(_CHUNK, end - at), at)):
        yield chunk
        at += len(chunk)


def _blob_name(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _member(source: Source, name: str, what: str) -> Member:
    member = source.find(name)
    if member is None:
        raise NotFound(what, f"there is no {name[:300]} in it")
    return member


def _size_of(source: Source, name: str, what: str) -> int:
    size = _member(source, name, what).size
    source.release()
    return size


def _layout_name(descriptor: Descriptor, path: Path, what: str) -> str:
    """A name for an image of a layout: its annotations', else one made of the layout's own name."""
    annotations = descriptor.annotations or {}
    full = annotations.get(_FULL_NAME)
    if full:
        return _true_name(full, descriptor, what)
    ref = annotations.get(_REF_NAME, "")
    if "/" in ref or ":" in ref:
        return _true_name(ref, descriptor, what)
    tag = ref or descriptor.digest.partition(":")[2][:12]
    return new_name(f"localhost/{_plain(path)}:{tag}", what)


def _true_name(text: str, descriptor: Descriptor, what: str) -> str:
    """The full name that an annotation says; a digest in it must be that of what it stands at."""
    ref = Reference.parse(text)
    if ref.digest is not None and ref.digest != descriptor.digest:
        raise InvalidArgument(what, f"{text[:300]} is the name of another image by its digest")
    return str(ref)


def _plain(path: Path) -> str:
    """A file's name as a repository name."""
    return (
        _NOT_A_NAME.sub("-", path.name.lower().removesuffix(".gz").removesuffix(".tar")).strip("-")
        or "import"
    )
