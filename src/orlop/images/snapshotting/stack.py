"""What a snapshot stands on, made ready, and the mounts that assemble it.

Folders stand above, those of committed snapshots, the nearest parent first; below them there may be a chain
of layers, mounted as EROFS.  Mounts are what mount(2) and containerd's mount package perform: ``bind`` and
``overlay``, every option said.  containerd's differ writes into the folders that they name, so one without
anything below is a bind mount of its ``fs``, and any other an overlay with ``upperdir`` and ``workdir``.

Invariants: activations are held from when they are looked at until the row that needs them is there; options
fit into the page that mount(2) takes, if need be after containerd has shortened them: it mounts from the
folder that all lowers have in common.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from orlop.errors import FailedPrecondition, from_oserror
from orlop.images.api import Mount
from orlop.images.chains import Chains
from orlop.images.core import Core
from orlop.metadata.snapshots import SnapshotKind
from orlop.observe import Call, reached
from orlop.snapshots.driver import ChainImage, Ground, Root
from orlop.snapshots.stacks import MAX_STACK, options_of
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = ["NOTHING_BELOW", "Bottom", "Stacks"]

PAGE = 4_096  # bytes that mount(2) takes of options, the last a NUL
SHORTENED = PAGE - 512  # containerd shortens options longer than this: mount/mount_linux.go
_MODE = 0o755  # of a new snapshot's root folder
_MARKS = ("trusted.overlay.", "user.overlay.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottom:
    """The chain at the bottom of a stack: its name, its images, top first, and where their trees are."""

    chain: str | None
    images: tuple[ChainImage, ...] = ()
    trees: tuple[str, ...] = ()


NOTHING_BELOW = Bottom(chain=None)


class Stacks:
    """The stacks of one store's snapshots.  Thread-safe."""

    def __init__(self, core: Core, chains: Chains) -> None:
        self._core = core
        self._chains = chains
        self._base = os.fspath(core.layout.snapshots)
        self._options = options_of(core.form.marks.decode())

    def folder(self, snapshot_id: str) -> str:
        """Where what was written to a snapshot lies."""
        return f"{self._base}/{snapshot_id}/fs"

    # -- chains ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def ready(self, diff_ids: Sequence[DiffID], *, call: Call) -> Iterator[Bottom]:
        """The chain of some layers, built and mounted, and held so for a ``with`` block.

        Raises `NotFound` if a layer is gone, `Aborted` where a collection was faster.
        """
        if not diff_ids:
            yield NOTHING_BELOW
            return
        stack = self._chains.ensure(diff_ids, call=call)
        images = tuple(self._chains.image(row) for row in stack)
        with self._activated(images, call):
            trees = tuple(map(os.fspath, self._core.erofs.trees(images)))
            yield Bottom(chain=stack[0].id, images=images, trees=trees)

    @contextlib.contextmanager
    def _activated(self, images: Sequence[ChainImage], call: Call) -> Iterator[None]:
        """Have images mounted; nothing is held while one waits to mount another."""
        core = self._core
        ordered = sorted(images, key=lambda image: image.id)
        while True:
            with contextlib.ExitStack() as held:
                missing = None
                for image in ordered:
                    what = f"activate chain {image.id[:12]}"
                    held.enter_context(
                        core.locked("chain", image.id, call=call, attempted=what, exclusive=False)
                    )
                    if not core.erofs.active(image):
                        missing = image
                        break
                if missing is None:
                    yield
                    return
            with core.locked("chain", missing.id, call=call, attempted=what):
                core.erofs.activate(missing)
                reached("snapshot.activated")

    # -- the writable part ----------------------------------------------------------------------

    def take_after(self, snapshot_id: str, lowers: Sequence[str]) -> None:
        """Give a new folder the mode, owner and xattrs of what it will lie on: its root is what shows."""
        if not lowers:
            return
        fs = self.folder(snapshot_id)
        try:
            below = os.stat(lowers[0])
            changed = False
            if (below.st_uid, below.st_gid) != (0, 0):
                os.chown(fs, below.st_uid, below.st_gid)
                changed = True
            if stat.S_IMODE(below.st_mode) != _MODE:
                os.chmod(fs, stat.S_IMODE(below.st_mode))
                changed = True
            for name in os.listxattr(lowers[0]):
                if not name.startswith(_MARKS):
                    os.setxattr(fs, name, os.getxattr(lowers[0], name))
                    changed = True
            if changed:
                self._core.sync.folder(fs)
        except OSError as exc:
            raise from_oserror(f"make snapshot on {lowers[0]}", exc) from exc

    # -- mounts ---------------------------------------------------------------------------------

    def lowers(self, folders: Sequence[str], bottom: Bottom) -> list[str]:
        """What a snapshot lies on, top first: ``folders`` are ids, from its parent downwards."""
        return [*map(self.folder, folders), *bottom.trees]

    def mounts(
        self, kind: SnapshotKind, snapshot_id: str, folders: Sequence[str], bottom: Bottom, what: str
    ) -> list[Mount]:
        """The mounts that assemble a snapshot.

        Raises `FailedPrecondition` where one mount(2) does not take them.
        """
        lowers = self.lowers(folders, bottom)
        view = kind == "view"
        if not lowers:
            return [_bind(self.folder(snapshot_id), view=view)]
        if view and len(lowers) == 1 and folders:
            return [_bind(lowers[0], view=True)]
        if view and len(lowers) == 1:  # as any view of a chain
            root = Root(id=snapshot_id, target="", folder=Path(self._base, snapshot_id), view=True)
            specs = self._core.erofs.mounts(root, Ground(images=bottom.images))
            return [Mount(type=one.type, source=one.source, target="", options=one.options) for one in specs]
        if len(lowers) > MAX_STACK:
            raise FailedPrecondition(
                what, f"it lies on {len(lowers)} others, and overlayfs takes {MAX_STACK}", hint=_HINT
            )
        options = [f"lowerdir={':'.join(lowers)}"]
        if view:
            options.insert(0, "ro")
        else:
            place = f"{self._base}/{snapshot_id}"
            options += [f"upperdir={place}/fs", f"workdir={place}/work"]
        options += self._options
        if _size(options, lowers) >= PAGE:
            raise FailedPrecondition(
                what, f"the paths of the {len(lowers)} below it do not fit into one mount(2)", hint=_HINT
            )
        return [Mount(type="overlay", source="overlay", target="", options=tuple(options))]


_HINT = "merge layers of the image, or keep the store at a shorter path"


def _bind(source: str, *, view: bool) -> Mount:
    return Mount(type="bind", source=source, target="", options=("bind", "ro") if view else ("bind", "rw"))


def _size(options: Sequence[str], lowers: Sequence[str]) -> int:
    """The bytes of options as containerd hands them on."""
    size = len(os.fsencode(",".join(options)))
    if size <= SHORTENED or len(lowers) < 2:
        return size
    common = os.path.commonpath(lowers)
    return size if common == "/" else size - len(lowers) * (len(os.fsencode(common)) + 1)
