"""Layers on their way into the store: fetched, verified, decompressed, hashed and indexed in one pass.

Per layer four things overlap: a thread fetches the blob into an ingest and hashes it; confined workers
decompress it into the tar and parse that, as both grow; this thread hashes the tar behind them; another has
the disk take it (`writeback`).  While a finished layer waits for the disk, the next is fetched.  Nothing is
visible before both digests are right and all files are durable.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack

from orlop.content.ingests import Ingest
from orlop.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    from_oserror,
)
from orlop.images.core import Core, Lease
from orlop.images.fetching.download import Download, Wanted
from orlop.images.fetching.following import following
from orlop.images.space import is_full, needing
from orlop.images.transfer.filerange import verify_range
from orlop.images.transfer.present import BlobLayer, Present
from orlop.images.transfer.publish import publish
from orlop.images.transfer.turns import FINISHING, Gathering, Turn
from orlop.images.transfer.writeback import WriteBack
from orlop.layers.index import LayerIndex
from orlop.layers.store import NewLayer
from orlop.layers.worker.client import Feed, Unpacked, unpack
from orlop.layers.worker.small import SMALL_BLOB, SmallLayers
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.observe import Call, Progress, Rate, Steps, count, reached, result_of, stepped
from orlop.spec.digest import DiffID
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["BlobLayer", "LayerIngest"]

SMALL = 16 << 20  # bytes of a tar that takes the disk less time than the commits around it
HEAD = 64 << 10  # bytes at a tar's start in which a file system's superblock would lie


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the layers of one call share: where they are, its lease, how many are fetched at once."""

    ref: Reference
    call: Call
    lease: Lease
    places: threading.Semaphore
    gathering: Gathering
    small: SmallLayers  # decompresses those that are
    full: threading.Event  # set when the disk is: then nothing waits there to be resumed
    seen: Callable[[DiffID, LayerIndex], None]  # told of layers that are whole and right, not yet durable


class LayerIngest:
    """Brings layers into one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.present = Present(core)

    # -- from a registry ------------------------------------------------------------------------

    def fetch_all(
        self,
        ref: Reference,
        wanted: list[BlobLayer],
        *,
        call: Call,
        lease: Lease,
        seen: Callable[[DiffID, LayerIndex], None] = lambda diff_id, index: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> dict[DiffID, LayerIndex]:
        """Fetch the layers that are missing, side by side; all are durable on return.

        Returns the indexes of those that were fetched.  The first failure stops the others and is
        raised.  ``seen`` is told, by several threads, of each that is whole and right, though not yet on the
        disk; ``meanwhile`` is called once, while they come, and may raise.
        """
        distinct = {layer.diff_id: layer for layer in wanted}
        missing = self._keep_present(list(distinct.values()), call, lease)
        if missing:
            found = self._fetch_missing(ref, missing, call, lease, seen, meanwhile)
        else:
            found = {}
            meanwhile()
        gone = {layer.diff_id for layer in missing}
        self.present.remember_source(
            ref, [layer for layer in distinct.values() if layer.diff_id not in gone], call
        )
        return found

    def _keep_present(self, wanted: list[BlobLayer], call: Call, lease: Lease) -> list[BlobLayer]:
        """Put a lease on what counts as there; a repair asks more of it."""
        return self.present.keep(wanted, call, lease)

    def _fetch_missing(
        self,
        ref: Reference,
        missing: list[BlobLayer],
        call: Call,
        lease: Lease,
        seen: Callable[[DiffID, LayerIndex], None],
        meanwhile: Callable[[], None],
    ) -> dict[DiffID, LayerIndex]:
        """Fetch layers side by side."""
        for layer in missing:  # so that whoever looks knows from the start how much there is
            call.observer.progress(_progress(layer.digest, "waiting", 0, layer.size))
        self._core.template.start()
        found: dict[DiffID, LayerIndex] = {}
        call = call.child()
        downloads = self._core.settings.downloads
        small = SmallLayers(self._core.template, self._core.settings.limits)
        job = _Job(
            ref=ref,
            call=call,
            lease=lease,
            places=threading.Semaphore(downloads),
            gathering=Gathering(len(missing)),
            small=small,
            full=threading.Event(),
            seen=seen,
        )
        # No tar is smaller than the blob that it comes as, but for a header; how much larger, nobody knows.
        least = sum(layer.size for layer in missing) * (2 if self._core.settings.keep_blobs else 1)
        with (
            needing(self._core.layout.root, least, f"pull {ref}", by_workers=True),
            small,
            ThreadPoolExecutor(max_workers=downloads + FINISHING, thread_name_prefix="layer") as pool,
        ):
            futures: dict[Future[LayerIndex | None], BlobLayer] = {
                pool.submit(self._fetch, layer, job): layer for layer in missing
            }
            failure: BaseException | None = None

            def failed(exc: BaseException) -> None:
                nonlocal failure
                if failure is None or isinstance(failure, Cancelled):
                    failure = exc
                if is_full(exc):
                    job.full.set()
                for other in futures:
                    other.cancel()
                call.cancel.cancel()

            try:
                meanwhile()
            except BaseException as exc:  # noqa: BLE001 - raised below, once all have ended
                failed(exc)
            for future, layer in futures.items():
                try:
                    index = result_of(future)
                except CancelledError:  # by us: it never began, and why is known
                    continue
                except BaseException as exc:  # noqa: BLE001 - likewise
                    failed(exc)
                    continue
                if index is not None:
                    found[layer.diff_id] = index
            if failure is not None:
                if isinstance(failure, Cancelled | DeadlineExceeded | Unavailable):
                    self.present.tell_kept(failure, missing)
                raise failure
        return found

    def _fetch(self, layer: BlobLayer, job: _Job) -> LayerIndex | None:
        """One layer, unless somebody else brings it first."""
        core, what, call = self._core, f"fetch layer {layer.digest}", job.call
        try:
            with (
                Turn(job.places, job.gathering, call) as turn,
                core.locked(
                    "blob",
                    layer.digest.hex,
                    call=call,
                    attempted=what,
                    meanwhile=following(core.blobs, layer.digest, layer.size, call),
                ),
                core.locked("layer", layer.diff_id.hex, call=call, attempted=what),
            ):
                if self.present.has(layer) and not self._keep_present([layer], call, job.lease):
                    return None
                with core.blobs.ingest(layer.digest) as ingest:
                    try:
                        return self._fetch_into(layer, ingest, job, turn, call=call)
                    except (OSError, Error) as exc:
                        if is_full(exc) or job.full.is_set():
                            ingest.discard()
                        raise
        except OSError as exc:
            raise from_oserror(what, exc) from exc

    @stepped("fetch", of=1)
    def _fetch_into(
        self, layer: BlobLayer, ingest: Ingest, job: _Job, turn: Turn, *, call: Call
    ) -> LayerIndex:
        """Go on with a download, or begin it; again from the start if what was left over is bad.

        What turns out to be bad, or too much, does not wait to be resumed, and neither does nothing.
        """
        if ingest.length > layer.size:
            ingest.truncate()
        resumed = ingest.held > 0
        try:
            download = self._download(job.ref, layer, ingest, call, settle=False)
            try:
                return self._fetch_locked(layer, ingest, download, job, turn, call=call)
            except (DataLoss, InvalidArgument) as exc:
                doubted = download.doubt(exc)
                if not (resumed or download.mixed or doubted):
                    raise
                ingest.truncate()
            turn.retake()
            download = self._download(job.ref, layer, ingest, call, settle=True)
            return self._fetch_locked(layer, ingest, download, job, turn, call=call)
        except Error as exc:
            if isinstance(exc, DataLoss | InvalidArgument | ResourceExhausted) or ingest.held == 0:
                ingest.discard()
            raise

    def _download(
        self, ref: Reference, layer: BlobLayer, ingest: Ingest, call: Call, *, settle: bool
    ) -> Download:
        core = self._core
        return Download(
            core.registry,
            Wanted(ref=ref, digest=layer.digest, size=layer.size, urls=layer.urls),
            ingest,
            settings=core.settings,
            traffic=core.traffic(ref.registry),
            pace=core.pace,
            settle=settle,
            call=call,
        )

    def _fetch_locked(
        self, layer: BlobLayer, ingest: Ingest, download: Download, job: _Job, turn: Turn, *, call: Call
    ) -> LayerIndex:
        with ExitStack() as stack:
            feed = Feed()
            stack.callback(feed.close)
            new = stack.enter_context(self._core.layers.new())
            writeback = stack.enter_context(WriteBack(new.tar, self._core.sync))
            new.tar_settled = writeback.settled
            download.start(feed)
            stack.callback(download.stop)
            if download.failure is not None:  # of a small one it is known already
                raise download.failure
            try:
                small = job.small if layer.size <= SMALL_BLOB else None
                unpacked = self._unpack(layer.digest, new, ingest.fd, feed, call, download, writeback, small)
            except Error as exc:
                download.stop()
                if download.failure is not None:
                    raise download.failure from exc
                raise
            download.join()
            turn.give_back()
            turn.gather(small=unpacked.tar_size < SMALL)
            self._finish(layer, new, unpacked, job.lease, call, source=job.ref, ingest=ingest, seen=job.seen)
            call.observer.progress(_progress(layer.digest, "done", layer.size, layer.size))
            count("layers_fetched")
            return unpacked.index

    @stepped("index", of=1)
    def _unpack(
        self,
        item: str,
        new: NewLayer,
        source: int,
        feed: Feed,
        call: Call,
        download: Download | None,
        writeback: WriteBack,
        small: SmallLayers | None,
    ) -> Unpacked:
        rate = Rate()
        last = 0

        def written(total: int) -> None:
            nonlocal last
            writeback.grown(total)
            due = rate.add(total - last)
            last = total
            if due:
                call.observer.progress(_progress(item, "indexing", total, 0, rate.rate))

        try:
            return unpack(
                self._core.template,
                source,
                feed,
                tar=new.tar,
                limits=self._core.settings.limits,
                call=call,
                written=written,
                whole=writeback.whole,
                small=small,
            )
        except (Internal, InvalidArgument, ResourceExhausted, Unavailable) as exc:
            raise type(exc)(f"unpack layer {item}", exc.reason, hint=exc.hint, details=exc.details) from exc

    def _finish(
        self,
        layer: BlobLayer,
        new: NewLayer,
        unpacked: Unpacked,
        lease: Lease,
        call: Call,
        *,
        source: Reference | None,
        ingest: Ingest | None,
        seen: Callable[[DiffID, LayerIndex], None] = lambda diff_id, index: None,
    ) -> None:
        """Name a layer whose bytes are all there."""
        if unpacked.diff_id != layer.diff_id:
            raise DataLoss(
                f"unpack layer {layer.digest}",
                f"its diff ID is {unpacked.diff_id}, the image's config says {layer.diff_id}",
            )
        if len(unpacked.index) == 1 and _goes_on(new.tar):
            raise InvalidArgument(
                f"unpack layer {layer.digest}", "no tar: it begins as an empty one, and then goes on"
            )
        core = self._core
        for warning in unpacked.index.warnings:
            call.observer.warning(f"{layer.digest}: {warning}")
        reached("layer.unpacked")
        seen(layer.diff_id, unpacked.index)
        row = self.publish(new, unpacked)
        keep = ingest is not None and core.settings.keep_blobs
        if ingest is not None and keep:
            ingest.publish()

        def body(tx: Transaction) -> None:
            layers.add_layer(tx, row)
            layers.add_layer_blob(tx, _layer_blob(layer))
            lease.add(tx, "layer", row.diff_id)
            if source is not None:
                layers.add_source(tx, layer.digest, source.registry, source.repository)
            if keep:
                layers.add_blob(tx, layer.digest, layer.size)

        lease.mark_used()
        core.db.write(body, call=call)
        reached("layer.named")
        if ingest is not None and not keep:
            ingest.discard()
            reached("ingest.discarded")

    def publish(self, new: NewLayer, unpacked: Unpacked) -> LayerRow:
        """Make a complete layer durable under its diff ID.  Needs the layer's lock."""
        return publish(
            self._core,
            new,
            diff_id=unpacked.diff_id,
            index=unpacked.index,
            encoded=unpacked.encoded,
            tar_size=unpacked.tar_size,
        )

    # -- from a file ----------------------------------------------------------------------------

    def read_file(
        self, source: int, layer: BlobLayer, *, offset: int = 0, verify: bool = True, call: Call, lease: Lease
    ) -> None:
        """Bring in a layer that lies in a file, at ``offset``.

        With ``verify`` the bytes must have ``layer.digest``.
        """
        core, what = self._core, f"import layer {layer.digest}"
        core.template.start()
        try:
            with (
                core.locked("blob", layer.digest.hex, call=call, attempted=what),
                core.locked("layer", layer.diff_id.hex, call=call, attempted=what),
            ):
                if not self._keep_present([layer], call, lease):
                    return
                if verify:
                    verify_range(source, offset, layer.size, layer.digest, call)
                with core.layers.new() as new, ExitStack() as stack:
                    feed = Feed.whole(layer.size)
                    stack.callback(feed.close)
                    unpacked = unpack(
                        core.template,
                        source,
                        feed,
                        offset=offset,
                        tar=new.tar,
                        limits=core.settings.limits,
                        call=call,
                        written=Steps(call, layer.digest, "indexing").at,
                    )
                    self._finish(layer, new, unpacked, lease, call, source=None, ingest=None)
        except OSError as exc:
            raise from_oserror(what, exc) from exc
        call.observer.progress(_progress(layer.digest, "done", layer.size, layer.size))


def _goes_on(tar: int) -> bool:
    """Whether a tar without entries holds something all the same.

    File system images leave their first kilobyte empty, which looks like the end of a tar.
    """
    head = os.pread(tar, HEAD, 0)
    return not any(head[:1024]) and any(head)  # else it has entries, of the root alone


def _layer_blob(layer: BlobLayer) -> LayerBlob:
    return LayerBlob(diff_id=layer.diff_id, digest=layer.digest, size=layer.size, media_type=layer.media_type)


def _progress(item: str, phase: str, done: int, total: int, rate: float = 0.0) -> Progress:
    return Progress(item=item, phase=phase, done=done, total=total, rate=rate)
