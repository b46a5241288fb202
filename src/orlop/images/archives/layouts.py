"""OCI layouts on their way in: names, indexes, manifests, and the blobs that they need, each verified.

Source: OCI image-layout.md and image-index.md.  A name with a digest is only given to what has that digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from orlop.errors import DataLoss, InvalidArgument, NotFound
from orlop.images.archives.archive import Member
from orlop.images.archives.job import Job, Limit, Platforms, plain
from orlop.images.indexes import Child, Document, IndexReader
from orlop.images.names import new_name
from orlop.images.naming import Naming, PlatformImage, default_of, named_index, part_of
from orlop.images.transfer.ingest import BlobLayer
from orlop.images.transfer.plainblobs import bring_plain
from orlop.images.transfer.pull import check_image
from orlop.metadata.images import ManifestRow
from orlop.metadata.platforms import IndexBlob
from orlop.spec.digest import Digest
from orlop.spec.documents import (
    INDEX_TYPES,
    OCI_INDEX,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
)
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference

__all__ = ["layout_images"]

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_CHUNK = 1 << 20


def layout_images(job: Job) -> list[Naming]:
    """The names of a layout, with their images, which are brought in."""
    what, limits = job.what, job.limits
    data = job.read("index.json", "index_size")
    index = parse_manifest(data, OCI_INDEX, what, limits=limits)
    if not isinstance(index, Index) or not index.manifests:
        raise InvalidArgument(what, "its index.json lists no image")
    job.check_count(len(index.manifests))
    wanted = list(index.manifests)
    if job.name:  # which takes the place of all that one image has there
        wanted = list({descriptor.digest: descriptor for descriptor in wanted}.values())
        job.check_single(len(wanted))
    names = [job.name or _name_in(descriptor, job.stem, what) for descriptor in wanted]
    return [_naming(job, descriptor, name) for descriptor, name in zip(wanted, names, strict=True)]


def _naming(job: Job, descriptor: Descriptor, name: str) -> Naming:
    """One name of a layout, with its image, or with those of its index that are wanted."""
    limits, what, platforms = job.limits, job.what, job.platforms
    data = _manifest(job, descriptor)
    found = parse_manifest(data, descriptor.media_type, what, limits=limits)
    document = Document(digest=descriptor.checked_digest(), media_type=found.media_type, data=data)
    asked = platforms.wanted if platforms.asked else ()
    if isinstance(found, Manifest):
        image = _image(job, Child(manifest=found, document=document), name, asked)
        return Naming(name=name, config=image.config, diff_ids=image.diff_ids, manifest=image.manifest)
    reader = IndexReader(
        found,
        document,
        lambda child: _manifest(job, child),
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
            images[child.document.digest] = _image(job, child, name, ())
    for one in platforms.wanted:
        child = reader.choose(one)
        if child.document.digest not in images:
            images[child.document.digest] = _image(job, child, name, (one,) if platforms.asked else ())
    job.keep({one.digest: one.data for one in reader.indexes.values()})
    parts = [blob for child in reader.artifacts for blob in _artifact(job, child)]
    chosen, host = default_of(list(images.values()), first=bool(platforms.wanted))
    return Naming(
        name=name,
        config=chosen.config,
        diff_ids=chosen.diff_ids,
        manifest=chosen.manifest,
        index=named_index(reader, list(images.values()), parts, keep_default=not host),
    )


def _manifest(job: Job, descriptor: Descriptor) -> bytes:
    job.call.check(job.what)
    kind: Limit = "index_size" if descriptor.media_type in INDEX_TYPES else "manifest_size"
    return _document(job, descriptor, kind)


def _image(job: Job, child: Child, name: str, asked: tuple[Platform, ...]) -> PlatformImage:
    limits, what = job.limits, job.what
    document = child.manifest
    config_data = _document(job, document.config, "config_size")
    config = parse_config(config_data, what, limits=limits)
    foreign = job.core.settings.foreign_layers
    diff_ids = check_image(document, config, name, limit=limits.layers, foreign=foreign)
    Platforms(wanted=asked, asked=True).check(config.platform(), what)
    wanted: list[tuple[str, BlobLayer]] = []
    for layer, diff_id in zip(document.layers, diff_ids, strict=True):
        name_of_blob = _blob_name(layer.checked_digest())
        size = job.size_of(name_of_blob)
        if size != layer.size:
            raise DataLoss(what, f"{layer.digest} has {size} bytes, its descriptor says {layer.size}")
        blob = BlobLayer(
            digest=layer.checked_digest(), size=size, media_type=layer.media_type, diff_id=diff_id
        )
        wanted.append((name_of_blob, blob))
    job.read_layers(wanted, verify=True)
    own, config_digest = child.document, document.config.checked_digest()
    job.keep({own.digest: own.data, config_digest: config_data})
    return PlatformImage(
        config=config_digest,
        diff_ids=diff_ids,
        manifest=ManifestRow(digest=own.digest, media_type=own.media_type, size=len(own.data)),
        platform=config.platform(),
    )


def _artifact(job: Job, child: Child) -> list[IndexBlob]:
    """What an index lists that is no image: its manifest, and its blobs as they are."""
    own = child.document
    job.keep({own.digest: own.data})
    found = [IndexBlob(digest=own.digest, media_type=own.media_type, size=len(own.data))]
    for descriptor in (child.manifest.config, *child.manifest.layers):
        member = job.member(_blob_name(descriptor.checked_digest()))
        source = partial(_chunks, member)
        bring_plain(job.core, source, descriptor, job.what, lease=job.lease, call=job.call)
        job.source.release()
        found.append(part_of(descriptor))
    return found


def _document(job: Job, descriptor: Descriptor, limit: Limit) -> bytes:
    digest = descriptor.checked_digest()
    data = job.read(_blob_name(digest), limit)
    if len(data) != descriptor.size or not digest.verifies(data):
        raise DataLoss(job.what, f"{digest} has other bytes than its descriptor says")
    return data


def _chunks(member: Member, offset: int) -> Iterator[bytes]:
    """The bytes of a file of the archive, from an offset on."""
    at, end = member.offset + offset, member.offset + member.size
    while at < end and (chunk := os.pread(member.fd, min(_CHUNK, end - at), at)):
        yield chunk
        at += len(chunk)


def _blob_name(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _name_in(descriptor: Descriptor, stem: str, what: str) -> str:
    """A name for an image of a layout: its annotations', else one made of the layout's own name."""
    annotations = descriptor.annotations or {}
    full = annotations.get(_FULL_NAME)
    if full:
        return _true_name(full, descriptor, what)
    ref = annotations.get(_REF_NAME, "")
    if "/" in ref or ":" in ref:
        return _true_name(ref, descriptor, what)
    tag = ref or descriptor.digest.partition(":")[2][:12]
    return new_name(f"localhost/{plain(stem)}:{tag}", what)


def _true_name(text: str, descriptor: Descriptor, what: str) -> str:
    """The full name that an annotation says; a digest in it must be that of what it stands at."""
    ref = Reference.parse(text)
    if ref.digest is not None and ref.digest != descriptor.digest:
        raise InvalidArgument(what, f"{text[:300]} is the name of another image by its digest")
    return str(ref)
