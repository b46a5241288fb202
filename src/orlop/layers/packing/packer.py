"""A layer's blob, made from its tar by a recipe: streamed where it is plain, spooled where it is seekable.

A seekable blob's annotations and digest are known only with its last byte, and a registry wants the digest
first, to say whether it has it.  So one goes through a file without a name, which no crash can leave behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from orlop.errors import from_oserror
from orlop.layers.packing.parallel import Pool
from orlop.layers.packing.recipes import Recipe, recipe_of
from orlop.layers.packing.streams import compress
from orlop.layers.store import LayerStore
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass, field

__all__ = ["Spooled", "check", "pack", "spooled", "tar_chunks"]

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """A seekable blob in a file without a name, open as long as its context lasts.

    ``diff_id`` is of the tar in it, the layer's own unless the form adds entries.
    """

    file: int
    digest: Digest
    size: int
    diff_id: DiffID
    annotations: dict[str, str] = field(default_factory=dict)

    def open_at(self, offset: int) -> Iterator[bytes]:
        """The blob's bytes from an offset on."""
        while chunk := os.pread(self.file, CHUNK, offset):
            offset += len(chunk)
            yield chunk


def tar_chunks(path: Path) -> Iterator[bytes]:
    """A tar's bytes."""
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def pack(layers: LayerStore, diff_id: DiffID, name: str, pool: Pool | None = None) -> Iterator[bytes]:
    """The blob of a layer by a recipe that keeps its tar: the same bytes each time.

    Raises `Unlisted` where the layer cannot have a seekable form.
    """
    recipe = recipe_of(name)
    if recipe.format == "plain":
        yield from compress(tar_chunks(layers.tar(diff_id)), recipe, pool)
    else:
        yield from _seekable(layers, diff_id, recipe, pool, {})


def check(layers: LayerStore, diff_id: DiffID, recipe: Recipe) -> None:
    """Raise `Unlisted` where a layer cannot have the form of a recipe."""
    if recipe.format == "estargz":
        from orlop.layers.packing import estargz  # late, as all that is of the seekable forms alone

        estargz.check(layers.load_index(diff_id))
    elif recipe.format != "plain":
        from orlop.layers.packing import zstdchunked

        zstdchunked.check(layers.load_index(diff_id))


@contextlib.contextmanager
def spooled(
    layers: LayerStore,
    diff_id: DiffID,
    recipe: Recipe,
    *,
    pool: Pool | None = None,
    watched: Callable[[Iterable[bytes]], Iterable[bytes]] = lambda chunks: chunks,
) -> Iterator[Spooled]:
    """Make a seekable blob of a layer; ``watched`` sees it pass by, and may stop it.

    Raises `Unlisted` where the layer cannot have the form.
    """
    about: dict[str, str] = {}
    hasher, size = hashlib.sha256(), 0
    try:
        with tempfile.TemporaryFile(dir=layers.folder, buffering=0) as file:
            for chunk in watched(_seekable(layers, diff_id, recipe, pool, about)):
                hasher.update(chunk)
                size += len(chunk)
                _write(file.fileno(), chunk)
            yield Spooled(
                file=file.fileno(),
                digest=Digest(f"sha256:{hasher.hexdigest()}"),
                size=size,
                diff_id=DiffID(about.pop("diff_id", diff_id)),
                annotations=about,
            )
    except OSError as exc:
        raise from_oserror("compress layer", exc) from exc


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _seekable(
    layers: LayerStore, diff_id: DiffID, recipe: Recipe, pool: Pool | None, about: dict[str, str]
) -> Iterator[bytes]:
    index = layers.load_index(diff_id)
    with open(layers.tar(diff_id), "rb", buffering=0) as tar:
        if recipe.format == "estargz":
            from orlop.layers.packing import estargz

            yield from estargz.write(tar.fileno(), index, recipe, pool, about)
        else:
            from orlop.layers.packing import zstdchunked

            yield from zstdchunked.write(tar.fileno(), index, recipe.level, pool, about)
