"""What one push sends to one repository: blobs, each by the first way that is open, then manifests.

Layers' blobs are not kept, so a layer whose blob is known goes so: the target has it; it is mounted from
another repository of that registry; it is kept here after all; it is compressed again by the recipe that
made it; it is streamed from a registry known to have it.  None of these changes a digest.  A blob goes once,
however many images of a push have it.  Which images, and under which names, is
`orlop.images.transfer.push`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self

from orlop.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
)
from orlop.images.core import Core, Lease
from orlop.images.transfer.delivered import Delivered
from orlop.images.transfer.forms import Wish, plain_of, threads_of, wish_of, with_diff_ids
from orlop.images.transfer.jobs import Jobs
from orlop.images.transfer.sources import (
    Hashed,
    SourceGone,
    from_bytes,
    from_file,
    from_registry,
    home_of,
    packed,
)
from orlop.layers.packing.packer import check, spooled
from orlop.layers.packing.parallel import Pool
from orlop.layers.packing.recipes import RECIPES, Recipe, Unlisted
from orlop.metadata import images, layers
from orlop.metadata.layers import LayerBlob
from orlop.observe import Call, Progress, Rate, count, stepped
from orlop.registry.blobs.foreign import is_foreign
from orlop.registry.blobs.sources import Opener
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
from orlop.values import replace

__all__ = ["Delivery"]

MOUNTS = 3  # repositories that are asked for a blob; each costs a request
_KINDS = {"gzip": "+gzip", "zstd": "+zstd"}


class Delivery:
    """One push on its way to one repository.  A context manager: leaving it by an error stops what runs.

    ``name`` is the image's in the store; ``lease`` keeps what is sent; ``call`` is cancelled where a part
    fails.  Used by one thread, which it has ``settings.uploads`` others work for.
    """

    def __init__(
        self,
        core: Core,
        target: Reference,
        *,
        name: str,
        lease: Lease,
        call: Call,
        what: str,
        wish: Wish | None = None,
    ) -> None:
        self._core = core
        self._target = target
        self._home = home_of(name)
        self._lease = lease
        self._call = call.child()
        self._what = what
        self._wish = wish or wish_of(core.settings, what=what)
        self._jobs = Jobs(core.settings.uploads, self._call, name="push")
        threads = threads_of(core.settings)
        self._packers = Pool(threads) if threads > 1 else None
        self._running: dict[str, Future[Descriptor]] = {}
        # Of layers in a form that adds entries: what is in their blobs
        self._inside: dict[DiffID, DiffID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None:
            self._jobs.stop()
        self._jobs.close()
        if self._packers is not None:
            self._packers.shutdown(cancel_futures=True)

    def image(self, config: Digest, manifest: Digest | None, *, recompress: bool = False) -> Delivered:
        """Send an image's layers and config.

        With a ``manifest`` the blobs are those that it lists, and `FailedPrecondition` names one that cannot
        be had.  Without one, or with ``recompress``, a manifest is made, for layers in whatever form is near
        and will do.
        """
        core = self._core
        diff_ids = core.layers_of(config, self._what)
        self._lease.keep(("config", config), *(("layer", diff_id) for diff_id in diff_ids))
        if manifest is not None and not recompress:
            known, document, media_type = self._known(manifest)
            self._check_form(known, diff_ids)
            self._start_document(config)
            wanted = [pair for pair in zip(known.layers, diff_ids, strict=True) if self._may_go(pair[0])]
            for descriptor, diff_id in wanted:
                self._start_known(descriptor, diff_id)
            self._wait(str(config), *(descriptor.digest for descriptor, _ in wanted))
            return Delivered(
                config=config, digest=manifest, media_type=media_type, document=document, manifest=known
            )
        annotations = self._annotations(config, manifest)
        if self._wish.recipe.keeps_tar:
            self._start_document(config)
        for diff_id in diff_ids:
            self._start_any(diff_id)
        descriptors = self._wait(*diff_ids)
        inside = [self._inside.get(diff_id, diff_id) for diff_id in diff_ids]
        if inside == list(diff_ids):
            self._start_document(config)
        else:
            data = with_diff_ids(core.blobs.read(config), inside, self._what)
            config = Digest.of(data)
            self._start(config, lambda: self._send_bytes(config, data))
        (config_descriptor,) = self._wait(str(config))
        made = Manifest(
            schema_version=2,
            media_type=OCI_MANIFEST,
            config=config_descriptor,
            layers=descriptors,
            annotations=annotations or None,
        )
        document = encode(made)
        return Delivered(
            config=config,
            digest=Digest.of(document),
            media_type=OCI_MANIFEST,
            document=document,
            manifest=made,
            changed=inside != list(diff_ids),
        )

    def _annotations(self, config: Digest, manifest: Digest | None) -> dict[str, str]:
        """What a manifest to be made is annotated with: as the old one was, or as its commit has said."""
        if manifest is not None:
            return self._known(manifest)[0].annotations or {}
        return self._core.db.read(lambda tx: images.annotations_of(tx, config))

    def kept(self, *digests: Digest) -> None:
        """Send blobs that are kept here, such as an artifact's."""
        for digest in digests:
            self._start_document(digest)
        self._wait(*digests)

    def put(self, digest: Digest, document: bytes, media_type: str, *refs: Reference) -> None:
        """Store a manifest or index whose parts are there, under each of some names of the repository.

        Nothing is sent for a name that means it already.
        """
        self._jobs.settle(
            [self._jobs.submit(partial(self._put, ref, digest, document, media_type)) for ref in refs]
        )

    # -- side by side ---------------------------------------------------------------------------

    def _start(self, key: str, send: Callable[[], Descriptor]) -> None:
        if key not in self._running:
            self._running[key] = self._jobs.submit(send)

    def _start_document(self, digest: Digest) -> None:
        self._start(digest, lambda: self._send_document(digest))

    def _start_known(self, descriptor: Descriptor, diff_id: DiffID) -> None:
        if descriptor.digest not in self._running:
            self._report(descriptor.digest, "waiting", descriptor.size, done=0)
        self._start(descriptor.digest, lambda: self._send_known(descriptor, diff_id))

    def _start_any(self, diff_id: DiffID) -> None:
        self._start(diff_id, lambda: self._send_any(diff_id))

    def _wait(self, *keys: str) -> list[Descriptor]:
        return self._jobs.settle([self._running[key] for key in keys])

    def _check_form(self, known: Manifest, diff_ids: Sequence[DiffID]) -> None:
        """A manifest that is known is never changed, so what is asked for must be what it is."""
        blobs: list[LayerBlob] = []
        for descriptor, diff_id in zip(known.layers, diff_ids, strict=True):
            digest = descriptor.checked_digest()
            rows = self._core.db.read(lambda tx, diff_id=diff_id: layers.blobs_of_layer(tx, diff_id))  # type: ignore[misc]  # bound now
            fresh = LayerBlob(
                diff_id=diff_id, digest=digest, size=descriptor.size, media_type=descriptor.media_type
            )
            blobs.append(next((blob for blob in rows if blob.digest == digest), fresh))
        if any(plain := [self._goes_plain(blob) for blob in blobs]):  # ours, so ours alone decide
            pairs = zip(blobs, plain, strict=True)
            blobs = [blob for blob, is_plain in pairs if blob.recipe is not None and not is_plain]
        if not self._wish.fits(blobs):
            raise FailedPrecondition(
                self._what,
                "the image's manifest is known, and its layers are in another form",
                hint="push with --recompress to make them anew, with a new digest",
            )

    def _goes_plain(self, blob: LayerBlob) -> bool:
        """Whether a blob of ours is plain because its layer cannot have the form that is wished for."""
        recipe = self._wish.recipe
        if recipe.format == "plain" or blob.recipe != plain_of(recipe).name:
            return False
        try:
            check(self._core.layers, blob.diff_id, recipe)
        except Unlisted:
            return True
        return False

    # -- one layer ------------------------------------------------------------------------------

    def _known(self, digest: Digest) -> tuple[Manifest, bytes, str]:
        row = self._core.db.read(lambda tx: images.manifest_of(tx, digest))
        data = self._core.blobs.read(digest)
        document = parse_manifest(data, row.media_type if row else "", self._what)
        if not isinstance(document, Manifest):
            raise DataLoss(self._what, f"{digest} is not a manifest")
        return document, data, document.media_type

    def _may_go(self, descriptor: Descriptor) -> bool:
        """Whether a layer may be distributed; one that may not is left where its manifest says it lies."""
        lies_elsewhere = bool(descriptor.urls) and is_foreign(descriptor.media_type)
        if self._core.settings.nondistributable or not lies_elsewhere:
            return True
        self._call.observer.warning(f"layer {descriptor.digest} is left out: it is not to be distributed")
        return False

    def _send_known(self, descriptor: Descriptor, diff_id: DiffID) -> Descriptor:
        """A layer whose blob is prescribed by the manifest."""
        digest = descriptor.checked_digest()
        if not self._bring(digest, descriptor.size, diff_id, self._home):
            raise FailedPrecondition(
                self._what,
                f"the blob of layer {digest} is not kept here and no registry known to have it gives it",
                hint="push with --recompress to make new blobs, with a new digest; or get this one with"
                " `orlop fetch-blobs` once a registry that has it is there again",
                details={"blob": digest},
            )
        return descriptor

    def _send_any(self, diff_id: DiffID) -> Descriptor:
        """A layer in whatever form is nearest: a blob it is known to come as, else compressed now."""
        wish = self._wish
        for blob in self._core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
            if not wish.takes(blob):
                continue
            if blob.recipe is not None and RECIPES[blob.recipe].format != "plain":
                return self._pack(diff_id, RECIPES[blob.recipe])  # what its annotations are, is not kept
            if self._bring(blob.digest, blob.size, diff_id):
                return Descriptor(
                    media_type=_oci_type(blob.media_type), digest=str(blob.digest), size=blob.size
                )
        if wish.recipe.format != "plain":
            return self._pack(diff_id, wish.recipe)
        return self._compress(diff_id, wish.recipe)

    def _bring(
        self, digest: Digest, size: int, diff_id: DiffID, home: tuple[tuple[str, str], ...] = ()
    ) -> bool:
        """Get one blob to the target by any way that does not change it."""
        core, target, call = self._core, self._target, self._call
        if core.registry.has_blob(target, digest, push=True, call=call) is not None:
            return self._report(digest, "exists", size)
        places = core.db.read(lambda tx: layers.sources_of(tx, digest))
        mounts: Sequence[str | None] = [
            repository
            for host, repository in places
            if host == target.registry and repository != target.repository
        ][:MOUNTS]
        if not mounts and places:
            mounts = [None]  # somebody has it: perhaps also somebody there
        for source, where in self._sources(digest, size, diff_id, list(dict.fromkeys((*places, *home)))):
            try:
                self._upload(digest, size, source, mounts)
            except SourceGone as gone:
                call.observer.warning(f"{digest} could not be taken from {where}: {gone.error.reason}")
                mounts = []
                continue
            return True
        for repository in mounts:
            if core.registry.mount_blob(target, digest, repository, call=call):
                return self._report(digest, "mounted", size)
        return False

    def _sources(
        self, digest: Digest, size: int, diff_id: DiffID, places: list[tuple[str, str]]
    ) -> Iterator[tuple[Opener, str]]:
        """Where the bytes of a blob can be had, the nearest first, and how to call that."""
        core = self._core
        if core.db.read(lambda tx: layers.has_blob(tx, digest)) and core.blobs.has(digest):
            yield self._honest(from_file(core.blobs.path(digest)), digest), "the store"
        if digest == diff_id:  # it came uncompressed
            yield self._honest(from_file(core.layers.tar(diff_id)), digest), "the layer"
        for blob in core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
            if blob.digest == digest and blob.recipe is not None and blob.recipe in RECIPES:
                source = packed(core.layers, diff_id, blob.recipe, self._packers)
                yield self._honest(source, digest), "the layer"
        for host, repository in places:
            if host != self._target.registry or repository != self._target.repository:
                place = Reference(registry=host, repository=repository, digest=digest)
                stream = from_registry(
                    core.registry,
                    place,
                    digest,
                    size=size,
                    retries=core.settings.retries,
                    call=self._call,
                )
                yield self._honest(stream, digest), place.name

    def _honest(self, source: Opener, digest: Digest) -> Opener:
        """A source of the right bytes: with others it is of no use, and the next may be."""
        hashed = Hashed(source, attempted=self._what, digest=digest)

        def open_at(offset: int) -> Iterator[bytes]:
            try:
                yield from hashed(offset)
            except DataLoss as exc:
                raise SourceGone(exc) from exc

        return open_at

    def _compress(self, diff_id: DiffID, recipe: Recipe) -> Descriptor:
        """Compress a layer's tar while it is sent; its digest is known with the last byte."""
        core = self._core
        if recipe.compression == "none":
            size = core.layers.tar(diff_id).stat().st_size
            if not self._bring(Digest(diff_id), size, diff_id):
                raise DataLoss(self._what, f"layer {diff_id} is lost")
            return self._made(diff_id, Digest(diff_id), size, recipe)
        made = Hashed(packed(core.layers, diff_id, recipe.name, self._packers), attempted=self._what)
        source = self._watched(made, diff_id, 0)
        core.registry.upload_blob(self._target, source, digest=made.digest, size=None, call=self._call)
        self._report(diff_id, "done", made.size)
        return self._made(diff_id, made.digest(), made.size, recipe)

    def _pack(self, diff_id: DiffID, recipe: Recipe) -> Descriptor:
        """Send a layer in a seekable form: made whole first, since its digest is asked for first."""
        core = self._core
        try:
            with spooled(
                core.layers, diff_id, recipe, pool=self._packers, watched=partial(self._packing, diff_id)
            ) as blob:
                if core.registry.has_blob(self._target, blob.digest, push=True, call=self._call) is not None:
                    self._report(diff_id, "exists", blob.size)
                else:
                    self._upload(blob.digest, blob.size, blob.open_at, ())
        except Unlisted as exc:
            plain = plain_of(recipe)
            self._call.observer.warning(f"layer {diff_id} goes as plain {plain.compression}: {exc}")
            for known in core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
                if known.recipe == plain.name and self._bring(known.digest, known.size, diff_id):
                    return Descriptor(
                        media_type=OCI_LAYER + plain.suffix, digest=str(known.digest), size=known.size
                    )
            return self._compress(diff_id, plain)
        self._inside[diff_id] = blob.diff_id
        return self._made(diff_id, blob.digest, blob.size, recipe, annotations=blob.annotations)

    def _packing(self, diff_id: DiffID, chunks: Iterable[bytes]) -> Iterator[bytes]:
        rate, done = Rate(), 0
        for chunk in chunks:
            self._call.check(self._what)
            done += len(chunk)
            if rate.add(len(chunk)):
                self._call.observer.progress(
                    Progress(item=diff_id, phase="packing", done=done, total=0, rate=rate.rate)
                )
            yield chunk

    def _made(
        self,
        diff_id: DiffID,
        digest: Digest,
        size: int,
        recipe: Recipe,
        *,
        annotations: dict[str, str] | None = None,
    ) -> Descriptor:
        """What a blob is that was made here; by its recipe it is made again."""
        media_type = OCI_LAYER + recipe.suffix
        if recipe.keeps_tar:
            blob = LayerBlob(
                diff_id=diff_id, digest=digest, size=size, media_type=media_type, recipe=recipe.name
            )
            self._core.db.write(lambda tx: layers.add_layer_blob(tx, blob))
        return Descriptor(media_type=media_type, digest=str(digest), size=size, annotations=annotations)

    @stepped("upload", of=1)
    def _upload(self, digest: Digest, size: int, source: Opener, mounts: Sequence[str | None]) -> None:
        mounted = self._core.registry.upload_blob(
            self._target,
            self._watched(source, digest, size),
            digest=digest,
            size=size,
            mounts=mounts,
            call=self._call,
        )
        count("blobs_mounted" if mounted else "blobs_pushed")
        self._report(digest, "mounted" if mounted else "done", size)

    def _watched(self, source: Opener, item: str, total: int) -> Opener:
        """The same source; how far it is, is told."""

        def open_at(offset: int) -> Iterator[bytes]:
            rate, done = Rate(), offset
            for chunk in source(offset):
                done += len(chunk)
                count("pushed_bytes", len(chunk))
                if rate.add(len(chunk)):
                    self._call.observer.progress(
                        Progress(item=item, phase="pushing", done=done, total=total, rate=rate.rate)
                    )
                yield chunk

        return open_at

    def _report(self, item: str, phase: str, size: int, *, done: int | None = None) -> bool:
        done = size if done is None else done
        self._call.observer.progress(Progress(item=item, phase=phase, done=done, total=size))
        return True

    # -- documents ------------------------------------------------------------------------------

    def _send_document(self, digest: Digest) -> Descriptor:
        """A blob that is kept here, as a config is."""
        core = self._core
        size = (
            core.blobs.path(digest).stat().st_size if core.blobs.has(digest) else len(core.blobs.read(digest))
        )
        if core.registry.has_blob(self._target, digest, push=True, call=self._call) is not None:
            self._report(digest, "exists", size)
        else:
            hashed = Hashed(from_file(core.blobs.path(digest)), attempted=self._what, digest=digest)
            self._upload(digest, size, hashed, ())
        return Descriptor(media_type=OCI_CONFIG, digest=str(digest), size=size)

    def _send_bytes(self, digest: Digest, data: bytes) -> Descriptor:
        """A configuration that was made for this push."""
        if self._core.registry.has_blob(self._target, digest, push=True, call=self._call) is not None:
            self._report(digest, "exists", len(data))
        else:
            self._upload(digest, len(data), from_bytes(data), ())
        return Descriptor(media_type=OCI_CONFIG, digest=str(digest), size=len(data))

    def _put(self, ref: Reference, digest: Digest, document: bytes, media_type: str) -> None:
        registry, call = self._core.registry, self._call
        place = replace(ref, digest=None) if ref.tag else ref
        try:
            there = registry.has_manifest(place, push=True, call=call)
        except (Unauthenticated, PermissionDenied, InvalidArgument):
            there = None  # one may perhaps write there, and not look
        if there != digest:
            registry.put_manifest(ref, document, media_type, call=call)


def _oci_type(media_type: str) -> str:
    """The OCI media type for a blob that came under any type."""
    for form, suffix in _KINDS.items():
        if media_type.endswith(form):
            return OCI_LAYER + suffix
    return OCI_LAYER
