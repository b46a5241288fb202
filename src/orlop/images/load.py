"""Import: OCI layouts (folder or tar) and ``docker save`` archives, old and new.

Sources: OCI image-layout.md and image-index.md; Docker's image spec v1.2 (manifest.json).
Nothing that is imported moves a name that means another image.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from orlop.images.api import ImageInfo
from orlop.images.archive import Member, Source, open_source, read_member
from orlop.images.core import Core, Lease
from orlop.images.ingest import BlobLayer, LayerIngest
from orlop.images.names import new_name
from orlop.images.pull import check_image, choose_manifest, name_image
from orlop.images.space import needing
from orlop.metadata.images import ManifestRow
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import (
    OCI_LAYER,
    Descriptor,
    Index,
    Manifest,
    parse_config,
    parse_json,
    parse_manifest,
)
from orlop.spec.platform import host_platform
from orlop.spec.reference import Reference

__all__ = ["Loader"]

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")


class Loader:
    """Imports into one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._ingest = ingest

    def load(self, path: str, *, name: str | None, call: Call) -> list[ImageInfo]:
        """See `orlop.images.api.Images.load`."""
        what = f"import {path}"
        if not path.startswith("/"):
            raise InvalidArgument(what, "the path is relative", hint="give an absolute path")
        wanted = new_name(name, what) if name else None
        with open_source(self._core, Path(path), call=call) as source, self._core.lease(what) as lease:
            if source.find("index.json") is not None:
                return self._layout(source, Path(path), wanted, lease, call, what)
            if source.find("manifest.json") is not None:
                return self._docker(source, Path(path), wanted, lease, call, what)
            raise InvalidArgument(
                what, "neither an OCI layout nor a docker archive: no index.json and no manifest.json in it"
            )

    # -- OCI layouts ----------------------------------------------------------------------------

    def _layout(
        self, source: Source, path: Path, wanted: str | None, lease: Lease, call: Call, what: str
    ) -> list[ImageInfo]:
        limits = self._core.settings.limits
        data = read_member(source, "index.json", limit=limits.manifest_size, attempted=what)
        index = parse_manifest(
            data, "application/vnd.oci.image.index.v1+json", what, limit=limits.manifest_size
        )
        if not isinstance(index, Index) or not index.manifests:
            raise InvalidArgument(what, "its index.json lists no image")
        if wanted and len(index.manifests) > 1:
            raise InvalidArgument(what, f"it holds {len(index.manifests)} images; a single name fits none")
        found: list[ImageInfo] = []
        for descriptor in index.manifests:
            name = wanted or _layout_name(descriptor, path)
            found.append(self._layout_image(source, descriptor, name, lease, call, what))
        return found

    def _layout_image(
        self, source: Source, descriptor: Descriptor, name: str, lease: Lease, call: Call, what: str
    ) -> ImageInfo:
        limits = self._core.settings.limits
        for _ in range(limits.index_nesting + 1):
            data = self._document(source, descriptor, limits.manifest_size, what)
            document = parse_manifest(data, descriptor.media_type, what, limit=limits.manifest_size)
            if isinstance(document, Manifest):
                break
            descriptor = choose_manifest(document, host_platform(), what)
        else:
            raise ResourceExhausted(what, "indexes are nested too deep", hint="limits.index_nesting")
        config_data = self._document(source, document.config, limits.config_size, what)
        config = parse_config(config_data, what, limit=limits.config_size)
        diff_ids = check_image(document, config, name, limit=limits.layers)
        wanted: list[tuple[Member, BlobLayer]] = []
        for layer, diff_id in zip(document.layers, diff_ids, strict=True):
            blob = BlobLayer(
                digest=layer.checked_digest(), size=layer.size, media_type=layer.media_type, diff_id=diff_id
            )
            wanted.append((_blob(source, layer, what), blob))
        self._read_layers(wanted, lease, call, what, verify=True)
        digest = descriptor.checked_digest()
        self._keep(lease, {digest: data, document.config.checked_digest(): config_data}, call)
        manifest = ManifestRow(digest=digest, media_type=document.media_type, size=len(data))
        return name_image(
            self._core,
            name,
            config=document.config.checked_digest(),
            diff_ids=diff_ids,
            manifest=manifest,
            keep_other=True,
            call=call,
        )

    def _read_layers(
        self, wanted: list[tuple[Member, BlobLayer]], lease: Lease, call: Call, what: str, *, verify: bool
    ) -> None:
        least = self._ingest.least_size([blob for _, blob in wanted])
        with needing(self._core.layout.root, least, what):
            for member, blob in wanted:
                self._ingest.read_file(
                    member.fd, blob, offset=member.offset, verify=verify, call=call, lease=lease
                )

    def _document(self, source: Source, descriptor: Descriptor, limit: int, what: str) -> bytes:
        digest = descriptor.checked_digest()
        name = f"blobs/{digest.algorithm}/{digest.hex}"
        data = read_member(source, name, limit=limit, attempted=what)
        if len(data) != descriptor.size or not digest.verifies(data):
            raise DataLoss(what, f"{digest} has other bytes than its descriptor says")
        return data

    def _keep(self, lease: Lease, documents: dict[Digest, bytes], call: Call) -> None:
        for digest, data in documents.items():
            self._core.write_document(digest, data, lease=lease, call=call)

    # -- docker archives ------------------------------------------------------------------------

    def _docker(
        self, source: Source, path: Path, wanted: str | None, lease: Lease, call: Call, what: str
    ) -> list[ImageInfo]:
        limits = self._core.settings.limits
        data = read_member(source, "manifest.json", limit=limits.manifest_size, attempted=what)
        try:
            images = msgspec.json.decode(data, type=list[dict[str, Any]])
        except msgspec.MsgspecError as exc:
            raise InvalidArgument(what, f"its manifest.json is not a list of images: {exc}") from exc
        if not images:
            raise InvalidArgument(what, "its manifest.json lists no image")
        if wanted and len(images) > 1:
            raise InvalidArgument(what, f"it holds {len(images)} images; a single name fits none")
        found: list[ImageInfo] = []
        for image in images:
            tags = image.get("RepoTags") or []
            names = [wanted] if wanted else [str(Reference.parse(str(tag))) for tag in tags]
            found += self._docker_image(source, image, names, path, lease, call, what)
        return found

    def _docker_image(
        self,
        source: Source,
        image: dict[str, Any],
        names: list[str],
        path: Path,
        lease: Lease,
        call: Call,
        what: str,
    ) -> list[ImageInfo]:
        limits = self._core.settings.limits
        config_name, layer_names = image.get("Config"), image.get("Layers")
        if not isinstance(config_name, str) or not isinstance(layer_names, list):
            raise InvalidArgument(what, "an image in its manifest.json has no Config or no Layers")
        data = read_member(source, config_name, limit=limits.config_size, attempted=what)
        parse_json(data, what, limit=limits.config_size)
        config = parse_config(data, what, limit=limits.config_size)
        diff_ids = config.diff_ids()
        if len(diff_ids) != len(layer_names) or len(diff_ids) > limits.layers:
            raise InvalidArgument(what, f"{len(layer_names)} layers for {len(diff_ids)} diff IDs")
        wanted: list[tuple[Member, BlobLayer]] = []
        for layer_name, diff_id in zip(layer_names, diff_ids, strict=True):
            member = source.find(str(layer_name))
            if member is None:
                raise NotFound(what, f"there is no {layer_name} in it")
            # An archive's layers have no digest but their diff ID, which is computed anyway.
            blob = BlobLayer(digest=Digest(diff_id), size=member.size, media_type=OCI_LAYER, diff_id=diff_id)
            wanted.append((member, blob))
        self._read_layers(wanted, lease, call, what, verify=False)
        digest = Digest.of(data)
        self._keep(lease, {digest: data}, call)
        names = names or [str(Reference.parse(f"localhost/{_plain(path)}:{digest.hex[:12]}"))]
        return [
            name_image(
                self._core,
                name,
                config=digest,
                diff_ids=diff_ids,
                manifest=None,
                keep_other=True,
                call=call,
            )
            for name in names
        ]


def _blob(source: Source, descriptor: Descriptor, what: str) -> Member:
    digest = descriptor.checked_digest()
    name = f"blobs/{digest.algorithm}/{digest.hex}"
    member = source.find(name)
    if member is None:
        raise NotFound(what, f"there is no {name} in it")
    if member.size != descriptor.size:
        raise DataLoss(what, f"{digest} has {member.size} bytes, its descriptor says {descriptor.size}")
    return member


def _layout_name(descriptor: Descriptor, path: Path) -> str:
    """A name for an image of a layout: its annotations', else one made of the layout's own name."""
    annotations = descriptor.annotations or {}
    full = annotations.get(_FULL_NAME)
    if full:
        return str(Reference.parse(full))
    ref = annotations.get(_REF_NAME, "")
    if "/" in ref or ":" in ref:
        return str(Reference.parse(ref))
    tag = ref or descriptor.digest.partition(":")[2][:12]
    return str(Reference.parse(f"localhost/{_plain(path)}:{tag}"))


def _plain(path: Path) -> str:
    """A file's name as a repository name."""
    return (
        _NOT_A_NAME.sub("-", path.name.lower().removesuffix(".gz").removesuffix(".tar")).strip("-")
        or "import"
    )
