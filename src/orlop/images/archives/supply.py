"""The blobs of images on their way into an archive, by the first way that is open, in the order of writing.

A blob comes from where a push takes it, nearest first: kept here; the layer's own tar; the tar compressed
by the recipe that made the blob; a registry known to have it.  None of these changes a digest.  What is no
file of the store is *spooled*: made in a file without a name, and verified, before its first byte goes into
the archive; for an archive's headers say sizes, and what has gone down a pipe is not taken back.
Spools are made by some threads ahead of the writer, so many and no more.

Not here: how an archive looks (`layoutwriter`, `dockerwriter`).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from orlop.errors import DataLoss, Error, FailedPrecondition
from orlop.images.core import Core, Lease
from orlop.images.space import check_room
from orlop.images.transfer.forms import Wish, plain_of, threads_of
from orlop.images.transfer.sources import SourceGone, file_chunks, from_registry, home_of, packed
from orlop.layers.packing.parallel import Pool
from orlop.layers.packing.recipes import RECIPES
from orlop.metadata import layers
from orlop.metadata.layers import LayerBlob
from orlop.observe import Call, Progress, Rate, result_of
from orlop.registry.blobs.foreign import is_foreign
from orlop.registry.blobs.sources import Opener
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import OCI_LAYER, Descriptor
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["Blob", "Supply", "Waiting"]

CHUNK = 1 << 20
_MOST = 8  # spools at a time, made or waiting to be written; each takes the disk that a blob takes
_KINDS = {"gzip": "+gzip", "zstd": "+zstd"}


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that is at hand: what a manifest says of it, and its bytes, which can be read once."""

    descriptor: Descriptor
    chunks: Callable[[], Iterator[bytes]]


class Waiting:
    """A blob that was asked for.  `get` it in the order of asking, and read it before the next."""

    def __init__(self, get: Callable[[], Blob]) -> None:
        self.get = get


class Supply:
    """Brings the blobs of one export.  A context manager, used by one thread, with others working for it.

    ``wish`` says how layers are compressed that come as no known blob; in an archive always in a plain form.
    """

    def __init__(self, core: Core, *, wish: Wish, lease: Lease, call: Call, what: str) -> None:
        self._core = core
        self._lease = lease
        self._call = call.child()
        self._what = what
        workers = max(1, min(_MOST, os.cpu_count() or 1, core.settings.uploads))
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="export")
        self._wish = wish
        self._recipe = wish.recipe if wish.recipe.format == "plain" else plain_of(wish.recipe)
        threads = threads_of(core.settings)
        self._packers = Pool(threads) if threads > 1 else None
        self._ahead = workers * 2
        self._todo: deque[tuple[Callable[[], tuple[Descriptor, int]], Future[tuple[Descriptor, int]]]] = (
            deque()
        )
        self._running: deque[Future[tuple[Descriptor, int]]] = deque()
        self._open: set[int] = set()  # spools that the writer has

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.cancel.cancel()
        self._pool.shutdown(cancel_futures=True)
        if self._packers is not None:
            self._packers.shutdown(cancel_futures=True)
        for future in self._running:
            if future.done() and not future.cancelled() and future.exception() is None:
                os.close(future.result()[1])
        while self._open:
            os.close(self._open.pop())

    # -- what can be asked for ------------------------------------------------------------------

    def document(self, digest: Digest, media_type: str) -> Blob:
        """A config, a manifest, or an artifact's blob: what is kept here."""
        path = self._core.blobs.path(digest)
        size = path.stat().st_size if self._core.blobs.has(digest) else len(self._core.blobs.read(digest))
        descriptor = Descriptor(media_type=media_type, digest=str(digest), size=size)
        return Blob(descriptor, lambda: self._verified(file_chunks(path), digest, "it"))

    def known(self, descriptor: Descriptor, diff_id: DiffID, image: str) -> Waiting | None:
        """A layer's blob as a manifest prescribes it; None if it is not to be distributed.

        ``image`` is the image's name, which says where else the blob may be.
        """
        if not self._may_go(descriptor):
            return None
        digest = descriptor.checked_digest()
        local = self._local(digest, diff_id)
        if local is not None:
            return Waiting(lambda: Blob(descriptor, local))
        return self._spool(lambda: (descriptor, self._fetched(descriptor, diff_id, image)))

    def any(self, diff_id: DiffID) -> Waiting:
        """A layer in the form that is nearest and will do: a blob it is known to come as, else a new one."""
        return self._spool(lambda: self._any(diff_id))

    def tar(self, diff_id: DiffID) -> Blob:
        """A layer's tar as it is."""
        path = self._core.layers.tar(diff_id)
        try:
            size = path.stat().st_size
        except FileNotFoundError as exc:
            raise DataLoss(self._what, f"layer {diff_id} is lost", hint="'orlop check' says more") from exc
        descriptor = Descriptor(media_type=OCI_LAYER, digest=str(diff_id), size=size)
        return Blob(descriptor, lambda: self._verified(file_chunks(path), diff_id, "the layer's tar"))

    # -- files of the store ---------------------------------------------------------------------

    def _local(self, digest: Digest, diff_id: DiffID) -> Callable[[], Iterator[bytes]] | None:
        core = self._core
        if core.db.read(lambda tx: layers.has_blob(tx, digest)) and core.blobs.has(digest):
            path = core.blobs.path(digest)
            self._lease.keep(("blob", digest))
            return lambda: self._verified(file_chunks(path), digest, "the kept blob")
        if digest == diff_id:  # it came uncompressed
            return lambda: self._verified(file_chunks(core.layers.tar(diff_id)), digest, "the layer's tar")
        return None

    def _verified(self, chunks: Iterator[bytes], digest: Digest, thing: str) -> Iterator[bytes]:
        hasher = digest.hasher()
        for chunk in chunks:
            self._call.check(self._what)
            hasher.update(chunk)
            yield chunk
        if hasher.hexdigest() != digest.hex:
            raise DataLoss(
                self._what,
                f"{thing} has other bytes than {digest}",
                hint="'orlop check --repair' may mend it",
            )

    # -- spools ---------------------------------------------------------------------------------

    def _spool(self, make: Callable[[], tuple[Descriptor, int]]) -> Waiting:
        future: Future[tuple[Descriptor, int]] = Future()
        self._todo.append((make, future))
        self._start()

        def get() -> Blob:
            self._start()
            descriptor, fd = result_of(future)
            self._running.remove(future)
            self._open.add(fd)
            self._start()
            return Blob(descriptor, lambda: self._drained(fd))

        return Waiting(get)

    def _start(self) -> None:
        while self._todo and len(self._running) < self._ahead:
            make, future = self._todo.popleft()
            self._running.append(future)
            self._pool.submit(self._run, make, future)

    def _run(
        self, make: Callable[[], tuple[Descriptor, int]], future: Future[tuple[Descriptor, int]]
    ) -> None:
        future.set_running_or_notify_cancel()
        try:
            self._call.check(self._what)
            result = make()
        except BaseException as exc:  # noqa: BLE001 - raised again by the writer
            future.set_exception(exc)
        else:
            future.set_result(result)

    def _fetched(self, descriptor: Descriptor, diff_id: DiffID, image: str) -> int:
        digest = descriptor.checked_digest()
        found = self._bring(digest, descriptor.size, diff_id, home_of(image))
        if found is None:
            raise FailedPrecondition(
                self._what,
                f"the blob of layer {digest} is not kept here and no registry known to have it gives it",
                hint="export with --recompress to make a new one, with a new digest, or use"
                " `orlop fetch-blobs` once a registry that has it is there again;"
                " --format docker needs no blobs",
                details={"blob": digest},
            )
        return found

    def _any(self, diff_id: DiffID) -> tuple[Descriptor, int]:
        core = self._core
        for blob in core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
            if not self._wish.takes(blob) or _is_seekable(blob):
                continue
            descriptor = Descriptor(
                media_type=_oci_type(blob.media_type), digest=str(blob.digest), size=blob.size
            )
            local = self._local(blob.digest, diff_id)
            if local is not None:
                return descriptor, self._filled(local(), str(blob.digest), blob.size)
            fd = self._bring(blob.digest, blob.size, diff_id, ())
            if fd is not None:
                return descriptor, fd
        return self._compress(diff_id)

    def _bring(
        self, digest: Digest, size: int, diff_id: DiffID, home: tuple[tuple[str, str], ...]
    ) -> int | None:
        """One blob in a spool, verified; None where no source gives it."""
        check_room(self._core.layout.root, size, self._what)
        for source, where in self._sources(digest, size, diff_id, home):
            try:
                return self._filled(self._exact(source, digest, size), str(digest), size)
            except SourceGone as gone:
                text = f"{digest} could not be taken from {where}: {gone.error.reason}"
                self._call.observer.warning(text)
        return None

    def _sources(
        self, digest: Digest, size: int, diff_id: DiffID, home: tuple[tuple[str, str], ...]
    ) -> Iterator[tuple[Opener, str]]:
        core = self._core
        for blob in core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
            if blob.digest == digest and blob.recipe is not None and blob.recipe in RECIPES:
                yield packed(core.layers, diff_id, blob.recipe, self._packers), "the layer"
        places = core.db.read(lambda tx: layers.sources_of(tx, digest))
        for host, repository in dict.fromkeys((*places, *home)):
            ref = Reference(registry=host, repository=repository, digest=digest)
            retries = core.settings.retries
            stream = from_registry(core.registry, ref, digest, size=size, retries=retries, call=self._call)
            yield stream, ref.name

    def _exact(self, source: Opener, digest: Digest, size: int) -> Iterator[bytes]:
        """A source's bytes; `SourceGone` once they are others than they should be."""
        hasher, seen = digest.hasher(), 0
        for chunk in source(0):
            seen += len(chunk)
            if seen > size:
                break
            hasher.update(chunk)
            yield chunk
        if seen != size or hasher.hexdigest() != digest.hex:
            error: Error = DataLoss(self._what, "it comes as other bytes")
            raise SourceGone(error)

    def _compress(self, diff_id: DiffID) -> tuple[Descriptor, int]:
        """A layer's tar, compressed as a push would; the store knows the blob from now on."""
        core, recipe = self._core, self._recipe
        hasher, size = hashlib.sha256(), 0
        made = (
            file_chunks(core.layers.tar(diff_id))
            if recipe.compression == "none"
            else packed(core.layers, diff_id, recipe.name, self._packers)(0)
        )

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in made:
                hasher.update(chunk)
                size += len(chunk)
                yield chunk

        fd = self._filled(counted(), str(diff_id), 0)
        digest = Digest(f"sha256:{hasher.hexdigest()}")
        media_type = OCI_LAYER + recipe.suffix
        blob = LayerBlob(diff_id=diff_id, digest=digest, size=size, media_type=media_type, recipe=recipe.name)
        core.db.write(lambda tx: layers.add_layer_blob(tx, blob))
        return Descriptor(media_type=media_type, digest=str(digest), size=size), fd

    def _filled(self, chunks: Iterator[bytes], item: str, total: int) -> int:
        """A file without a name, with these bytes, to be read from its start."""
        with tempfile.TemporaryFile(dir=self._core.layout.layers, buffering=0) as file:
            fd = os.dup(file.fileno())
        rate, done = Rate(), 0
        try:
            for chunk in chunks:
                self._call.check(self._what)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
                done += len(chunk)
                if rate.add(len(chunk)):
                    progress = Progress(item=item, phase="reading", done=done, total=total, rate=rate.rate)
                    self._call.observer.progress(progress)
            os.lseek(fd, 0, os.SEEK_SET)
            self._call.observer.progress(Progress(item=item, phase="done", done=done, total=done))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _drained(self, fd: int) -> Iterator[bytes]:
        try:
            while chunk := os.read(fd, CHUNK):
                self._call.check(self._what)
                yield chunk
        finally:
            if fd in self._open:
                self._open.remove(fd)
                os.close(fd)

    def _may_go(self, descriptor: Descriptor) -> bool:
        """As for a push: one that may not be distributed is left where its manifest says it lies."""
        lies_elsewhere = bool(descriptor.urls) and is_foreign(descriptor.media_type)
        if self._core.settings.nondistributable or not lies_elsewhere:
            return True
        self._call.observer.warning(f"layer {descriptor.digest} is left out: it is not to be distributed")
        return False


def _is_seekable(blob: LayerBlob) -> bool:
    return blob.recipe is not None and blob.recipe in RECIPES and RECIPES[blob.recipe].format != "plain"


def _oci_type(media_type: str) -> str:
    """The OCI media type for a blob that came under any type."""
    for form, suffix in _KINDS.items():
        if media_type.endswith(form):
            return OCI_LAYER + suffix
    return OCI_LAYER
