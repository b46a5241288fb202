"""Prepared roots: Mounts, Cleanup, and Prepare, which is `orlop.images.prepared.making`'s.

A root is a row, a folder under ``prepared/`` and what it stands on (`orlop.images.prepared.grounds`).  The
row comes last at Prepare and goes first at Cleanup, so whatever dies in between leaves a folder without a
row, never a row without its folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from orlop.errors import Aborted, Error, FailedPrecondition, NotFound
from orlop.hints import TYPE_CHECKING
from orlop.images.api import PreparedInfo, PrepareOptions
from orlop.images.chains import Chains
from orlop.images.core import NAMESPACE, Core
from orlop.images.prepared.asked import check_path
from orlop.images.prepared.batch import Batch
from orlop.images.prepared.grounds import Grounds
from orlop.images.prepared.making import Making, chain_ids
from orlop.images.prepared.ownmounts import OwnMounts
from orlop.images.prepared.seen import Seen, info_of_root, look
from orlop.images.prepared.usage import Usage
from orlop.images.snapshotting.graves import Graves
from orlop.linux.mountinfo import mounts_by_id
from orlop.metadata import folders as folder_rows
from orlop.metadata import garbage, roots
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Suspects
from orlop.metadata.roots import Ending, RootRow
from orlop.observe import Call, reached, stepped
from orlop.snapshots.driver import MountSpec
from orlop.snapshots.mappings import mapping_name
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.images.transfer.pull import Puller

__all__ = ["RootService", "check_path", "info_of_root"]


class RootService:
    """The verbs about prepared roots, for one store.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains, grounds: Grounds, puller: Callable[[], Puller]) -> None:
        self._core = core
        self.grounds = grounds
        self._making = Making(core, chains, grounds, puller, release=self.release, mounted=self._mounted)
        self._extras = self._making.extras
        self._usage = Usage(self.grounds)
        self._own = OwnMounts(core, self.grounds, self._extras, self._usage)
        self.batch = Batch(core, self.grounds, self._extras)
        self._graves = Graves(core, "prepared", ("upper", "work/work", "work"))
        core.behind += [self._making.uppers, self._graves]

    # -- Prepare --------------------------------------------------------------------------------

    def prepare(self, name: str, path: str, *, options: PrepareOptions, call: Call) -> PreparedInfo:
        """See `orlop.images.api.Roots.prepare_root`."""
        return self._making.prepare(name, path, options=options, call=call)

    def _mounted(self, root: RootRow, info: PreparedInfo, call: Call) -> PreparedInfo:
        """Mount a new root; one that cannot be mounted is cleaned up again."""
        try:
            return self.mount_root(root.path, f"prepare {root.path}", call)
        except BaseException:
            with contextlib.suppress(Error):
                there = self.grounds.require(root.path, f"prepare {root.path}")
                self._forget(self._own.detach(there, Call()), Call())
                self._graves.finish()
            raise

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
        return self._shown(look(self._core, path, f"list mounts of {path}"), call)

    def _shown(self, seen: Seen, call: Call) -> PreparedInfo:
        specs = self._activate(seen, call)
        return info_of_root(seen.root, specs, seen.labels, mounted=self._own.is_mounted(seen.root))

    @stepped("activate")
    def _activate(self, seen: Seen, call: Call) -> list[MountSpec]:
        """The mounts of a root, after making ready what they name."""
        grounds, root, extras = self.grounds, seen.root, seen.extras
        views = self._extras.views(root, extras, call)
        stack = grounds.stack(root, call, rows=seen.stack)
        with grounds.held(root, stack, views=views, call=call) as (ground, *below):
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
            return self.mount_root(path, what, call)

    @stepped("mount", of=1)
    def mount_root(self, path: str, what: str, call: Call) -> PreparedInfo:
        """The same under the lock of the path; ``what`` is attempted."""
        seen = look(self._core, path, what)
        specs = self._activate(seen, call)
        root = self._own.attach(seen.root, specs, call)
        return info_of_root(root, specs, seen.labels, mounted=True)

    def mount_again(self, path: str) -> None:
        """Mount what is at a path, if anything, after what it was unmounted for has failed."""
        if self._core.db.read(lambda tx: roots.get_root(tx, path)) is not None:
            self.mount_root(path, f"mount {path}", Call())

    def unmount(self, path: str, *, call: Call) -> PreparedInfo:
        """Undo `mount`.  Idempotent."""
        what = f"unmount {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            seen = look(self._core, path, what)
            root = self._own.detach(seen.root, call, extras=seen.extras)
            return self._shown(replace(seen, root=root), call)

    # -- Cleanup --------------------------------------------------------------------------------

    @stepped("cleanup", of=1)
    def cleanup(self, path: str, *, call: Call) -> None:
        """See `orlop.images.api.Roots.cleanup`."""
        what = f"clean up {path}"
        with self._core.locked("path", path, call=call, attempted=what):
            made = self._making.lately.pop(path, None)
            if made is not None and self._usage.is_untouched(made) and self._forget(made, call):
                return
            root = self.grounds.require(path, what)
            if root.kind == "active":
                self.grounds.check_privilege(root, what)
            if root.kind == "view" and root.driver != "erofs" and not root.mounted and self._own.shows(root):
                # What it shows may be collected next, and folders do not outlive that as activations do.
                raise FailedPrecondition(what, f"the view is mounted at {root.path}", hint="unmount it first")
            if not self._usage.is_untouched(root):
                root = self.idle(root, what, call)
            if not self._forget(root, call):
                raise Aborted(what, "it changed meanwhile", hint="try again")

    def idle(self, root: RootRow, what: str, call: Call) -> RootRow:
        """The root after taking away what orlop itself has mounted there, used by nobody.

        Raises `FailedPrecondition` where it is in use.  Needs the lock of its path.
        """
        if root.mounted:
            return self._own.detach(root, call)  # which finds out whether somebody else uses it
        if self._usage.in_use(root, what, call):
            users = self._usage.by(root)
            raise FailedPrecondition(what, f"the root is in use{users}", hint="unmount it first")
        return root

    def _forget(self, root: RootRow, call: Call) -> bool:
        """Delete a root that nobody uses: the row first, then the files, then the activation.

        False, and nothing is done, if its row is another by now.
        """

        def body(tx: Transaction) -> tuple[list[str], bool] | None:
            ending = roots.ending(tx, root)
            if ending is None:
                return None
            chains: list[str] = []
            if root.driver == "erofs" and (root.uid_map or ending.more or not ending.neighbour):
                chains = chain_ids(tx, root, roots.mounts_of(tx, root.id))
            suspects = self.forget_root(tx, root, ending=ending)
            # An image that was removed while it was prepared goes now.
            return chains, bool(garbage.forget(tx, suspects))

        done = self._core.db.write(body, call=call)
        if done is None:
            return False
        chains, forgotten = done
        reached("root.forgotten")
        self.bury(root, chains)
        if forgotten:
            self._core.sweeper.wake()
        return True

    @staticmethod
    def forget_root(
        tx: Transaction, root: RootRow, *, event: str | None = "root.cleaned", ending: Ending | None = None
    ) -> Suspects:
        """Delete a root's rows, and have its folder deleted; returns what they kept.

        ``event`` is None where another tells of it; ``ending`` what was found out before.
        """
        if ending is not None and not ending.more:
            suspects = Suspects(configs={ending.config})
        else:
            suspects = garbage.suspects_of_root(tx, root.id)
        roots.delete_root(tx, root.id, event=event, labels=ending is None or ending.labels)
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
        return self._core.db.read(lambda tx: chain_ids(tx, root, roots.mounts_of(tx, root.id)))

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
