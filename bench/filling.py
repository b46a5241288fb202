"""A store that has very much in it, made in seconds instead of by pulling 10,000 images.

Its rows are written by the functions that pull, commit and prepare use; its files are small stand-ins at the
right places, which nobody opens: of each layer a tar and an index of a few bytes, of each image a config
and a manifest, of each root an upper and a work folder.  Nothing of it is synced.  An eighth of the roots
stand on the chain of the one real image, as where one image serves everybody; the others on chains of the
stand-ins, and without any on the real one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import orlop
from orlop.images.core import NAMESPACE, Core
from orlop.images.store import LocalStore
from orlop.metadata import images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow, ManifestRow
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.spec.digest import DiffID, Digest

__all__ = ["LAYERS_EACH", "Filling"]

LAYERS_EACH = 5
SHARED_EVERY = 8  # roots on the real image's chain: one in so many
_AT_ONCE = 1000  # rows of one transaction
_CREATED = "2024-01-01T00:00:00Z"


class Filling:
    """Fills a store beside its one real image, which has been prepared before; more can follow."""

    def __init__(self, store: orlop.Store, root: Path, real: str) -> None:
        assert isinstance(store.verbs, LocalStore)
        self._core: Core = store.verbs._core
        self._root = root
        self._real = self._core.db.read(lambda tx: _require(tx, real))
        diff_ids = self._core.db.read(lambda tx: images.config_layers(tx, self._real.config))
        self._base = diff_ids[0]
        query = "SELECT chain_id FROM chain_layers WHERE diff_id = ? ORDER BY position DESC LIMIT 1"
        self._chain: str = self._core.db.read(lambda tx: tx.execute(query, (diff_ids[-1],)).fetchone()[0])
        self.images = 0
        self.roots = 0

    def add(self, *, images: int = 0, roots: int = 0) -> None:
        """So many more images, with layers and a chain each, and then roots, on the images there are."""
        for numbers in _batches(self.images, images):
            self._core.db.write(lambda tx, numbers=numbers: self._image_rows(tx, numbers))
            for number in numbers:
                self._image_files(number)
        self.images += images
        for numbers in _batches(self.roots, roots):
            self._core.db.write(lambda tx, numbers=numbers: self._root_rows(tx, numbers))
            for number in numbers:
                self._root_files(number)
        self.roots += roots

    def _image_rows(self, tx: Transaction, numbers: Sequence[int]) -> None:
        for number in numbers:
            config, manifest, diff_ids = _documents(number)
            for k, diff_id in enumerate(diff_ids):
                row = LayerRow(diff_id=diff_id, size=8, data_size=0, index_size=8, entries=10)
                layers.add_layer(tx, row)
                blob = Digest.of(f"blob {number} {k}".encode())
                layers.add_layer_blob(tx, LayerBlob(diff_id=diff_id, digest=blob, size=8, media_type="x"))
                layers.add_source(tx, blob, "registry.example", f"app-{number % 100}")
            for data in (config, manifest):
                layers.add_blob(tx, Digest.of(data), len(data))
            digest = Digest.of(config)
            images.add_config(tx, digest, [self._base, *diff_ids])
            document = ManifestRow(digest=Digest.of(manifest), media_type="m", size=len(manifest))
            images.add_manifest(tx, digest, document)
            images.put_image(
                tx,
                NAMESPACE,
                _name(number),
                config=digest,
                manifest=document.digest,
                platform="linux/amd64",
                created=_CREATED,
            )
            about = ChainRow(
                id=_chain(number), parent=None, depth=1, entries=50, size=8, uuid=b"u" * 16, devices=()
            )
            roots.add_chain(tx, about, [self._base, *diff_ids])

    def _image_files(self, number: int) -> None:
        config, manifest, diff_ids = _documents(number)
        for diff_id in diff_ids:
            folder = self._root / "layers" / diff_id.hex
            folder.mkdir()
            for name in ("layer.tar", "layer.index"):
                (folder / name).write_bytes(b"stand-in")
        for data in (config, manifest):
            (self._root / "content/blobs/sha256" / Digest.of(data).hex).write_bytes(data)
        (self._root / "chains" / f"{_chain(number)}.erofs").write_bytes(b"stand-in")

    def _root_rows(self, tx: Transaction, numbers: Sequence[int]) -> None:
        for number in numbers:
            of = number % self.images if self.images and number % SHARED_EVERY else None
            root = RootRow(
                id=_root(number),
                path=f"/srv/roots/{number}",
                image=self._real.name if of is None else _name(of),
                config=self._real.config if of is None else Digest.of(_documents(of)[0]),
                chain=self._chain if of is None else _chain(of),
                driver="erofs",
                kind="active",
                self_contained=False,
                mounted=False,
                made_target=False,
                created=time.time(),
            )
            roots.add_root(tx, NAMESPACE, root, {"job": str(number)})

    def _root_files(self, number: int) -> None:
        folder = os.fspath(self._root / "prepared" / _root(number))
        for place in (folder, f"{folder}/upper", f"{folder}/work"):
            os.mkdir(place, 0o700)


def _batches(start: int, many: int) -> list[range]:
    end = start + many
    return [range(first, min(first + _AT_ONCE, end)) for first in range(start, end, _AT_ONCE)]


def _require(tx: Transaction, name: str) -> ImageRow:
    row = images.get_image(tx, NAMESPACE, name)
    assert row is not None, name
    return row


def _documents(number: int) -> tuple[bytes, bytes, list[DiffID]]:
    """A config and a manifest, which no two images share, and the layers they list."""
    diff_ids = [DiffID(Digest.of(f"layer {number} {k}".encode())) for k in range(LAYERS_EACH)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": _CREATED,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    data = json.dumps(config).encode()
    manifest = {"schemaVersion": 2, "config": {"digest": Digest.of(data), "size": len(data)}, "layers": []}
    return data, json.dumps(manifest).encode(), diff_ids


def _name(number: int) -> str:
    return f"registry.example/app-{number % 100}:{number}"


def _chain(number: int) -> str:
    return f"chain-{number}"


def _root(number: int) -> str:
    return f"{number:016x}"
