"""A remote snapshotter: what containerd need not download and unpack, since orlop has it or fetches it.

containerd asks for an active snapshot to unpack a layer into, and says by the label
``containerd.io/snapshot.ref`` what it will be committed as: the chain ID of the image's layers up to that
one.  Where orlop has the layer, or can fetch it by what containerd's CRI plugin says in labels (the image's
reference and the blob's digest), a committed snapshot of that name is made of the layer itself, and
containerd skips it.

That name is not believed: a chain ID follows from diff IDs, and diff IDs are computed by orlop.  So a layer
is taken only if the chain ID of all layers, those of the parent and this one, is the name.  Whatever is
missing, wrong or unreachable means no: then containerd fetches and unpacks for itself.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence

from orlop.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Error,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from orlop.images.core import Core, Lease
from orlop.images.snapshots import LABEL_REF
from orlop.images.snapshotting import names
from orlop.images.snapshotting.arrival import Arrivals
from orlop.images.transfer.ingest import LayerIngest
from orlop.metadata import layers as layer_rows
from orlop.metadata import snapshots as rows
from orlop.metadata.db import Transaction
from orlop.metadata.snapshots import SnapshotRow
from orlop.observe import Call, reached
from orlop.spec.digest import DiffID, Digest, chain_id

__all__ = ["LABEL_DIGEST", "LABEL_IMAGE", "LABEL_MANIFEST", "Remote"]

LABEL_IMAGE = "containerd.io/snapshot/cri.image-ref"
LABEL_MANIFEST = "containerd.io/snapshot/cri.manifest-digest"
LABEL_DIGEST = "containerd.io/snapshot/cri.layer-digest"
MOST_CANDIDATES = 10_000
GIVEN_UP = 60.0  # seconds for which an image is not asked for again once that failed: containerd does it
_MOST_GIVEN_UP = 1_000

_log = logging.getLogger(__name__)


class Remote:
    """Makes committed snapshots of layers, in one store.  Thread-safe."""

    def __init__(self, core: Core, ingest: LayerIngest) -> None:
        self._core = core
        self._arrivals = Arrivals(core, ingest)
        self._given_up: dict[str, float] = {}  # images, and when that was

    def offer(
        self, namespace: str, key: str, parent: str, labels: Mapping[str, str], what: str, *, call: Call
    ) -> bool:
        """Whether there is now a committed snapshot of what ``labels`` ask for, on ``parent``.

        Its name is of the same kind as ``key``, which the client wants to unpack into.
        Raises `NotFound` or `InvalidArgument` for a parent that is not there or not committed.
        """
        try:
            target = Digest(labels[LABEL_REF])
        except InvalidArgument:
            return False  # some other client's name: nothing that follows from layers
        name = names.beside(key, target)
        within = names.parents_namespace(namespace, key, parent)

        def look(tx: Transaction) -> tuple[SnapshotRow | None, tuple[DiffID, ...], SnapshotRow | None]:
            under = rows.require_parent(tx, within, parent, what) if parent else None
            below = rows.layers_of(tx, under.id) if under is not None and not under.has_folder else ()
            return under, below, rows.find_snapshot(tx, namespace, name)

        under, below, known = self._core.db.read(look)
        if known is not None:
            same = known.kind == "committed" and known.labels.get(LABEL_REF) == target
            return same and known.parent == (under.id if under else None)
        if under is not None and not below:
            return False  # it stands on folders
        if self._core.choose(self._core.settings.driver).name != "erofs":
            return False
        try:
            with self._core.lease(what) as lease:
                layer = self._have(target, below, labels, lease) or self._fetch(
                    target, below, labels, lease, call
                )
                if layer is None:
                    return False
                row = self._row(namespace, name, under, (*below, layer), labels)
                self._core.db.write(lambda tx: self._name(tx, row, (*below, layer), what), call=call)
                reached("snapshot.offered")
                return True
        except AlreadyExists:
            return self.offer(namespace, key, parent, labels, what, call=call)  # another call was faster
        except (Cancelled, DeadlineExceeded):
            raise
        except Error as exc:
            _log.warning("%s: %s is left to containerd: %s", what, target, exc)
            return False

    # -- finding the layer ----------------------------------------------------------------------

    def _have(
        self, target: Digest, below: Sequence[DiffID], labels: Mapping[str, str], lease: Lease
    ) -> DiffID | None:
        """The layer, if the store has it; on the lease then."""

        def body(tx: Transaction) -> DiffID | None:
            found: list[DiffID] = []
            digest = _digest(labels)
            blob = layer_rows.layer_of_blob(tx, digest) if digest is not None else None
            if blob is not None:
                found.append(blob.diff_id)
            if not below:  # the chain ID of one layer is its diff ID
                found.append(DiffID(target))
            found += rows.candidates(tx, below, most=MOST_CANDIDATES)
            for diff_id in found:
                if chain_id((*below, diff_id)) == target:
                    return diff_id if layer_rows.get_layer(tx, diff_id) is not None else None
            return None

        found = self._core.db.read(body)
        if found is None:
            return None
        lease.keep(("layer", found))
        there = self._core.db.read(lambda tx: layer_rows.get_layer(tx, found))
        return found if there is not None else None

    def _fetch(
        self,
        target: Digest,
        below: Sequence[DiffID],
        labels: Mapping[str, str],
        lease: Lease,
        call: Call,
    ) -> DiffID | None:
        """The layer, fetched by what the labels say; on the lease then."""
        digest, image, manifest = _digest(labels), labels.get(LABEL_IMAGE), labels.get(LABEL_MANIFEST, "")
        if digest is None or not image or time.monotonic() - self._given_up.get(image, -GIVEN_UP) < GIVEN_UP:
            return None

        def expected(diff_id: DiffID) -> bool:
            return chain_id((*below, diff_id)) == target

        try:
            return self._arrivals.fetch(
                image,
                manifest,
                digest,
                position=len(below),
                expected=expected,
                lease=lease,
                call=call,
            )
        except (Unavailable, Unauthenticated, PermissionDenied):
            if len(self._given_up) >= _MOST_GIVEN_UP:
                self._given_up.clear()
            self._given_up[image] = time.monotonic()
            raise

    # -- naming it ------------------------------------------------------------------------------

    def _row(
        self,
        namespace: str,
        name: str,
        under: SnapshotRow | None,
        layers: Sequence[DiffID],
        labels: Mapping[str, str],
    ) -> SnapshotRow:
        found = self._core.db.read(lambda tx: layer_rows.get_layer(tx, layers[-1]))
        now = time.time_ns()
        return SnapshotRow(
            id=secrets.token_hex(8),
            namespace=namespace,
            key=name,
            kind="committed",
            created=now,
            updated=now,
            parent=under.id if under else None,
            parent_key=under.key if under else "",
            has_folder=False,
            chain=chain_id(layers).hex,
            labels=labels,
            size=found.disk if found else 0,
            inodes=found.entries if found else 0,
        )

    @staticmethod
    def _name(tx: Transaction, row: SnapshotRow, layers: Sequence[DiffID], what: str) -> None:
        within = names.parents_namespace(row.namespace, row.key, row.parent_key)
        if row.parent is not None and rows.require_parent(tx, within, row.parent_key, what).id != row.parent:
            raise Aborted(what, "the parent was removed meanwhile")
        if any(layer_rows.get_layer(tx, layer) is None for layer in layers):
            raise Aborted(what, "a layer was removed meanwhile")
        rows.add_snapshot(tx, row, what, layers)


def _digest(labels: Mapping[str, str]) -> Digest | None:
    try:
        return Digest(labels.get(LABEL_DIGEST, ""))
    except InvalidArgument:
        return None
