"""A store that hostile bytes are tried on, and what must be true of it afterwards.

    victim.refuses(lambda: store.pull(name), orlop.DataLoss, "other bytes")

After each refusal the store has the names, rows and files that it had before (what a failed call brought
waits for the next try until a collection, so there is one), and the image that was there still is.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orlop
from orlop.testing.registry import MemoryRegistry
from support import images
from support.layers import Layer

Errors = type[orlop.Error] | tuple[type[orlop.Error], ...]
MOTD = b"what was here before\n"
_ROWS = {
    "images": "name, config_digest, manifest_digest, platform, created",
    "image_manifests": "*",
    "config_layers": "*",
    "layers": "diff_id, size, data_size, index_size, entries",
    "layer_blobs": "*",
    "blobs": "digest, size",
    "blob_sources": "digest, registry, repository",
    "labels": "*",
    "leases": "*",
    "lease_refs": "*",
    "pins": "*",
}
_FOLDERS = ("content", "layers", "chains", "folders")  # others change behind the calls


@contextmanager
def victim_at(root: Path, run: Path, work: Path, **settings: Any) -> Iterator[Victim]:
    """A victim with a fresh store, which must be whole in the end.

    Nothing is synced, unless ``durable`` says so: no power is cut here.
    """
    about = orlop.Settings(**{"durable": False, **settings})
    with MemoryRegistry() as registry, orlop.open(root, run, settings=about) as store:
        victim = Victim(store, root, run, work, registry)
        yield victim
        victim.works()


class Victim:
    """A store, a registry, and an image that came from it and must survive."""

    def __init__(
        self, store: orlop.Store, root: Path, run: Path, work: Path, registry: MemoryRegistry
    ) -> None:
        self.store = store
        self.root = root
        self._run = run
        self.work = work
        self.registry = registry
        self.image = images.make_image([Layer().folder("etc").file("etc/motd", MOTD).tar()])
        self.name = self.publish("before/good", self.image)
        store.pull(self.name)
        with store.prepare(self.name, work / "still", pull="never"):
            self.settle()  # with the chain that it needs

    def publish(self, repository: str, image: images.Image, *, tag: str = "v1", media_type: str = "") -> str:
        """Put an image into the registry, with all its parts; its name there."""
        for one in (image, *image.parts):
            for data in one.blobs.values():
                self.registry.add_blob(repository, data)
        for part in image.parts:
            self.publish(repository, part, tag=part.digest)
        self.registry.add_manifest(repository, tag, image.document, media_type or image.media_type)
        return f"{self.registry.host}/{repository}:{tag}"

    @contextmanager
    def impatient(self) -> Iterator[orlop.Store]:
        """The store once more, with so little patience that only what never answers is sure of its end."""
        settings = orlop.Settings(timeout=0.3, retries=0, durable=False)
        with orlop.open(self.root, self._run, settings=settings) as store:
            yield store

    def settle(self) -> None:
        """Take what is there now for what must be there."""
        self.store.collect()
        self._names = self._images()
        self._state = self._rows(), self._files()

    def refuses(
        self, call: Callable[[], object], errors: Errors, words: str = "", *, resumable: bool = False
    ) -> orlop.Error:
        """The error that a call ends with, as `fails`, after which nothing is harmed.

        ``resumable`` lets a part of a download stay.
        """
        error = self.fails(call, errors, words)
        self.unharmed(resumable=resumable)
        return error

    def fails(self, call: Callable[[], object], errors: Errors, words: str = "") -> orlop.Error:
        """The error that a call ends with; it is one of ``errors`` and says ``words``, and not too much."""
        error: orlop.Error | None = None
        try:
            got = call()
        except orlop.Error as exc:
            error = exc
        assert error is not None, f"not refused: {got}"
        assert isinstance(error, errors), f"{type(error).__name__}: {error}"
        assert re.search(words, str(error)), f"{words!r} is not in {error}"
        assert len(str(error)) < 3_000, f"{len(str(error))} characters of error"
        return error

    def unharmed(self, *, resumable: bool = False) -> None:
        """Fails unless the store has just what it had."""
        self.store.collect()
        assert self._images() == self._names
        rows, files = self._state
        assert self._rows() == rows
        left = self._files()
        if resumable:
            left = {path for path in left if not path.startswith("content/ingest/")}
        assert left == files, left ^ files

    def works(self) -> None:
        """Fails unless the image that was there can be prepared and read, and the store is clean."""
        with self.store.prepare(self.name, self.work / "still", pull="never", mount=True):
            assert (self.work / "still/etc/motd").read_bytes() == MOTD
        checked = self.store.check(full=True)
        assert checked.clean, checked

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Ask the store's metadata, past orlop."""
        with sqlite3.connect(f"file:{self.root}/meta.db?mode=ro", uri=True, timeout=30) as db:
            found = db.execute(query, values).fetchall()
        db.close()
        return found

    def _images(self) -> list[orlop.ImageInfo]:
        """All images, but for when each was used."""
        return [replace(info, used="") for info in self.store.images()]

    def _rows(self) -> dict[str, set[tuple[object, ...]]]:
        return {table: set(self.rows(f"SELECT {columns} FROM {table}")) for table, columns in _ROWS.items()}

    def _files(self) -> set[str]:
        return {
            os.fspath((Path(folder) / name).relative_to(self.root))
            for top in _FOLDERS
            for folder, folders, files in os.walk(self.root / top)
            for name in (*folders, *files)
        }
