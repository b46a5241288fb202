"""Which drivers work here, found by trying each on the store's own disk; with the reason either way.

Nothing of a probe stays: what it mounts nobody else sees, what it writes is removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orlop.config import Driver as DriverName
from orlop.erofs.tree import Node
from orlop.erofs.writer import build
from orlop.errors import from_oserror
from orlop.linux import mount
from orlop.linux.files import can_reflink, new_locked_folder, remove_tree
from orlop.snapshots.stacks import options_of
from orlop.values import dataclass

__all__ = ["Verdict", "probe"]

# What says that something cannot be had here, rather than not at this moment.
_FINAL = {
    *(errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTBLK),
    *(errno.ELOOP, errno.EXDEV, errno.EROFS, errno.EOVERFLOW),
}
_HELLO = b"orlop\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a driver works here, and why (not)."""

    driver: DriverName
    works: bool
    reason: str


def probe(driver: DriverName, scratch: Path, *, marks: str) -> Verdict:
    """Try one driver.

    ``scratch`` is a folder on the store's disk in which to make another; ``marks`` the prefix of
    overlayfs's xattrs.
    """
    trial = {"erofs": _erofs, "overlay": _overlay, "native": _native}[driver]
    try:
        with _folder(scratch) as folder:
            return Verdict(driver=driver, works=True, reason=trial(folder, marks))
    except OSError as exc:
        if exc.errno not in _FINAL:
            raise from_oserror(f"try driver {driver}", exc) from exc
        reason = exc.strerror or str(exc)
        if isinstance(exc, PermissionError):
            need = "CAP_SYS_ADMIN" if os.geteuid() == 0 else "root, or a shell opened with 'orlop unshare'"
            reason = f"{reason}: it needs {need}"
        return Verdict(driver=driver, works=False, reason=reason)


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """A folder that collectors know as being made: a flock on it is held."""
    folder, lock = new_locked_folder(parent)
    try:
        yield folder
    finally:
        os.close(lock)
        remove_tree(folder, missing_ok=True)


def _erofs(folder: Path, marks: str) -> str:
    """An EROFS image whose one file points into another file, below an overlay."""
    root = Node(stat.S_IFDIR | 0o755)
    top = Node(stat.S_IFDIR | 0o755)
    assert root.children is not None
    assert top.children is not None
    top.children[b"root"] = root
    root.children[b"file"] = Node(stat.S_IFREG | 0o644, size=len(_HELLO), device=1)
    (folder / "image").write_bytes(bytes(build(top, devices=[512], uuid=bytes(16))))
    (folder / "data").write_bytes(_HELLO.ljust(512, b"\0"))
    _make(folder, "upper", "work")
    lower = mount.mount_erofs(folder / "image", [folder / "data"])
    try:
        _try_overlay(f"/proc/self/fd/{lower}/root", folder, marks)
    finally:
        os.close(lower)
    return "EROFS mounts from files here, and overlay lies on it"


def _overlay(folder: Path, marks: str) -> str:
    _make(folder, "lower", "upper", "work")
    (folder / "lower" / "file").write_bytes(_HELLO)
    _try_overlay(str(folder / "lower"), folder, marks)
    return "overlay lies on folders here" + ("" if marks == "trusted.overlay." else ", with userxattr")


def _make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir(mode=0o700)


def _try_overlay(lower: str, folder: Path, marks: str) -> None:
    """Read, delete and replace through an overlay: whiteouts and opaque marks must work, too."""
    upper, work = str(folder / "upper"), str(folder / "work")
    overlay = mount.mount_overlay(lowers=[lower], upper=upper, work=work, options=options_of(marks))
    try:
        fd = os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=overlay)
        try:
            if os.read(fd, 100) != _HELLO:
                raise OSError("a file reads wrong through the overlay")
        finally:
            os.close(fd)
        os.unlink("file", dir_fd=overlay)
        os.mkdir("file", 0o700, dir_fd=overlay)
    finally:
        os.close(overlay)


def _native(folder: Path, marks: str) -> str:
    if can_reflink(folder):
        return "a copy for each root; the file system shares its blocks (reflink)"
    return "a copy for each root; the file system cannot share its blocks"
