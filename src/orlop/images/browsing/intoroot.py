"""A prepared root, open to be written to: how a copy gets in.

Where the root's own mount is at its path, through that, mounts on it included.  Else, while nobody uses it,
through a mount of the same kind that has no place and that nobody else sees; of the native driver, in its
folder.  So what is written is what a program in the root would have written, and commit finds it as that.
Paths are resolved with the root as ``/`` (openat2(2), RESOLVE_IN_ROOT): no symlink of the image leads out.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from functools import partial

from orlop.errors import FailedPrecondition, NotFound, from_oserror
from orlop.images.browsing.unpack import Place, place, unpack
from orlop.images.core import Core
from orlop.images.nearby import root_hint
from orlop.images.prepared.grounds import Grounds
from orlop.images.prepared.usage import Usage
from orlop.layers.entry import Entry
from orlop.linux.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from orlop.linux.mount import detached
from orlop.linux.mountinfo import is_mount_point
from orlop.metadata import roots
from orlop.metadata.roots import RootRow
from orlop.observe import Call
from orlop.values import replace

__all__ = ["write_into"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def write_into(
    core: Core,
    grounds: Grounds,
    path: str,
    dest: bytes,
    chunks: Iterable[bytes],
    *,
    archive: bool,
    content: bool,
    call: Call,
) -> None:
    """Unpack a tar at a path inside a prepared root, which nobody commits or cleans up meanwhile.

    With ``content`` the folder ``dest`` must be there and the tar's names stay as they are; else its first
    entry is what is copied, and ``dest`` means what it means to cp(1).
    """
    path = path.rstrip("/") or "/"
    what = f"copy into {path}"
    with core.locked("path", path, call=call, attempted=what):
        row = core.db.read(lambda tx: roots.get_root(tx, path))
        if row is None:
            hint = core.db.read(lambda tx: root_hint(tx, path))
            raise NotFound(what, f"nothing is prepared at {path}", hint=hint)
        if row.kind != "active":
            raise FailedPrecondition(what, "the root is a read-only view")
        grounds.check_privilege(row, what)
        with _opened(grounds, row, what, call) as root:
            where = partial(_where, root=root, dest=dest, content=content, what=what)
            owner = (0, 0) if os.geteuid() == 0 else None
            unpack(chunks, where, archive=archive, owner=owner, attempted=what, call=call)


def _where(first: Entry, *, root: int, dest: bytes, content: bool, what: str) -> Place:
    if content:
        found = _folder(root, dest)
        if found is None:
            raise NotFound(what, f"there is no folder {os.fsdecode(dest)} in it")
        return Place(parent=found, content=True)
    return place(dest, first=first, open_folder=partial(_folder, root), attempted=what)


def _folder(root: int, path: bytes) -> int | None:
    """A folder in the root, as a process whose root it is would find it."""
    try:
        return openat2(root, b"/" + path.lstrip(b"/"), _FOLDER, resolve=_INSIDE)
    except OSError as exc:
        if exc.errno in _NOT_THERE:
            return None
        raise


@contextlib.contextmanager
def _opened(grounds: Grounds, row: RootRow, what: str, call: Call) -> Iterator[int]:
    """The root's own root folder."""
    with contextlib.ExitStack() as held:
        try:
            if row.driver == "native" and not row.uid_map:
                if row.quota is not None:
                    grounds.mount_disk(row, call)
                fd = os.open(grounds.upper(row)[0], _FOLDER)
            elif _is_shown(grounds, row):
                if row.uid_map:
                    hint = "unmount it first, or write to it as its own root user"
                    raise FailedPrecondition(what, "it is mounted with mapped ids", hint=hint)
                fd = os.open(row.path, _FOLDER)
            else:
                fd = held.enter_context(_privately(grounds, row, what, call))
        except OSError as exc:
            raise from_oserror(what, exc) from exc
        held.callback(os.close, fd)
        yield fd


def _is_shown(grounds: Grounds, row: RootRow) -> bool:
    """Whether what is on top at the root's path, here, is a mount of it, whoever performed it."""
    where = os.path.realpath(row.path)
    ground = grounds.plain(row)
    if not is_mount_point(where) or not (ground.images or ground.folders):
        return False
    return grounds.driver(row).shows(grounds.root(row), ground, where)


@contextlib.contextmanager
def _privately(grounds: Grounds, row: RootRow, what: str, call: Call) -> Iterator[int]:
    """A mount of an idle root without a place, ids as they are in the store."""
    driver, usage = grounds.driver(row), Usage(grounds)
    if usage.in_use(row, what, call):
        raise FailedPrecondition(
            what,
            f"it is in use{usage.by(row)}, where it cannot be reached from here",
            hint=f"mount it at {row.path} where orlop runs, or end what uses it",
        )
    plain = replace(row, uid_map="", gid_map="", self_contained=False)
    with grounds.held(plain, grounds.stack(row, call), call=call) as [ground, *_]:
        spec = driver.mounts(grounds.root(plain), ground)[0]
        mount = detached(spec.type, spec.source, spec.options)
        try:
            yield os.open(f"/proc/self/fd/{mount}", _FOLDER)
        finally:
            os.close(mount)
