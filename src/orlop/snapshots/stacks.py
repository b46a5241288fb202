"""Overlays, as the drivers that make them share them: options, the upper, recognising one's own.

Every overlay option we depend on is said, never left to the module's defaults.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from orlop.errors import FailedPrecondition, from_oserror
from orlop.linux import mount, mountinfo, processes
from orlop.linux.files import remove_tree
from orlop.linux.sync import Sync
from orlop.observe import reached
from orlop.snapshots.driver import Fill, MountSpec, Root, Table

__all__ = [
    "MAX_OPTIONS",
    "MAX_STACK",
    "OVERLAY_OPTIONS",
    "check_room",
    "create_upper",
    "is_untouched",
    "make_below_run",
    "overlay",
    "shows_overlay",
    "system_errors",
    "upper_in_use",
]

OVERLAY_OPTIONS = ("xino=on", "index=off", "nfs_export=off", "metacopy=off", "redirect_dir=off")
MAX_OPTIONS = 3_900  # mount(2) takes one page of options, less what mount(8) adds
MAX_STACK = 500  # OVL_MAX_STACK, fs/overlayfs/params.h
TRUSTED = "trusted.overlay."


def make_below_run(folder: Path) -> None:
    """Have a folder in RUN, also where somebody has tidied RUN away under us."""
    folder.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def system_errors(attempted: str) -> Iterator[None]:
    """Turn an OSError into an error with these words."""
    try:
        yield
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


def options_of(marks: str) -> tuple[str, ...]:
    """The options of every overlay that heeds these xattrs."""
    if marks == TRUSTED:
        return OVERLAY_OPTIONS
    # "off" follows redirects that are there, where the module's default says so: EINVAL with userxattr.
    return (*OVERLAY_OPTIONS[:-1], "redirect_dir=nofollow", "userxattr")


def overlay(root: Root, lowers: Sequence[Path | str]) -> MountSpec:
    """The overlay of a root over lowers, top first."""
    options = [f"lowerdir={':'.join(map(str, lowers))}"]
    if root.view:
        options.insert(0, "ro")
    else:
        options += [f"upperdir={root.folder}/upper", f"workdir={root.folder}/work"]
    return MountSpec(
        type="overlay",
        source="overlay",
        target=root.target,
        options=(*options, *options_of(root.marks)),
    )


def check_room(spec: MountSpec, attempted: str) -> MountSpec:
    """Refuse a mount whose options one mount(2) does not take.  Raises `FailedPrecondition`."""
    if len(",".join(spec.options)) > MAX_OPTIONS:
        raise FailedPrecondition(attempted, "its mount does not fit into the options of one mount(2)")
    return spec


def create_upper(folder: Path, fill: Fill, sync: Sync) -> None:
    """Make upper and work folder in a new folder; durable on return, as ``sync`` has it.

    The overlay's root folder shows the upper's own mode, owner and xattrs, so they are the image's from
    the start.
    """
    try:
        os.mkdir(folder, 0o700)
    except OSError as exc:
        raise from_oserror(f"prepare {folder}", exc) from exc
    try:
        upper = folder / "upper"
        os.mkdir(upper, 0o700)
        os.mkdir(f"{folder}/work", 0o700)
        reached("root.started")
        fill(upper, whole=False)
        reached("root.filled")
        for place in (upper, folder, folder.parent):
            sync.folder(place)
    except OSError as exc:
        remove_tree(folder, missing_ok=True)
        raise from_oserror(f"prepare {folder}", exc) from exc


def is_untouched(folder: Path) -> bool:
    """Whether the overlay of a root's folder was never mounted, and its upper holds nothing.

    Whoever mounts an overlay has the kernel make ``work/work``, also for one that is mounted read-only, and
    that stays when it is unmounted (ovl_workdir_create in fs/overlayfs/super.c).  Looking costs a fifteenth
    of asking for an overlay that is in use.
    """
    try:
        return not os.listdir(f"{folder}/work") and not os.listdir(f"{folder}/upper")
    except OSError:
        return False


def upper_in_use(folder: Path) -> bool:
    """Whether a live overlay anywhere on this machine has the upper in a root's folder.

    Asked of the kernel; where that needs privileges we lack, of the mount tables that we may read.
    """
    upper = folder / "upper"
    with system_errors(f"look at {upper}"), contextlib.suppress(FileNotFoundError):
        try:
            return mount.upper_in_use(upper, work=folder / "work")
        except PermissionError:
            return bool(processes.users_of(upper) or processes.mount_points_of(upper))
    return False


def shows_overlay(place: str, *, upper: Path | None, first: Path, table: Table | None = None) -> bool:
    """Whether an overlay with this upper (None: with none, and this first lower) is on top at a place."""
    if table is None:
        shown = mountinfo.shown_at(place)
    else:
        entry = table.get(mountinfo.mount_id_of(place))
        shown = None if entry is None else (entry.type, entry.options)
    if shown is None or shown[0] != "overlay":
        return False
    option = partial(mountinfo.option_of, shown[1])
    if upper is not None:
        return _means(option(b"upperdir"), upper)
    lower = option(b"lowerdir+") or (option(b"lowerdir") or b"").split(b":")[0]
    return option(b"upperdir") is None and _means(lower, first)


def _means(shown: bytes | None, path: Path) -> bool:
    """Whether a path is shown, in one of the forms in which the kernel may show it."""
    return shown is not None and (shown == os.fsencode(path) or shown == os.fsencode(os.path.realpath(path)))
