"""Push: an image to a registry, without ever changing the digest of one whose manifest is known.

Layers' blobs are not kept, so each layer goes the first of these ways that is open: the target has it; it is
mounted from another repository of that registry; it is kept here after all; it is streamed from a registry
known to have it; it is compressed again by the recipe that made it before.  Only where the image has no
manifest yet, or with ``recompress``, a layer may be compressed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from orlop.errors import DataLoss, FailedPrecondition, NotFound, Unauthenticated, Unavailable
from orlop.errors import PermissionDenied as Forbidden
from orlop.images import names
from orlop.images.api import PushResult
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.layers.compression import RECIPES, compress
from orlop.metadata import images, layers
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow, ManifestRow
from orlop.metadata.layers import LayerBlob
from orlop.observe import Call, Progress, Rate
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode,
    parse_manifest,
)
from orlop.spec.reference import Reference

__all__ = ["Pusher"]

CHUNK = 1 << 20
RECIPE = RECIPES[0]
_KINDS = {"gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One push: where to, and what for."""

    target: Reference
    call: Call
    what: str


class Pusher:
    """Pushes images of one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def push(self, name: str, destination: str | None, *, recompress: bool, call: Call) -> PushResult:
        """See `orlop.images.api.Images.push`."""
        core = self._core
        row = core.db.read(lambda tx: names.require(tx, NAMESPACE, name, f"push {name}"))
        target = Reference.parse(destination or row.name)
        call = call.child()
        job = _Job(target=target, call=call, what=f"push {row.name} to {target}")
        diff_ids = core.layers_of(row.config, job.what)
        with core.lease(job.what) as lease:
            lease.keep(("config", row.config), *(("layer", diff_id) for diff_id in diff_ids))
            if row.manifest is not None and not recompress:
                manifest = self._known(row, job)
                document = core.blobs.read(row.manifest)
                media_type = manifest.media_type
                self._each(manifest.layers, diff_ids, lambda d, i: self._send_known(d, i, job), job)
            else:
                descriptors = self._each(diff_ids, diff_ids, lambda d, _: self._send_any(d, job), job)
                config = core.blobs.read(row.config)
                manifest = _new_manifest(row.config, len(config), descriptors)
                document, media_type = encode(manifest), OCI_MANIFEST
            self._send_document(row.config, job)
            digest = core.registry.put_manifest(target, document, media_type, call=call)
            self._remember(row, digest, media_type, document, manifest, target, lease)
        size = len(document) + manifest.config.size + sum(layer.size for layer in manifest.layers)
        call.observer.progress(Progress(item=str(target), phase="done", done=size, total=size))
        return PushResult(name=str(target), digest=digest, size=size)

    def _known(self, row: ImageRow, job: _Job) -> Manifest:
        assert row.manifest is not None
        digest = row.manifest
        manifest_row = self._core.db.read(lambda tx: images.manifest_of(tx, digest))
        media_type = manifest_row.media_type if manifest_row else ""
        document = parse_manifest(self._core.blobs.read(digest), media_type, job.what)
        if not isinstance(document, Manifest):
            raise DataLoss(job.what, f"{digest} is not a manifest")
        return document

    def _each(
        self,
        things: Iterable[Descriptor] | Iterable[DiffID],
        diff_ids: tuple[DiffID, ...],
        send: Callable[..., Descriptor],
        job: _Job,
    ) -> list[Descriptor]:
        """Send every layer, some side by side; each blob once."""
        distinct: dict[str, tuple[object, DiffID]] = {}
        keys: list[str] = []
        for thing, diff_id in zip(things, diff_ids, strict=True):
            key = thing.digest if isinstance(thing, Descriptor) else str(thing)
            keys.append(key)
            distinct.setdefault(key, (thing, diff_id))
        with ThreadPoolExecutor(max_workers=self._core.settings.downloads, thread_name_prefix="push") as pool:
            futures = {key: pool.submit(send, *pair) for key, pair in distinct.items()}
            try:
                results = {key: future.result() for key, future in futures.items()}
            except BaseException:
                job.call.cancel.cancel()
                for future in futures.values():
                    future.cancel()
                raise
        return [results[key] for key in keys]

    # -- one layer ------------------------------------------------------------------------------

    def _send_known(self, descriptor: Descriptor, diff_id: DiffID, job: _Job) -> Descriptor:
        """A layer whose blob is prescribed by the manifest."""
        digest = descriptor.checked_digest()
        if not self._bring(digest, descriptor.size, diff_id, job):
            raise FailedPrecondition(
                job.what,
                f"the blob of layer {digest} is not kept here and no registry known to have it gives it",
                hint="push with --recompress to make new blobs, with a new digest",
                details={"blob": digest},
            )
        return descriptor

    def _send_any(self, diff_id: DiffID, job: _Job) -> Descriptor:
        """A layer in whatever form is nearest: a blob it is known to come as, else compressed now."""
        for blob in self._core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
            if self._bring(blob.digest, blob.size, diff_id, job):
                return Descriptor(
                    media_type=_oci_type(blob.media_type), digest=str(blob.digest), size=blob.size
                )
        return self._compress(diff_id, job)

    def _bring(self, digest: Digest, size: int, diff_id: DiffID, job: _Job) -> bool:
        """Get one blob to the target by any way that does not change it."""
        core, registry = self._core, self._core.registry
        target, call = job.target, job.call
        if registry.has_blob(target, digest, call=call) is not None:
            return self._report(digest, "exists", size, job)
        sources = core.db.read(lambda tx: layers.sources_of(tx, digest))
        for host, repository in sources:
            if (
                host == target.registry
                and repository != target.repository
                and registry.mount_blob(target, digest, repository, call=call)
            ):
                return self._report(digest, "mounted", size, job)
        if core.db.read(lambda tx: layers.has_blob(tx, digest)) and core.blobs.has(digest):
            self._upload(digest, size, _file_chunks(core.blobs.path(digest)), job)
            return True
        recipes = [
            blob.recipe
            for blob in core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id))
            if blob.digest == digest and blob.recipe in RECIPES
        ]
        if recipes and recipes[0] is not None:
            self._upload(digest, size, compress(_file_chunks(core.layers.tar(diff_id)), recipes[0]), job)
            return True
        for host, repository in sources:
            if host != target.registry or repository != target.repository:
                source = Reference(registry=host, repository=repository, digest=digest)
                try:
                    with registry.open_blob(source, digest, call=call) as stream:
                        self._upload(digest, size, stream, job)
                    return True
                except (NotFound, Unavailable, Unauthenticated, Forbidden) as exc:
                    call.observer.warning(
                        f"{digest} could not be taken from {host}/{repository}: {exc.reason}"
                    )
        return False

    def _compress(self, diff_id: DiffID, job: _Job) -> Descriptor:
        """Compress a layer's tar while it is sent; its digest is known with the last byte."""
        core = self._core
        media_type = OCI_LAYER + "+gzip"
        hasher = hashlib.sha256()
        size = 0

        def packed() -> Iterator[bytes]:
            nonlocal size
            for chunk in self._watched(
                compress(_file_chunks(core.layers.tar(diff_id)), RECIPE), diff_id, 0, job
            ):
                hasher.update(chunk)
                size += len(chunk)
                yield chunk

        core.registry.upload_blob(
            job.target,
            packed(),
            digest=lambda: Digest(f"sha256:{hasher.hexdigest()}"),
            size=None,
            call=job.call,
        )
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        blob = LayerBlob(diff_id=diff_id, digest=digest, size=size, media_type=media_type, recipe=RECIPE)
        core.db.write(lambda tx: layers.add_layer_blob(tx, blob))
        self._report(diff_id, "done", size, job)
        return Descriptor(media_type=media_type, digest=str(digest), size=size)

    def _upload(self, digest: Digest, size: int, chunks: Iterable[bytes], job: _Job) -> None:
        """Send bytes that must have a digest; the registry checks it too."""
        hasher = digest.hasher()

        def checked() -> Iterator[bytes]:
            for chunk in self._watched(chunks, digest, size, job):
                hasher.update(chunk)
                yield chunk
            if hasher.hexdigest() != digest.hex:
                raise DataLoss(job.what, f"blob {digest} has other bytes here", hint="push with --recompress")

        self._core.registry.upload_blob(
            job.target, checked(), digest=lambda: digest, size=size, call=job.call
        )
        self._report(digest, "done", size, job)

    def _watched(self, chunks: Iterable[bytes], item: str, total: int, job: _Job) -> Iterator[bytes]:
        rate, done = Rate(), 0
        for chunk in chunks:
            job.call.check(job.what)
            done += len(chunk)
            if rate.add(len(chunk)):
                job.call.observer.progress(
                    Progress(item=item, phase="pushing", done=done, total=total, rate=rate.rate)
                )
            yield chunk

    @staticmethod
    def _report(item: str, phase: str, size: int, job: _Job) -> bool:
        job.call.observer.progress(Progress(item=item, phase=phase, done=size, total=size))
        return True

    # -- documents ------------------------------------------------------------------------------

    def _send_document(self, digest: Digest, job: _Job) -> None:
        registry = self._core.registry
        if registry.has_blob(job.target, digest, call=job.call) is None:
            data = self._core.blobs.read(digest)
            self._upload(digest, len(data), [data], job)

    def _remember(
        self,
        row: ImageRow,
        digest: Digest,
        media_type: str,
        document: bytes,
        manifest: Manifest,
        target: Reference,
        lease: Lease,
    ) -> None:
        """The manifest is known from now on, and where its blobs are."""
        core = self._core
        core.write_document(digest, document, lease=lease, call=Call())  # it is pushed: no way back

        def body(tx: Transaction) -> None:
            images.add_manifest(
                tx, row.config, ManifestRow(digest=digest, media_type=media_type, size=len(document))
            )
            for descriptor in manifest.layers:
                layers.add_source(tx, descriptor.checked_digest(), target.registry, target.repository)
            for image in images.images_by_id(tx, NAMESPACE, row.config):
                if image.manifest is None or image.name == str(target):
                    images.put_image(
                        tx,
                        NAMESPACE,
                        image.name,
                        config=row.config,
                        manifest=digest,
                        platform=image.platform,
                        created=image.created,
                    )

        core.db.write(body)


def _new_manifest(config: Digest, size: int, descriptors: list[Descriptor]) -> Manifest:
    return Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=Descriptor(media_type=OCI_CONFIG, digest=str(config), size=size),
        layers=descriptors,
    )


def _oci_type(media_type: str) -> str:
    """The OCI media type for a blob that came under any type."""
    for form, suffix in _KINDS.items():
        if media_type.endswith(form):
            return OCI_LAYER + suffix
    return OCI_LAYER


def _file_chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk
