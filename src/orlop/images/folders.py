"""Layers and chains unpacked, for the drivers that stack folders or copy trees.

::

    folders/<id>/             one folder, named by a row that says what it holds
    folders/new-<random>/     a folder in the making; its maker holds a flock on it

All are caches, made of tars and indexes when first needed.  A layer's folder is independent of what lies
below it, and shared by all images that have the layer; the glue of a chain holds what its layers' folders
get wrong when stacked; a tree is a chain as it shows.  Each exists once for each form in which ids can stand
on disk.

Folders are not synced: that would cost more than making them (docs/adr/0006).  A row remembers the boot
instead, and after a reboot a folder that is needed is made again, in its place, from layers' tars, which are
durable.  So a power cut never leaves a file empty that was whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from orlop.errors import Aborted, from_oserror
from orlop.images.chains import Chains
from orlop.images.core import Core
from orlop.images.space import needing
from orlop.layers.folder import FolderWriter, Item, Written
from orlop.layers.forms import Form
from orlop.layers.index import OPAQUE, LayerIndex
from orlop.layers.sources import DeviceFiles, layer_items, tree_items
from orlop.layers.stacking import Stack
from orlop.linux.files import new_locked_folder, remove_tree
from orlop.metadata import folders as rows
from orlop.metadata import layers as layer_rows
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.metadata.folders import FolderKind, FolderRow
from orlop.metadata.roots import ChainRow
from orlop.observe import Call, Progress, reached
from orlop.spec.digest import DiffID, chain_id
from orlop.values import dataclass

__all__ = ["Folders"]

Indexes = Mapping[DiffID, LayerIndex]


class _Indexes:
    """The indexes of layers, read when first needed."""

    def __init__(self, core: Core, at_hand: Indexes) -> None:
        self._core = core
        self._found = dict(at_hand)

    def __getitem__(self, diff_id: DiffID) -> LayerIndex:
        if diff_id not in self._found:
            self._found[diff_id] = self._core.layers.load_index(diff_id)
        return self._found[diff_id]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How the layers of a chain are stacked.

    ``name`` is the glue's, which tells the rest; the ``hidden`` lowest layers lie below an opaque root;
    of the others each is ``shown`` once, the ``below`` lowest as one tree.
    """

    name: str
    hidden: int
    shown: list[DiffID]
    below: int


class Folders:
    """The folders of one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains) -> None:
        self._core = core
        self._chains = chains

    def path(self, row: FolderRow) -> Path:
        """Where a folder is."""
        return self._core.layout.folders / row.id

    def usable(self, folder: str) -> bool:
        """Whether the folder of an id is there, and whole."""
        row = self._core.db.read(lambda tx: rows.get_folder(tx, folder))
        return row is not None and self._is_usable(row)

    # -- what drivers stand on ------------------------------------------------------------------

    def stack(
        self, diff_ids: Sequence[DiffID], form: Form, *, most: int, indexes: Indexes, call: Call
    ) -> list[FolderRow]:
        """The folders whose overlay is an image, top first, ``most`` of them at most.

        What exceeds that lies at the bottom as one tree.
        """
        if not diff_ids:
            return [self.tree(diff_ids, form, call=call)]
        known = _Indexes(self._core, indexes)
        plan = self._plan(diff_ids, form, most, known)
        shown, below = plan.shown, plan.below
        found = [self.tree(shown[:below], form, call=call)] if below else []
        found += [self._layer(diff_id, known, form, call) for diff_id in shown[below:]]
        glue = self._glue(diff_ids, plan, known, form, call)
        if glue.entries:
            found.append(glue)
        return found[::-1]

    def _plan(self, diff_ids: Sequence[DiffID], form: Form, most: int, known: _Indexes) -> _Plan:
        """Which layers are stacked: as the glue's name tells, or found out from the indexes, once."""
        prefix = f"{_name(diff_ids)}+{most}+"
        row = self._core.db.read(lambda tx: rows.find_by_prefix(tx, "glue", prefix, form.key))
        if row is not None:
            hidden, below = map(int, row.of.removeprefix(prefix).split("+"))
            return _Plan(name=row.of, hidden=hidden, shown=_topmost(diff_ids[hidden:]), below=below)
        # Overlayfs would merge the roots whatever they say: what an opaque one hides must not be there.
        opaque = (n for n, diff_id in enumerate(diff_ids) if known[diff_id].flags[0] & OPAQUE)
        hidden = max(opaque, default=0)
        shown = _topmost(diff_ids[hidden:])
        below = _squashed(len(shown), most)
        return _Plan(name=f"{prefix}{hidden}+{below}", hidden=hidden, shown=shown, below=below)

    def tree(self, diff_ids: Sequence[DiffID], form: Form, *, call: Call) -> FolderRow:
        """A chain as it shows, in one folder."""

        def make(folder: int) -> Written:
            return self.write_tree(folder, diff_ids, form, durable=False, call=call)

        return self._ensure("tree", _name(diff_ids), form, diff_ids, make, call)

    def write_tree(
        self,
        folder: int,
        diff_ids: Sequence[DiffID],
        form: Form,
        *,
        durable: bool,
        template: int | None = None,
        call: Call,
    ) -> Written:
        """Put a chain as it shows into a folder; files share the blocks of ``template``, if one is given."""
        stack = self._chains.ensure(diff_ids, call=call)
        with self._chains.view(stack) as view, DeviceFiles(self._devices(stack)) as files:

            def least() -> int:
                return sum(piece[3] for item in tree_items(view, files) for piece in item.pieces)

            writer = FolderWriter(folder, form=form, durable=durable, template=template, call=call)
            with needing(self._core.layout.root, least, "copy the image"):
                return self._told(writer.write(tree_items(view, files)), call)

    def again(self, row: FolderRow, form: Form, *, call: Call) -> bool:
        """Make a folder that is not usable anew; False where what it is made of is not known any more."""
        if row.kind == "layer":
            self._layer(DiffID(row.of), _Indexes(self._core, {}), form, call)
            return True
        name, *plan = row.of.split("+")
        diff_ids = self._core.db.read(lambda tx: roots.chain_layers(tx, name))
        if not diff_ids:
            return False
        if row.kind == "tree":
            self.tree(diff_ids, form, call=call)
        else:
            self.stack(diff_ids, form, most=int(plan[0]), indexes={}, call=call)
        return True

    def items(self, row: FolderRow, held: ExitStack, *, call: Call) -> Iterator[Item] | None:
        """The entries that a folder should have, to be read while ``held`` is; nothing is made.

        None where what it is made of is not there any more.
        """
        core = self._core
        if row.kind == "layer":
            diff_id = DiffID(row.of)
            tar = os.open(core.layers.tar(diff_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.callback(os.close, tar)
            return layer_items(core.layers.load_index(diff_id), tar)
        name, *plan = row.of.split("+")
        rows = self._chains.stack(name)
        if not rows:
            return None
        view = held.enter_context(self._chains.view(rows))
        files = held.enter_context(DeviceFiles(self._devices(rows)))
        if row.kind == "tree":
            return tree_items(view, files)
        hidden, below = int(plan[1]), int(plan[2])
        shown = _topmost(core.db.read(lambda tx: roots.chain_layers(tx, name))[hidden:])
        bottom = self._chains.stack(_name(shown[:below])) if below else []
        if below and not bottom:
            return None
        stack = Stack()
        if below:
            with self._chains.view(bottom) as lower:
                stack = Stack.above(lower)
        for diff_id in shown[below:]:
            call.check("check folder")
            stack.add(core.layers.load_index(diff_id))
        paths = stack.glue(view) | ({b""} if hidden else set())
        return tree_items(view, files, only=paths) if paths else iter(())

    def _layer(self, diff_id: DiffID, known: _Indexes, form: Form, call: Call) -> FolderRow:
        def make(folder: int) -> Written:
            call.observer.progress(Progress(item=diff_id, phase="unpacking"))
            index = known[diff_id]
            tar = os.open(self._core.layers.tar(diff_id), os.O_RDONLY | os.O_CLOEXEC)
            try:
                with needing(self._core.layout.root, _least(index), f"unpack layer {diff_id}"):
                    made = self._write(folder, layer_items(index, tar), form, call)
                call.observer.progress(Progress(item=diff_id, phase="done"))
                return made
            finally:
                os.close(tar)

        return self._ensure("layer", diff_id, form, [diff_id], make, call)

    def _glue(
        self, diff_ids: Sequence[DiffID], plan: _Plan, known: _Indexes, form: Form, call: Call
    ) -> FolderRow:
        shown, below = plan.shown, plan.below

        def make(folder: int) -> Written:
            stack = Stack()
            if below:
                with self._chains.view(self._chains.ensure(shown[:below], call=call)) as bottom:
                    stack = Stack.above(bottom)
            for diff_id in shown[below:]:
                call.check("stack layers")
                stack.add(known[diff_id])
            chain = self._chains.ensure(diff_ids, call=call)
            with self._chains.view(chain) as view, DeviceFiles(self._devices(chain)) as files:
                # The root may keep the metadata of one that is hidden.
                paths = stack.glue(view) | ({b""} if plan.hidden else set())
                items = tree_items(view, files, only=paths) if paths else iter(())
                return self._write(folder, items, form, call)

        return self._ensure("glue", plan.name, form, diff_ids, make, call)

    def _devices(self, stack: Sequence[ChainRow]) -> list[tuple[Path, ...]]:
        return [self._chains.devices(row) for row in stack]

    def _write(self, folder: int, items: Iterator[Item], form: Form, call: Call) -> Written:
        return self._told(FolderWriter(folder, form=form, durable=False, call=call).write(items), call)

    @staticmethod
    def _told(written: Written, call: Call) -> Written:
        if written.refused:
            call.observer.warning(
                f"{written.refused} extended attributes cannot be kept here; they are left out"
            )
        return written

    # -- one folder -----------------------------------------------------------------------------

    def _ensure(
        self,
        kind: FolderKind,
        of: str,
        form: Form,
        diff_ids: Sequence[DiffID],
        make: Callable[[int], Written],
        call: Call,
    ) -> FolderRow:
        core = self._core
        row = self._usable(kind, of, form)
        if row is not None:
            return row
        what = f"unpack {kind} {of[:19]}"
        with core.locked("folder", f"{kind}-{of}-{form.key}", call=call, attempted=what):
            row = self._usable(kind, of, form)
            if row is not None:
                return row
            known = core.db.read(lambda tx: rows.find_folder(tx, kind, of, form.key))
            folder_id = known.id if known is not None else os.urandom(5).hex()
            # A collector takes this lock before it looks for a row.
            with core.locked("folder", folder_id, call=call, attempted=what):
                try:
                    written = self._make(folder_id, make)
                except OSError as exc:
                    raise from_oserror(what, exc) from exc
                row = FolderRow(
                    id=folder_id,
                    kind=kind,
                    of=of,
                    form=form.key,
                    size=written.size,
                    entries=written.entries,
                    boot=core.boot,
                )
                self._publish(row, diff_ids, what, call)
            return row

    def _usable(self, kind: FolderKind, of: str, form: Form) -> FolderRow | None:
        core = self._core
        row = core.db.read(lambda tx: rows.find_folder(tx, kind, of, form.key))
        return row if row is not None and self._is_usable(row) else None

    def _is_usable(self, row: FolderRow) -> bool:
        return row.boot == self._core.boot and (not row.entries or self.path(row).is_dir())

    def _make(self, folder_id: str, make: Callable[[int], Written]) -> Written:
        """Fill a new folder and put it in its place, over what may be there from before a reboot."""
        base = self._core.layout.folders
        new, lock = new_locked_folder(base)
        try:
            written = make(lock)
            reached("folder.filled")
            place = base / folder_id
            if place.exists():
                self._core.discard(place)
            if written.entries:
                os.rename(new, place)
                reached("folder.placed")
            return written
        finally:
            os.close(lock)
            remove_tree(new, missing_ok=True)

    def _publish(self, row: FolderRow, diff_ids: Sequence[DiffID], what: str, call: Call) -> None:
        def body(tx: Transaction) -> None:
            for diff_id in diff_ids:
                if layer_rows.get_layer(tx, diff_id) is None:
                    raise Aborted(what, f"layer {diff_id} was removed meanwhile")
            rows.add_folder(tx, row, diff_ids)

        self._core.db.write(body, call=call)
        reached("folder.named")


def _least(index: LayerIndex) -> int:
    """The bytes that the files of a layer take at least; sparse ones may take none."""
    return sum(
        size
        for node, size in enumerate(index.size)
        if node not in index.sparse and index.mode[node] & 0o170000 == stat.S_IFREG
    )


def _name(diff_ids: Sequence[DiffID]) -> str:
    return chain_id(diff_ids).hex if diff_ids else "empty"


def _topmost(diff_ids: Sequence[DiffID]) -> list[DiffID]:
    """The layers without those that come again further up.

    Overlayfs takes no folder twice (ELOOP), and what the lower one brings or hides the upper one does, too.
    """
    return list(dict.fromkeys(reversed(diff_ids)))[::-1]


def _squashed(count: int, most: int) -> int:
    """How many of the lowest layers lie in one tree, so that with the glue there are at most ``most``.

    In steps, so that images that differ in their last layers share it.
    """
    if count + 1 <= most:
        return 0
    step = max(1, most // 2)
    return -(-(count + 2 - most) // step) * step
