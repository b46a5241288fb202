"""Which of an image's layers are in the store already, and what is remembered of them.

Nothing is fetched here; `orlop.images.transfer.ingest` brings in what is missing.
"""

from __future__ import annotations

from orlop.errors import Error
from orlop.images.core import Core, Lease
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.observe import Call, Progress, count
from orlop.spec.digest import DiffID, Digest
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["BlobLayer", "Present"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLayer:
    """A layer as an image's manifest and config describe it together.

    ``urls`` are where it may be had if its registry has it not; empty unless the settings allow that.
    """

    digest: Digest
    size: int
    media_type: str
    diff_id: DiffID
    urls: tuple[str, ...] = ()


class Present:
    """The layers of one store that are there.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def tell_kept(self, failure: Error, missing: list[BlobLayer]) -> None:
        """Say in an error how much of what was to be fetched is there, to go on from."""
        blobs = self._core.blobs
        kept = sum(
            layer.size if self.has(layer) else min(blobs.bytes_of_ingest(layer.digest), layer.size)
            for layer in missing
        )
        failure.details.update(kept=str(kept), wanted=str(sum(layer.size for layer in missing)))
        if kept and not failure.hint:
            failure.hint = "what was fetched is kept: the next pull goes on from there"

    def least_size(self, wanted: list[BlobLayer]) -> int:
        """The bytes that the layers of a list which are not there will take, at least."""

        def body(tx: Transaction) -> int:
            distinct = {layer.diff_id: layer.size for layer in wanted}
            return sum(size for diff_id, size in distinct.items() if layers.get_layer(tx, diff_id) is None)

        return self._core.db.read(body)

    def remember_source(self, ref: Reference, present: list[BlobLayer], call: Call) -> None:
        """Blobs of layers that were there before, and that are known, are at ``ref``, too."""

        def new(tx: Transaction) -> list[BlobLayer]:
            where = (ref.registry, ref.repository)
            return [
                layer
                for layer in present
                if any(blob.digest == layer.digest for blob in layers.blobs_of_layer(tx, layer.diff_id))
                and where not in layers.sources_of(tx, layer.digest)
            ]

        def body(tx: Transaction) -> None:
            for layer in new(tx):
                layers.add_source(tx, layer.digest, ref.registry, ref.repository)

        if present and self._core.db.read(new):
            self._core.db.write(body, call=call)

    def has(self, layer: BlobLayer) -> bool:
        """Whether a layer is in the store."""
        return self._core.db.read(lambda tx: layers.get_layer(tx, layer.diff_id)) is not None

    def keep(self, wanted: list[BlobLayer], call: Call, lease: Lease) -> list[BlobLayer]:
        """Put a lease on the layers that are there; returns the others.

        That a layer which is there also comes as the blob of this manifest is not remembered: nobody has
        looked, and a push must not name a blob for it that a stranger made up.
        """

        def body(tx: Transaction) -> list[BlobLayer]:
            missing: list[BlobLayer] = []
            for layer in wanted:
                if layers.get_layer(tx, layer.diff_id) is None:
                    missing.append(layer)
                else:
                    lease.add(tx, "layer", layer.diff_id)
            return missing

        missing = wanted
        if self._core.db.read(
            lambda tx: any(layers.get_layer(tx, layer.diff_id) is not None for layer in wanted)
        ):
            lease.mark_used()
            missing = self._core.db.write(body, call=call)
        gone = {layer.diff_id for layer in missing}
        for layer in wanted:
            if layer.diff_id not in gone:
                call.observer.progress(
                    Progress(item=layer.digest, phase="exists", done=layer.size, total=layer.size, rate=0.0)
                )
                count("layers_reused")
        return missing
