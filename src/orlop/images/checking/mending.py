"""What all mending shares: what was done, and shutting others out of a place of the store."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from orlop.images.checking.deep import opened
from orlop.images.checking.examine import FILE, FOLDER
from orlop.values import dataclass

__all__ = ["Outcome", "is_kind", "shut", "some_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was done, in `Finding.action`'s words, and what there is to say about it."""

    action: str
    note: str = ""


def is_kind(path: Path, kind: int) -> bool:
    """Whether a file or a folder stands at a path: itself, not behind a link."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode) == kind
    except (FileNotFoundError, NotADirectoryError):
        return False


def some_of(paths: Sequence[str]) -> str:
    """Prepared roots, for a line of text."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"root {paths[0]}{more}"


def shut(path: Path, *, run: Path) -> bool:
    """Make a file or folder ours, and shut others out; False if it is neither, or that is refused.

    In RUN others may pass, and no more.
    """
    try:
        about = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    kind = stat.S_IFMT(about.st_mode)
    if kind not in {FILE, FOLDER}:
        return False
    closed = about.st_mode & ~(0o022 if path == Path(os.path.realpath(run)) else 0o077) & 0o7777
    if about.st_uid == os.geteuid() and closed == stat.S_IMODE(about.st_mode):
        return True
    try:
        with opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            if not os.path.samestat(os.fstat(fd), about):
                return False
            if about.st_uid != os.geteuid():
                os.fchown(fd, os.geteuid(), os.getegid())
            os.fchmod(fd, closed)
            os.fsync(fd)
    except PermissionError:
        return False
    return True
