"""Capture: what changed below a prepared root becomes a layer on disk.

Only the upper is read; nothing is compressed.  The tar is hashed and indexed while it is written, so the
diff ID is known with its last byte.  Commits, forks and checkpoints all begin here.
Not here: configs, images, and who goes on needing the layer (the caller's lease holds it until then).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orlop.errors import from_oserror
from orlop.images.chains import Chains
from orlop.images.core import Core, Lease
from orlop.images.prepared.grounds import Grounds
from orlop.images.space import needing
from orlop.images.transfer.publish import publish
from orlop.layers.chainview import ChainView
from orlop.layers.changes import Change, MovedAway
from orlop.layers.diff import Again, Upper, changes
from orlop.layers.excludes import Excludes
from orlop.layers.layerwrite import least_size, write_layer
from orlop.layers.reshape import clamped, rebased, squashed
from orlop.metadata import layers
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call, Steps, reached, stepped
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = ["AS_IT_IS", "Capture", "Shape"]

_LOOKS = 3  # at a whole upper in which files go away while they are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a layer is to be made of the changes: all of them as they are, unless something else is said.

    ``newest`` is what later times become (seconds since 1970); ``base`` the chain that the layer is for,
    where that is not the root's own; ``squash`` asks for all of the tree.
    """

    excludes: Excludes | None = None
    newest: int | None = None
    base: Sequence[ChainRow] | None = None
    squash: bool = False


AS_IT_IS = Shape()


class Capture:
    """Captures roots of one store.  Thread-safe; the caller holds the lock of the root's path."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds) -> None:
        self._core = core
        self._chains = chains
        self._grounds = grounds

    @stepped("capture")
    def layer(self, root: RootRow, lease: Lease, call: Call, *, shape: Shape = AS_IT_IS) -> DiffID | None:
        """The upper of a root as a layer that is durable and under ``lease``; None if nothing changed."""
        if root.quota is not None:
            self._grounds.mount_disk(root, call)
        upper_path, kind = self._grounds.upper(root)
        stack = self._grounds.stack(root, call)
        try:
            upper = os.open(upper_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror("commit", exc) from exc
        try:
            with self._chains.view(stack) as view, self._chains.view(shape.base or ()) as base:
                source = _Source(
                    upper=upper,
                    kind=kind,
                    view=view,
                    devices=[self._chains.devices(row) for row in stack],
                    base=base if shape.base is not None else view,
                    base_devices=[self._chains.devices(row) for row in shape.base or ()],
                )
                for left in reversed(range(_LOOKS)):
                    try:
                        return self._write(source, root, lease, shape, last=not left, call=call)
                    except MovedAway:
                        if not left:
                            raise
            raise AssertionError("the last look ends by itself")
        except OSError as exc:
            raise from_oserror("commit", exc) from exc
        finally:
            os.close(upper)

    def _write(
        self, source: _Source, root: RootRow, lease: Lease, shape: Shape, *, last: bool, call: Call
    ) -> DiffID | None:
        """One look at all of an upper.  Raises `MovedAway` unless it is the ``last``."""
        core = self._core
        found = source.found(shape, call)
        if not found:
            return None
        least = least_size(found)
        with needing(core.layout.root, least, f"commit {root.path}"), core.layers.new() as new:
            written = write_layer(
                found,
                source.upper,
                new.tar,
                source.view,
                source.devices,
                again=Again(source.view, source.kind, newest=shape.newest),
                others={source.base: source.base_devices} if source.base is not source.view else None,
                drop=last,
                write_back=core.sync.durable,
                written=Steps(call, root.path, "reading", total=least).at,
                call=call,
            )
            reached("commit.written")
            diff_id, encoded = written.diff_id, written.index.encode()
            with core.locked("layer", diff_id.hex, call=call, attempted="commit"):
                if not self._keep(diff_id, lease, call):
                    row = publish(
                        core,
                        new,
                        diff_id=diff_id,
                        index=written.index,
                        encoded=encoded,
                        tar_size=written.size,
                    )
                    self._keep(diff_id, lease, call, row)
                    reached("commit.named")
            return diff_id

    def _keep(self, diff_id: DiffID, lease: Lease, call: Call, row: LayerRow | None = None) -> bool:
        """Put a lease on a layer, after naming it if ``row`` is given; whether it is there."""

        def body(tx: Transaction) -> bool:
            if row is not None:
                layers.add_layer(tx, row)
            if layers.get_layer(tx, diff_id) is None:
                return False
            lease.add(tx, "layer", diff_id)
            return True

        lease.mark_used()
        return self._core.db.write(body, call=call)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What is read: an upper, the chain below it, and the chain that its changes are for."""

    upper: int
    kind: Upper
    view: ChainView
    devices: Sequence[Sequence[Path]]
    base: ChainView
    base_devices: Sequence[Sequence[Path]]

    def found(self, shape: Shape, call: Call) -> list[Change]:
        """The entries of the layer to be."""
        found = changes(
            self.upper, self.view, self.devices, kind=self.kind, excludes=shape.excludes, call=call
        )
        if self.base is not self.view:
            found = rebased(found, self.view, self.base)
        if shape.squash:
            found = squashed(found, self.base)
        return clamped(found, shape.newest) if shape.newest is not None else found
