"""Descriptor, manifest, index and config as values.

Sources: OCI image-spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and Docker's
"Image Manifest Version 2, Schema 2".  Bytes with a digest are never serialised again: callers keep
them beside the parsed value.  Unknown fields are ignored on reading.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from orlop.errors import InvalidArgument, ResourceExhausted, Unimplemented
from orlop.spec.digest import DiffID, Digest
from orlop.spec.platform import Platform

__all__ = [
    "DOCKER_CONFIG",
    "DOCKER_INDEX",
    "DOCKER_MANIFEST",
    "INDEX_TYPES",
    "MANIFEST_TYPES",
    "MAX_DOCUMENT",
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "Descriptor",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "RootFS",
    "RunConfig",
    "encode",
    "parse_config",
    "parse_json",
    "parse_manifest",
]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)

MAX_DOCUMENT = 4 << 20  # distribution-spec: registries may refuse manifests over 4 MiB
_T = TypeVar("_T")

MAX_SIZE = 1 << 53  # descriptor.md: size is an int64; beyond this no JSON number is exact


class _Platform(msgspec.Struct, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """A typed pointer to content (descriptor.md).  ``size`` is in bytes."""

    media_type: str = ""
    digest: str
    size: int
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str | None = None
    platform: _Platform | None = None

    def checked_digest(self) -> Digest:
        """The digest as a type; it was checked when the document was parsed."""
        return Digest(self.digest)

    def platform_value(self) -> Platform | None:
        """The platform, where the descriptor names one."""
        if self.platform is None or not self.platform.architecture:
            return None
        return Platform(
            os=self.platform.os or "linux",
            architecture=self.platform.architecture,
            variant=self.platform.variant,
        )


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """One image of one platform (manifest.md)."""

    schema_version: int = 0
    media_type: str = ""
    artifact_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", kw_only=True):
    """Several manifests (image-index.md), also Docker's manifest list."""

    schema_version: int = 0
    media_type: str = ""
    artifact_type: str | None = None
    manifests: list[Descriptor]
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    def choose(self, wanted: Platform) -> Descriptor | None:
        """The manifest that serves ``wanted`` best; the first of equals, as the spec says."""
        best, best_rank = None, 0
        for descriptor in self.manifests:
            if (descriptor.annotations or {}).get("vnd.docker.reference.type") == "attestation-manifest":
                continue
            platform = descriptor.platform_value()
            rank = platform.rank(wanted) if platform is not None else 1
            if rank > best_rank:
                best, best_rank = descriptor, rank
        return best


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """The ``config`` object of an image: how to run it (config.md, "Properties")."""

    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    volumes: dict[str, Any] | None = None
    exposed_ports: dict[str, Any] | None = None


class RootFS(msgspec.Struct, frozen=True, kw_only=True):
    """The layers of an image, bottom first."""

    type: str = "layers"
    diff_ids: list[str]


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of an image's history."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An image's configuration (config.md).

    Only the fields that orlop reads; a commit edits the raw JSON, so nothing else is lost.
    """

    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    author: str | None = None
    config: RunConfig | None = None
    rootfs: RootFS
    history: list[History] | None = None

    def diff_ids(self) -> tuple[DiffID, ...]:
        """The layers' diff IDs, bottom first."""
        return tuple(DiffID(text) for text in self.rootfs.diff_ids)

    def platform(self) -> Platform:
        """What the image runs on."""
        return Platform(
            os=self.os or "linux", architecture=self.architecture or "amd64", variant=self.variant
        )


def encode(document: object) -> bytes:
    """JSON of a document that is new and so has no digest yet: keys in order, no white space."""
    return msgspec.json.encode(document, order="deterministic")


def parse_json(data: bytes, attempted: str, *, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
    """A JSON object from outside, with a limit on its size.

    Raises `InvalidArgument` where it is not an object, `ResourceExhausted` past ``limit`` bytes.
    Nesting is limited by msgspec's decoder (RecursionError, raised here as `InvalidArgument`).
    """
    _limited(data, attempted, limit)
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise InvalidArgument(attempted, f"not a JSON object: {exc}") from exc


def parse_manifest(
    data: bytes, media_type: str, attempted: str, *, limit: int = MAX_DOCUMENT
) -> Manifest | Index:
    """A manifest or an index, told apart by its own words, not by the server's alone.

    ``media_type`` is what the Content-Type or the descriptor claimed; it may be empty.  A document
    that contradicts it, or is both (CVE-2021-41190), is refused with `InvalidArgument`.
    """
    document = parse_json(data, attempted, limit=limit)
    said = document.get("mediaType") or ""
    if not isinstance(said, str):
        raise InvalidArgument(attempted, "mediaType is not a string")
    known = MANIFEST_TYPES + INDEX_TYPES
    claimed = media_type.partition(";")[0].strip()
    if DOCKER_SCHEMA_1 in claimed or document.get("schemaVersion") == 1:
        raise Unimplemented(
            attempted,
            "Docker's manifest schema 1 is not supported",
            hint="push the image again with a newer tool",
        )
    if said and claimed in known and said != claimed:
        raise InvalidArgument(attempted, f"mediaType {said!r} differs from Content-Type {claimed!r}")
    kind = said or (claimed if claimed in known else "")
    is_index, is_manifest = "manifests" in document, "layers" in document or "config" in document
    if is_index and is_manifest:
        raise InvalidArgument(attempted, "the document is both an index and a manifest")
    if not kind:
        kind = OCI_INDEX if is_index else OCI_MANIFEST
    if kind not in known:
        raise InvalidArgument(attempted, f"not an image manifest: {kind[:100]!r}")
    model: type[Manifest] | type[Index] = Index if kind in INDEX_TYPES else Manifest
    parsed = _convert(document, model, attempted)
    parsed = msgspec.structs.replace(parsed, media_type=kind)
    children = parsed.manifests if isinstance(parsed, Index) else [parsed.config, *parsed.layers]
    for descriptor in children:
        Digest(descriptor.digest)
        if not 0 <= descriptor.size <= MAX_SIZE:
            raise InvalidArgument(attempted, f"impossible size of {descriptor.digest}: {descriptor.size}")
    return parsed


def parse_config(data: bytes, attempted: str, *, limit: int = MAX_DOCUMENT) -> ImageConfig:
    """An image's configuration.  Raises as `parse_json` does."""
    config = _convert(parse_json(data, attempted, limit=limit), ImageConfig, attempted)
    for text in config.rootfs.diff_ids:
        DiffID(text)
    return config


def _limited(data: bytes, attempted: str, limit: int) -> None:
    if len(data) > limit:
        raise ResourceExhausted(
            attempted,
            f"the document has {len(data)} bytes, the limit is {limit}",
            details={"limit": "document_size"},
        )


def _convert(document: dict[str, Any], model: type[_T], attempted: str) -> _T:
    try:
        return msgspec.convert(document, type=model)
    except msgspec.ValidationError as exc:
        raise InvalidArgument(attempted, f"malformed document: {exc}") from exc
