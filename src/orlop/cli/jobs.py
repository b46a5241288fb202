"""What a bundle says is to be run, for those who run it without an OCI runtime; and paths inside its root.

`read_job` turns a ``config.json`` that `orlop.images.running.bundle` wrote into a value; a stranger's bundle
is not meant.  Everything here is imported by a helper process, so it imports little.

Invariant: a path of the image is resolved by the kernel with the root as its root; nothing of the image
leads out of it.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
from pathlib import Path

from orlop.errors import FailedPrecondition, NotFound, PermissionDenied, from_oserror
from orlop.hints import Any
from orlop.linux.files import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from orlop.values import dataclass, replace

__all__ = [
    "CREATE",
    "Job",
    "JobMount",
    "find",
    "find_program",
    "host_path",
    "make_place",
    "open_root",
    "read_job",
    "settled",
]

CREATE = "create container"  # what errors attempted that came before the command had begun to run
_SYSTEM = ("/proc", "/dev", "/sys")  # what lies below is mounted over
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMount:
    """One entry of the bundle's mounts."""

    target: str
    type: str
    source: str
    options: tuple[str, ...]

    @property
    def is_volume(self) -> bool:
        """Whether it shows something of the host that is not the kernel's."""
        return self.type == "bind" and self.source != "/sys"

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written there."""
        return "ro" in self.options


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A program in a root: what a runtime spec's ``process``, ``root``, ``mounts`` and the rest say."""

    root: str
    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    read_only: bool = False
    mounts: tuple[JobMount, ...] = ()
    hostname: str = ""
    network: bool = False  # one of its own

    @property
    def variables(self) -> dict[str, str]:
        """The environment as a mapping."""
        return dict(pair.split("=", 1) for pair in self.env)


def read_job(bundle: Path) -> Job:
    """What a bundle says.  Raises `from_oserror`'s errors."""
    try:
        spec: dict[str, Any] = json.loads((bundle / "config.json").read_bytes())
    except OSError as exc:
        raise from_oserror(f"read {bundle}/config.json", exc) from exc
    process, user = spec["process"], spec["process"]["user"]
    return Job(
        root=spec["root"]["path"],
        args=tuple(process["args"]),
        env=tuple(process["env"]),
        cwd=process["cwd"],
        uid=user["uid"],
        gid=user["gid"],
        groups=tuple(user.get("additionalGids") or ()),
        capabilities=tuple(process["capabilities"]["bounding"]),
        read_only=spec["root"]["readonly"],
        mounts=tuple(
            JobMount(target=m["destination"], type=m["type"], source=m["source"], options=tuple(m["options"]))
            for m in spec["mounts"]
        ),
        hostname=spec.get("hostname", ""),
        network={"type": "network"} in spec["linux"]["namespaces"],
    )


# ------------------------------------------------------------------ paths inside a root


def open_root(path: str) -> int:
    """A descriptor of a root.  Raises `from_oserror`'s errors."""
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror(CREATE, exc) from exc


def find(root: int, path: str) -> int:
    """An O_PATH descriptor of what a process with that root would find at an absolute path.  OSError."""
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    return openat2(root, path, os.O_PATH | os.O_CLOEXEC, resolve=resolve)


def host_path(root: int, path: str) -> str:
    """The path, on this side, of what a process with that root would find there.  OSError."""
    fd = find(root, path)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def make_place(root: int, path: str, *, folder: bool = True) -> int:
    """`find`, after having made what is missing there: folders, and for a file an empty one.  OSError."""
    here = "/"
    parts = [part for part in path.split("/") if part]
    for number, part in enumerate(parts):
        there = posixpath.join(here, part)
        try:
            os.close(find(root, there))
        except FileNotFoundError:
            _make(root, here, part, folder=folder or number < len(parts) - 1)
        here = there
    return find(root, path)


def _make(root: int, parent: str, name: str, *, folder: bool) -> None:
    above = find(root, parent)
    try:
        if folder:
            os.mkdir(name, 0o755, dir_fd=above)
        else:
            os.close(os.open(name, _NEW_FILE, 0o644, dir_fd=above))
    finally:
        os.close(above)


def settled(job: Job, root: int) -> Job:
    """The job with the places of its volumes and its folder made in the root, and named without symlinks.

    Raises `FailedPrecondition` for one that cannot be made.
    """
    top = os.readlink(f"/proc/self/fd/{root}")

    def settle(path: str, *, folder: bool) -> str:
        if path.startswith(tuple(f"{name}/" for name in _SYSTEM)) or path in _SYSTEM:
            return path
        try:
            fd = make_place(root, path, folder=folder)
            try:
                return "/" + os.readlink(f"/proc/self/fd/{fd}").removeprefix(top).lstrip("/")
            finally:
                os.close(fd)
        except OSError as exc:
            raise FailedPrecondition(CREATE, f"{path} cannot be made in the root: {exc.strerror}") from exc

    mounts = tuple(
        replace(m, target=settle(m.target, folder=os.path.isdir(m.source))) if m.is_volume else m
        for m in job.mounts
    )
    return replace(job, mounts=mounts, cwd=settle(job.cwd, folder=True))


def find_program(root: int, name: str, *, search: str, cwd: str, attempted: str = CREATE) -> str:
    """The path, on this side, of the program that execvp(3) would run there.

    ``search`` is PATH's value, ``cwd`` where relative paths begin.  Raises `NotFound` and
    `PermissionDenied` with the shells' exit codes.
    """
    places = [""] if "/" in name else search.split(":")
    found: OSError | None = None
    for place in places:
        try:
            fd = find(root, posixpath.join("/", cwd, place, name))
        except OSError as exc:
            found = exc if exc.errno == errno.EACCES else found
            continue
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if stat.S_ISREG(os.fstat(fd).st_mode) and os.access(path, os.X_OK):
                return path
            found = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        finally:
            os.close(fd)
    if found is not None:
        raise PermissionDenied(attempted, f"exec: {name}: {found.strerror}", details={"exit_code": "126"})
    raise NotFound(attempted, f"exec: {name}: not in the image", details={"exit_code": "127"})
