"""Prepared roots: Prepare, Mounts, Cleanup, and the mounts that orlop performs itself.

A root is a row, a folder under ``prepared/`` and an overlay over a chain's activation.  The row comes last at
Prepare and goes first at Cleanup, so whatever dies in between leaves a folder without a row, never a
row without its folder.

Invariant: a mount is taken away only if it is the root's own, which the kernel is asked; that a row says so
is not enough, for there may be another mount namespace, or a reboot in between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from orlop.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.images import names
from orlop.images.api import Mount, PreparedInfo, PrepareOptions
from orlop.images.chains import Chains
from orlop.images.changes import is_text
from orlop.images.core import NAMESPACE, Core
from orlop.images.pull import Puller
from orlop.layers.index import LayerIndex
from orlop.linux import mount as mounts
from orlop.linux import mountinfo, processes
from orlop.metadata import garbage, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call
from orlop.snapshots.erofs import ChainImage, MountSpec
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

    # -- Prepare --------------------------------------------------------------------------------

    def prepare(self, name: str, path: str, *, options: PrepareOptions, call: Call) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`."""
        what = f"prepare {path}"
        check_path(path, what)
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
        diff_ids = self._core.db.read(lambda tx: images.config_layers(tx, image.config))
        stack = self._chains.ensure(diff_ids, call=call, whole=options.self_contained, indexes=indexes)
        root = RootRow(
            id=secrets.token_hex(8),
            path=path,
            image=image.name,
            config=image.config,
            chain=stack[0].id,
            driver=self._core.driver.name,
            kind="view" if options.view else "active",
            self_contained=options.self_contained,
            mounted=False,
            made_target=False,
            created=time.time(),
        )
        try:
            info = self._create(root, stack, options.labels, call)
        except BaseException:
            self.release(root.chain)
            raise
        if not options.mount:
            return info
        try:
            return self._mount(root, call)
        except BaseException:
            self._forget(self._unmount(self._require(path, f"prepare {path}"), Call()), Call())
            raise

    def _create(
        self, root: RootRow, stack: Sequence[ChainRow], labels: Mapping[str, str], call: Call
    ) -> PreparedInfo:
        core = self._core
        chain_images = [self._chains.image(row) for row in stack]
        what = f"prepare {root.path}"
        # The root's lock keeps collectors from taking its folder for one that was left behind.
        with self._activated(chain_images, call), core.locked("root", root.id, call=call, attempted=what):
            specs = self._mounts(root, chain_images)
            try:
                if root.kind == "active":
                    core.driver.create_upper(root.id, chain_images)
                core.db.write(lambda tx: self._name(tx, root, labels), call=call)
            except BaseException:
                core.discard(core.layout.prepared / root.id)
                raise
        return _info(root, specs, labels)

    @staticmethod
    def _name(tx: Transaction, root: RootRow, labels: Mapping[str, str]) -> None:
        if not roots.chain_stack(tx, root.chain) or not layers.has_blob(tx, root.config):
            raise Aborted(f"prepare {root.path}", "the image was removed meanwhile", hint="try again")
        roots.add_root(tx, NAMESPACE, root, labels)

    @contextlib.contextmanager
    def _activated(self, stack: Sequence[ChainImage], call: Call) -> Iterator[None]:
        """Have a chain's images mounted, and kept so, for the length of a ``with`` block."""
        core = self._core
        with contextlib.ExitStack() as held:
            for image in reversed(stack):
                what = f"activate chain {image.id[:12]}"
                while True:
                    lock = core.locked("chain", image.id, call=call, attempted=what, exclusive=False)
                    with contextlib.ExitStack() as one:
                        one.enter_context(lock)
                        if core.driver.active(image):
                            held.enter_context(one.pop_all())
                            break
                    with core.locked("chain", image.id, call=call, attempted=what):
                        core.driver.activate(image)
            yield

    def _mounts(self, root: RootRow, stack: Sequence[ChainImage]) -> list[MountSpec]:
        driver, view = self._core.driver, root.kind == "view"
        if root.self_contained:
            return driver.self_contained(root.id, stack, root.path, view=view)
        return driver.mounts(root.id, stack, root.path, view=view)

    # -- what is prepared -----------------------------------------------------------------------

    def prepared(self) -> list[PreparedInfo]:
        """All prepared roots, by path."""

        def body(tx: Transaction) -> list[tuple[RootRow, list[ChainRow], dict[str, str]]]:
            return [
                (
                    root,
                    roots.chain_stack(tx, root.chain) if root.mounted else [],
                    roots.labels_of(tx, root.id),
                )
                for root in roots.list_roots(tx, NAMESPACE)
            ]

        found = self._core.db.read(body)
        return [
            _info(root, (), labels, mounted=self._is_mounted(root, stack)) for root, stack, labels in found
        ]

    def mounts(self, path: str, *, call: Call) -> PreparedInfo:
        """The mounts of a root again; its chain is activated where it is not (after a reboot)."""
        root = self._require(path, f"list mounts of {path}")
        stack = self.stack(root, call)
        specs = self._activate(root, stack, call)
        labels = self._core.db.read(lambda tx: roots.labels_of(tx, root.id))
        return _info(root, specs, labels, mounted=self._is_mounted(root, stack))

    def _activate(self, root: RootRow, stack: Sequence[ChainRow], call: Call) -> list[MountSpec]:
        chain_images = [self._chains.image(row) for row in stack]
        with self._activated(chain_images, call):
            return self._mounts(root, chain_images)

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
        stack = self.stack(root, call)
        specs = self._activate(root, stack, call)
        if self._is_mounted(root, stack):
            return _info(root, specs, labels, mounted=True)
        if root.kind == "active" and core.driver.in_use(root.id):
            raise FailedPrecondition(what, f"it is mounted already{_by(core.driver.upper(root.id))}")
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
                mounts.perform(spec.type, spec.source, place, spec.options)
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

    def _is_mounted(self, root: RootRow, stack: Sequence[ChainRow]) -> bool:
        """Whether orlop has mounted a root, and what is on top at its path now is that mount."""
        return root.mounted and self._shows(root, [self._chains.image(row) for row in stack])

    def _shows(self, root: RootRow, stack: Sequence[ChainImage]) -> bool:
        view = root.kind == "view"
        place = os.path.realpath(root.path)
        return self._core.driver.shows(root.id, stack, place, view=view, self_contained=root.self_contained)

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
        upper = self._core.driver.upper(root.id)
        rows = self._core.db.read(lambda tx: roots.chain_stack(tx, root.chain))
        stack = [self._chains.image(row) for row in rows]
        while stack and self._shows(root, stack):
            try:
                mounts.umount(os.path.realpath(root.path))
            except OSError as exc:
                users = _by(upper, root.path)
                raise FailedPrecondition(what, f"it is in use{users}", hint="end what uses it first") from exc
        if self._in_use(root, what, call):
            # Under another mount, or in another mount namespace: it is still to be undone.
            raise FailedPrecondition(what, f"it is in use{_by(upper)}", hint="end what uses it first")
        if root.made_target:
            _remove_target(root.path)
        return self._note(root, mounted=False, made_target=False, call=call)

    # -- Cleanup --------------------------------------------------------------------------------

    def cleanup(self, path: str, *, call: Call) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        what = f"clean up {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            root = self._unmount(self._require(path, what), call)
            if self._in_use(root, what, call):
                users = _by(self._core.driver.upper(root.id))
                raise FailedPrecondition(what, f"the root is in use{users}", hint="unmount it first")
            self._forget(root, call)

    def _in_use(self, root: RootRow, what: str, call: Call) -> bool:
        """Whether an overlay uses the root's upper, and goes on doing so.

        A container that starts anywhere on the machine copies all mounts for a moment, until it has
        left the old root behind; so a root nobody holds gets a little time to become idle.
        """
        if root.kind != "active":
            return False
        driver = self._core.driver
        for _ in range(_LOOKS):
            if not driver.in_use(root.id):
                return False
            if mountinfo.is_mount_point(root.path):
                return True  # it is plainly there: waiting changes nothing
            call.pause(_PAUSE, what)
        return driver.in_use(root.id)

    def _forget(self, root: RootRow, call: Call) -> None:
        """Delete a root that nobody uses: the row first, then the files, then the activation."""
        core = self._core
        folder = f"prepared/{root.id}"

        def body(tx: Transaction) -> None:
            roots.delete_root(tx, root.id)
            if root.kind == "active":
                garbage.trash_add(tx, folder)

        core.db.write(body, call=call)
        if root.kind == "active":
            core.discard(core.layout.root / folder)
            core.db.write(lambda tx: garbage.trash_done(tx, folder))
        self.release(root.chain)

    def release(self, chain: str) -> None:
        """Unmount the images of a chain that no prepared root stands on any more."""
        core = self._core
        for row in core.db.read(lambda tx: roots.chain_stack(tx, chain)):
            lock = core.try_locked("chain", row.id)
            if lock is None:
                return  # somebody is using it this moment
            try:
                if core.db.read(lambda tx, row=row: roots.chain_users(tx, row.id)):  # type: ignore[misc]  # bound now
                    return
                core.driver.deactivate(row.id)
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


def _remove_target(path: str) -> None:
    """Remove the folder we made for a mount, unless it is somebody's by now."""
    try:
        os.rmdir(path)
    except OSError as exc:
        if exc.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY}:
            raise from_oserror(f"remove {path}", exc) from exc


def _by(upper: Path, path: str | None = None) -> str:
    """Who uses a root, for an error: `` by bash (1234)``."""
    found = processes.users_of(upper)
    places = [place for place in processes.mount_points_of(upper) if place != path]
    text = ""
    if found:
        text = " by " + ", ".join(str(process) for process in found[:5])
    if places:
        text += f", mounted at {places[0]}"
    return text


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
    )
