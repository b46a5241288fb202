"""Images for tests: manifests written by hand, kept as an OCI layout or pushed to a registry.

    image = make_image([layer.tar()], compression="zstd")
    write_layout(folder, {"latest": image})
    digest = push(registry, "app", "latest", image)

Not orlop's documents: nothing here shares its code.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import shutil
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from support.registries import Registry

Compression = Literal["gzip", "zstd", "none"]

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
HOST = f"linux/{_MACHINES.get(platform.machine(), platform.machine())}"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
_DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_SUFFIX = {
    "oci": {"gzip": "+gzip", "zstd": "+zstd", "none": ""},
    "docker": {"gzip": ".gzip", "zstd": ".zstd", "none": ""},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A manifest (or an index) with all it names.

    ``blobs`` are config and layers by digest, ``parts`` the manifests of an index.
    """

    media_type: str
    document: bytes
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    parts: tuple[Image, ...] = ()
    diff_ids: tuple[str, ...] = ()
    config: bytes = b""
    platform: str = ""

    @property
    def digest(self) -> str:
        return digest_of(self.document)

    @property
    def id(self) -> str:
        """The digest of the config."""
        return digest_of(self.config)


def digest_of(data: bytes) -> str:
    """``sha256:`` and the hexadecimal digest."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def compress(data: bytes, how: Compression) -> bytes:
    """The bytes as a layer's blob; the same input gives the same output."""
    if how == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    if how == "zstd":
        return _zstd().compress(data)
    return data


def decompress(data: bytes) -> bytes:
    """The tar in a layer's blob, whatever its compression."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return _zstd().decompress(data)
    return data


def unpack_blob(blob: Path, tar: Path) -> Path:
    """Decompress a layer's blob of any size into a file; returns the file."""
    with blob.open("rb") as file:
        magic = file.read(4)
    opener = {b"\x1f\x8b": gzip.open, b"\x28\xb5": _zstd().open}.get(magic[:2], open)
    with opener(blob, "rb") as source, tar.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return tar


def make_image(
    layers: Sequence[bytes],
    *,
    compression: Compression = "gzip",
    docker: bool = False,
    platform: str = HOST,
    config: Mapping[str, object] | None = None,
) -> Image:
    """An image of layer tars, bottom first.

    ``docker`` takes the media types of Docker's schema 2; ``config`` is merged into the image's
    config (``{"config": {"Cmd": ["/bin/sh"]}}``).
    """
    system, architecture, *variant = platform.split("/")
    diff_ids = tuple(digest_of(layer) for layer in layers)
    document: dict[str, object] = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": architecture,
        "os": system,
        **({"variant": variant[0]} if variant else {}),
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
        **(config or {}),
    }
    config_bytes = _json(document)
    blobs = {digest_of(config_bytes): config_bytes}
    house = "docker" if docker else "oci"
    layer_type = (_DOCKER_LAYER if docker else _OCI_LAYER) + _SUFFIX[house][compression]
    descriptors = []
    for layer in layers:
        blob = compress(layer, compression)
        blobs[digest_of(blob)] = blob
        descriptors.append(descriptor(layer_type, blob))
    media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(_DOCKER_CONFIG if docker else _OCI_CONFIG, config_bytes),
        "layers": descriptors,
    }
    return Image(
        media_type=media_type,
        document=_json(manifest),
        blobs=blobs,
        diff_ids=diff_ids,
        config=config_bytes,
        platform=platform,
    )


def repacked(image: Image, blobs: Sequence[bytes]) -> Image:
    """The same image with other blobs for its layers, whatever they hold; the diff IDs stay."""
    manifest = json.loads(image.document)
    old = [layer["digest"] for layer in manifest["layers"]]
    manifest["layers"] = [
        descriptor(layer["mediaType"], blob) for layer, blob in zip(manifest["layers"], blobs, strict=True)
    ]
    kept = {digest: blob for digest, blob in image.blobs.items() if digest not in old}
    new = {digest_of(blob): blob for blob in blobs}
    return replace(image, document=_json(manifest), blobs={**kept, **new})


def make_index(images: Sequence[Image], *, docker: bool = False) -> Image:
    """An index (a manifest list) of images, each under its platform."""
    media_type = DOCKER_LIST if docker else OCI_INDEX
    manifests = []
    for image in images:
        names = ("os", "architecture", "variant")
        where = dict(zip(names, image.platform.split("/"), strict=False))
        manifests.append({**descriptor(image.media_type, image.document), "platform": where})
    document = _json({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})
    return Image(media_type=media_type, document=document, parts=tuple(images))


def descriptor(media_type: str, data: bytes) -> dict[str, object]:
    """An OCI descriptor of these bytes."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def write_layout(folder: Path, images: Mapping[str, Image]) -> Path:
    """Write an OCI layout, images by tag; returns the folder."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    manifests = []
    for tag, image in images.items():
        for one in (image, *image.parts):
            for data in (one.document, *one.blobs.values()):
                (blobs / digest_of(data).partition(":")[2]).write_bytes(data)
        named = descriptor(image.media_type, image.document)
        manifests.append({**named, "annotations": {"org.opencontainers.image.ref.name": tag}})
    (folder / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": manifests}))
    return folder


def read_layout(folder: Path, tag: str = "latest") -> tuple[dict[str, Any], list[Path]]:
    """The manifest that an OCI layout has under a tag, and its layers' blobs, bottom first."""
    index = json.loads((folder / "index.json").read_bytes())
    found = [
        entry
        for entry in index["manifests"]
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
    ]
    manifest = json.loads(_blob_path(folder, found[0]["digest"]).read_bytes())
    return manifest, [_blob_path(folder, layer["digest"]) for layer in manifest["layers"]]


def push(registry: Registry, repository: str, tag: str, image: Image) -> str:
    """Put an image into a registry under a tag; returns its digest."""
    for part in image.parts:
        push(registry, repository, part.digest, part)
    for blob in image.blobs.values():
        push_blob(registry, repository, blob)
    status, _, body = registry.request(
        f"/v2/{repository}/manifests/{tag}",
        method="PUT",
        body=image.document,
        headers={"Content-Type": image.media_type},
    )
    if status != 201:
        raise RuntimeError(f"push {repository}:{tag}: {status} {body!r}")
    return image.digest


def push_blob(registry: Registry, repository: str, blob: bytes) -> str:
    """Put one blob into a registry, unless it is there; returns its digest."""
    digest = digest_of(blob)
    if registry.request(f"/v2/{repository}/blobs/{digest}", method="HEAD")[0] == 200:
        return digest
    status, headers, body = registry.request(f"/v2/{repository}/blobs/uploads/", method="POST", body=b"")
    if status != 202:
        raise RuntimeError(f"push a blob to {repository}: {status} {body!r}")
    place = headers["location"]
    query = ("&" if "?" in place else "?") + urllib.parse.urlencode({"digest": digest})
    octets = {"Content-Type": "application/octet-stream"}
    status, _, body = registry.request(place + query, method="PUT", body=blob, headers=octets)
    if status != 201:
        raise RuntimeError(f"push blob {digest} to {repository}: {status} {body!r}")
    return digest


def _blob_path(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "/")


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
