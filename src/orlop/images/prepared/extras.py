"""Mounts that a caller adds to a root: checked, resolved, and with a place to go.

A target is a path inside the root.  It is resolved in the image's tree, symlinks and all, before anything is
mounted (CVE-2022-23648: a symlink in an image must not lead a volume out of its root); what is missing of it
is made in the root's writable part.  When orlop performs such a mount itself, the place is looked up below
the root with no symlink allowed, because what runs there may have put one in its way meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, from_oserror
from orlop.images.api import ExtraMount, PrepareOptions
from orlop.images.chains import Chains
from orlop.images.changed.changes import is_text
from orlop.images.core import Core
from orlop.images.prepared.grounds import Grounds
from orlop.layers.chainview import ChainView
from orlop.layers.folder import FolderWriter, Item
from orlop.layers.forms import Form
from orlop.layers.index import LayerIndex
from orlop.layers.sources import DeviceFiles, tree_items
from orlop.linux import mount, mountinfo
from orlop.linux.files import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from orlop.linux.sync import Sync
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.observe import Call, reached
from orlop.snapshots.driver import Ground, MountSpec
from orlop.spec.digest import DiffID
from orlop.values import replace

__all__ = ["Extras", "check_extras", "open_place", "place_below"]

_MAX_LINKS = 40  # symlinks in one path, as the kernel has it (MAXSYMLINKS)
_TMPFS = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge", "noswap")
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


FindImage = Callable[[str, PrepareOptions, Call], tuple[ImageRow, Mapping[DiffID, LayerIndex]]]


class Extras:
    """The mounts that callers add to roots of one store.  Thread-safe.

    ``find`` gives an image by its name, pulled if the policy says so.
    """

    def __init__(self, core: Core, chains: Chains, grounds: Grounds, find: FindImage) -> None:
        self._core = core
        self._chains = chains
        self._grounds = grounds
        self._find = find

    def plan(
        self, root: RootRow, stack: Sequence[ChainRow], options: PrepareOptions, call: Call
    ) -> tuple[list[MountRow], dict[str, bool]]:
        """The mounts that were asked for, and what is missing of their places."""
        if not options.extra:
            return [], {}
        what = f"prepare {root.path}"
        with self._chains.view(stack) as view:
            targets, missing = _resolve_targets(view, options.extra, what)
        if missing and root.kind == "view":
            raise FailedPrecondition(
                what, f"the image has no {min(missing)} to mount on, and a view cannot get it"
            )
        found: list[MountRow] = []
        for extra, target in zip(options.extra, targets, strict=True):
            row = MountRow(type=extra.type, source=extra.source, target=target, options=extra.options)
            if extra.type == "image":
                image, indexes = self._find(extra.source, PrepareOptions(pull=options.pull), call)
                diff_ids = self._core.layers_of(image.config, f"mount image {image.name}")
                chain = self._chains.ensure(diff_ids, call=call, indexes=indexes)
                row = replace(row, source=image.name, config=image.config, chain=chain[0].id)
            found.append(row)
        return found, missing

    def make_places(
        self, root: RootRow, stack: Sequence[ChainRow], missing: dict[str, bool], call: Call
    ) -> None:
        """Make what `plan` found missing in a new root's writable part."""
        upper, kind = self._grounds.upper(root)
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._chains.view(stack) as view:
                durable = self._core.sync.durable
                _make_places(fd, view, missing, kind.form, whole=kind.whole, durable=durable, call=call)
            reached("root.places-made")
        finally:
            os.close(fd)

    def views(
        self, root: RootRow, extras: Sequence[MountRow], call: Call
    ) -> list[tuple[RootRow, list[ChainRow]]]:
        """The images among a root's further mounts, as views with their chains."""
        found = [_as_view(root, row, number) for number, row in enumerate(extras) if row.type == "image"]
        return [(view, self._grounds.stack(view, call)) for view in found]

    def specs(self, root: RootRow, extras: Sequence[MountRow], grounds: Sequence[Ground]) -> list[MountSpec]:
        """The caller's mounts in mount(2)'s terms; ``grounds`` are those of `views`, which are held."""
        specs: list[MountSpec] = []
        left = iter(grounds)
        for number, row in enumerate(extras):
            if row.type == "image":
                view = self._grounds.root(_as_view(root, row, number))
                specs += self._grounds.driver(root).mounts(view, next(left))
            else:
                specs.append(_spec_of(row, root.path, root.id, number))
        return specs

    def shows(self, root: RootRow, row: MountRow, number: int, path: str) -> bool:
        """Whether what is mounted at a path is one of a root's further mounts."""
        if not mountinfo.is_mount_point(path):
            return False
        if row.type == "image":
            view, call = _as_view(root, row, number), Call()
            with self._grounds.held(view, self._grounds.stack(view, call), call=call) as grounds:
                return self._grounds.driver(root).shows(self._grounds.root(view), grounds[0], path)
        if row.type == "tmpfs":
            return mountinfo.source_of(path) == os.fsencode(tmpfs_name(root.id, number))
        return os.path.exists(row.source) and mountinfo.is_bind_of(path, row.source)


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


def check_extras(extras: Sequence[ExtraMount], attempted: str) -> None:
    """Refuse what can be no mount.  Raises `InvalidArgument`, `NotFound` for a source that is not there."""
    seen: set[str] = set()
    for extra in extras:
        what = f"{attempted}: mount {extra.target}"
        if not (is_text(extra.target) and is_text(extra.source) and all(map(is_text, extra.options))):
            raise InvalidArgument(
                what, "a path or an option is not UTF-8", hint="mounts are passed on as text"
            )
        if not extra.target.startswith("/") or "\0" in extra.target:
            raise InvalidArgument(what, "the target is no absolute path", hint="begin it with /")
        target = posixpath.normpath("/" + extra.target.lstrip("/"))
        if target == "/" or ".." in extra.target.split("/"):
            raise InvalidArgument(what, "the target is no place inside the root")
        if target in seen:
            raise InvalidArgument(what, "two mounts have this target")
        seen.add(target)
        _check_options(extra, what)
        if extra.type == "bind":
            if not os.path.isabs(extra.source):
                raise InvalidArgument(what, f"the source {extra.source!r} is relative")
            if not os.path.exists(extra.source):
                raise NotFound(what, f"{extra.source} does not exist")
        elif extra.type == "image" and not extra.source:
            raise InvalidArgument(what, "an image's name is missing")


def _check_options(extra: ExtraMount, what: str) -> None:
    try:
        parsed = mount.parse_options(extra.options)
    except OSError as exc:
        raise InvalidArgument(what, str(exc.strerror)) from exc
    if any("\n" in option or "," in option for option in extra.options):
        raise InvalidArgument(what, "an option holds a comma or a line break")
    allowed = _TMPFS if extra.type == "tmpfs" else ()
    for option in parsed.data:
        if option.partition("=")[0] not in allowed:
            raise InvalidArgument(what, f"a {extra.type} mount has no option {option!r}")
    if extra.type == "image" and (parsed.bind or parsed.attrs & ~mount.MOUNT_ATTR_RDONLY):
        raise InvalidArgument(what, "an image is mounted read-only, and takes no other option")


def _resolve_targets(
    view: ChainView, extras: Sequence[ExtraMount], attempted: str
) -> tuple[list[str], dict[str, bool]]:
    """The targets as they are in an image's tree, without symlinks; which to make, and whether as folders."""
    missing: dict[str, bool] = {}
    targets: list[str] = []
    for extra in extras:
        what = f"{attempted}: mount {extra.target}"
        folder = extra.type != "bind" or os.path.isdir(extra.source)
        path, found = _resolve(view, os.fsencode(extra.target), what)
        target = "/" + os.fsdecode(path)
        if target in targets or target == "/":
            raise InvalidArgument(what, f"in the image it is {target}, which is taken")
        if found is not None and stat.S_ISDIR(found) != folder:
            kind = "a folder" if stat.S_ISDIR(found) else "no folder"
            raise InvalidArgument(what, f"in the image it is {kind}, and the source is not")
        # What a mount before this one brings cannot be known: it has to have the place.
        if found is None and not any(target.startswith(other + "/") for other in targets):
            missing[target] = folder
        targets.append(target)
    return targets, missing


def _resolve(view: ChainView, target: bytes, what: str) -> tuple[bytes, int | None]:
    """A path in a tree, every symlink followed within it: its true path, and its mode if it is there."""
    todo = [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
    done: list[bytes] = []
    links = 0
    mode: int | None = stat.S_IFDIR
    while todo:
        part = todo.pop()
        if part == b"..":
            done = done[:-1]
            continue
        entry = view.lookup(b"/".join([*done, part]))
        if entry is not None and stat.S_ISLNK(entry.mode):
            links += 1
            if links > _MAX_LINKS:
                raise InvalidArgument(what, "it leads through too many symlinks")
            if entry.target.startswith(b"/"):
                done = []
            todo += [step for step in reversed(entry.target.split(b"/")) if step not in (b"", b".")]
            continue
        if todo and entry is not None and not stat.S_ISDIR(entry.mode):
            raise InvalidArgument(what, f"/{os.fsdecode(b'/'.join([*done, part]))} is no folder in the image")
        done.append(part)
        mode = entry.mode if entry is not None else None
    return b"/".join(done), mode


def _make_places(
    upper: int,
    view: ChainView,
    missing: dict[str, bool],
    form: Form,
    *,
    whole: bool,
    durable: bool,
    call: Call,
) -> None:
    """Make what is missing of targets in a root's writable part; folders above are as the image has them."""
    paths = {os.fsencode(path.lstrip("/")): folder for path, folder in missing.items()}
    if whole:
        for path, folder in paths.items():
            _make_below(upper, path, folder=folder, sync=Sync(durable))
        return
    with DeviceFiles([]) as nothing:
        FolderWriter(upper, form=form, durable=durable, call=call).write(_place_items(view, paths, nothing))


def _place_items(view: ChainView, paths: dict[bytes, bool], files: DeviceFiles) -> Iterator[Item]:
    above = {b""}
    for path in paths:
        while path:
            path = path.rpartition(b"/")[0]  # noqa: PLW2901
            entry = view.lookup(path)
            if entry is not None and stat.S_ISDIR(entry.mode):
                above.add(path)
    keys: dict[bytes, int] = {}
    places: dict[int, bytes] = {}
    for item in tree_items(view, files, only=frozenset(above)):
        path = places[item.parent] + b"/" + item.name if places.get(item.parent) else item.name
        places[item.key], keys[path] = path, item.key
        yield item
    number = max(keys.values(), default=0)
    now, nsec = divmod(time.time_ns(), 1_000_000_000)
    for path, folder in paths.items():
        parts = path.split(b"/")
        for count in range(1, len(parts) + 1):
            here = b"/".join(parts[:count])
            if here in keys:
                continue
            number += 1
            last = count == len(parts)
            mode = stat.S_IFDIR | 0o755 if folder or not last else stat.S_IFREG | 0o644
            made = Item(number, keys[b"/".join(parts[: count - 1])], parts[count - 1], mode)
            made.mtime, made.nsec = now, nsec
            yield made
            keys[here] = number


def _make_below(top: int, path: bytes, *, folder: bool, sync: Sync) -> None:
    """Make a path in a plain tree, following nothing; all on the way is on disk then."""
    fd = os.dup(top)
    try:
        parts = path.split(b"/")
        for number, part in enumerate(parts):
            about = os.fstat(fd)
            with contextlib.suppress(FileExistsError):
                if number == len(parts) - 1 and not folder:
                    made = os.open(part, _NEW_FILE, 0o644, dir_fd=fd)
                    try:
                        sync.file(made)
                    finally:
                        os.close(made)
                else:
                    os.mkdir(part, 0o755, dir_fd=fd)
                os.utime(
                    fd, ns=(about.st_atime_ns, about.st_mtime_ns)
                )  # as in an upper: only what is new is new
            sync.folder(fd)
            if number < len(parts) - 1 or folder:
                deeper = os.open(part, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd = deeper
        if folder:
            sync.folder(fd)
    finally:
        os.close(fd)


def tmpfs_name(root_id: str, number: int) -> str:
    """The source that a tmpfs of a root has in mount tables, so that it is known again."""
    return f"orlop-{root_id}-{number}"


def _spec_of(row: MountRow, root: str, root_id: str, number: int) -> MountSpec:
    """A bind or tmpfs mount at its target below a root's."""
    options = row.options
    if row.type == "bind" and not {"bind", "rbind"} & set(options):
        options = ("bind", *options)
    source = row.source if row.type == "bind" else tmpfs_name(root_id, number)
    return MountSpec(type=row.type, source=source, target=root + row.target, options=options)


@contextlib.contextmanager
def place_below(root: str, target: str, attempted: str) -> Iterator[str | None]:
    """A path of a place below a mounted root, for umount(2), that no symlink turns elsewhere; None if gone.

    It names the parent by descriptor, so that what is mounted at the place itself is not held.
    """
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parent, _, name = target.strip("/").rpartition("/")
        try:
            fd = open_place(top, parent, attempted) if parent else os.dup(top)
        except FailedPrecondition:
            yield None
            return
        try:
            yield f"/proc/self/fd/{fd}/{name}"
        finally:
            os.close(fd)
    finally:
        os.close(top)


def open_place(root: int, target: str, attempted: str) -> int:
    """An O_PATH descriptor of a mount's place below a mounted root.

    Raises `FailedPrecondition` if something other than folders leads there by now.
    """
    try:
        resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        return openat2(root, target.lstrip("/"), os.O_PATH | os.O_CLOEXEC, resolve=resolve)
    except OSError as exc:
        if exc.errno in {errno.ELOOP, errno.EXDEV, errno.ENOENT, errno.ENOTDIR}:
            raise FailedPrecondition(
                attempted, f"the place {target} of one of its mounts is not there any more: {exc.strerror}"
            ) from exc
        raise from_oserror(attempted, exc) from exc
