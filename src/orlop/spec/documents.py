"""Descriptor, manifest, index and config as values.

Sources: OCI image-spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and Docker's
"Image Manifest Version 2, Schema 2".  Bytes with a digest are never serialised again: callers keep
them beside the parsed value.  Unknown fields are ignored on reading; of a key that stands twice in one
object the last counts, as Go has it, in every reader here alike.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, TypeVar  # msgspec reads them, and wants typing's own

import msgspec

from orlop.errors import InvalidArgument, Unimplemented, over_limit
from orlop.spec.digest import DiffID, Digest
from orlop.spec.platform import Platform
from orlop.values import dataclass

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
    "STORED",
    "Descriptor",
    "DockerImage",
    "DocumentLimits",
    "History",
    "ImageConfig",
    "Index",
    "Manifest",
    "RootFS",
    "RunConfig",
    "encode",
    "parse_config",
    "parse_docker_list",
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

# What a document of the store may have; `orlop.config.Limits` says what one from outside may.
MAX_DOCUMENT = 64 << 20
MAX_DEPTH = 500  # msgspec's decoder recurses, and Python's limit is 1,000 frames
_T = TypeVar("_T")
_SAME_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))

MAX_SIZE = 1 << 53  # descriptor.md: size is an int64; beyond this no JSON number is exact


class _Platform(msgspec.Struct, omit_defaults=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")


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

    def may_be_image(self) -> bool:
        """Whether a child of an index may be an image to run, and no attestation or other artifact."""
        if (self.annotations or {}).get("vnd.docker.reference.type") == "attestation-manifest":
            return False
        artifact = (self.artifact_type or "") not in {"", OCI_CONFIG, DOCKER_CONFIG}
        return not artifact and not (self.platform and self.platform.os == "unknown")

    def platform_value(self) -> Platform | None:
        """The platform, where the descriptor names one."""
        if self.platform is None or not self.platform.architecture:
            return None
        return Platform(
            os=self.platform.os or "linux",
            architecture=self.platform.architecture,
            variant=self.platform.variant,
            os_version=self.platform.os_version,
            os_features=tuple(self.platform.os_features or ()),
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
            if not descriptor.may_be_image():
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
    os_version: str = msgspec.field(default="", name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
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
            os=self.os or "linux",
            architecture=self.architecture or "amd64",
            variant=self.variant,
            os_version=self.os_version,
            os_features=tuple(self.os_features or ()),
        )


class DockerImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image of the manifest.json that ``docker save`` writes: names of files, and tags."""

    config: str = msgspec.field(name="Config")
    repo_tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    layers: list[str] = msgspec.field(name="Layers")


class DocumentLimits(Protocol):
    """What documents may cost, in bytes and levels: `orlop.config.Limits` for those from outside."""

    @property
    def manifest_size(self) -> int: ...  # noqa: D102 - named as in orlop.config
    @property
    def index_size(self) -> int: ...  # noqa: D102
    @property
    def config_size(self) -> int: ...  # noqa: D102
    @property
    def json_depth(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    manifest_size: int = MAX_DOCUMENT
    index_size: int = MAX_DOCUMENT
    config_size: int = MAX_DOCUMENT
    json_depth: int = MAX_DEPTH


STORED: DocumentLimits = _Stored()
"""For documents of the store, which were within the limits of their day when they came in."""


def encode(document: object) -> bytes:
    """JSON of a document that is new and so has no digest yet: keys in order, no white space."""
    return msgspec.json.encode(document, order="deterministic")


def parse_json(
    data: bytes,
    attempted: str,
    *,
    name: str = "config_size",
    limit: int = MAX_DOCUMENT,
    depth: int = MAX_DEPTH,
) -> dict[str, Any]:
    """A JSON object from outside, of at most ``limit`` bytes (the limit ``name``) and ``depth`` levels.

    Raises `InvalidArgument` where it is not an object, `ResourceExhausted` past a limit.
    """
    return _decode(data, dict[str, Any], attempted, what="object", name=name, limit=limit, depth=depth)


def parse_docker_list(data: bytes, attempted: str, *, limits: DocumentLimits = STORED) -> list[DockerImage]:
    """The manifest.json of a docker archive.  Raises as `parse_json` does."""
    return _decode(
        data,
        list[DockerImage],
        attempted,
        what="list of images",
        name="manifest_size",
        limit=limits.manifest_size,
        depth=limits.json_depth,
    )


def _decode(
    data: bytes, model: type[_T], attempted: str, *, what: str, name: str, limit: int, depth: int
) -> _T:
    """Bytes that are not looked at before their size and depth are."""
    if len(data) > limit:
        raise over_limit(name, len(data), limit, attempted=attempted)
    if _levels(data, depth) > depth:
        raise over_limit("json_depth", f"more than {depth}", depth, attempted=attempted)
    try:
        return msgspec.json.decode(data, type=model)
    except RecursionError as exc:  # brackets that do not match
        raise InvalidArgument(attempted, f"not a JSON {what}: brackets without an end") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise InvalidArgument(attempted, f"not a JSON {what}: {exc}") from exc


def _levels(data: bytes, most: int) -> int:
    """How many brackets stand inside one another, counted as far as one past ``most``.

    No recursion, and little work: what lies inside of strings goes, then the innermost pairs, a level at a
    time.  Brackets without a match stay, and are the decoder's to refuse.
    """
    if b"\\" in data:
        data = _ESCAPE.sub(b"", data)
    brackets = b"".join(data.translate(_SAME_BRACKETS, _NO_BRACKETS).split(b'"')[::2])
    levels = 0
    while brackets and levels <= most:
        fewer = brackets.replace(b"[]", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
        levels += 1
    return levels


def parse_manifest(
    data: bytes, media_type: str, attempted: str, *, limits: DocumentLimits = STORED
) -> Manifest | Index:
    """A manifest or an index, told apart by its own words, not by the server's alone.

    ``media_type`` is what the Content-Type or the descriptor claimed; it may be empty.  A document
    that contradicts it, or is both (CVE-2021-41190), is refused with `InvalidArgument`.
    """
    claimed = media_type.partition(";")[0].strip()
    document = parse_json(
        data,
        attempted,
        name="index_size" if claimed in INDEX_TYPES else "manifest_size",
        limit=max(limits.manifest_size, limits.index_size),
        depth=limits.json_depth,
    )
    said = document.get("mediaType") or ""
    if not isinstance(said, str):
        raise InvalidArgument(attempted, "mediaType is not a string")
    known = MANIFEST_TYPES + INDEX_TYPES
    if DOCKER_SCHEMA_1 in claimed or document.get("schemaVersion") == 1:
        raise Unimplemented(
            attempted,
            "Docker's manifest schema 1 is not supported",
            hint="push the image again with a newer tool",
        )
    if said and claimed in known and said != claimed:
        raise InvalidArgument(attempted, f"mediaType {said[:100]!r} differs from Content-Type {claimed!r}")
    kind = said or (claimed if claimed in known else "")
    is_index, is_manifest = "manifests" in document, "layers" in document or "config" in document
    if is_index and is_manifest:
        raise InvalidArgument(attempted, "the document is both an index and a manifest")
    if not kind:
        kind = OCI_INDEX if is_index else OCI_MANIFEST
    if kind not in known:
        raise InvalidArgument(attempted, f"not an image manifest: {kind[:100]!r}")
    model: type[Manifest] | type[Index] = Index if kind in INDEX_TYPES else Manifest
    own = limits.index_size if model is Index else limits.manifest_size
    if len(data) > own:
        name = "index_size" if model is Index else "manifest_size"
        raise over_limit(name, len(data), own, attempted=attempted)
    parsed = _convert(document, model, attempted)
    parsed = msgspec.structs.replace(parsed, media_type=kind)
    children = parsed.manifests if isinstance(parsed, Index) else [parsed.config, *parsed.layers]
    for descriptor in children:
        _checked(Digest, descriptor.digest, attempted)
        if not 0 <= descriptor.size <= MAX_SIZE:
            raise InvalidArgument(attempted, f"impossible size of {descriptor.digest}: {descriptor.size}")
    return parsed


def parse_config(data: bytes, attempted: str, *, limits: DocumentLimits = STORED) -> ImageConfig:
    """An image's configuration.  Raises as `parse_json` does."""
    document = parse_json(data, attempted, limit=limits.config_size, depth=limits.json_depth)
    config = _convert(document, ImageConfig, attempted)
    for text in config.rootfs.diff_ids:
        _checked(DiffID, text, attempted)
    return config


def _checked(kind: type[Digest], text: str, attempted: str) -> None:
    try:
        kind(text)
    except InvalidArgument as exc:
        raise InvalidArgument(attempted, exc.reason) from exc


def _convert(document: dict[str, Any], model: type[_T], attempted: str) -> _T:
    try:
        return msgspec.convert(document, type=model)
    except msgspec.ValidationError as exc:
        raise InvalidArgument(attempted, f"malformed document: {exc}") from exc
