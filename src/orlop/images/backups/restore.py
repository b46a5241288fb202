"""Restore: the images of a backup into a store, new or in use; all of them, or none.

The backup is not believed (`selection`).  Layers' tars go through the confined worker like a
pulled layer, and kept blobs are hashed.

All that is brought in is on a lease until one transaction gives the names: if anything fails before, nothing
is left but what the next collection takes.

An image is named only if all its layers are there.  Of a backup without content these are the layers that the
store has, or, if asked, that a registry still gives; the other images are returned as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from orlop.config import Settings
from orlop.errors import (
    AlreadyExists,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    from_oserror,
)
from orlop.images.backups.file import FORMAT, METADATA, BackupReader, blob_name, layer_name
from orlop.images.backups.names import (
    MissingImage,
    check_whole,
    means_another,
    put_index,
    put_name,
    put_pin,
)
from orlop.images.backups.selection import Image, NamedIndex, check_pin, check_source, images_of, indexes_of
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.layout import Layout, check_format
from orlop.images.space import needing
from orlop.images.transfer.ingest import LayerIngest
from orlop.layers.packing.recipes import RECIPES
from orlop.layers.worker.client import Feed, unpack
from orlop.metadata import copies, images, layers
from orlop.metadata.copies import Saved
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.observe import Call, Progress, Steps
from orlop.spec.digest import DiffID, Digest
from orlop.spec.reference import Reference
from orlop.values import dataclass, replace

__all__ = ["MissingImage", "Restored", "restore"]

MAX_METADATA = 8 << 30  # bytes of a backup's meta.db: some 10 million images
MAX_FORMAT = 1 << 16
_CALL = Call()
_Known = tuple[list[LayerBlob], list[tuple[Digest, Reference]]]
# What tells that one registry does not give a blob; another may.
_REFUSALS = (NotFound, Unavailable, Unauthenticated, PermissionDenied)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore brought: names that mean their images now, and pins; what lacks layers.

    ``layers`` were read from the backup or fetched.  ``roots`` counts the prepared roots of the store that
    was backed up: none comes back.
    """

    names: tuple[str, ...]
    pins: tuple[str, ...] = ()
    missing: tuple[MissingImage, ...] = ()
    layers: int = 0
    roots: int = 0


def restore(
    source: str | os.PathLike[str],
    root: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    force: bool = False,
    pull: bool = False,
    call: Call = _CALL,
) -> Restored:
    """Read a backup into the store at ``root``, making it if it is not there; others may be using it.

    Images that are there stay.  A name that means another image is moved only with ``force``
    (`AlreadyExists`, and nothing is changed).  With ``pull``, layers that are neither in the backup nor in
    the store are fetched from where they came.  Raises `NotFound` if there is no such file,
    `InvalidArgument` if it is no backup, `DataLoss` if it is damaged, `FailedPrecondition` if a newer orlop
    wrote it.
    """
    path = Path(os.path.abspath(source))
    try:
        with BackupReader(path, call=call) as backup:
            check_format(backup.read(FORMAT, limit=MAX_FORMAT), f"restore {path}")
            core = Core.open(Layout(root=Path(root), run=Path(run)), settings or Settings())
            try:
                return _Restorer(core, backup, f"restore {path}", call).run(force=force, pull=pull)
            finally:
                core.close()
    except OSError as exc:
        raise from_oserror(f"restore {path}", exc) from exc


class _Restorer:
    """One restore."""

    def __init__(self, core: Core, backup: BackupReader, what: str, call: Call) -> None:
        self._core = core
        self._backup = backup
        self._what = what
        self._call = call
        self._ingest = LayerIngest(core)
        self._brought = 0

    def run(self, *, force: bool, pull: bool) -> Restored:
        """See `restore`."""
        core, call = self._core, self._call
        saved = self._metadata()
        for pin in saved.pins:
            check_pin(pin, self._what)
        found = list(images_of(self._backup, saved, core.settings.limits, self._what))
        indexes = list(indexes_of(self._backup, saved, core.settings.limits, self._what))
        core.db.read(lambda tx: self._check_names(tx, found, force=force))
        with core.lease(self._what) as lease:
            lacking = self._layers(found, saved, lease, pull=pull)
            complete = [image for image in found if id(image) not in lacking]
            self._blobs(complete, saved, lease)
            self._documents(complete, lease)
            named = {image.name.name for image in complete if image.name is not None}
            indexes = [index for index in indexes if index.name in named]
            for part in dict.fromkeys(part for index in indexes for part in index.parts):
                self._bring_blob(part.digest, part.size, lease)
            known = self._knowledge(complete, saved)
            by_manifest = {str(image.manifest.digest): image for image in complete if image.manifest}

            def name(tx: Transaction) -> tuple[list[str], list[MissingImage]]:
                told = self._name(tx, complete, saved, known, force=force)
                for index in indexes:
                    put_index(tx, index, by_manifest)
                return told

            pinned, unpinned = core.db.write(name, call=call)
        call.observer.progress(Progress(item=self._what, phase="done"))
        missing = [
            MissingImage(
                name=name,
                digest=image.manifest.digest if image.manifest else None,
                reason=lacking[id(image)],
            )
            for image in found
            if id(image) in lacking
            for name in ([str(image)] if image.name else _names_of_platform(image, indexes))
        ]
        return Restored(
            names=tuple(image.name.name for image in complete if image.name),
            pins=tuple(pinned),
            missing=(*missing, *unpinned),
            layers=self._brought,
            roots=saved.roots,
        )

    def _metadata(self) -> Saved:
        """The backup's meta.db, copied out and looked at."""
        part = self._backup.find(METADATA)
        if part is not None and part.size > MAX_METADATA:
            raise InvalidArgument(self._what, f"its meta.db has {part.size} bytes")
        digest = Digest(self._backup.label.metadata)
        # The scratch folder is that of a layer in the making, so that collectors know whose it is.
        with self._core.layers.new() as scratch:
            copy = scratch.folder / METADATA
            with open(copy, "xb") as file:
                file.writelines(self._backup.chunks(METADATA, digest=digest))
            return copies.read_copy(copy, NAMESPACE, call=self._call)

    @staticmethod
    def _check_names(tx: Transaction, found: Sequence[Image], *, force: bool) -> None:
        for image in found:
            if image.name is None or force:
                continue
            known = images.get_image(tx, NAMESPACE, image.name.name)
            if known is not None and means_another(known, image.name):
                raise AlreadyExists(
                    f"restore image {image}",
                    "the name means another image here",
                    hint="use force to move such names, or remove it first",
                )

    # -- layers ---------------------------------------------------------------------------------

    def _layers(self, found: Sequence[Image], saved: Saved, lease: Lease, *, pull: bool) -> Mapping[int, str]:
        """Have all layers that can be had, on the lease; returns why images (by identity) lack some."""
        diff_ids = dict.fromkeys(diff_id for image in found for diff_id in image.diff_ids)
        diff_ids.update((DiffID(pin.ref), None) for pin in saved.pins if pin.kind == "layer")
        there = self._keep(diff_ids, lease)
        absent = [diff_id for diff_id in diff_ids if diff_id not in there]
        parts = {diff_id: self._backup.find(layer_name(diff_id)) for diff_id in absent}
        lost = [diff_id for diff_id, part in parts.items() if part is None]
        if lost and self._backup.label.content:
            raise DataLoss(self._what, f"layer {lost[0]} is not in it")
        least = sum(part.size for part in parts.values() if part is not None)
        for diff_id, part in parts.items():
            if part is not None:
                self._call.observer.progress(Progress(item=diff_id, phase="waiting", total=part.size))
        with needing(self._core.layout.root, least, self._what, by_workers=True):
            for diff_id, part in parts.items():
                if part is not None:
                    self._bring(diff_id, part.offset, part.size, lease)
                    there.add(diff_id)
        lacking: dict[int, str] = {}
        for image in found:
            if there.issuperset(image.diff_ids):
                continue
            if not image.blobs:
                problem = "it was never pushed, and its layers are not in the backup"
            elif not pull:
                problem = "its layers are not in the backup"
            else:
                problem = self._fetch(image, saved, lease)
            if problem:
                lacking[id(image)] = problem
            else:
                there.update(image.diff_ids)
        return lacking

    def _keep(self, diff_ids: Iterable[DiffID], lease: Lease, row: LayerRow | None = None) -> set[DiffID]:
        """Put layers that are there on the lease, after naming one if ``row`` is given; returns them."""

        def body(tx: Transaction) -> set[DiffID]:
            if row is not None:
                layers.add_layer(tx, row)
            there = {diff_id for diff_id in diff_ids if layers.get_layer(tx, diff_id) is not None}
            for diff_id in there:
                lease.add(tx, "layer", diff_id)
            return there

        lease.mark_used()
        return self._core.db.write(body, call=self._call)

    def _bring(self, diff_id: DiffID, offset: int, size: int, lease: Lease) -> None:
        """A layer's tar from the backup, through the worker."""
        core, call = self._core, self._call
        core.template.start()
        with core.locked("layer", diff_id.hex, call=call, attempted=self._what):
            if self._keep([diff_id], lease):
                return
            with core.layers.new() as new, ExitStack() as stack:
                feed = Feed.whole(size)
                stack.callback(feed.close)
                unpacked = unpack(
                    core.template,
                    self._backup.fd,
                    feed,
                    offset=offset,
                    tar=new.tar,
                    limits=core.settings.limits,
                    call=call,
                    written=Steps(call, diff_id, "reading", total=size).at,  # a tar as it is
                )
                if unpacked.diff_id != diff_id:
                    raise DataLoss(self._what, f"layer {diff_id} has other bytes than its digest says")
                self._keep([diff_id], lease, self._ingest.publish(new, unpacked))
        self._brought += 1
        call.observer.progress(Progress(item=diff_id, phase="done", done=size, total=size))

    def _fetch(self, image: Image, saved: Saved, lease: Lease) -> str:
        """The layers of an image from where they came, by digest; returns what went wrong."""
        wanted = {blob.digest for blob in image.blobs}
        places = [
            check_source(registry, repository, self._what)
            for digest, registry, repository in saved.sources
            if digest in wanted
        ]
        if image.name is not None and Reference.parse(image.name.name).registry != "localhost":
            places.insert(0, replace(Reference.parse(image.name.name), tag=None, digest=None))
        problem = "no registry is known to have its layers"
        for ref in dict.fromkeys(replace(place, tag=None) for place in places):
            try:
                fetched = self._ingest.fetch_all(ref, list(image.blobs), call=self._call, lease=lease)
            except _REFUSALS as exc:
                problem = str(exc)
            else:
                self._brought += len(fetched)
                return ""
        return problem

    # -- blobs ----------------------------------------------------------------------------------

    def _blobs(self, complete: Sequence[Image], saved: Saved, lease: Lease) -> None:
        """Layers' blobs that the store had kept, and pinned ones, where the backup has them."""
        wanted: dict[Digest, int | None] = {Digest(p.ref): None for p in saved.pins if p.kind == "blob"}
        wanted.update({blob.digest: blob.size for image in complete for blob in image.blobs})
        for digest, size in wanted.items():
            part = self._backup.find(blob_name(digest))
            if part is not None:
                if size is not None and part.size != size:
                    raise DataLoss(self._what, f"blob {digest} has another size than its manifest says")
                self._bring_blob(digest, part.size, lease)

    def _bring_blob(self, digest: Digest, size: int, lease: Lease) -> None:
        core, call = self._core, self._call

        def keep(tx: Transaction) -> bool:
            if not layers.has_blob(tx, digest):
                return False
            lease.add(tx, "blob", digest)
            return True

        def add(tx: Transaction) -> None:
            layers.add_blob(tx, digest, size)
            keep(tx)

        lease.mark_used()
        with core.locked("blob", digest.hex, call=call, attempted=self._what):
            if core.db.write(keep, call=call):
                return
            with core.blobs.ingest(digest) as ingest:
                ingest.truncate()
                for chunk in self._backup.chunks(blob_name(digest), digest=digest):
                    ingest.write(chunk)
                ingest.publish()
            core.db.write(add, call=call)

    def _documents(self, complete: Sequence[Image], lease: Lease) -> None:
        limits = self._core.settings.limits
        configs = {image.config: limits.config_size for image in complete}
        manifests = {image.manifest.digest: limits.manifest_size for image in complete if image.manifest}
        for digest, limit in {**configs, **manifests}.items():
            data = self._backup.read(blob_name(digest), limit=limit, digest=digest)
            self._core.write_document(digest, data, lease=lease, call=self._call)

    # -- names ----------------------------------------------------------------------------------

    def _knowledge(self, complete: Sequence[Image], saved: Saved) -> _Known:
        """What is known of the images' blobs: how orlop made them, and where they have been seen.

        The rest is in the manifests.  All of it is only ever tried: a digest has the last word.
        """
        blobs = {(blob.diff_id, blob.digest): blob for image in complete for blob in image.blobs}
        made = {(row.diff_id, row.digest): row.recipe for row in saved.made if row.recipe in RECIPES}
        digests = {digest for _, digest in blobs}
        sources = [
            (Digest(digest), check_source(registry, repository, self._what))
            for digest, registry, repository in reversed(saved.sources)
            if digest in digests
        ]
        return [
            LayerBlob(
                diff_id=blob.diff_id,
                digest=blob.digest,
                size=blob.size,
                media_type=blob.media_type,
                recipe=made.get(key),
            )
            for key, blob in blobs.items()
        ], sources

    def _name(
        self, tx: Transaction, complete: Sequence[Image], saved: Saved, known: _Known, *, force: bool
    ) -> tuple[list[str], list[MissingImage]]:
        """The transaction that gives names and pins; everything they name is durable already.

        Returns the pins, and what became of those that are not.
        """
        self._check_names(tx, complete, force=force)
        annotations: dict[str, dict[str, str]] = {}
        for config, key, value in saved.annotations:
            annotations.setdefault(config, {})[key] = value
        for image in complete:
            check_whole(tx, image)
            images.add_config(tx, image.config, image.diff_ids)
            if image.manifest is not None:
                images.add_manifest(tx, image.config, image.manifest)
            elif image.config in annotations:
                images.put_annotations(tx, image.config, annotations[image.config])
            if image.name is not None:
                put_name(tx, image, image.name)
        for blob in known[0]:
            layers.add_layer_blob(tx, blob)
        for digest, ref in known[1]:
            layers.add_source(tx, digest, ref.registry, ref.repository)
        pinned: list[str] = []
        unpinned: list[MissingImage] = []
        for pin in saved.pins:
            problem = put_pin(tx, pin)
            if problem:
                unpinned.append(MissingImage(name=f"pin {pin.name}", digest=None, reason=problem))
            else:
                pinned.append(pin.name)
        return pinned, unpinned


def _names_of_platform(image: Image, indexes: Sequence[NamedIndex]) -> list[str]:
    """What to call an image that names hold of their index."""
    return [
        f"{index.name} for {image.about.platform()}"
        for index in indexes
        if image.manifest is not None and image.manifest.digest in index.manifests
    ]
