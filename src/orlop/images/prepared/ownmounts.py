"""The mounts that orlop performs itself: a root's own, and those that its caller added.

Invariant: a mount is taken away only if it is the root's own, which the kernel is asked; that a row says so
is not enough, for there may be another mount namespace, or a reboot in between.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from orlop.errors import FailedPrecondition, InvalidArgument, from_oserror
from orlop.images.core import Core
from orlop.images.prepared.extras import Extras, open_place, place_below
from orlop.images.prepared.grounds import Grounds
from orlop.images.prepared.usage import Usage
from orlop.linux import mount as mounts
from orlop.linux import mountinfo, processes
from orlop.metadata import roots
from orlop.metadata.roots import MountRow, RootRow
from orlop.observe import Call, reached
from orlop.snapshots.driver import MountSpec, Table
from orlop.values import replace

__all__ = ["OwnMounts"]


class OwnMounts:
    """Mounts and unmounts roots of one store in this mount namespace.  Locking by path is the caller's."""

    def __init__(self, core: Core, grounds: Grounds, extras: Extras, usage: Usage) -> None:
        self._core = core
        self._grounds = grounds
        self._extras = extras
        self._usage = usage

    def attach(self, root: RootRow, specs: Sequence[MountSpec], call: Call) -> RootRow:
        """Perform a root's mounts, unless they are there."""
        what = f"mount {root.path}"
        if self.is_mounted(root):
            return root
        used = root.kind == "active" and not self._usage.is_untouched(root)
        if used and self._grounds.driver(root).in_use(self._grounds.own(root)):
            raise FailedPrecondition(what, f"it is in use already{self._usage.by(root)}")
        if self._core.layout.hidden_by(root.path):
            raise InvalidArgument(what, "a mount there would hide the store", hint="choose another path")
        missing, before = not os.path.isdir(root.path), root
        # First, for a process that dies in between must leave no folder that nobody removes.
        root = self._note(root, mounted=True, made_target=missing or root.made_target, call=call)
        reached("root.mount-noted")
        if missing:
            try:
                os.mkdir(root.path, 0o755)
            except OSError as exc:
                self._note(root, mounted=before.mounted, made_target=before.made_target, call=Call())
                raise from_oserror(what, exc, hint="only the last folder of the path is made") from exc
            reached("root.target-made")
        try:
            _perform(root.path, specs, what)
            reached("root.mounted")
        except BaseException as exc:
            self.detach(root, Call())
            if isinstance(exc, PermissionError):
                hint = f"without it {specs[0].source} can be used as it is" if root.driver == "native" else ""
                hint = hint or "open a shell with 'orlop unshare'"
                raise from_oserror(what, exc, hint=hint) from exc
            if isinstance(exc, OSError):
                raise from_oserror(what, exc) from exc
            raise
        return root

    def _note(self, root: RootRow, *, mounted: bool, made_target: bool, call: Call) -> RootRow:
        """Remember what we have done, or are about to do, at the path."""
        self._core.db.write(
            lambda tx: roots.set_mounted(tx, root.id, mounted=mounted, made_target=made_target), call=call
        )
        return replace(root, mounted=mounted, made_target=made_target)

    def is_mounted(self, root: RootRow, table: Table | None = None) -> bool:
        """Whether orlop has mounted a root, and what is on top at its path now is that mount."""
        return root.mounted and self.shows(root, table)

    def shows(self, root: RootRow, table: Table | None = None) -> bool:
        """Whether what is on top at a root's path is a mount of the root, whoever performed it."""
        grounds, place = self._grounds, os.path.realpath(root.path)
        if not mountinfo.is_mount_point(place):  # most are not, and then the rows need not be asked
            return False
        ground = grounds.plain(root)
        if not ground.images and not ground.folders and (root.kind == "view" or root.driver == "erofs"):
            return False
        return grounds.driver(root).shows(grounds.root(root), ground, place, table=table)

    def detach(self, root: RootRow, call: Call, *, extras: Sequence[MountRow] | None = None) -> RootRow:
        """Take away the mounts and the folder that we made, and only those.

        ``extras`` are the caller's mounts if they were read already.  Of a root that is not mounted it is not
        asked whether somebody uses it.
        """
        if not root.mounted:
            return root
        what = f"unmount {root.path}"
        if extras is None:
            extras = self._core.db.read(lambda tx: roots.mounts_of(tx, root.id))
        self._unmount_extras(root, extras, what)
        while self.shows(root):
            try:
                mounts.umount(os.path.realpath(root.path))
            except OSError as exc:
                users = self._usage.by(root)
                raise FailedPrecondition(what, f"it is in use{users}", hint="end what uses it first") from exc
        if self._usage.in_use(root, what, call):
            # Under another mount, or in another mount namespace: it is still to be undone.
            raise FailedPrecondition(
                what, f"it is in use{self._usage.by(root)}", hint="end what uses it first"
            )
        reached("root.unmounted")
        if root.made_target:
            _remove_target(root.path)
            reached("root.target-removed")
        return self._note(root, mounted=False, made_target=False, call=call)

    def _unmount_extras(self, root: RootRow, extras: Sequence[MountRow], what: str) -> None:
        """Take away the caller's mounts that we performed, the last one first, if they are there."""
        if not extras or not self._shows_below(root):
            return
        place = os.path.realpath(root.path)
        users = processes.users_of_mount(place)
        if root.kind == "active" and root.driver != "native":
            upper = self._grounds.driver(root).upper(self._grounds.root(root))
            users += processes.users_of(upper, holders=False)  # some copy all mounts for a moment
        if users:  # asked before anything is gone, for what runs there may need it all
            raise FailedPrecondition(
                what, f"it is in use by {', '.join(map(str, users[:5]))}", hint="end what uses it first"
            )
        for number, row in reversed(list(enumerate(extras))):
            with place_below(place, row.target, what) as path:
                while path is not None and self._extras.shows(root, row, number, path):
                    try:
                        mounts.umount(path)
                    except OSError as exc:
                        reason = f"its mount at {row.target} is in use"
                        raise FailedPrecondition(what, reason, hint="end what uses it first") from exc

    def _shows_below(self, root: RootRow) -> bool:
        return mountinfo.is_mount_point(os.path.realpath(root.path)) and self.shows(root)


def _perform(path: str, specs: Sequence[MountSpec], what: str) -> None:
    place = os.path.realpath(path)  # a symlink there is followed, and must not change between two
    for spec in specs:
        if spec.target == path:
            mounts.perform(spec.type, spec.source, place, spec.options)
        else:
            _perform_below(place, spec, spec.target.removeprefix(path), what)


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
