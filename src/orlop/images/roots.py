"""Prepared roots: Prepare, Mounts, Cleanup, and the mounts that orlop performs itself.

A root is a row, a folder under ``prepared/`` and an overlay over a chain's activation.  The row comes last at
Prepare and goes first at Cleanup, so whatever dies in between leaves a folder without a row, never a
row without its folder.

Invariant: a mount is taken away only if it is the root's own, which the kernel is asked; that a row says so
is not enough, for there may be another mount namespace, or a reboot in between.
"""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from orlop.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.images import names
from orlop.images.api import Mount, PreparedInfo, PrepareOptions
from orlop.images.chains import Chains
from orlop.images.changes import is_text
from orlop.images.core import NAMESPACE, Core
from orlop.images.extras import check_extras, make_places, open_place, place_below, resolve_targets, spec_of
from orlop.images.grounds import Grounds
from orlop.images.idmaps import check_maps, maps_of, text_of
from orlop.images.pull import Puller
from orlop.layers.diff import Upper
from orlop.layers.index import LayerIndex
from orlop.linux import mount as mounts
from orlop.linux import mountinfo, processes
from orlop.metadata import folders as folder_rows
from orlop.metadata import garbage, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.observe import Call
from orlop.snapshots.driver import MountSpec
from orlop.snapshots.mappings import mapping_name
from orlop.spec.digest import DiffID
from orlop.spec.documents import parse_config
from orlop.spec.platform import Platform
from orlop.spec.reference import Reference

__all__ = ["RootService", "check_path"]

_LOOKS, _PAUSE = 40, 0.1  # how often, and after how many seconds, a root that seems in use is looked at again
_TRIES = 3  # how often a Prepare begins when a collection takes its chain or its image away


class RootService:
    """The verbs about prepared roots, for one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, puller: Puller) -> None:
        self._core = core
        self._chains = chains
        self._puller = puller
        self._grounds = Grounds(core, chains)

    # -- Prepare --------------------------------------------------------------------------------

    def prepare(self, name: str, path: str, *, options: PrepareOptions, call: Call) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`."""
        what = f"prepare {path}"
        check_path(path, what)
        check_maps(options.uid_map, what)
        check_maps(options.gid_map, what)
        check_extras(options.extra, what)
        if options.view and options.quota is not None:
            raise InvalidArgument(what, "a view takes no writes, so it has no quota")
        if bool(options.uid_map) != bool(options.gid_map):
            raise InvalidArgument(what, "one of uid_map and gid_map is missing", hint="give both, or neither")
        if self._core.layout.contains(path):
            raise InvalidArgument(what, "the path lies inside the store", hint="choose one outside of it")
        for attempt in range(1, _TRIES + 1):
            if self._core.db.read(lambda tx: roots.get_root(tx, path)) is not None:
                raise roots.already_prepared(path)
            row, indexes = self._image(name, options, call)
            try:
                with self._core.locked("path", path, call=call, attempted=what):
                    return self._prepare(row, path, options, indexes, call)
            except (Aborted, NotFound, FileNotFoundError) as exc:
                # A collection took the chain away, or the whole image: look again what there is.
                gone = not self._core.db.read(lambda tx, row=row: layers.has_blob(tx, row.config))  # type: ignore[misc]  # bound now
                if attempt == _TRIES or not (gone or isinstance(exc, Aborted)):
                    raise
        raise AssertionError("unreachable")

    def _image(
        self, name: str, options: PrepareOptions, call: Call
    ) -> tuple[ImageRow, Mapping[DiffID, LayerIndex]]:
        """The image to prepare, pulled if the policy says so."""
        core = self._core
        policy = options.pull or core.settings.pull
        row = core.db.read(lambda tx: names.find(tx, NAMESPACE, name))
        there = self._platform_of(row) if row is not None and options.platform else None
        wanted = Platform.parse(options.platform) if options.platform else None
        fits = there is None or wanted is None or bool(there.rank(wanted))
        if row is not None and fits and policy != "always":
            return row, {}
        if policy == "never":
            if row is not None:
                raise FailedPrecondition(
                    f"prepare {name}", f"the image in the store is for {there}, not for {wanted}"
                )
            return core.db.read(lambda tx: names.require(tx, NAMESPACE, name, f"prepare {name}")), {}
        pulled = self._puller.pull(Reference.parse(name), platform=options.platform, call=call)
        row = core.db.read(lambda tx: names.require(tx, NAMESPACE, pulled.name, f"prepare {name}"))
        return row, pulled.indexes

    def _platform_of(self, row: ImageRow) -> Platform | None:
        try:
            return parse_config(self._core.blobs.read(row.config), f"read image {row.name}").platform()
        except NotFound:
            return None  # removed at this moment: what follows finds out

    def _prepare(
        self,
        image: ImageRow,
        path: str,
        options: PrepareOptions,
        indexes: Mapping[DiffID, LayerIndex],
        call: Call,
    ) -> PreparedInfo:
        """One attempt.  Raises `Aborted` or `NotFound` where a collection was faster."""
        core = self._core
        driver = core.choose(options.driver or core.settings.driver)
        diff_ids = core.db.read(lambda tx: images.config_layers(tx, image.config))
        whole = options.self_contained and driver.name == "erofs"
        stack = self._chains.ensure(diff_ids, call=call, whole=whole, indexes=indexes)
        root = RootRow(
            id=secrets.token_hex(8),
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
        try:
            extras, missing = self._extras(root, stack, options, call)
            info = self._create(root, stack, options.labels, extras, missing, indexes, call)
        except BaseException:
            self.release(root)
            raise
        if not options.mount:
            return info
        try:
            return self._mount(root, call)
        except BaseException:
            self._forget(self._unmount(self._require(path, f"prepare {path}"), Call()), Call())
            raise

    def _create(
        self,
        root: RootRow,
        stack: Sequence[ChainRow],
        labels: Mapping[str, str],
        extras: Sequence[MountRow],
        missing: dict[str, bool],
        indexes: Mapping[DiffID, LayerIndex],
        call: Call,
    ) -> PreparedInfo:
        core, grounds = self._core, self._grounds
        driver, own = grounds.driver(root), grounds.own(root)
        what = f"prepare {root.path}"
        with grounds.held(root, stack, indexes=indexes, call=call) as ground:
            specs = driver.mounts(grounds.root(root), ground) + self._extra_specs(root, extras, call)
            folders = [folder.name for folder in ground.folders]
            # The root's lock keeps collectors from taking its folder for one that was left behind.
            with core.locked("root", root.id, call=call, attempted=what):
                try:
                    if root.kind == "active":
                        grounds.make_disk(root, call)
                        driver.create(own, partial(grounds.fill, root, call=call))
                    if missing:
                        self._make_places(root, stack, missing, call)
                    core.db.write(lambda tx: self._name(tx, root, labels, folders, extras), call=call)
                except BaseException:
                    if root.quota is not None:
                        core.disks.deactivate(root.id)
                    core.discard(core.layout.prepared / root.id)
                    raise
        return _info(root, specs, labels)

    @staticmethod
    def _name(
        tx: Transaction,
        root: RootRow,
        labels: Mapping[str, str],
        folders: Sequence[str],
        extras: Sequence[MountRow],
    ) -> None:
        there = roots.chain_stack(tx, root.chain) and layers.has_blob(tx, root.config)
        if not there or any(folder_rows.get_folder(tx, folder) is None for folder in folders):
            raise Aborted(f"prepare {root.path}", "the image was removed meanwhile", hint="try again")
        if any(row.chain is not None and not roots.chain_stack(tx, row.chain) for row in extras):
            raise Aborted(f"prepare {root.path}", "an image to mount was removed meanwhile", hint="try again")
        roots.add_root(tx, NAMESPACE, root, labels, extras)
        folder_rows.set_root_folders(tx, root.id, folders)

    # -- the caller's own mounts ----------------------------------------------------------------

    def _extras(
        self, root: RootRow, stack: Sequence[ChainRow], options: PrepareOptions, call: Call
    ) -> tuple[list[MountRow], dict[str, bool]]:
        """The mounts that were asked for, and what is missing of their places."""
        if not options.extra:
            return [], {}
        what = f"prepare {root.path}"
        with self._chains.view(stack) as view:
            targets, missing = resolve_targets(view, options.extra, what)
        if missing and root.kind == "view":
            raise FailedPrecondition(
                what, f"the image has no {min(missing)} to mount on, and a view cannot get it"
            )
        found: list[MountRow] = []
        for extra, target in zip(options.extra, targets, strict=True):
            row = MountRow(type=extra.type, source=extra.source, target=target, options=extra.options)
            if extra.type == "image":
                image, indexes = self._image(extra.source, PrepareOptions(pull=options.pull), call)
                diff_ids = self._core.db.read(lambda tx, c=image.config: images.config_layers(tx, c))  # type: ignore[misc]  # bound now
                chain = self._chains.ensure(diff_ids, call=call, indexes=indexes)
                row = replace(row, source=image.name, config=image.config, chain=chain[0].id)
            found.append(row)
        return found, missing

    def _make_places(
        self, root: RootRow, stack: Sequence[ChainRow], missing: dict[str, bool], call: Call
    ) -> None:
        upper, kind = self._grounds.upper(root)
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._chains.view(stack) as view:
                make_places(fd, view, missing, kind.form, whole=kind.whole, call=call)
        finally:
            os.close(fd)

    def _extra_specs(self, root: RootRow, extras: Sequence[MountRow], call: Call) -> list[MountSpec]:
        """The caller's mounts in mount(2)'s terms, after making ready the images among them."""
        specs: list[MountSpec] = []
        for number, row in enumerate(extras):
            if row.type != "image":
                specs.append(spec_of(row, root.path))
                continue
            view = _as_view(root, row, number)
            with self._grounds.held(view, self.stack(view, call), call=call) as ground:
                specs += self._grounds.driver(root).mounts(self._grounds.root(view), ground)
        return specs

    # -- what is prepared -----------------------------------------------------------------------

    def prepared(self) -> list[PreparedInfo]:
        """All prepared roots, by path."""

        def body(tx: Transaction) -> list[tuple[RootRow, dict[str, str]]]:
            return [(root, roots.labels_of(tx, root.id)) for root in roots.list_roots(tx, NAMESPACE)]

        return [
            _info(root, (), labels, mounted=self._is_mounted(root))
            for root, labels in self._core.db.read(body)
        ]

    def mounts(self, path: str, *, call: Call) -> PreparedInfo:
        """The mounts of a root again; its chain is activated where it is not (after a reboot)."""
        root = self._require(path, f"list mounts of {path}")
        specs = self._activate(root, call)
        labels = self._core.db.read(lambda tx: roots.labels_of(tx, root.id))
        return _info(root, specs, labels, mounted=self._is_mounted(root))

    def _activate(self, root: RootRow, call: Call) -> list[MountSpec]:
        """The mounts of a root, after making ready what they name."""
        grounds = self._grounds
        with grounds.held(root, self.stack(root, call), call=call) as ground:
            folders = [folder.name for folder in ground.folders]
            if folders != self._core.db.read(lambda tx: folder_rows.folders_of_root(tx, root.id)):
                self._core.db.write(lambda tx: folder_rows.set_root_folders(tx, root.id, folders), call=call)
            extras = self._core.db.read(lambda tx: roots.mounts_of(tx, root.id))
            return grounds.driver(root).mounts(grounds.root(root), ground) + self._extra_specs(
                root, extras, call
            )

    def stack(self, root: RootRow, call: Call) -> list[ChainRow]:
        """The chain of a prepared root, rebuilt if its files are gone."""
        stack = self._chains.stack(root.chain)
        if stack:
            return stack
        diff_ids = self._core.db.read(lambda tx: images.config_layers(tx, root.config))
        return self._chains.ensure(diff_ids, call=call, whole=root.chain.endswith("-whole"))

    def require(self, path: str, what: str) -> RootRow:
        """The root at a path.  Raises `NotFound`, or `InvalidArgument` for no path at all."""
        return self._require(path, what)

    def upper(self, root: RootRow) -> tuple[Path, Upper]:
        """The folder that holds what was written to a root, and how to read it."""
        return self._grounds.upper(root)

    def check_privilege(self, root: RootRow, what: str) -> None:
        """Refuse a root whose ids mean something else to us.  Raises `FailedPrecondition`."""
        self._grounds.check_privilege(root, what)

    def _require(self, path: str, what: str) -> RootRow:
        check_path(path, what)
        root = self._core.db.read(lambda tx: roots.get_root(tx, path))
        if root is None:
            raise NotFound(what, "nothing is prepared there", hint="'orlop ps' lists what is")
        return root

    # -- mounts of our own ----------------------------------------------------------------------

    def mount(self, path: str, *, call: Call) -> PreparedInfo:
        """Perform a root's mounts in this mount namespace.  Idempotent."""
        what = f"mount {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            return self._mount(self._require(path, what), call)

    def _mount(self, root: RootRow, call: Call) -> PreparedInfo:
        what = f"mount {root.path}"
        core = self._core
        labels = core.db.read(lambda tx: roots.labels_of(tx, root.id))
        specs = self._activate(root, call)
        if self._is_mounted(root):
            return _info(root, specs, labels, mounted=True)
        if root.kind == "active" and self._grounds.driver(root).in_use(self._grounds.own(root)):
            raise FailedPrecondition(what, f"it is in use already{self._by(root)}")
        if core.layout.hidden_by(root.path):
            raise InvalidArgument(what, "a mount there would hide the store", hint="choose another path")
        made = False
        if not os.path.isdir(root.path):
            try:
                os.mkdir(root.path, 0o755)
            except OSError as exc:
                raise from_oserror(what, exc, hint="only the last folder of the path is made") from exc
            made = True
        try:
            root = self._note(root, mounted=True, made_target=made or root.made_target, call=call)
        except BaseException:
            if made:
                _remove_target(root.path)
            raise
        place = os.path.realpath(root.path)  # a symlink there is followed, and must not change between two
        try:
            for spec in specs:
                if spec.target == root.path:
                    mounts.perform(spec.type, spec.source, place, spec.options)
                else:
                    _perform_below(place, spec, spec.target.removeprefix(root.path), what)
        except BaseException as exc:
            self._unmount(root, Call())
            if isinstance(exc, OSError):
                raise from_oserror(what, exc) from exc
            raise
        return _info(root, specs, labels, mounted=True)

    def _note(self, root: RootRow, *, mounted: bool, made_target: bool, call: Call) -> RootRow:
        """Remember what we have done, or are about to do, at the path."""
        self._core.db.write(
            lambda tx: roots.set_mounted(tx, root.id, mounted=mounted, made_target=made_target), call=call
        )
        return replace(root, mounted=mounted, made_target=made_target)

    def _is_mounted(self, root: RootRow) -> bool:
        """Whether orlop has mounted a root, and what is on top at its path now is that mount."""
        return root.mounted and self._shows(root)

    def _shows(self, root: RootRow) -> bool:
        grounds, place = self._grounds, os.path.realpath(root.path)
        ground = grounds.plain(root)
        if not ground.images and not ground.folders and (root.kind == "view" or root.driver == "erofs"):
            return False
        return grounds.driver(root).shows(grounds.root(root), ground, place)

    def unmount(self, path: str, *, call: Call) -> PreparedInfo:
        """Undo `mount`.  Idempotent."""
        what = f"unmount {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            self._unmount(self._require(path, what), call)
        return self.mounts(path, call=call)

    def _unmount(self, root: RootRow, call: Call) -> RootRow:
        """Take away the mounts and the folder that we made, and only those."""
        if not root.mounted:
            return root
        what = f"unmount {root.path}"
        self._unmount_extras(root, what)
        while self._shows(root):
            try:
                mounts.umount(os.path.realpath(root.path))
            except OSError as exc:
                users = self._by(root)
                raise FailedPrecondition(what, f"it is in use{users}", hint="end what uses it first") from exc
        if self._in_use(root, what, call):
            # Under another mount, or in another mount namespace: it is still to be undone.
            raise FailedPrecondition(what, f"it is in use{self._by(root)}", hint="end what uses it first")
        if root.made_target:
            _remove_target(root.path)
        return self._note(root, mounted=False, made_target=False, call=call)

    def _unmount_extras(self, root: RootRow, what: str) -> None:
        """Take away the caller's mounts that we performed, the last one first, if it is they that are there."""
        extras = self._core.db.read(lambda tx: roots.mounts_of(tx, root.id))
        if not extras or not self._shows_below(root):
            return
        place = os.path.realpath(root.path)
        for number, row in reversed(list(enumerate(extras))):
            with place_below(place, row.target, what) as path:
                while path is not None and self._is_extra(root, row, number, path):
                    try:
                        mounts.umount(path)
                    except OSError as exc:
                        reason = f"its mount at {row.target} is in use"
                        raise FailedPrecondition(what, reason, hint="end what uses it first") from exc

    def _shows_below(self, root: RootRow) -> bool:
        return mountinfo.is_mount_point(os.path.realpath(root.path)) and self._shows(root)

    def _is_extra(self, root: RootRow, row: MountRow, number: int, path: str) -> bool:
        """Whether what is mounted at a path is one of a root's further mounts."""
        if not mountinfo.is_mount_point(path):
            return False
        if row.type == "image":
            view, call = _as_view(root, row, number), Call()
            with self._grounds.held(view, self.stack(view, call), call=call) as ground:
                return self._grounds.driver(root).shows(self._grounds.root(view), ground, path)
        if row.type == "tmpfs":
            return mountinfo.filesystem_magic(path) == mountinfo.TMPFS_MAGIC
        return os.path.exists(row.source) and mountinfo.is_bind_of(path, row.source)

    # -- Cleanup --------------------------------------------------------------------------------

    def cleanup(self, path: str, *, call: Call) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        what = f"clean up {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            root = self._require(path, what)
            if root.kind == "active":
                self._grounds.check_privilege(root, what)
            root = self._unmount(root, call)
            if self._in_use(root, what, call):
                users = self._by(root)
                raise FailedPrecondition(what, f"the root is in use{users}", hint="unmount it first")
            self._forget(root, call)

    def _in_use(self, root: RootRow, what: str, call: Call) -> bool:
        """Whether an overlay uses the root's upper, and goes on doing so.

        A container that starts anywhere on the machine copies all mounts for a moment, until it has
        left the old root behind; so a root nobody holds gets a little time to become idle.
        """
        if root.kind != "active":
            return False
        driver, own = self._grounds.driver(root), self._grounds.own(root)
        for _ in range(_LOOKS):
            if not driver.in_use(own):
                return False
            if mountinfo.is_mount_point(root.path):
                return True  # it is plainly there: waiting changes nothing
            call.pause(_PAUSE, what)
        return driver.in_use(own)

    def _by(self, root: RootRow) -> str:
        """Who uses a root, for an error: `` by bash (1234)``."""
        upper = self._grounds.driver(root).upper(self._grounds.own(root))
        if root.driver == "native":
            found, places = processes.users_of_tree(upper), list[str]()
        else:
            found = processes.users_of(upper)
            places = [place for place in processes.mount_points_of(upper) if place != root.path]
        text = ""
        if found:
            text = " by " + ", ".join(str(process) for process in found[:5])
        if places:
            text += f", mounted at {places[0]}"
        return text

    def _forget(self, root: RootRow, call: Call) -> None:
        """Delete a root that nobody uses: the row first, then the files, then the activation."""
        core = self._core
        folder = f"prepared/{root.id}"

        def body(tx: Transaction) -> None:
            roots.delete_root(tx, root.id)
            if root.kind == "active":
                garbage.trash_add(tx, folder)

        core.db.write(body, call=call)
        if root.quota is not None:
            core.disks.deactivate(root.id)
        if root.kind == "active":
            core.discard(core.layout.root / folder)
            core.db.write(lambda tx: garbage.trash_done(tx, folder))
        self.release(root)

    def release(self, root: RootRow) -> None:
        """Unmount what a root needed and no other prepared root stands on any more."""
        core = self._core
        mapping = mapping_name(root.uid_map, root.gid_map)
        if mapping and (lock := core.try_locked("maps", mapping)) is not None:
            try:
                if not core.db.read(lambda tx: roots.mapping_users(tx, root.uid_map, root.gid_map)):
                    core.mappings.deactivate(mapping)
            finally:
                lock.release()
        if root.driver != "erofs":
            return
        for row in core.db.read(lambda tx: roots.chain_stack(tx, root.chain)):
            lock = core.try_locked("chain", row.id)
            if lock is None:
                return  # somebody is using it this moment
            try:
                if core.db.read(lambda tx, row=row: roots.chain_users(tx, row.id)):  # type: ignore[misc]  # bound now
                    return
                core.erofs.deactivate(row.id)
            finally:
                lock.release()


def check_path(path: str, what: str) -> None:
    """A path must be absolute and clean, as its text is what makes it unique."""
    if not path.startswith("/"):
        raise InvalidArgument(
            what,
            "the path is relative",
            hint=f"give an absolute path, such as {os.path.abspath(path or '.')}",
        )
    if not is_text(path):
        raise InvalidArgument(
            what, "the path is not UTF-8", hint="choose another: mounts are passed on as text"
        )
    if path == "/" or path != posixpath.normpath(path) or path.startswith("//") or "\0" in path:
        raise InvalidArgument(
            what, "the path is not clean", hint=f"write it as {posixpath.normpath('/' + path)}"
        )


def _as_view(root: RootRow, row: MountRow, number: int) -> RootRow:
    """An image that is mounted below a root, as a view of its own."""
    assert row.config is not None
    assert row.chain is not None
    return replace(
        root,
        id=f"{root.id}-{number}",
        path=root.path + row.target,
        config=row.config,
        chain=row.chain,
        kind="view",
        self_contained=False,
        quota=None,
    )


def _perform_below(place: str, spec: MountSpec, target: str, what: str) -> None:
    """Perform a mount below a mounted root, at a place that no symlink leads to."""
    root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_place(root, target, what)
    finally:
        os.close(root)
    try:
        mounts.perform(spec.type, spec.source, f"/proc/self/fd/{fd}", spec.options)
    finally:
        os.close(fd)


def _remove_target(path: str) -> None:
    """Remove the folder we made for a mount, unless it is somebody's by now."""
    try:
        os.rmdir(path)
    except OSError as exc:
        if exc.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY}:
            raise from_oserror(f"remove {path}", exc) from exc


def _info(
    root: RootRow, specs: Sequence[MountSpec], labels: Mapping[str, str], *, mounted: bool = False
) -> PreparedInfo:
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
    )
