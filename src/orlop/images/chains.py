"""Chains: what lists of layers look like, ready to mount; built when first needed.

A chain is a stack of EROFS images, usually one or two.  Which layers an image covers is decided once, when
it is built, and remembered in its row:

- layers with, together, less than an eighth of the entries below them become one small top above the
  chain of the layers below, so that images with one base share its page cache and a small commit costs
  what it changed;
- otherwise all layers are merged into one image.

An existing chain of the lower layers is used where it fits the rule, the longest first, so a commit on a
commit adds one image; a stack is never higher than eight: there the last small tops become one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from orlop.errors import Aborted, DataLoss, FailedPrecondition, NotFound, from_oserror
from orlop.hints import TYPE_CHECKING
from orlop.images.ahead import Ahead, Rendered
from orlop.images.core import Core
from orlop.images.space import check_room
from orlop.layers.chainview import ChainView
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import LayerIndex
from orlop.layers.nocycles import no_cycles
from orlop.linux.files import write_durably
from orlop.metadata import layers as layer_rows
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.metadata.layers import LayerRow
from orlop.metadata.roots import ChainRow
from orlop.observe import Call, Progress, reached, stepped
from orlop.snapshots.driver import ChainImage
from orlop.spec.digest import DiffID, chain_id, chain_ids

if TYPE_CHECKING:
    from orlop.images.sketches import Sketches
    from orlop.layers.merge import Merger

__all__ = ["Chains"]

MAX_DEPTH = 8
FRESH = 4  # images that one Prepare stacks: of 500 small layers it would be 28, each with all names below it
SMALL = 8  # a top is small if it has less than an eighth of the entries below it
WRITER_VERSION = 1  # part of every UUID: raise it with any change of the bytes that we write
_NO_INDEXES: Mapping[DiffID, LayerIndex] = {}
_KNOWN_IMAGES = 1_000
DepthOf = Callable[[Transaction, str], int | None]


def _depth_of(tx: Transaction, name: str) -> int | None:
    row = roots.get_chain(tx, name)
    return row.depth if row is not None else None


class Chains:
    """The chains of one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._images: dict[str, tuple[ChainRow, ChainImage]] = {}  # a chain may have hundreds of devices
        self._sketches: Sketches | None = None

    def file(self, name: str) -> Path:
        """The EROFS image of a chain."""
        return self._core.layout.chains / f"{name}.erofs"

    def image(self, row: ChainRow) -> ChainImage:
        """A row as what the driver mounts."""
        known = self._images.get(row.id)
        if known is not None and (known[0] is row or known[0] == row):
            return known[1]
        image = ChainImage(id=row.id, file=self.file(row.id), uuid=row.uuid, devices=self.devices(row))
        if len(self._images) >= _KNOWN_IMAGES:
            self._images.clear()
        self._images[row.id] = row, image
        return image

    def devices(self, row: ChainRow) -> tuple[Path, ...]:
        """The files that an image's device numbers mean, in order."""
        layers = self._core.layers
        return tuple(
            layers.data(diff_id) if kind == "data" else layers.tar(diff_id) for diff_id, kind in row.devices
        )

    def view(self, stack: Sequence[ChainRow]) -> ChainView:
        """The chain, to be read without mounting it."""
        return ChainView.open([self.file(row.id) for row in stack])

    @property
    def sketches(self) -> Sketches:
        """The chains that are only looked at."""
        if self._sketches is None:
            from orlop.images.sketches import Sketches

            self._sketches = Sketches(self)
        return self._sketches

    def stack(self, name: str) -> list[ChainRow]:
        """A chain's images, top first; empty unless all are there."""
        rows = self._core.db.read(lambda tx: roots.chain_stack(tx, name))
        return rows if all(self.file(row.id).exists() for row in rows) else []

    @stepped("chain")
    def ensure(
        self,
        diff_ids: Sequence[DiffID],
        *,
        call: Call,
        whole: bool = False,
        indexes: Mapping[DiffID, LayerIndex] = _NO_INDEXES,
        room: int = MAX_DEPTH,
    ) -> list[ChainRow]:
        """The chain of some layers, bottom first, built if it is not there; its images, top first.

        ``whole`` asks for one image, whatever the sizes.  ``indexes`` are those at hand already.  Of what is
        built now no stack is higher than ``room``, but where a row remembers its shape.
        Raises `NotFound` if the store lacks a layer, `InvalidArgument` where the layers contradict
        one another.
        """
        name = self.name(diff_ids, whole=whole)
        stack = self.stack(name)
        if stack:
            return stack
        known = self._core.db.read(lambda tx: roots.get_chain(tx, name))
        if known is not None:  # only the file is gone: it comes back in the same shape
            parent = known.parent
            below = len(self._core.db.read(lambda tx: roots.chain_layers(tx, parent))) if parent else 0
        else:
            below = 0 if whole else self.plan(self.rows(diff_ids), room)
        parent_stack: list[ChainRow] = []
        if below:
            parent_stack = self.ensure(diff_ids[:below], call=call, indexes=indexes, room=room - 1)
        from orlop.layers.merge import LowerLinkError  # late: a commit builds none

        try:
            self._build(name, diff_ids, below, parent_stack, indexes, call)
        except LowerLinkError:
            self._build(name, diff_ids, 0, [], indexes, call)
        stack = self.stack(name)
        if not stack:
            raise Aborted(f"build chain {name[:12]}", "it was collected at once; try again")
        return stack

    def ensure_each(self, diff_ids: Sequence[DiffID], *, call: Call) -> list[ChainRow]:
        """An image for each of some layers, as overlayfs stacks it on those below; bottom first.

        Apart from the chains that roots stand on: no plan shapes these, and their names end in ``-each``.
        Raises as `ensure` does, and `FailedPrecondition` for a layer that overlayfs cannot show so.
        """
        from orlop.layers.merge import LowerLinkError

        found: list[ChainRow] = []
        for count in range(1, len(diff_ids) + 1):
            part = diff_ids[:count]
            name = f"{self.name(part, whole=False)}-each"
            if not (stack := self.stack(name)):
                try:
                    self._build(name, part, count - 1, found[::-1], _NO_INDEXES, call)
                except LowerLinkError as exc:
                    raise FailedPrecondition(
                        f"show layer {diff_ids[count - 1]} by itself",
                        "it has a hard link to a file of a lower layer",
                    ) from exc
                stack = self.stack(name)
            if len(stack) != count:
                raise Aborted(f"build chain {name[:12]}", "it was collected at once; try again")
            found.append(stack[0])
        return found

    def ahead(self, *, whole: bool, meanwhile: Callable[[], None], call: Call) -> Ahead:
        """For a pull whose chain `ensure` will be asked for with ``whole``, and with this as its indexes."""

        def make(
            diff_ids: Sequence[DiffID], indexes: Mapping[DiffID, LayerIndex], call: Call
        ) -> Rendered | None:
            return self._foresee(diff_ids, indexes, whole=whole, call=call)

        return Ahead(make, self._missing, meanwhile=meanwhile, call=call)

    def _missing(self, diff_ids: Sequence[DiffID]) -> set[DiffID]:
        """Those layers that the store does not have."""
        return self._core.db.read(
            lambda tx: {diff_id for diff_id in diff_ids if layer_rows.get_layer(tx, diff_id) is None}
        )

    def _foresee(
        self, diff_ids: Sequence[DiffID], indexes: Mapping[DiffID, LayerIndex], *, whole: bool, call: Call
    ) -> Rendered | None:
        """The lowest image that `ensure` will build when the layers are there; None where one is there."""
        rows = self.rows(diff_ids, coming=indexes)
        room, name = MAX_DEPTH, self.name(diff_ids, whole=whole)
        while True:
            if self._core.db.read(partial(roots.get_chain, chain=name)) is not None:
                return None
            below = 0 if whole else self.plan(rows, room)
            if not below:
                with no_cycles():
                    return self.render(name, rows, 0, [], indexes, call)
            rows, room = rows[:below], room - 1
            name = self.name([row.diff_id for row in rows], whole=False)

    @staticmethod
    def name(diff_ids: Sequence[DiffID], *, whole: bool = False) -> str:
        """The ID of the chain of some layers."""
        if not diff_ids:
            return "empty"
        return chain_id(diff_ids).hex + ("-whole" if whole else "")

    def plan(self, rows: Sequence[LayerRow], room: int, *, depth_of: DepthOf = _depth_of) -> int:
        """How many of the lowest layers the new image lies on; 0 to merge all.

        The stack may be as high as ``room``; the last of `FRESH` new images merges what is below.
        ``depth_of`` tells how high a chain is that is there already, and None for one that is not.
        """
        entries = [row.entries for row in rows]
        total = sum(entries)
        of_each = chain_ids([row.diff_id for row in rows])  # of the lowest layer, of the lowest two, ...
        names = [name.hex for name in of_each]

        def body(tx: Transaction) -> int:
            above = best = 0
            for below in range(len(rows) - 1, 0, -1):
                above += entries[below]
                if above * SMALL >= total - above:
                    break
                depth = depth_of(tx, names[below - 1])
                if depth is not None and depth < room:
                    return below
                if depth is None:
                    best = below
            return best if room > MAX_DEPTH - FRESH + 1 else 0

        return self._core.db.read(body)

    def rows(
        self, diff_ids: Sequence[DiffID], *, coming: Mapping[DiffID, LayerIndex] = _NO_INDEXES
    ) -> list[LayerRow]:
        """The rows of layers; of those that are ``coming``, as they will be."""

        def body(tx: Transaction) -> list[LayerRow]:
            found: list[LayerRow] = []
            for diff_id in diff_ids:
                row = layer_rows.get_layer(tx, diff_id)
                if row is None and diff_id in coming:
                    row = _row_to_be(diff_id, coming[diff_id])
                if row is None:
                    raise NotFound(
                        f"read layer {diff_id}", "the store does not have it", hint="pull the image again"
                    )
                found.append(row)
            return found

        return self._core.db.read(body)

    def _build(
        self,
        name: str,
        diff_ids: Sequence[DiffID],
        below: int,
        parent: Sequence[ChainRow],
        indexes: Mapping[DiffID, LayerIndex],
        call: Call,
    ) -> None:
        with self._core.locked("chain", name, call=call, attempted=f"build chain {name[:12]}"):
            if self.stack(name):
                return
            item = f"chain {name[:12]}"
            call.observer.progress(Progress(item=item, phase="merging"))
            made = indexes.take(name) if isinstance(indexes, Ahead) and not below else None
            if made is None:
                with no_cycles():
                    made = self.render(name, self.rows(diff_ids), below, parent, indexes, call)
            row, image, warnings = made
            for warning in warnings[:20]:
                call.observer.warning(warning)
            self._publish(row, diff_ids, image, call)
            call.observer.progress(Progress(item=item, phase="done", done=len(image), total=len(image)))

    def again(self, row: ChainRow, *, call: Call) -> tuple[ChainRow, bytearray]:
        """What the image of a row is when it is made now of its layers, in the shape that the row remembers.

        Raises `NotFound` or `DataLoss` where a layer, its index or the image below is lost or bad.
        """
        parent_id = row.parent
        parent = self.stack(parent_id) if parent_id is not None else []
        if parent_id is not None and not parent:
            raise DataLoss(f"build chain {row.id[:12]}", f"the image below, {parent_id[:12]}, is not there")
        diff_ids = self._core.db.read(lambda tx: roots.chain_layers(tx, row.id))
        below = len(self._core.db.read(lambda tx: roots.chain_layers(tx, parent_id))) if parent_id else 0
        found, image, _ = self.render(row.id, self.rows(diff_ids), below, parent, {}, call)
        return found, image

    def render(
        self,
        name: str,
        rows: Sequence[LayerRow],
        below: int,
        parent: Sequence[ChainRow],
        indexes: Mapping[DiffID, LayerIndex],
        call: Call,
        *,
        below_view: Callable[[], ChainView] | None = None,
    ) -> Rendered:
        """An image, its row and warnings: the same for the same layers.  ``below_view`` opens the parent."""
        from orlop.erofs.writer import build
        from orlop.layers.merge import Merger

        diff_ids = [row.diff_id for row in rows]
        if parent:
            with below_view() if below_view is not None else self.view(parent) as view:
                merger, devices = self._merge(diff_ids[below:], Merger(below=view), indexes, call)
        else:
            merger, devices = self._merge(diff_ids, Merger(), indexes, call)
        sizes = {row.diff_id: row for row in rows}
        uuid = _uuid(name, parent[0].id if parent else "")
        image = build(
            merger.finish(),
            devices=[
                sizes[diff_id].data_size if kind == "data" else sizes[diff_id].size
                for diff_id, kind in devices
            ],
            uuid=uuid,
        )
        row = ChainRow(
            id=name,
            parent=parent[0].id if parent else None,
            depth=(parent[0].depth if parent else 0) + 1,
            entries=sum(row.entries for row in rows),
            size=len(image),
            uuid=uuid,
            devices=tuple(devices),
        )
        return row, image, list(merger.warnings)

    def _merge(
        self,
        diff_ids: Sequence[DiffID],
        merger: Merger,
        indexes: Mapping[DiffID, LayerIndex],
        call: Call,
    ) -> tuple[Merger, list[tuple[DiffID, str]]]:
        devices: dict[tuple[DiffID, str], int] = {}  # asked for each file, so no list to look through
        for diff_id in diff_ids:
            call.check("build chain")
            index = indexes.get(diff_id) or self._core.layers.load_index(diff_id)

            def device(data: bool, diff_id: DiffID = diff_id) -> int:
                wanted = (diff_id, "data" if data else "tar")
                return devices.setdefault(wanted, len(devices) + 1)

            merger.apply(index, device, DataLayout(index))
        return merger, list(devices)

    def _publish(self, row: ChainRow, diff_ids: Sequence[DiffID], image: bytearray, call: Call) -> None:
        what = f"build chain {row.id[:12]}"
        known = self._core.db.read(lambda tx: roots.get_chain(tx, row.id))
        if known is not None:
            same = (known.uuid, known.devices, known.size) == (row.uuid, row.devices, row.size)
            # Overlays remember the image's UUID and inode numbers in their uppers.
            if not same and self._core.db.read(lambda tx: roots.chain_users(tx, row.id)):
                raise DataLoss(what, "it is lost, and cannot be rebuilt as the prepared roots on it knew it")
        try:
            check_room(self._core.layout.root, len(image), what)
            write_durably(self.file(row.id), image, sync=self._core.sync)
        except OSError as exc:
            raise from_oserror(what, exc) from exc
        reached("chain.written")

        def body(tx: Transaction) -> None:
            for diff_id in diff_ids:
                if layer_rows.get_layer(tx, diff_id) is None:
                    raise Aborted(what, f"layer {diff_id} was removed meanwhile")
            if row.parent is not None and roots.get_chain(tx, row.parent) is None:
                raise Aborted(what, "the chain below was collected meanwhile; try again")
            roots.add_chain(tx, row, diff_ids)

        self._core.db.write(body, call=call)
        reached("chain.named")


def _row_to_be(diff_id: DiffID, index: LayerIndex) -> LayerRow:
    """The row of a layer, as far as its index says what will be in it."""
    data_size = DataLayout(index).size
    return LayerRow(
        diff_id=diff_id, size=index.tar_size, data_size=data_size, index_size=0, entries=len(index)
    )


def _uuid(name: str, parent: str) -> bytes:
    """An image's UUID: the same for the same layers, shape and writer, and for nothing else."""
    text = f"orlop chain {WRITER_VERSION} {name} on {parent}"
    return hashlib.sha256(text.encode()).digest()[:16]
