"""Blobs of layers that are not kept, fetched after all: so that an image can go to a registry as it came.

A blob comes from a registry known to have it, or is compressed again by the recipe that made it; either way
its digest is verified before it has its name.  It stays as long as its layer does.  A fetch that is
interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from orlop.errors import DataLoss, FailedPrecondition
from orlop.images import names
from orlop.images.api import FetchedBlobs
from orlop.images.core import NAMESPACE, Core, Lease
from orlop.images.platforms import held
from orlop.images.space import needing
from orlop.images.transfer.plainblobs import complete
from orlop.images.transfer.sources import SourceGone, from_file, from_registry, home_of, packed
from orlop.layers.packing.recipes import RECIPES
from orlop.metadata import images, layers
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.observe import Call, Progress, result_of
from orlop.registry.blobs.foreign import is_foreign
from orlop.registry.blobs.sources import Opener
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import Manifest, parse_manifest
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["BlobFetcher"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """A layer's blob as a manifest lists it."""

    digest: Digest
    size: int
    diff_id: DiffID
    name: str  # of the image


class BlobFetcher:
    """Fetches layers' blobs into one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def fetch(self, name: str, *, call: Call) -> FetchedBlobs:
        """See `orlop.images.api.Images.fetch_blobs`."""
        core, what = self._core, f"fetch blobs of {name}"
        rows = core.db.read(lambda tx: held(tx, names.require(tx, NAMESPACE, name, what)))
        if rows[0].manifest is None:
            raise FailedPrecondition(
                what, "it has no manifest, so no blobs are known", hint="a push makes and keeps one"
            )
        call = call.child()
        with core.lease(what) as lease:
            wanted: dict[Digest, _Wanted] = {}
            for row in rows:
                diff_ids = core.layers_of(row.config, what)
                lease.keep(("config", row.config), *(("layer", diff_id) for diff_id in diff_ids))
                wanted |= {one.digest: one for one in self._listed(row, diff_ids, what)}
            missing = [one for one in wanted.values() if not self._keep(one, lease, call)]
            for one in missing:
                call.observer.progress(Progress(item=one.digest, phase="waiting", total=one.size))
            with (
                needing(core.layout.root, sum(one.size for one in missing), what),
                ThreadPoolExecutor(core.settings.downloads, thread_name_prefix="blob") as pool,
            ):
                futures = {one.digest: pool.submit(self._fetch, one, lease, call) for one in missing}
                try:
                    reasons = {digest: result_of(future) for digest, future in futures.items()}
                except BaseException:
                    call.cancel.cancel()
                    for future in futures.values():
                        future.cancel()
                    raise
        failed = {digest: reason for digest, reason in reasons.items() if reason}
        if failed:
            digest, reason = next(iter(failed.items()))
            more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
            raise FailedPrecondition(
                what,
                f"no registry known to have blob {digest} gives it{more}: {reason}",
                hint="push with --recompress to make new blobs, with a new digest",
                details={"blob": digest},
            )
        return FetchedBlobs(
            name=rows[0].name,
            fetched=tuple(str(one.digest) for one in missing),
            present=tuple(str(digest) for digest in wanted if digest not in reasons),
            size=sum(one.size for one in missing),
        )

    def _listed(self, row: ImageRow, diff_ids: tuple[DiffID, ...], what: str) -> list[_Wanted]:
        if (digest := row.manifest) is None:
            return []
        about = self._core.db.read(lambda tx: images.manifest_of(tx, digest))
        document = parse_manifest(self._core.blobs.read(digest), about.media_type if about else "", what)
        if not isinstance(document, Manifest):
            raise DataLoss(what, f"{digest} is not a manifest")
        return [
            _Wanted(digest=descriptor.checked_digest(), size=descriptor.size, diff_id=diff_id, name=row.name)
            for descriptor, diff_id in zip(document.layers, diff_ids, strict=True)
            if not (descriptor.urls and is_foreign(descriptor.media_type))  # a push leaves it where it lies
        ]

    def _keep(self, wanted: _Wanted, lease: Lease, call: Call) -> bool:
        """Put a blob on the lease, if it is there."""
        core = self._core

        def body(tx: Transaction) -> bool:
            there = layers.has_blob(tx, wanted.digest) and core.blobs.has(wanted.digest)
            if there:
                lease.add(tx, "blob", wanted.digest)
            return there

        lease.mark_used()
        there = core.db.write(body, call=call)
        if there:
            call.observer.progress(
                Progress(item=wanted.digest, phase="exists", done=wanted.size, total=wanted.size)
            )
        return there

    def _fetch(self, wanted: _Wanted, lease: Lease, call: Call) -> str:
        """One blob, by the first source that has it; else why the last has not, empty where it is there."""
        core, digest = self._core, wanted.digest
        what, reason = f"fetch blob {digest}", "none is known"
        with core.locked("blob", digest.hex, call=call, attempted=what):
            if self._keep(wanted, lease, call):
                return ""
            with core.blobs.ingest(digest) as ingest:
                for source, where in self._sources(wanted, call):
                    try:
                        complete(ingest, source, digest, wanted.size, what, call)
                    except SourceGone as gone:
                        reason = f"{where}: {gone.error.reason}"
                        continue
                    ingest.publish()

                    def name(tx: Transaction) -> None:
                        layers.add_blob(tx, digest, wanted.size)
                        lease.add(tx, "blob", digest)

                    lease.mark_used()
                    core.db.write(name, call=call)
                    call.observer.progress(
                        Progress(item=digest, phase="done", done=wanted.size, total=wanted.size)
                    )
                    return ""
                if ingest.size == 0:
                    ingest.discard()
        return reason

    def _sources(self, wanted: _Wanted, call: Call) -> Iterator[tuple[Opener, str]]:
        core = self._core
        places = core.db.read(lambda tx: layers.sources_of(tx, wanted.digest))
        if wanted.digest == wanted.diff_id:  # it came uncompressed
            yield from_file(core.layers.tar(wanted.diff_id)), "the layer"
        for blob in core.db.read(lambda tx: layers.blobs_of_layer(tx, wanted.diff_id)):
            if blob.digest == wanted.digest and blob.recipe is not None and blob.recipe in RECIPES:
                yield packed(core.layers, wanted.diff_id, blob.recipe), "the layer"
        for host, repository in dict.fromkeys((*places, *home_of(wanted.name))):
            ref = Reference(registry=host, repository=repository, digest=wanted.digest)
            retries = core.settings.retries
            yield (
                from_registry(
                    core.registry, ref, wanted.digest, size=wanted.size, retries=retries, call=call
                ),
                ref.name,
            )
