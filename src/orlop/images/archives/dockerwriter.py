"""The archive that `docker save` writes, with any number of images, in one go.

Sources: Docker's image spec v1.2 ("Combined Image JSON + Filesystem Changeset Format"), moby's
image/tarexport; what podman and skopeo write and read.

::

    <diff id>.tar                   layers, uncompressed, each once
    <config>.json                   configs: an image's ID is the digest of this
    <v1 id>/VERSION, json           one for each layer of an image, for Docker before 1.10
    <v1 id>/layer.tar               a symlink to the layer
    repositories                    names of top layers, likewise
    manifest.json                   what is read today; last, so an archive that lacks it was cut off

There is no manifest in it, so nothing of an image but its ID is the same everywhere; layers need no
compression and no registry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from orlop.images.archives.chosen import Chosen
from orlop.images.archives.supply import Supply
from orlop.images.archives.tarstream import TarStream
from orlop.images.core import Core, Lease
from orlop.metadata import layers
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import DOCKER_CONFIG, parse_json
from orlop.spec.reference import Reference

__all__ = ["DockerWriter"]

_OLD_TIME = "1970-01-01T00:00:00Z"


class DockerWriter:
    """Writes one archive to a stream.  Used once."""

    def __init__(self, core: Core, out: TarStream, supply: Supply, *, lease: Lease, what: str) -> None:
        self._core = core
        self._out = out
        self._supply = supply
        self._lease = lease
        self._what = what

    def write(self, chosen: Sequence[Chosen]) -> list[Digest]:
        """The archive of some images; their IDs."""
        images: dict[Digest, tuple[tuple[DiffID, ...], list[str]]] = {}
        for one in chosen:
            config = one.row.config
            if config not in images:
                diff_ids = self._core.layers_of(config, self._what)
                self._lease.keep(("config", config), *(("layer", diff_id) for diff_id in diff_ids))
                images[config] = (diff_ids, [])
            images[config][1].extend([one.name] if one.name is not None else [])
        self._out.total = self._expected([diff_ids for diff_ids, _ in images.values()])
        repositories: dict[str, dict[str, str]] = {}
        lines = []
        for config, (diff_ids, names) in images.items():
            for diff_id in diff_ids:
                if not self._out.has(_layer(diff_id)):
                    blob = self._supply.tar(diff_id)
                    self._out.file(_layer(diff_id), blob.descriptor.size, blob.chunks())
            name = f"{config.hex}.json"
            blob = self._supply.document(config, DOCKER_CONFIG)
            self._out.file(name, blob.descriptor.size, blob.chunks())
            top = self._v1_layers(parse_json(self._core.blobs.read(config), self._what), diff_ids)
            for tagged in names if top else ():
                ref = Reference.parse(tagged)
                repositories.setdefault(ref.name, {})[ref.tag or "latest"] = top
            layer_names = [_layer(diff_id) for diff_id in diff_ids]
            lines.append({"Config": name, "RepoTags": names or None, "Layers": layer_names})
        self._out.data("repositories", _json(repositories))
        self._out.data("manifest.json", _json(lines))
        self._out.finish()
        return [one.row.config for one in chosen]

    def _expected(self, images: Sequence[tuple[DiffID, ...]]) -> int:
        wanted = {diff_id for diff_ids in images for diff_id in diff_ids}

        rows = [self._core.db.read(lambda tx, one=one: layers.get_layer(tx, one)) for one in sorted(wanted)]  # type: ignore[misc]  # bound now
        return sum(row.size for row in rows if row is not None)

    def _v1_layers(self, config: dict[str, Any], diff_ids: Sequence[DiffID]) -> str:
        """What Docker before 1.10 knows of the layers of an image; the ID of the top one."""
        above = ""
        for number, diff_id in enumerate(diff_ids):
            last = number == len(diff_ids) - 1
            line: dict[str, Any] = {"created": _OLD_TIME, "container_config": {"Cmd": [""]}}
            if last:
                kept = ("architecture", "author", "config", "created", "os", "variant")
                line |= {key: config[key] for key in kept if config.get(key)}
            if above:
                line["parent"] = above
            seed = _json({**line, "layer": str(diff_id), "image": config.get("rootfs") if last else None})
            above = line["id"] = hashlib.sha256(seed).hexdigest()
            if self._out.has(f"{above}/json"):
                continue
            self._out.folder(above)
            self._out.data(f"{above}/VERSION", b"1.0")
            self._out.data(f"{above}/json", _json(line))
            self._out.link(f"{above}/layer.tar", f"../{_layer(diff_id)}")
        return above


def _layer(diff_id: DiffID) -> str:
    return f"{diff_id.hex}.tar"


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")
