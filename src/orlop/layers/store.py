"""The folder ``layers``: one folder per layer, named by its diff ID.

::

    layers/<hex>/layer.tar     the uncompressed tar, whose sha256 is the diff ID
    layers/<hex>/layer.index   its entries (orlop.layers.index); derived
    layers/<hex>/layer.data    sparse files expanded, and files that the tar cannot show; derived
    layers/new-<random>/       a layer in the making; its maker holds a flock on the folder

A layer's folder is whole because it is renamed there after all in it was synced.  Whether it counts is
the metadata's to say.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from orlop.errors import DataLoss, NotFound, from_oserror
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import LayerIndex
from orlop.linux.files import copy_range, remove_tree, sync_range
from orlop.linux.sync import DURABLE, Sync
from orlop.observe import reached
from orlop.spec.digest import DiffID

__all__ = ["LayerStore", "NewLayer", "copies"]

_NEW = "new-"


class NewLayer:
    """A layer in the making: a private folder with an open ``layer.tar``.

    The flock on the folder tells collectors that its maker lives.
    """

    def __init__(self, folder: Path, sync: Sync = DURABLE) -> None:
        self.folder = folder
        self.sync = sync
        # Waits for who syncs the tar already, if somebody does, and says whether.
        self.tar_settled: Callable[[], bool] = lambda: False
        folder.mkdir(mode=0o700)
        reached("layer.started")
        try:
            self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise  # a collector's now
        except OSError:
            remove_tree(folder, missing_ok=True)
            raise
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.tar = os.open("layer.tar", flags, 0o600, dir_fd=self._lock)
        except BaseException:
            os.close(self._lock)
            remove_tree(folder, missing_ok=True)
            raise

    def complete(self, index: LayerIndex, encoded: bytes) -> int:
        """Write the index and, where needed, layer.data; sync everything but the tar.

        Returns the size of layer.data.
        """
        if self.sync.durable:
            sync_range(self.tar, 0, 0)  # all of it; so its blocks are in the same commit as what follows
        layout = DataLayout(index)
        if layout.files:
            with _create(self.folder / "layer.data") as data:
                _copy_out(index, layout, self.tar, data)
                self.sync.file(data)
            reached("layer.data-written")
        with _create(self.folder / "layer.index") as file:
            view = memoryview(encoded)
            done = 0
            while done < len(encoded):
                done += os.write(file, view[done:])
            self.sync.file(file)
        reached("layer.indexed")
        return layout.size

    def close(self) -> None:
        """Let go; the folder is deleted if it is still under its own name.  Idempotent."""
        if self.tar >= 0:
            os.close(self.tar)
            os.close(self._lock)
            self.tar = -1
        remove_tree(self.folder, missing_ok=True)


class LayerStore:
    """All layers of a store.  Thread-safe; locking by diff ID is the caller's."""

    def __init__(self, folder: Path, *, sync: Sync = DURABLE) -> None:
        self.folder = folder
        self._sync = sync

    def path(self, diff_id: DiffID) -> Path:
        """The layer's folder."""
        return self.folder / diff_id.hex

    def tar(self, diff_id: DiffID) -> Path:
        """The layer's tar."""
        return self.path(diff_id) / "layer.tar"

    def data(self, diff_id: DiffID) -> Path:
        """The layer's second device, for what cannot be pointed at in the tar."""
        return self.path(diff_id) / "layer.data"

    def load_index(self, diff_id: DiffID) -> LayerIndex:
        """Read a layer's index.  Raises `NotFound` or `DataLoss`."""
        try:
            return LayerIndex.decode((self.path(diff_id) / "layer.index").read_bytes())
        except FileNotFoundError as exc:
            raise NotFound(f"read layer {diff_id}", "the store does not have it") from exc
        except DataLoss as exc:
            raise DataLoss(f"read layer {diff_id}", exc.reason) from exc

    @contextlib.contextmanager
    def new(self) -> Iterator[NewLayer]:
        """A layer in the making, deleted at the end unless it was published."""
        try:
            layer = self._start()
        except OSError as exc:
            raise from_oserror("make layer", exc) from exc
        try:
            yield layer
        finally:
            layer.close()

    def publish(self, layer: NewLayer, diff_id: DiffID) -> None:
        """Give a complete layer its name; durable on return.

        Needs the layer's lock, and that no row names the layer: a folder that is in the way was left
        by somebody who died, and is replaced.
        """
        if not layer.tar_settled():
            self._sync.file(layer.tar)
        self._sync.folder(layer._lock)
        reached("layer.synced")
        target = self.path(diff_id)
        if target.exists():
            remove_tree(target)
        os.rename(layer.folder, target)
        reached("layer.renamed")
        self._sync.folder(self.folder)
        reached("layer.placed")

    def _start(self) -> NewLayer:
        while True:
            try:
                return NewLayer(self.folder / f"{_NEW}{os.urandom(8).hex()}", self._sync)
            except FileNotFoundError:
                # A collector took the folder for a dead maker's, before we had its lock.
                if not self.folder.is_dir():
                    raise


@contextlib.contextmanager
def _create(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _copy_out(index: LayerIndex, layout: DataLayout, tar: int, data: int) -> None:
    """Fill layer.data from the tar, as the layout says."""
    os.ftruncate(data, layout.size)
    for source, target, length in copies(index, layout):
        copy_range(tar, source, data, target, length)


def copies(index: LayerIndex, layout: DataLayout) -> Iterator[tuple[int, int, int]]:
    """What layer.data has of the tar: offset there, offset in layer.data, length; the rest is zeros."""
    for node, copied in layout.files.items():
        extents = index.sparse.get(node)
        if copied.chunks is None:
            yield index.offset[node], copied.offset, index.size[node]
            continue
        chunk = 512 << copied.chunks.bits
        for offset, length, source in extents or ():
            done = 0
            while done < length:
                number, within = divmod(offset + done, chunk)
                part = min(length - done, chunk - within)
                yield source + done, copied.chunks.starts[number] * 512 + within, part
                done += part
