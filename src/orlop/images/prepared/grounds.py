"""What prepared roots stand on, made ready and held while somebody needs it.

For the erofs driver that are activations of the chain's images, for the others folders; where ids are mapped,
the store's folders mounted once more.  What there is, is asked of the kernel and the disk each time, so
roots come back after a reboot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from orlop.errors import FailedPrecondition, NotFound, from_oserror
from orlop.hints import TYPE_CHECKING
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core
from orlop.images.prepared.asked import check_path
from orlop.images.prepared.idmaps import SPARE_ID, parse_maps
from orlop.layers.forms import FORMS, Form, FormName
from orlop.layers.stamps import Stamps, stamp_tree
from orlop.linux import userns
from orlop.linux.files import can_reflink
from orlop.linux.sync import Sync
from orlop.metadata import folders as folder_rows
from orlop.metadata import images, roots
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call, reached
from orlop.snapshots.driver import ChainImage, Driver, Ground, Root
from orlop.snapshots.mappings import mapping_name
from orlop.spec.digest import DiffID
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.folders import Folders
    from orlop.layers.diff import Upper
    from orlop.layers.folder import Item
    from orlop.layers.index import LayerIndex

__all__ = ["STAMPS", "Grounds"]

_NO_INDEXES: Mapping[DiffID, LayerIndex] = {}
STAMPS = "stamps"
_KNOWN_ROOTS = 1_000
# Which privileges can handle what was written in a form: ids mean something else to the others.
_HANDLES: dict[FormName, frozenset[str]] = {
    "real": frozenset({"root"}),
    "container": frozenset({"root", "container"}),
    "namespace": frozenset({"user-namespace"}),
    "single": frozenset({"user-namespace", "single-id", "none"}),
    "plain": frozenset({"user-namespace", "single-id", "none"}),
}


class Grounds:
    """Makes ready what roots of one store stand on.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains) -> None:
        self._core = core
        self._chains = chains
        self._roots: dict[str, Item] = {}  # root folders of chains, so that not every Prepare reads them

    @cached_property
    def folders(self) -> Folders:
        """Layers and chains as folders, for the drivers that need them."""
        from orlop.images.folders import Folders

        return Folders(self._core, self._chains)

    # -- in the driver's terms ------------------------------------------------------------------

    def require(self, path: str, what: str) -> RootRow:
        """The root at a path.  Raises `NotFound`, or `InvalidArgument` for no path at all."""
        check_path(path, what)
        root = self._core.db.read(lambda tx: roots.get_root(tx, path))
        if root is None:
            from orlop.images.nearby import root_hint

            hint = self._core.db.read(lambda tx: root_hint(tx, path))
            raise NotFound(what, "nothing is prepared there", hint=hint)
        return root

    def driver(self, row: RootRow) -> Driver:
        """The driver that holds a root."""
        return self._core.drivers[row.driver]

    def root(self, row: RootRow) -> Root:
        """A row in its driver's terms."""
        mapping = mapping_name(row.uid_map, row.gid_map)
        folder = Path(f"{self._core.mappings.place(mapping)}/prepared/{row.id}")
        if row.quota is not None:
            folder = self._core.disks.place(row.id, mapped=bool(mapping)) / "root"
        return Root(
            id=row.id,
            target=row.path,
            folder=folder,
            view=row.kind == "view",
            self_contained=row.self_contained,
            marks=_form(row).marks.decode(),
            mapping=mapping,
        )

    def own(self, row: RootRow) -> Root:
        """The same with the folder as it is in the store, ids unmapped."""
        prepared, disks = self._core.layout.prepared, self._core.disks
        return Root(
            id=row.id,
            target=row.path,
            folder=prepared / row.id if row.quota is None else disks.place(row.id) / "root",
            view=row.kind == "view",
            marks=_form(row).marks.decode(),
        )

    def upper(self, row: RootRow) -> tuple[Path, Upper]:
        """The folder that holds what was written to a root, and how to read it."""
        from orlop.layers.diff import Upper  # which making a root and giving it back have no use for

        path, form = self.driver(row).upper(self.own(row)), _form(row)
        if row.uid_map:
            form = replace(form, spare=SPARE_ID)
        if row.driver != "native":
            return path, Upper(form=form)
        stamps = Stamps.load(path.parent / STAMPS)
        untouched = stamps.untouched if stamps is not None else None
        return path, Upper(form=form.bare(), whole=True, untouched=untouched)

    def check_privilege(self, row: RootRow, what: str) -> None:
        """Refuse a root whose ids mean something else to us.  Raises `FailedPrecondition`."""
        if self._core.privilege not in _HANDLES[_form(row).name]:
            if row.form == "namespace":
                raise FailedPrecondition(
                    what,
                    "it was prepared in a user namespace with subordinate ids, and must be handled in one",
                    hint="run it under 'orlop unshare'",
                )
            raise FailedPrecondition(what, f"it was prepared with other privileges than ours ({row.form})")

    # -- grounds --------------------------------------------------------------------------------

    def stack(self, root: RootRow, call: Call, *, rows: list[ChainRow] | None = None) -> list[ChainRow]:
        """The chain of a prepared root, rebuilt if its files are gone; ``rows`` if they were read already."""
        if rows is None:
            rows = self._core.db.read(lambda tx: roots.chain_stack(tx, root.chain))
        if rows and all(os.path.lexists(self._chains.image(row).file) for row in rows):
            return rows
        diff_ids = self._core.layers_of(root.config, f"prepare {root.path}")
        return self._chains.ensure(diff_ids, call=call, whole=root.chain.endswith("-whole"))

    def plain(self, row: RootRow) -> Ground:
        """What a root stands on, as the rows say: nothing is made ready."""
        core = self._core

        if row.driver == "erofs":
            stack = core.db.read(lambda tx: roots.chain_stack(tx, row.chain))
            return Ground(images=tuple(self._chains.image(image) for image in stack))
        found = core.db.read(lambda tx: folder_rows.folders_of_root(tx, row.id))
        return Ground(folders=self._places(row, found))

    @contextlib.contextmanager
    def held(
        self,
        row: RootRow,
        stack: Sequence[ChainRow],
        *,
        views: Sequence[tuple[RootRow, Sequence[ChainRow]]] = (),
        indexes: Mapping[DiffID, LayerIndex] = _NO_INDEXES,
        call: Call,
    ) -> Iterator[list[Ground]]:
        """What a root and its image mounts stand on, ready and kept so for the length of a ``with`` block.

        The root's ground comes first, then those of ``views``, images mounted below it.
        """
        if row.driver == "erofs" and not (views or row.uid_map or row.gid_map or row.quota):
            images = tuple([self._chains.image(image) for image in stack])
            with self._activated(images, row, call):
                yield [Ground(images=images)]
            return
        every = [(row, stack), *views]
        with contextlib.ExitStack() as held:
            if row.uid_map or row.gid_map:
                held.enter_context(self._mapped(row, call))
            if row.quota is not None:
                self.mount_disk(row, call)
            if row.driver == "erofs":
                chains = [[self._chains.image(image) for image in images] for _, images in every]
                held.enter_context(self._activated([image for chain in chains for image in chain], row, call))
                yield [Ground(images=tuple(chain)) for chain in chains]
            else:
                yield [
                    Ground(folders=self._places(one, self._stand_on(one, indexes, call))) for one, _ in every
                ]

    def _places(self, row: RootRow, folders: Sequence[str]) -> tuple[Path, ...]:
        place = self._core.mappings.place(mapping_name(row.uid_map, row.gid_map)) / "folders"
        return tuple(place / folder for folder in folders)

    def _stand_on(self, row: RootRow, indexes: Mapping[DiffID, LayerIndex], call: Call) -> list[str]:
        """The ids of the folders of a root, made where they are missing."""
        core = self._core
        if row.driver == "native" and row.kind == "active":
            return []
        diff_ids = core.layers_of(row.config, f"prepare {row.path}")
        form = _form(row)
        if row.driver == "native":
            return [self.folders.tree(diff_ids, form.bare(), call=call).id]
        place = self._places(row, ["0" * 10])[0]
        most = core.overlay.most(place, self.root(row).folder.parent)
        known = core.db.read(lambda tx: folder_rows.folders_of_root(tx, row.id))
        if known and all(self.folders.usable(folder) for folder in known):
            return known
        found = self.folders.stack(diff_ids, form, most=most, indexes=indexes, call=call)
        return [folder.id for folder in found]

    @contextlib.contextmanager
    def _activated(self, images: Sequence[ChainImage], row: RootRow, call: Call) -> Iterator[None]:
        """Have images mounted, and kept so, for the length of a ``with`` block.

        Nothing is held while one waits to mount another: two that need each other's would wait for ever.
        """
        core, mapping = self._core, mapping_name(row.uid_map, row.gid_map)
        ordered = sorted({image.id: image for image in images}.values(), key=lambda image: image.id)
        while True:
            held: list[str] = []
            missing = None
            try:
                for image in ordered:
                    what = f"activate chain {image.id[:12]}"
                    held.append(core.share("chain", image.id, call=call, attempted=what))
                    if not core.erofs.active(image, mapping):
                        missing = image
                        break
                if missing is None:
                    yield
                    return
            finally:
                for path in reversed(held):
                    core.shared.leave(path)
            with core.locked("chain", missing.id, call=call, attempted=what):
                self._activate(missing, row, mapping)

    def _activate(self, image: ChainImage, row: RootRow, mapping: str) -> None:
        self._with_namespace(row, lambda fd: self._core.erofs.activate(image, mapping, fd))
        reached("chain.activated")

    def renew(self, row: ChainRow) -> None:
        """Mount an image anew where it is mounted here: a mount shows the files that it was made of for good.

        Needs the image's lock, exclusively.
        """
        core, image = self._core, self._chains.image(row)
        every = core.db.read(lambda tx: roots.list_roots(tx, NAMESPACE))
        users = {mapping_name(root.uid_map, root.gid_map): root for root in every}
        for mapping in core.erofs.mapped(row.id):
            if not mapping:
                core.erofs.renew(image)
            elif mapping in users:

                def again(fd: int | None, mapping: str = mapping) -> None:
                    core.erofs.renew(image, mapping, fd)

                self._with_namespace(users[mapping], again)
            else:
                core.erofs.deactivate(row.id, keep=lambda other, mapping=mapping: other != mapping)  # type: ignore[misc]  # bound now

    def make_disk(self, row: RootRow, call: Call) -> None:
        """Give a root a disk of its own, mounted.  The native driver's copy does not count."""
        core = self._core
        if row.quota is None:
            return
        copy = core.db.read(lambda tx: images.config_size(tx, row.config))[0] if row.driver == "native" else 0
        core.disks.create(row.id, row.quota + copy)
        reached("disk.made")
        self.mount_disk(row, call)

    def mount_disk(self, row: RootRow, call: Call) -> None:
        """Have a root's disk mounted, if it has one."""
        disks = self._core.disks
        if not disks.has(row.id):
            return

        def activate(user_namespace: int | None) -> None:
            disks.activate(row.id, user_namespace)

        with self._core.locked("disk", row.id, call=call, attempted="mount disk"):
            self._with_namespace(row, activate)
            reached("disk.mounted")

    def disk_attached(self, row: RootRow) -> bool:
        """Whether a root's disk is in use as one, by whomever: only that can be mounted."""
        return self._core.disks.attached(row.id)

    @contextlib.contextmanager
    def _mapped(self, row: RootRow, call: Call) -> Iterator[None]:
        """Have the store's folders mounted with mapped ids for the length of a ``with`` block."""
        core, mapping = self._core, mapping_name(row.uid_map, row.gid_map)
        while True:
            with core.locked("maps", mapping, call=call, attempted="map ids", exclusive=False):
                if core.mappings.active(mapping):
                    yield
                    return
            with core.locked("maps", mapping, call=call, attempted="map ids"):
                self._with_namespace(row, lambda fd: core.mappings.activate(mapping, fd))
                reached("ids.mapped")

    @staticmethod
    def _with_namespace(row: RootRow, use: Callable[[int | None], None]) -> None:
        """Call with a user namespace that maps ids as a root asks for; with None where it does not."""
        if not (row.uid_map or row.gid_map):
            use(None)
            return
        fd = userns.make(parse_maps(row.uid_map), parse_maps(row.gid_map))
        try:
            use(fd)
        finally:
            os.close(fd)

    # -- the writable part ----------------------------------------------------------------------

    def fill(self, row: RootRow, folder: Path, *, whole: bool, call: Call, sync: Sync | None = None) -> None:
        """See `orlop.snapshots.driver.Fill`.  Beside a whole tree its stamps are written.

        ``sync`` is as for `orlop.snapshots.driver.Driver.create`; a whole tree is synced by itself.
        """
        try:
            with contextlib.ExitStack() as stack:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                if whole:
                    self._copy_tree(row, fd, stack, call)
                    reached("root.copied")
                    stamp_tree(fd, folder.parent / STAMPS, sync=self._core.sync)
                else:
                    from orlop.layers.folder import FolderWriter

                    FolderWriter(fd, form=_form(row), durable=False, call=call).write([self._root_item(row)])
                    (sync or self._core.sync).file(fd)
        except OSError as exc:
            raise from_oserror(f"prepare {row.path}", exc) from exc

    def _copy_tree(self, row: RootRow, folder: int, stack: contextlib.ExitStack, call: Call) -> None:
        """A copy of the tree; where the file system can, its files share the blocks of one that is kept."""
        diff_ids = self._core.layers_of(row.config, f"prepare {row.path}")
        form = _form(row).bare()
        template: int | None = None
        if row.quota is None and can_reflink(self._core.layout.prepared):
            whole = self.folders.path(self.folders.tree(diff_ids, form, call=call))
            template = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, template)
        durable = self._core.sync.durable
        self.folders.write_tree(folder, diff_ids, form, durable=durable, template=template, call=call)

    def _root_item(self, row: RootRow) -> Item:
        """The root folder of a chain, which never changes."""
        found = self._roots.get(row.chain)
        if found is None:
            from orlop.layers.sources import DeviceFiles, tree_items

            stack = self._core.db.read(lambda tx: roots.chain_stack(tx, row.chain))
            with self._chains.view(stack) as view, DeviceFiles([]) as files:
                found = next(tree_items(view, files, only=frozenset()))
            if len(self._roots) < _KNOWN_ROOTS:
                self._roots[row.chain] = found
        return found


def _form(row: RootRow) -> Form:
    return FORMS[row.form]  # type: ignore[index]  # a row is trusted to hold one of ours
