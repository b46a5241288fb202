"""Making a root: Prepare.

Whose image it is to have, what of that is there already, its writable part, and the transaction that names
it.  What was prepared before costs nothing but that transaction (`orlop.images.prepared.known`).  Mounting a
new root, and giving one back, is `orlop.images.prepared.roots`'.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from orlop.errors import (
    Aborted,
    DataLoss,
    Error,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from orlop.hints import TYPE_CHECKING
from orlop.images import names
from orlop.images.api import PreparedInfo, PrepareOptions
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core
from orlop.images.locks import root_lock
from orlop.images.prepared.asked import check_driver, check_path
from orlop.images.prepared.extras import Extras, check_extras
from orlop.images.prepared.grounds import Grounds
from orlop.images.prepared.idmaps import check_maps, text_of
from orlop.images.prepared.known import Known, KnownImages
from orlop.images.prepared.pool import Uppers
from orlop.images.prepared.seen import info_of_root
from orlop.metadata import folders as folder_rows
from orlop.metadata import garbage, images, layers, platforms, roots
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.observe import Call, reached, stepped
from orlop.snapshots.disks import LEAST, MOST
from orlop.spec.digest import DiffID
from orlop.spec.reference import is_short
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.ahead import Ahead
    from orlop.images.transfer.pull import Puller
    from orlop.layers.index import LayerIndex

__all__ = ["Making", "chain_ids", "name_root"]

_NOTHING: Mapping[str, str] = {}
_MOST_LATELY = 4_096
_TRIES = 3  # how often a Prepare begins when a collection takes its chain or its image away


class Making:
    """Makes the roots of one store.  Thread-safe.

    ``release`` lets go of what a root needed, and ``mounted`` mounts a new one, under the lock of its path.
    """

    def __init__(
        self,
        core: Core,
        chains: Chains,
        grounds: Grounds,
        puller: Callable[[], Puller],
        *,
        release: Callable[[RootRow, Sequence[str]], None],
        mounted: Callable[[RootRow, PreparedInfo, Call], PreparedInfo],
    ) -> None:
        self._core = core
        self._chains = chains
        self._grounds = grounds
        self._puller = puller  # asked for where something is pulled: it brings much with it
        self._release = release
        self._mounted = mounted
        self.extras = Extras(core, chains, grounds, self.image)
        self._known = KnownImages()
        self.uppers = Uppers(core, grounds)
        self.lately: dict[str, RootRow] = {}  # by path: guesses for a Cleanup, whose transaction checks

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
                with self._ahead(options, call) as ahead:
                    row, indexes = self.image(name, options, call, ahead)
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

    def _ahead(self, options: PrepareOptions, call: Call) -> Ahead:
        """What a pull may do already of what comes after it."""
        core = self._core

        def try_driver() -> None:
            with contextlib.suppress(Error):  # raised when it is used
                core.choose(options.driver or core.settings.driver)

        return self._chains.ahead(whole=options.self_contained, meanwhile=try_driver, call=call)

    def image(
        self, name: str, options: PrepareOptions, call: Call, ahead: Ahead | None = None
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
        try:
            pulled = self._puller().pull_name(
                name,
                platform=options.platform,
                keep_default=options.platform is not None,
                ahead=ahead,
                call=call,
            )
        except (NotFound, Unauthenticated, PermissionDenied, Unavailable) as exc:
            from orlop.images.nearby import add_meant

            add_meant(core, name, exc)
            raise
        row = core.db.read(lambda tx: names.find(tx, NAMESPACE, pulled.name))
        if row is None:
            raise Aborted(what, "the image was removed at once", hint="try again")
        row = choose(core, row, options.platform, what)
        return row, pulled.indexes if ahead is None else ahead

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
        like = known.like

        def name_it(tx: Transaction, root: RootRow, folders: Sequence[str]) -> None:
            there = roots.touch_sources(tx, NAMESPACE, root)
            if not there or any(folder_rows.get_folder(tx, folder) is None for folder in folders):
                raise Aborted(f"prepare {path}", "the image was removed meanwhile", hint="try again")
            roots.add_root(tx, NAMESPACE, root, options.labels)
            if folders:
                folder_rows.set_root_folders(tx, root.id, folders)

        with lock:
            try:
                root = replace(like, id=os.urandom(8).hex(), path=path, created=time.time())
                root, info = self._create(root, known.stack, options.labels, (), {}, {}, name_it, call)
            except BaseException:
                with contextlib.suppress(Error):  # the first failure is the one to report
                    self._release(like, [row.id for row in known.stack])
                raise
            if options.mount:
                return self._mounted(root, info, call)
        if len(self.lately) >= _MOST_LATELY:
            self.lately.clear()
        self.lately[path] = root
        return info

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
            extras, missing = self.extras.plan(root, stack, options, call)

            def name_it(tx: Transaction, root: RootRow, folders: Sequence[str]) -> None:
                name_root(tx, root, options.labels, folders, extras)

            root, info = self._create(root, stack, options.labels, extras, missing, indexes, name_it, call)
        except BaseException:
            with contextlib.suppress(Error):  # the first failure is the one to report
                found = core.db.read(lambda tx: chain_ids(tx, root, extras))
                self._release(root, [row.id for row in stack] + found)
            raise
        self._known.put(name, options, settings, image, Known(like=root, stack=stack))
        return self._mounted(root, info, call) if options.mount else info

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
        name_it: Callable[[Transaction, RootRow, Sequence[str]], None],
        call: Call,
    ) -> tuple[RootRow, PreparedInfo]:
        """The root, which has its folder's id, and what the API says of it."""
        grounds = self._grounds
        views = self.extras.views(root, extras, call)
        with (
            grounds.held(root, stack, views=views, indexes=indexes, call=call) as (ground, *below),
            self._writable(root, stack, missing, call) as made,
        ):
            specs = grounds.driver(made).mounts(grounds.root(made), ground)
            specs += self.extras.specs(made, extras, below)
            folders = [folder.name for folder in ground.folders]
            reached("root.made")
            self._core.db.write(lambda tx: name_it(tx, made, folders), call=call)
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
            with self.uppers.taken((root.driver, root.chain, root.form), root) as root_id:
                yield replace(root, id=root_id)
        else:
            with self._made(root, stack, missing, call):
                yield root

    @contextlib.contextmanager
    def _made(
        self, root: RootRow, stack: Sequence[ChainRow], missing: dict[str, bool], call: Call
    ) -> Iterator[None]:
        """The same for what is made for one root alone: a disk, a copy, an upper that holds something."""
        core, grounds = self._core, self._grounds
        # The root's lock keeps collectors from taking its folder for one that was left behind.
        with core.locked("root", root_lock(root.id), call=call, attempted=f"prepare {root.path}"):
            try:
                if missing:  # a folder that holds something is taken for somebody's, but for this
                    core.db.write(lambda tx: garbage.trash_add(tx, f"prepared/{root.id}"), call=call)
                grounds.make_disk(root, call)
                grounds.driver(root).create(grounds.own(root), partial(grounds.fill, root, call=call))
                if missing:
                    self.extras.make_places(root, stack, missing, call)
                yield
            except BaseException:
                with contextlib.suppress(Error):  # a collection takes what stays
                    # An interrupt may come when the row is there already.
                    if core.db.read(lambda tx: not roots.is_root(tx, root.id)):
                        if root.quota is not None:
                            core.disks.deactivate(root.id)
                        core.discard(core.layout.prepared / root.id)
                raise


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


def chain_ids(tx: Transaction, root: RootRow, extras: Sequence[MountRow]) -> list[str]:
    """The chain images that a root has mounted, top first."""
    chains = [root.chain, *(row.chain for row in extras if row.chain is not None)]
    return [row.id for chain in chains for row in roots.chain_stack(tx, chain)]
