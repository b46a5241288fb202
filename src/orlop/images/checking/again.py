"""Content from where it came, once more: layers from kept blobs and registries, documents from registries.

The normal way in (`orlop.images.transfer.ingest`), so every byte is verified and durable before it is named;
only that the store has a row already does not count, and what stands in the place goes to quarantine.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator

from orlop.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    InvalidArgument,
    NotFound,
)
from orlop.images.checking.deep import opened
from orlop.images.checking.quarantine import Quarantine
from orlop.images.core import Core, Lease
from orlop.images.space import needing
from orlop.images.transfer.ingest import BlobLayer, LayerIngest
from orlop.images.transfer.plainblobs import complete
from orlop.images.transfer.sources import SourceGone, from_registry
from orlop.layers.store import NewLayer
from orlop.layers.worker.client import Unpacked
from orlop.metadata import checks, layers
from orlop.metadata.checks import Origin
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import OCI_CONFIG, Descriptor
from orlop.spec.reference import Reference

__all__ = ["BLOB", "Fetcher", "Missed"]

BLOB = "the blob that it came as"
# What says for good that a source has not got the bytes; all else may be otherwise tomorrow.
_HOPELESS = (NotFound, DataLoss, InvalidArgument)


class Missed(Exception):
    """Nobody gave the content.  ``later`` says that somebody might another time."""

    def __init__(self, reasons: list[str], *, later: bool) -> None:
        super().__init__("; ".join(reasons) or "it is not known where it came from")
        self.later = later


class _Anew(LayerIngest):
    """Brings in layers that the store has, or had; remembers the rows of what it brought."""

    def __init__(self, core: Core, aside: Callable[[DiffID], None]) -> None:
        super().__init__(core)
        self._aside = aside
        self.rows: list[LayerRow] = []

    def _keep_present(
        self, wanted: list[BlobLayer], call: Call, lease: Lease, ref: Reference | None = None
    ) -> list[BlobLayer]:
        """What is there counts if its bytes do: another repair may have been faster."""
        lease.keep(*(("layer", layer.diff_id) for layer in wanted))
        return [layer for layer in wanted if not self._is_whole(layer.diff_id, call)]

    def _is_whole(self, diff_id: DiffID, call: Call) -> bool:
        if self._core.db.read(lambda tx: layers.get_layer(tx, diff_id)) is None:
            return False
        hasher, folder = diff_id.hasher(), self._core.layers.path(diff_id)
        try:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                return False
            with opened(folder / "layer.tar", os.O_RDONLY | os.O_NONBLOCK) as fd:
                while data := os.read(fd, 1 << 20):
                    call.check("repair layer")
                    hasher.update(data)
        except OSError:
            return False  # gone, a link, or not to be read
        return hasher.hexdigest() == diff_id.hex

    def publish(self, new: NewLayer, unpacked: Unpacked) -> LayerRow:
        """Put the layer in its place, after what is there was moved out of it."""
        row = LayerRow(
            diff_id=unpacked.diff_id,
            size=unpacked.tar_size,
            data_size=new.complete(unpacked.index, unpacked.encoded),
            index_size=len(unpacked.encoded),
            entries=len(unpacked.index),
        )
        self._aside(unpacked.diff_id)
        self._core.layers.publish(new, unpacked.diff_id)
        self.rows.append(row)
        return row


class Fetcher:
    """Gets content again for one store.  Raises `Missed` where that cannot be done."""

    def __init__(self, core: Core, quarantine: Quarantine) -> None:
        self._core = core
        self._quarantine = quarantine

    # -- layers ---------------------------------------------------------------------------------

    def layer(self, diff_id: DiffID, why: str, *, call: Call) -> str:
        """Bring a layer in again, whole and named; says from where (or `BLOB`).  Takes its locks."""
        core = self._core
        anew = _Anew(core, lambda lost: self._put_aside(lost, why))
        tried = _Tried()
        with core.lease(f"fetch layer {diff_id} again") as lease:
            for blob in core.db.read(lambda tx: layers.blobs_of_layer(tx, diff_id)):
                layer = BlobLayer(
                    digest=blob.digest, size=blob.size, media_type=blob.media_type, diff_id=diff_id
                )
                found = tried(lambda layer=layer: self._from_blob(anew, layer, call, lease))  # type: ignore[misc]  # bound now
                for ref in () if found else self._sources(blob):
                    found = tried(lambda ref=ref, layer=layer: self._from(anew, ref, layer, call, lease))  # type: ignore[misc]  # bound now
                    if found:
                        break
                if found and anew.rows:
                    self._update(anew.rows[-1], call)
                if found:
                    return found
        raise Missed(tried.reasons, later=tried.later)

    def _update(self, row: LayerRow, call: Call) -> None:
        def body(tx: Transaction) -> None:
            checks.update_layer(tx, row)
            checks.set_checked(tx, row.diff_id, time.time())

        self._core.db.write(body, call=call)

    def _put_aside(self, diff_id: DiffID, why: str) -> None:
        self._quarantine.move(self._core.layers.path(diff_id), f"layer-{diff_id.hex[:12]}", why)

    def _from_blob(self, anew: _Anew, layer: BlobLayer, call: Call, lease: Lease) -> str:
        path = self._core.blobs.path(layer.digest)
        if not os.path.isfile(path) or os.path.islink(path):
            return ""
        with opened(path) as fd:
            anew.read_file(fd, layer, call=call, lease=lease)
        return BLOB

    @staticmethod
    def _from(anew: _Anew, ref: Reference, layer: BlobLayer, call: Call, lease: Lease) -> str:
        anew.fetch_all(ref, [layer], call=call, lease=lease)
        return ref.name

    def _sources(self, blob: LayerBlob) -> Iterator[Reference]:
        for registry, repository in self._core.db.read(lambda tx: layers.sources_of(tx, blob.digest)):
            yield Reference(registry=registry, repository=repository, digest=blob.digest)

    # -- documents ------------------------------------------------------------------------------

    def document(self, digest: Digest, origin: Origin, why: str, *, call: Call) -> str:
        """Bring a config or manifest in again, whole and named; says from where.  Takes its lock."""
        core = self._core
        tried = _Tried()
        if origin.manifest is None and origin.size > core.settings.limits.config_size:
            for ref in _refs(digest, origin):
                if tried(lambda ref=ref: self._plain(ref, digest, origin.size, why, call)):  # type: ignore[misc]  # bound now
                    return ref.name
            raise Missed(tried.reasons, later=tried.later)
        for ref in _refs(digest, origin):
            data: list[bytes] = []
            if not tried(lambda ref=ref, data=data: self._document(ref, digest, origin, data, call)):  # type: ignore[misc]  # bound now
                continue

            def body(tx: Transaction, size: int = len(data[0])) -> None:
                layers.add_blob(tx, digest, size)
                checks.update_blob(tx, digest, size)

            with core.locked("blob", digest.hex, call=call, attempted=f"repair blob {digest}"):
                self._quarantine.move(core.blobs.path(digest), f"blob-{digest.hex[:12]}", why)
                core.blobs.write(digest, data[0])
                core.db.write(body, call=call)
            return ref.name
        raise Missed(tried.reasons, later=tried.later)

    def _plain(self, ref: Reference, digest: Digest, size: int, why: str, call: Call) -> str:
        """A blob of an index that is too large to be a document."""
        core, what = self._core, f"fetch blob {digest} of {ref.name}"
        source = from_registry(
            core.registry, ref, digest, size=size, retries=core.settings.retries, call=call
        )

        def body(tx: Transaction) -> None:
            layers.add_blob(tx, digest, size)
            checks.update_blob(tx, digest, size)

        with (
            core.locked("blob", digest.hex, call=call, attempted=f"repair blob {digest}"),
            needing(core.layout.root, size, what),
            core.blobs.ingest(digest) as ingest,
        ):
            try:
                complete(ingest, source, digest, size, what, call)
            except SourceGone as gone:
                raise gone.error from gone
            self._quarantine.move(core.blobs.path(digest), f"blob-{digest.hex[:12]}", why)
            ingest.publish()
            core.db.write(body, call=call)
        return ref.name

    def _document(self, ref: Reference, digest: Digest, origin: Origin, data: list[bytes], call: Call) -> str:
        descriptor = Descriptor(
            media_type=origin.manifest or OCI_CONFIG, digest=str(digest), size=origin.size
        )
        registry = self._core.registry
        if origin.manifest is None:
            data.append(registry.blob(ref, descriptor, call=call))
        elif origin.size:
            data.append(registry.manifest(ref, descriptor, call=call))
        else:
            data.append(registry.resolve(ref.with_digest(digest), call=call).data)
        return ref.name


def _refs(digest: Digest, origin: Origin) -> list[Reference]:
    """Where to ask for a document, each place once: images made here have no registry."""
    refs = [Reference.parse(name) for name in origin.names]
    refs += [Reference(registry=registry, repository=name) for registry, name in origin.repositories]
    places = {ref.name: ref.with_digest(digest) for ref in refs if ref.registry != "localhost"}
    return list(places.values())


class _Tried:
    """Tries one source after the other; remembers why each failed."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.later = False

    def __call__(self, attempt: Callable[[], str]) -> str:
        try:
            return attempt()
        except (Cancelled, DeadlineExceeded):
            raise
        except Error as exc:
            self.reasons.append(f"{exc.attempted}: {exc.reason}")
            self.later = self.later or not isinstance(exc, _HOPELESS)
            return ""
