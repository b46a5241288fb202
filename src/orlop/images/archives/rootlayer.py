"""Layers that come without a digest: root file systems, and those of docker's oldest archives.

What a layer is called is known once all its bytes are there, so nothing says before whether the store has
it.  Nothing is visible before all of it is durable.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from orlop.config import over_limit
from orlop.errors import InvalidArgument, ResourceExhausted, Unavailable, from_oserror
from orlop.images.archives.foldertar import FolderTar
from orlop.images.core import Core, Lease
from orlop.images.imports import ImportOptions
from orlop.images.space import needing
from orlop.images.transfer.ingest import HEAD, LayerIngest
from orlop.layers.store import NewLayer
from orlop.layers.worker.client import Feed, Unpacked, unpack
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerRow
from orlop.observe import Call, Progress, Steps, reached
from orlop.spec.digest import DiffID

__all__ = ["LayerMaker"]


class LayerMaker:
    """Makes layers of one store, for one import; with ``empty`` also of what has nothing in it."""

    def __init__(
        self, core: Core, ingest: LayerIngest, lease: Lease, *, empty: bool, what: str, call: Call
    ) -> None:
        self._core = core
        self._ingest = ingest
        self._lease = lease
        self._empty = empty
        self._what = what
        self._call = call

    def of_file(self, fd: int, offset: int, size: int) -> DiffID:
        """A tar, compressed or not, that lies in a file."""
        core = self._core
        core.template.start()
        with needing(core.layout.root, size, self._what, by_workers=True), core.layers.new() as new:
            feed = Feed.whole(size)
            try:
                unpacked = unpack(
                    core.template,
                    fd,
                    feed,
                    offset=offset,
                    tar=new.tar,
                    limits=core.settings.limits,
                    call=self._call,
                    written=Steps(self._call, self._what, "indexing").at,
                )
            except (InvalidArgument, ResourceExhausted, Unavailable) as exc:
                raise type(exc)(self._what, exc.reason, hint=exc.hint, details=exc.details) from exc
            finally:
                feed.close()
            return self.of_unpacked(new, unpacked)

    def of_folder(self, folder: int, options: ImportOptions) -> DiffID:
        """A folder that is a root file system, read by our own walk."""
        core, limits = self._core, self._core.settings.limits
        with core.layers.new() as new:
            about = os.stat(core.layout.root)
            store = (about.st_dev, about.st_ino)
            tar = FolderTar(
                new.tar,
                owner=options.owner,
                newest=options.newest,
                store=store,
                limits=limits,
                call=self._call,
            )
            try:
                with needing(core.layout.root, lambda: tar.needed, self._what):
                    written = tar.write(folder)
            except OSError as exc:
                raise from_oserror(self._what, exc) from exc
            if written.size > limits.layer_size:
                raise over_limit("layer_size", written.size, limits.layer_size, attempted=self._what)
            unpacked = Unpacked(
                diff_id=written.diff_id,
                index=written.index,
                encoded=written.index.encode(),
                tar_size=written.size,
            )
            return self.of_unpacked(new, unpacked)

    def of_unpacked(self, new: NewLayer, unpacked: Unpacked) -> DiffID:
        """A layer in the making whose bytes are all there."""
        core, call, diff_id = self._core, self._call, unpacked.diff_id
        if len(unpacked.index) == 1 and _goes_on(new.tar):
            raise InvalidArgument(self._what, "no tar: it begins as an empty one, and then goes on")
        if len(unpacked.index) == 1 and not self._empty:
            raise InvalidArgument(
                self._what, "there is nothing in it", hint="--format rootfs makes an empty image of it"
            )
        for warning in unpacked.index.warnings:
            call.observer.warning(warning)
        reached("layer.unpacked")
        with core.locked("layer", diff_id.hex, call=call, attempted=self._what):
            if not self._keep(diff_id):
                row = self._ingest.publish(new, unpacked)
                self._keep(diff_id, lambda tx: layers.add_layer(tx, row))
                reached("layer.named")
        size = unpacked.tar_size
        call.observer.progress(Progress(item=diff_id, phase="done", done=size, total=size))
        return diff_id

    def _keep(self, diff_id: DiffID, first: Callable[[Transaction], None] | None = None) -> LayerRow | None:
        """Put the lease on a layer, if it is there."""

        def body(tx: Transaction) -> LayerRow | None:
            if first is not None:
                first(tx)
            row = layers.get_layer(tx, diff_id)
            if row is not None:
                self._lease.add(tx, "layer", diff_id)
            return row

        self._lease.mark_used()
        return self._core.db.write(body, call=self._call)


def _goes_on(tar: int) -> bool:
    """Whether a tar without entries holds something all the same, as file systems' images do."""
    head = os.pread(tar, HEAD, 0)
    return not any(head[:1024]) and any(head)
