"""Prepared roots: Prepare, Mounts, Cleanup.

A root is a row, a folder under ``prepared/`` and what it stands on (`orlop.images.prepared.grounds`).  The
row comes last at Prepare and goes first at Cleanup, so whatever dies in between leaves a folder without a
row, never a row without its folder.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from orlop.errors import Aborted, DataLoss, Error, FailedPrecondition, InvalidArgument, NotFound
from orlop.images import names
from orlop.images.api import Mount, PreparedInfo, PrepareOptions
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core, root_lock
from orlop.images.prepared.asked import check_driver, check_path
from orlop.images.prepared.batch import Batch
from orlop.images.prepared.extras import Extras, check_extras
from orlop.images.prepared.grounds import Grounds
from orlop.images.prepared.idmaps import check_maps, maps_of, text_of
from orlop.images.prepared.known import Known, KnownImages
from orlop.images.prepared.ownmounts import OwnMounts
from orlop.images.prepared.pool import Uppers
from orlop.images.prepared.usage import Usage
from orlop.images.snapshotting.graves import Graves
from orlop.linux.mountinfo import mounts_by_id
from orlop.metadata import folders as folder_rows
from orlop.metadata import garbage, images, layers, platforms, roots
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Suspects
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.observe import Call, reached, stepped
from orlop.snapshots.disks import LEAST, MOST
from orlop.snapshots.driver import MountSpec
from orlop.snapshots.mappings import mapping_name
from orlop.spec.digest import DiffID
from orlop.spec.reference import is_short
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.transfer.pull import Puller
    from orlop.layers.index import LayerIndex

__all__ = ["RootService", "check_path", "info_of_root"]

_NOTHING: Mapping[str, str] = {}
_TRIES = 3  # how often a Prepare begins when a collection takes its chain or its image away


class RootService:
    """The verbs about prepared roots, for one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds, puller: Callable[[], Puller]) -> None:
        self._core = core
        self._chains = chains
        self._puller = puller  # asked for where something is pulled: it brings much with it
        self.grounds = grounds
        self._extras = Extras(core, chains, self.grounds, self._image)
        self._usage = Usage(self.grounds)
        self._own = OwnMounts(core, self.grounds, self._extras, self._usage)
        self.batch = Batch(core, self.grounds, self._extras)
        self._known = KnownImages()
        self._uppers = Uppers(core, grounds)
        self._graves = Graves(core, "prepared", ("upper", "work/work", "work"))
        core.behind += [self._uppers, self._graves]

    # -- Prepare --------------------------------------------------------------------------------

    @stepped("prepare", of=2)
    def prepare(self, name: str, path: str, *, options: PrepareOptions, call: Call) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`."""
        what = f"prepare {path}"
        check_path(path, what)
        check_maps(options.uid_map, what)
        check_maps(options.gid_map, what)
        check_extras(options.extra, what)
        check_driver(options.driver, what)
        if options.quota is not None and not LEAST <= options.quota <= MOST:
            raise InvalidArgument(what, f"a quota of {options.quota} bytes; it is {LEAST} to {MOST}")
        if options.view and options.quota is not None:
            raise InvalidArgument(what, "a view takes no writes, so it has no quota")
        if bool(options.uid_map) != bool(options.gid_map):
            raise InvalidArgument(what, "one of uid_map and gid_map is missing", hint="give both, or neither")
        if self._core.layout.contains(path):
            raise InvalidArgument(what, "the path lies inside the store", hint="choose one outside of it")
        known = self._known.get(name, options, self._core.settings)
        if known is not None:
            try:
                return self._prepare_known(known, path, options, call)
            except (Aborted, NotFound, FileNotFoundError):
                self._known.forget(name, options)  # it means something else now, or nothing: look
        for attempt in range(1, _TRIES + 1):
            if self._core.db.read(lambda tx: roots.get_root(tx, path)) is not None:
                raise roots.already_prepared(path)
            row: ImageRow | None = None
            try:
                row, indexes = self._image(name, options, call)
                # The first try costs no transaction but the one that names the root; that looks again.
                kept = self._kept(row, what) if attempt > 1 else contextlib.nullcontext()
                with kept, self._core.locked("path", path, call=call, attempted=what):
                    return self._prepare(name, row, path, options, indexes, call)
            except (Aborted, NotFound, FileNotFoundError) as exc:
                # A collection took the chain away, or the whole image: look again what there is.
                gone = row is not None and self._is_gone(row)
                if attempt == _TRIES or not (gone or isinstance(exc, Aborted)):
                    raise
        raise AssertionError("unreachable")

    def _image(
        self, name: str, options: PrepareOptions, call: Call
    ) -> tuple[ImageRow, Mapping[DiffID, LayerIndex]]:
        """The image to prepare, pulled if the policy says so."""
        from orlop.images.platforms import choose

        core = self._core
        policy = options.pull or core.settings.pull
        what = f"prepare {name}"
        row = self._find(name)
        if row is None and policy == "never":
            row = core.db.read(lambda tx: names.require(tx, NAMESPACE, name, what))
        if row is not None and policy != "always":
            try:
                return choose(core, row, options.platform, what), {}
            except NotFound:
                if policy == "never":
                    raise
        pulled = self._puller().pull_name(
            name,
            platform=options.platform,
            keep_default=options.platform is not None,
            call=call,
        )
        row = core.db.read(lambda tx: names.find(tx, NAMESPACE, pulled.name))
        if row is None:
            raise Aborted(what, "the image was removed at once", hint="try again")
        return choose(core, row, options.platform, what), pulled.indexes

    def _find(self, name: str) -> ImageRow | None:
        """The image of the store that a name means, a short one wherever the settings have it looked for."""
        core = self._core
        if core.settings.search_registries is not False and is_short(name):
            for ref in core.registry.names(name):
                if row := core.db.read(partial(images.get_image, namespace=NAMESPACE, name=str(ref))):
                    return row
        return core.db.read(lambda tx: names.find(tx, NAMESPACE, name))

    @contextlib.contextmanager
    def _kept(self, row: ImageRow, what: str) -> Iterator[None]:
        """Keep an image from collections for the length of a ``with`` block, if it is still there."""
        diff_ids = self._core.layers_of(row.config, what)
        with self._core.lease(what) as lease:
            lease.keep(("config", row.config), *(("layer", diff_id) for diff_id in diff_ids))
            yield

    def _is_gone(self, row: ImageRow) -> bool:
        return not self._core.db.read(lambda tx: layers.has_blob(tx, row.config))

    def _prepare_known(self, known: Known, path: str, options: PrepareOptions, call: Call) -> PreparedInfo:
        """Prepare what was prepared before; raises `Aborted` unless all is as it was then.

        Costs one transaction, and nothing that is read before it.  That decides, too, between calls for one
        path, so only who mounts there needs the path's lock.
        """
        lock = (
            self._core.locked("path", path, call=call, attempted=f"prepare {path}")
            if options.mount
            else contextlib.nullcontext()
        )
        with lock:
            root = replace(known.like, id=os.urandom(8).hex(), path=path, created=time.time())

            def name_root(tx: Transaction, root: RootRow, folders: Sequence[str]) -> None:
                there = roots.touch_sources(tx, NAMESPACE, root)
                if not there or any(folder_rows.get_folder(tx, folder) is None for folder in folders):
                    raise Aborted(f"prepare {path}", "the image was removed meanwhile", hint="try again")
                roots.add_root(tx, NAMESPACE, root, options.labels)
                folder_rows.set_root_folders(tx, root.id, folders)

            try:
                root, info = self._create(root, known.stack, options.labels, (), {}, {}, name_root, call)
            except BaseException:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    self.release(root, [row.id for row in known.stack])
                raise
            return self._mounted(root, info, call) if options.mount else info

    def _prepare(
        self,
        name: str,
        image: ImageRow,
        path: str,
        options: PrepareOptions,
        indexes: Mapping[DiffID, LayerIndex],
        call: Call,
    ) -> PreparedInfo:
        """One attempt.  Raises `Aborted` or `NotFound` where a collection was faster."""
        core, settings = self._core, self._core.settings
        driver = core.choose(options.driver or settings.driver)
        diff_ids = core.layers_of(image.config, f"prepare {path}")
        core.db.read(lambda tx: self._check_there(tx, image, diff_ids, f"prepare {path}"))
        whole = options.self_contained and driver.name == "erofs"
        stack = self._chains.ensure(diff_ids, call=call, whole=whole, indexes=indexes)
        root = RootRow(
            id=os.urandom(8).hex(),
            path=path,
            image=image.name,
            config=image.config,
            chain=stack[0].id,
            driver=driver.name,
            kind="view" if options.view else "active",
            self_contained=options.self_contained,
            mounted=False,
            made_target=False,
            created=time.time(),
            form=core.form.name,
            quota=options.quota,
            uid_map=text_of(options.uid_map),
            gid_map=text_of(options.gid_map),
        )
        extras: list[MountRow] = []
        try:
            extras, missing = self._extras.plan(root, stack, options, call)

            def name_root(tx: Transaction, root: RootRow, folders: Sequence[str]) -> None:
                self.name_root(tx, root, options.labels, folders, extras)

            root, info = self._create(root, stack, options.labels, extras, missing, indexes, name_root, call)
        except BaseException:
            with contextlib.suppress(Error):  # the first failure is the one to report
                found = core.db.read(lambda tx: self._chain_ids(tx, root, extras))
                self.release(root, [row.id for row in stack] + found)
            raise
        self._known.put(name, options, settings, image, Known(like=root, stack=stack))
        return self._mounted(root, info, call) if options.mount else info

    def _mounted(self, root: RootRow, info: PreparedInfo, call: Call) -> PreparedInfo:
        """Mount a new root; one that cannot be mounted is cleaned up again."""
        try:
            return self.mount_root(root, call)
        except BaseException:
            with contextlib.suppress(Error):
                there = self.grounds.require(root.path, f"prepare {root.path}")
                self._forget(self._own.detach(there, Call()), Call())
                self._graves.finish()
            raise

    @staticmethod
    def _check_there(tx: Transaction, image: ImageRow, diff_ids: Sequence[DiffID], what: str) -> None:
        """Raise `DataLoss` if a layer was lost while the image has its name still."""
        lost = next((diff_id for diff_id in diff_ids if layers.get_layer(tx, diff_id) is None), None)
        if lost is None:
            return
        if images.images_by_id(tx, NAMESPACE, image.config) or platforms.names_of_config(
            tx, NAMESPACE, image.config
        ):
            raise DataLoss(
                what,
                f"layer {lost} of {image.name} is lost",
                hint=f"'orlop pull {image.name}' fetches it again",
            )

    @stepped("activate")
    def _create(
        self,
        root: RootRow,
        stack: Sequence[ChainRow],
        labels: Mapping[str, str],
        extras: Sequence[MountRow],
        missing: dict[str, bool],
        indexes: Mapping[DiffID, LayerIndex],
        name_root: Callable[[Transaction, RootRow, Sequence[str]], None],
        call: Call,
    ) -> tuple[RootRow, PreparedInfo]:
        """The root, which has its folder's id, and what the API says of it."""
        grounds = self.grounds
        views = self._extras.views(root, extras, call)
        with (
            grounds.held(root, stack, views=views, indexes=indexes, call=call) as (ground, *below),
            self._writable(root, stack, missing, call) as made,
        ):
            specs = grounds.driver(made).mounts(grounds.root(made), ground)
            specs += self._extras.specs(made, extras, below)
            folders = [folder.name for folder in ground.folders]
            reached("root.made")
            self._core.db.write(lambda tx: name_root(tx, made, folders), call=call)
            reached("root.named")
        return made, info_of_root(made, specs, labels)

    @contextlib.contextmanager
    def _writable(
        self, root: RootRow, stack: Sequence[ChainRow], missing: dict[str, bool], call: Call
    ) -> Iterator[RootRow]:
        """A root with its writable part, which the ``with`` block names; else it is discarded."""
        if root.kind == "view":
            yield root
        elif root.driver != "native" and root.quota is None and not missing:
            with self._uppers.taken((root.driver, root.chain, root.form), root) as root_id:
                yield replace(root, id=root_id)
        else:
            with self._made(root, stack, missing, call):
                yield root

    @contextlib.contextmanager
    def _made(
        self, root: RootRow, stack: Sequence[ChainRow], missing: dict[str, bool], call: Call
    ) -> Iterator[None]:
        """The same for what is made for one root alone: a disk, a copy, an upper that holds something."""
        core, grounds = self._core, self.grounds
        # The root's lock keeps collectors from taking its folder for one that was left behind.
        with core.locked("root", root_lock(root.id), call=call, attempted=f"prepare {root.path}"):
            try:
                if missing:  # a folder that holds something is taken for somebody's, but for this
                    core.db.write(lambda tx: garbage.trash_add(tx, f"prepared/{root.id}"), call=call)
                grounds.make_disk(root, call)
                grounds.driver(root).create(grounds.own(root), partial(grounds.fill, root, call=call))
                if missing:
                    self._extras.make_places(root, stack, missing, call)
                yield
            except BaseException:
                with contextlib.suppress(Error):  # a collection takes what stays
                    # An interrupt may come when the row is there already.
                    if core.db.read(lambda tx: not roots.is_root(tx, root.id)):
                        if root.quota is not None:
                            core.disks.deactivate(root.id)
                        core.discard(core.layout.prepared / root.id)
                raise

    @staticmethod
    def name_root(
        tx: Transaction,
        root: RootRow,
        labels: Mapping[str, str],
        folders: Sequence[str],
        extras: Sequence[MountRow],
        *,
        event: str = "root.prepared",
        about: Mapping[str, str] = _NOTHING,
    ) -> None:
        """The rows of a root whose folder is there, and the event that tells of it.

        Raises `Aborted` where a collection was faster.
        """
        there = roots.chain_stack(tx, root.chain) and layers.has_blob(tx, root.config)
        if not there or any(folder_rows.get_folder(tx, folder) is None for folder in folders):
            raise Aborted(f"prepare {root.path}", "the image was removed meanwhile", hint="try again")
        mounted = [(row.chain, row.config) for row in extras if row.chain and row.config]
        if not all(roots.chain_stack(tx, chain) and layers.has_blob(tx, config) for chain, config in mounted):
            raise Aborted(f"prepare {root.path}", "an image to mount was removed meanwhile", hint="try again")
        roots.add_root(tx, NAMESPACE, root, labels, extras, event=event, about=about)
        for name in {root.image, *(row.source for row in extras if row.config)}:
            images.touch_image(tx, NAMESPACE, name)
        garbage.trash_done(tx, f"prepared/{root.id}")
        folder_rows.set_root_folders(tx, root.id, folders)

    # -- what is prepared -----------------------------------------------------------------------

    def prepared(self) -> list[PreparedInfo]:
        """All prepared roots, by path."""

        def body(tx: Transaction) -> tuple[list[RootRow], dict[str, dict[str, str]]]:
            return roots.list_roots(tx, NAMESPACE), roots.all_labels(tx, NAMESPACE)

        found, labels = self._core.db.read(body)
        table = mounts_by_id() if any(root.mounted for root in found) else {}
        return [
            info_of_root(root, (), labels.get(root.id, {}), mounted=self._own.is_mounted(root, table))
            for root in found
        ]

    def mounts(self, path: str, *, call: Call) -> PreparedInfo:
        """The mounts of a root again; its chain is activated where it is not (after a reboot)."""
        root = self.grounds.require(path, f"list mounts of {path}")
        specs = self._activate(root, call)
        labels = self._core.db.read(lambda tx: roots.labels_of(tx, root.id))
        return info_of_root(root, specs, labels, mounted=self._own.is_mounted(root))

    @stepped("activate")
    def _activate(self, root: RootRow, call: Call) -> list[MountSpec]:
        """The mounts of a root, after making ready what they name."""
        grounds = self.grounds
        extras = self._core.db.read(lambda tx: roots.mounts_of(tx, root.id))
        views = self._extras.views(root, extras, call)
        with grounds.held(root, grounds.stack(root, call), views=views, call=call) as (ground, *below):
            folders = [folder.name for folder in ground.folders]
            # The erofs driver's roots stand on none.
            if folders and folders != self._core.db.read(lambda tx: folder_rows.folders_of_root(tx, root.id)):
                self._core.db.write(lambda tx: self._stand_on(tx, root, folders), call=call)
            return grounds.driver(root).mounts(grounds.root(root), ground) + self._extras.specs(
                root, extras, below
            )

    @staticmethod
    def _stand_on(tx: Transaction, root: RootRow, folders: Sequence[str]) -> None:
        found = roots.get_root(tx, root.path)
        if found is None or found.id != root.id:
            raise NotFound(f"list mounts of {root.path}", "it was cleaned up meanwhile")
        folder_rows.set_root_folders(tx, root.id, folders)

    # -- mounts of our own ----------------------------------------------------------------------

    def mount(self, path: str, *, call: Call) -> PreparedInfo:
        """Perform a root's mounts in this mount namespace.  Idempotent."""
        what = f"mount {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            return self.mount_root(self.grounds.require(path, what), call)

    @stepped("mount")
    def mount_root(self, root: RootRow, call: Call) -> PreparedInfo:
        """The same for a row, under the lock of its path."""
        specs = self._activate(root, call)
        root = self._own.attach(root, specs, call)
        labels = self._core.db.read(lambda tx: roots.labels_of(tx, root.id))
        return info_of_root(root, specs, labels, mounted=True)

    def mount_again(self, path: str) -> None:
        """Mount what is at a path, if anything, after what it was unmounted for has failed."""
        root = self._core.db.read(lambda tx: roots.get_root(tx, path))
        if root is not None:
            self.mount_root(root, Call())

    def unmount(self, path: str, *, call: Call) -> PreparedInfo:
        """Undo `mount`.  Idempotent."""
        what = f"unmount {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            self._own.detach(self.grounds.require(path, what), call)
        return self.mounts(path, call=call)

    # -- Cleanup --------------------------------------------------------------------------------

    @stepped("cleanup", of=1)
    def cleanup(self, path: str, *, call: Call) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        what = f"clean up {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            root = self.grounds.require(path, what)
            if root.kind == "active":
                self.grounds.check_privilege(root, what)
            if root.kind == "view" and root.driver != "erofs" and not root.mounted and self._own.shows(root):
                # What it shows may be collected next, and folders do not outlive that as activations do.
                raise FailedPrecondition(what, f"the view is mounted at {root.path}", hint="unmount it first")
            self._forget(self.idle(root, what, call), call)

    def idle(self, root: RootRow, what: str, call: Call) -> RootRow:
        """The root after taking away what orlop itself has mounted there, used by nobody.

        Raises `FailedPrecondition` where it is in use.  Needs the lock of its path.
        """
        root = self._own.detach(root, call)
        if self._usage.in_use(root, what, call):
            users = self._usage.by(root)
            raise FailedPrecondition(what, f"the root is in use{users}", hint="unmount it first")
        return root

    def _forget(self, root: RootRow, call: Call) -> None:
        """Delete a root that nobody uses: the row first, then the files, then the activation."""

        def body(tx: Transaction) -> tuple[list[str], bool]:
            extras = roots.mounts_of(tx, root.id)
            chains: list[str] = []
            if root.driver == "erofs" and (root.uid_map or extras or not roots.has_neighbour(tx, root)):
                chains = self._chain_ids(tx, root, extras)
            suspects = self.forget_root(tx, root)
            # An image that was removed while it was prepared goes now.
            return chains, bool(garbage.forget(tx, suspects))

        chains, forgotten = self._core.db.write(body, call=call)
        reached("root.forgotten")
        self.bury(root, chains)
        if forgotten:
            self._core.sweeper.wake()

    @staticmethod
    def forget_root(tx: Transaction, root: RootRow, *, event: str | None = "root.cleaned") -> Suspects:
        """Delete a root's rows, and have its folder deleted; returns what they kept.

        ``event`` is None where another tells of it.
        """
        suspects = garbage.suspects_of_root(tx, root.id)
        roots.delete_root(tx, root.id, event=event)
        if root.kind == "active":
            garbage.trash_add(tx, f"prepared/{root.id}")
        return suspects

    def bury(self, root: RootRow, chains: Sequence[str]) -> None:
        """Delete what a forgotten root leaves: its files, soon, and the activation of its chains."""
        if root.quota is not None:
            self._core.disks.deactivate(root.id)
        if root.kind == "active":
            self._graves.add(root.id)
        self.release(root, chains)

    def chains_of(self, root: RootRow) -> list[str]:
        """The chain images that a root has mounted, with those of images mounted in it."""
        return self._core.db.read(lambda tx: self._chain_ids(tx, root, roots.mounts_of(tx, root.id)))

    def release(self, root: RootRow, chains: Sequence[str]) -> None:
        """Unmount what a root needed and no other prepared root stands on any more.

        The chain images are told, as their rows may be gone.
        """
        core = self._core
        mapping = mapping_name(root.uid_map, root.gid_map)
        if mapping and (lock := core.try_locked("maps", mapping)) is not None:
            try:
                if not core.db.read(lambda tx: roots.mapping_users(tx, root.uid_map, root.gid_map)):
                    core.mappings.deactivate(mapping)
            finally:
                lock.release()
        for chain in chains if root.driver == "erofs" else ():
            lock = core.try_locked("chain", chain)
            if lock is None:
                continue  # somebody is using it this moment
            try:
                used = core.db.read(lambda tx, chain=chain: roots.chain_users(tx, chain))  # type: ignore[misc]  # bound now
                needed = {mapping_name(*maps) for maps in used}
                core.erofs.deactivate(chain, keep=needed.__contains__)
                reached("chain.deactivated")
            finally:
                lock.release()

    @staticmethod
    def _chain_ids(tx: Transaction, root: RootRow, extras: Sequence[MountRow]) -> list[str]:
        """The chain images that a root has mounted, top first."""
        chains = [root.chain, *(row.chain for row in extras if row.chain is not None)]
        return [row.id for chain in chains for row in roots.chain_stack(tx, chain)]


def info_of_root(
    root: RootRow, specs: Sequence[MountSpec], labels: Mapping[str, str], *, mounted: bool = False
) -> PreparedInfo:
    """What the API says of a root."""
    return PreparedInfo(
        path=root.path,
        image=root.image,
        image_id=root.config,
        kind="view" if root.kind == "view" else "active",
        driver=root.driver,
        mounted=mounted,
        created=datetime.fromtimestamp(root.created, UTC)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z"),
        mounts=tuple(
            Mount(type=spec.type, source=spec.source, target=spec.target, options=spec.options)
            for spec in specs
        ),
        labels=dict(labels),
        quota=root.quota,
        uid_map=maps_of(root.uid_map),
        gid_map=maps_of(root.gid_map),
        missing=not os.path.isdir(os.path.dirname(root.path)),
    )
