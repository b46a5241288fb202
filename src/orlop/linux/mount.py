"""Mounts through the new mount API: whole ones, of any length of options.

mount(2) takes one page of options, which some sixty layers fill; here every option is handed over by
itself.  A mount is complete before anyone can see it.  `perform` does what mount(8) would do with one
entry of an OCI mount list; it runs no program and sets up no loop device: an EROFS image file is
mounted as a file (Linux 6.12 and later).

What is mounted already is asked of `orlop.linux.mountinfo`, whose functions are offered here, too.

Sources: fsopen(2), fsconfig(2), fsmount(2), move_mount(2), mount_setattr(2);
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence

from orlop.linux._mountapi import (
    FSCONFIG_STRING_MAX,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
    FsContext,
    mount_setattr,
    move_mount,
    open_tree,
    umount,
)
from orlop.linux._syscall import Path, call
from orlop.linux._uppers import upper_in_use
from orlop.linux.mountinfo import (
    BTRFS_MAGIC,
    EROFS_MAGIC,
    EXT_MAGIC,
    OVERLAYFS_MAGIC,
    TMPFS_MAGIC,
    XFS_MAGIC,
    erofs_uuid,
    filesystem_magic,
    is_mount_point,
    mounted_type,
)
from orlop.values import dataclass

__all__ = [
    "BTRFS_MAGIC",
    "EROFS_MAGIC",
    "EXT_MAGIC",
    "MOUNT_ATTR_IDMAP",
    "MOUNT_ATTR_NOATIME",
    "MOUNT_ATTR_NODEV",
    "MOUNT_ATTR_NODIRATIME",
    "MOUNT_ATTR_NOEXEC",
    "MOUNT_ATTR_NOSUID",
    "MOUNT_ATTR_NOSYMFOLLOW",
    "MOUNT_ATTR_RDONLY",
    "MOUNT_ATTR_STRICTATIME",
    "MS_PRIVATE",
    "MS_SHARED",
    "MS_SLAVE",
    "MS_UNBINDABLE",
    "OVERLAYFS_MAGIC",
    "SEALED",
    "TMPFS_MAGIC",
    "XFS_MAGIC",
    "FsContext",
    "MountOptions",
    "detached",
    "erofs_uuid",
    "filesystem_magic",
    "is_mount_point",
    "kernel_version",
    "map_ids",
    "mount_erofs",
    "mount_overlay",
    "mount_setattr",
    "mounted_type",
    "move_mount",
    "open_tree",
    "parse_options",
    "perform",
    "split_lowerdir",
    "try_mapped",
    "umount",
    "upper_in_use",
]

# How an activation is mounted: nothing can be written, run or used as a device through it.
SEALED = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC

_SEALS = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
_ATTRS: dict[str, tuple[int, int]] = {  # option: (bits set, bits cleared)
    "ro": (MOUNT_ATTR_RDONLY, 0),
    "rw": (0, MOUNT_ATTR_RDONLY),
    "nosuid": (MOUNT_ATTR_NOSUID, 0),
    "suid": (0, MOUNT_ATTR_NOSUID),
    "nodev": (MOUNT_ATTR_NODEV, 0),
    "dev": (0, MOUNT_ATTR_NODEV),
    "noexec": (MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, MOUNT_ATTR_NOEXEC),
    "noatime": (MOUNT_ATTR_NOATIME, 0),
    "atime": (0, MOUNT_ATTR_NOATIME),
    "strictatime": (MOUNT_ATTR_STRICTATIME, 0),
    "relatime": (0, MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME),
    "nodiratime": (MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, MOUNT_ATTR_NOSYMFOLLOW),
}
_PROPAGATION: dict[str, tuple[int, bool]] = {  # option: (flag, recursive)
    "private": (MS_PRIVATE, False),
    "rprivate": (MS_PRIVATE, True),
    "slave": (MS_SLAVE, False),
    "rslave": (MS_SLAVE, True),
    "shared": (MS_SHARED, False),
    "rshared": (MS_SHARED, True),
    "unbindable": (MS_UNBINDABLE, False),
    "runbindable": (MS_UNBINDABLE, True),
}
_LOWERS_ONE_BY_ONE = (6, 8)  # the kernel in which overlayfs knows ``lowerdir+``
_MS_RDONLY = 1
# One folder of a lowerdir, behind its separator: ``:`` for a layer, ``::`` for a data-only one.
_LOWER = re.compile(r"(:{0,2})((?:[^\\:]|\\.)+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """The options of one mount, sorted by who takes them.

    ``attrs`` are MOUNT_ATTR_ bits, ``cleared`` those of its source that a bind is not to have (for
    ``suid``, ``dev`` and ``exec``); ``bind`` says whether it is a bind mount and ``recursive`` whether of
    all below it; ``propagation`` are pairs of a MS_ flag and whether it goes down; ``data`` is for the
    file system itself, in order.
    """

    attrs: int = 0
    cleared: int = 0
    bind: bool = False
    recursive: bool = False
    propagation: tuple[tuple[int, bool], ...] = ()
    data: tuple[str, ...] = ()

    def values(self, key: str) -> list[str]:
        """The values of every ``key=value`` of the data, in order."""
        return [o.partition("=")[2] for o in self.data if o.partition("=")[0] == key and "=" in o]

    def without(self, *keys: str) -> list[str]:
        """The data but for some keys."""
        return [o for o in self.data if o.partition("=")[0] not in keys]


def parse_options(options: Sequence[str]) -> MountOptions:
    """Sort the options of an OCI mount.  The last word wins, as with mount(8).

    ``defaults`` and the ``x-…`` that mount(8) keeps to itself mean nothing here.  An option may not
    be empty, and ``remount`` is refused: OSError with EINVAL.
    """
    attrs, cleared_attrs, bind, recursive = 0, 0, False, False
    propagation: list[tuple[int, bool]] = []
    data: list[str] = []
    for option in options:
        if option in {"", "remount"}:
            raise OSError(errno.EINVAL, f"mount option {option!r} is not supported")
        if option in _ATTRS:
            bits, cleared = _ATTRS[option]
            attrs = attrs & ~cleared | bits
            cleared_attrs = (cleared_attrs | cleared & _SEALS) & ~bits
        elif option in {"bind", "rbind"}:
            bind, recursive = True, recursive or option == "rbind"
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option != "defaults" and not option.startswith("x-"):
            data.append(option)
    return MountOptions(
        attrs=attrs,
        cleared=cleared_attrs,
        bind=bind,
        recursive=recursive,
        propagation=tuple(propagation),
        data=tuple(data),
    )


def split_lowerdir(value: str) -> tuple[list[str], list[str]]:
    r"""The folders of an overlay's ``lowerdir=`` value: layers, and after ``::`` data-only ones.

    ``\:`` stands for a colon and ``\\`` for a backslash.  Raises OSError with EINVAL for an empty
    name.
    """
    parts = _LOWER.findall(value)
    if not parts or "".join(sep + name for sep, name in parts) != value or parts[0][0]:
        raise OSError(errno.EINVAL, f"a folder in lowerdir={value} has no name")
    layers = [_unescape(name) for sep, name in parts if sep != "::"]
    data = [_unescape(name) for sep, name in parts if sep == "::"]
    if any(sep == "::" for sep, _ in parts[: len(layers)]):
        raise OSError(errno.EINVAL, f"a layer follows a data-only one in lowerdir={value}")
    return layers, data


def _unescape(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name, flags=re.DOTALL)


def mount_erofs(
    image: Path, devices: Sequence[Path] = (), *, attrs: int = SEALED, options: Sequence[str] = ()
) -> int:
    """A detached mount of an EROFS image file, with its extra devices in the order of its table.

    The kernel does not miss a device that is left out: reads from it fail later, with EIO.  ENOTBLK
    means that the kernel cannot mount from that file system (tmpfs, overlay) or is before 6.12.
    """
    with FsContext("erofs") as context:
        context.set_path("source", image)
        for device in devices:
            context.set_path("device", device)
        for option in options:
            context.set_option(option)
        context.create()
        return context.mount(attrs)


def mount_overlay(
    *,
    lowers: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str] = (),
    data_lowers: Sequence[str] = (),
    attrs: int = 0,
) -> int:
    """A detached overlay; ``lowers`` from the top down, 500 at most.

    Without an upper it is read-only and needs two lowers.  No default of the module is relied upon
    by us: the caller names each option (``xino=on``, ``userxattr``).  Before Linux 6.8, which takes
    lowers one by one (``lowerdir+``), all options must fit into a page.
    """
    if kernel_version() < _LOWERS_ONE_BY_ONE:
        return _mount_overlay_whole(lowers, upper, work, options, data_lowers, attrs)
    with FsContext("overlay") as context:
        for lower in lowers:
            _set_layer(context, "lowerdir+", lower)
        for lower in data_lowers:
            _set_layer(context, "datadir+", lower)
        if upper is not None:
            _set_layer(context, "upperdir", upper)
        if work is not None:
            _set_layer(context, "workdir", work)
        for option in options:
            context.set_option(option)
        if attrs & MOUNT_ATTR_RDONLY:
            context.set_flag("ro")
        context.create()
        return context.mount(attrs)


def kernel_version() -> tuple[int, int]:
    """The running kernel's major and minor version."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _mount_overlay_whole(
    lowers: Sequence[str],
    upper: str | None,
    work: str | None,
    options: Sequence[str],
    data_lowers: Sequence[str],
    attrs: int,
) -> int:
    """A detached overlay by mount(2): attached where nobody looks, copied, taken away again."""
    import tempfile

    lowerdir = ":".join(map(_escape, lowers)) + "".join(f"::{_escape(lower)}" for lower in data_lowers)
    words = [f"lowerdir={lowerdir}"]
    words += [f"{key}={_escape(path, ':')}" for key, path in (("upperdir", upper), ("workdir", work)) if path]
    data = os.fsencode(",".join([*words, *options]))
    read_only = _MS_RDONLY if attrs & MOUNT_ATTR_RDONLY or upper is None else 0
    place = tempfile.mkdtemp(prefix="orlop-mount-")
    try:
        call("mount", b"overlay", os.fsencode(place), b"overlay", read_only, data)
        try:
            fd = open_tree(place)
        finally:
            umount(place, detach=True)
    finally:
        os.rmdir(place)
    try:
        if attrs:
            mount_setattr(fd, set=attrs)
    except OSError:
        os.close(fd)
        raise
    return fd


def _escape(path: str, keep: str = "") -> str:
    r"""A path as an option: ``\`` before what overlayfs would split at (ovl_split_lowerdirs)."""
    return re.sub(r"([\\,:])", lambda found: found[1] if found[1] in keep else f"\\{found[1]}", path)


def _set_layer(context: FsContext, key: str, path: str) -> None:
    """Name a layer by its path, or by descriptor where a string will not do.

    A descriptor keeps the true path in mountinfo, by which `orlop.linux.processes` finds users, but
    needs Linux 6.13.
    """
    raw = os.fsencode(path)
    if len(raw) <= FSCONFIG_STRING_MAX and b"\\" not in raw:
        context.set_string(key, raw)
        return
    fd = context.keep_open(raw)
    try:
        context.set_fd(key, fd)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        context.set_string(key, f"/proc/self/fd/{fd}")


def detached(type: str, source: str, options: Sequence[str]) -> int:  # noqa: A002 - OCI's word
    """As `perform`, without a place: a descriptor of a mount that nobody sees, and that goes with it."""
    return _detached(type, source, parse_options(options))


def perform(type: str, source: str, target: str, options: Sequence[str]) -> None:  # noqa: A002 - OCI's word
    """Mount as ``mount -t type -o options source target`` would; the length of options is no matter.

    ``type`` is ``bind`` (or ``bind``/``rbind`` is among the options), ``overlay``, ``erofs``, or any
    other the kernel has.  ``target`` must exist; a symlink there is followed, so to undo it, give
    `umount` the resolved path.  If the mount cannot be completed nothing stays mounted.
    """
    wanted = parse_options(options)
    fd = _detached(type, source, wanted)
    try:
        move_mount(fd, target)
        try:
            for flag, recursive in wanted.propagation:
                mount_setattr(fd, propagation=flag, recursive=recursive)
        except OSError:
            umount(f"/proc/self/fd/{fd}", detach=True, nofollow=False)
            raise
    finally:
        os.close(fd)


def _detached(fs_type: str, source: str, wanted: MountOptions) -> int:
    if wanted.bind or fs_type == "bind":
        return _bind(source, wanted)
    if fs_type == "overlay":
        return _overlay(wanted)
    if fs_type == "erofs":
        rest = wanted.without("device", "loop")
        return mount_erofs(source, wanted.values("device"), attrs=wanted.attrs, options=rest)
    with FsContext(fs_type) as context:
        if source.startswith("/"):
            context.set_path("source", source)
        elif source:
            context.set_string("source", source)
        for option in wanted.data:
            context.set_option(option)
        if wanted.attrs & MOUNT_ATTR_RDONLY:
            context.set_flag("ro")  # the superblock, too, as mount(2) has it
        context.create()
        return context.mount(wanted.attrs)


def _bind(source: str, wanted: MountOptions) -> int:
    if wanted.data:
        raise OSError(errno.EINVAL, f"a bind mount has no option {wanted.data[0]!r}")
    fd = open_tree(source, recursive=wanted.recursive)
    try:
        if wanted.attrs or wanted.cleared:
            mount_setattr(fd, set=wanted.attrs, clear=wanted.cleared)
    except OSError:
        os.close(fd)
        raise
    return fd


def _overlay(wanted: MountOptions) -> int:
    lowers: list[str] = []
    data: list[str] = []
    for value in wanted.values("lowerdir"):
        above, below = split_lowerdir(value)
        lowers, data = above, below  # the last wins, as in the kernel
    return mount_overlay(
        lowers=lowers + wanted.values("lowerdir+"),
        data_lowers=data + wanted.values("datadir+"),
        upper=next(reversed(wanted.values("upperdir")), None),
        work=next(reversed(wanted.values("workdir")), None),
        options=wanted.without("lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir"),
        attrs=wanted.attrs,
    )


def try_mapped(folder: Path, user_namespace: int) -> None:
    """Make a mount of a folder, with ids as a user namespace maps them, that nobody sees; and let it go.

    Raises OSError where that cannot be had here.
    """
    fd = open_tree(folder)
    try:
        mount_setattr(fd, set=MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
    finally:
        os.close(fd)


def map_ids(source: Path, target: Path, user_namespace: int) -> None:
    """Mount what shows at ``source`` at ``target``, too, with ids as a user namespace maps them.

    The namespace is given by a descriptor.  The mount is private: what is mounted below one of the two does
    not show below the other.  See mount_setattr(2), "ID-mapped mounts".
    """
    fd = open_tree(source)
    try:
        mount_setattr(fd, set=MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
        mount_setattr(fd, propagation=MS_PRIVATE)
        move_mount(fd, target)
    finally:
        os.close(fd)
