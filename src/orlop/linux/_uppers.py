"""Whether an overlay uses a folder: asked of the kernel, which marks uppers and workdirs of live overlays.

The question is an overlay that has the folders as *lowers*: with ``index=on`` one that is an upper or a
workdir elsewhere is EBUSY (ovl_get_layers in fs/overlayfs/super.c).  Its own upper and workdir lie in a tmpfs
of ours, so nothing is written where it is asked about, nothing there is marked, and the kernel logs nothing
unless the answer is yes.  Where a lower's file system, or the tmpfs, cannot do what an index needs, the
kernel goes on without one and answers no; so a no counts only if the index is there.

Else it is asked for an overlay that cannot be, with the folder as its upper: in use is EBUSY, and after that
question a workdir on another mount is EINVAL (ovl_get_upper, ovl_get_workdir).  That works wherever there are
overlays, but the kernel logs each refusal, which costs a millisecond where its console is a serial line.  And
an overlay mounted by someone with ``index=off`` *while* the kernel answers misses its mark, and would look
idle from then on; so the workdir, which is marked likewise and later, is asked first.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os

from orlop.linux._mountapi import FsContext
from orlop.linux._syscall import Path
from orlop.linux.mountinfo import OVERLAYFS_MAGIC, filesystem_magic

__all__ = ["upper_in_use"]

# Whatever privileges there are: user.* is what tmpfs keeps for everybody.
_OPTIONS = ("index=on", "userxattr", "redirect_dir=nofollow", "metacopy=off", "nfs_export=off", "xino=off")
_MADE = ("work/index", "work/work", "work", "upper")  # in the order of their removal


def upper_in_use(upper: Path, *, work: Path | None = None) -> bool:
    """Whether any live overlay on this machine has ``upper`` as its upper (or, given, ``work``).

    Sees other mount namespaces and lazily unmounted overlays.  Changes nothing on disk.  Raises OSError for
    what can be no upper.
    """
    folders = [upper] if work is None else [upper, work]
    if filesystem_magic(upper) != OVERLAYFS_MAGIC:  # a fine lower, and never an upper: that is to be an error
        with contextlib.suppress(OSError):
            answer = _as_lowers(folders)
            if answer is not None:
                return answer
    return any(map(_as_upper, reversed(folders)))


def _as_lowers(folders: list[Path]) -> bool | None:
    """The answer, or None where it is no answer.  Raises OSError where the overlay cannot be made."""
    scratch = _scratch()
    name = f"{os.getpid()}-{next(_numbers)}"
    below = f"/proc/self/fd/{scratch}/{name}"
    os.mkdir(name, 0o700, dir_fd=scratch)
    try:
        for part in ("upper", "work"):
            os.mkdir(f"{name}/{part}", 0o700, dir_fd=scratch)
        with FsContext("overlay") as context:
            for folder in folders:
                context.set_path("lowerdir+", folder)
            context.set_string("upperdir", f"{below}/upper")
            context.set_string("workdir", f"{below}/work")
            for option in _OPTIONS:
                context.set_option(option)
            try:
                context.create()
            except OSError as exc:
                if exc.errno == errno.EBUSY:
                    return True
                raise
        return False if os.access(f"{name}/work/index", os.F_OK, dir_fd=scratch) else None
    finally:
        for part in _MADE:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{name}/{part}", dir_fd=scratch)
        os.rmdir(name, dir_fd=scratch)


_numbers = itertools.count()
_kept: dict[str, int] = {}


def _scratch() -> int:
    """The root of a tmpfs that is mounted nowhere, for all probes of the process; a forked child's, too.

    No lock, which a fork could find held: of two threads that make one at once, one gives its own up.
    """
    found = _kept.get("fd")
    if found is None:
        made = _tmpfs()
        found = _kept.setdefault("fd", made)
        if found != made:
            os.close(made)
    return found


def _tmpfs() -> int:
    with FsContext("tmpfs") as scratch:
        scratch.create()
        return scratch.mount()


def _as_upper(path: Path) -> bool:
    elsewhere = _tmpfs()
    try:
        os.mkdir("lower", 0o700, dir_fd=elsewhere)
        os.mkdir("work", 0o700, dir_fd=elsewhere)
        with FsContext("overlay") as context:
            context.set_string("lowerdir", f"/proc/self/fd/{elsewhere}/lower")
            context.set_string("workdir", f"/proc/self/fd/{elsewhere}/work")
            context.set_path("upperdir", path, unescaped=False)
            context.set_string("index", "on")
            return _refused(context)
    finally:
        os.close(elsewhere)


def _refused(context: FsContext) -> bool:
    try:
        context.create()
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return True
        if exc.errno == errno.EINVAL:
            return False
        raise
    raise OSError(errno.ENOTSUP, "the kernel made an overlay with its workdir on another mount")
