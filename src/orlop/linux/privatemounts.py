"""A program run among mounts that nobody else sees: what it reads is mounted for it alone.

`main` runs in a process of its own (`command` says how to start it), in a mount namespace of its own; the
mounts are gone when the program is, whatever ends it.  It ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.linux import mount
from orlop.linux._rights import CLONE_NEWNS
from orlop.linux._syscall import call
from orlop.linux.mountinfo import mount_table
from orlop.values import asdict, dataclass

__all__ = ["ErofsMount", "command", "leave_behind", "main"]

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_MS_SLAVE = 1 << 19  # include/uapi/linux/mount.h
# What programs may need of their own.
_SYSTEM = (b"/usr/", b"/lib", b"/bin/", b"/sbin/", b"/etc/", b"/proc/", b"/sys/", b"/dev/")
FAILED = 125  # exit code where the program was not even started


@dataclass(frozen=True, slots=True, kw_only=True)
class ErofsMount:
    """An EROFS image file to mount at ``point``, an empty folder, with its devices."""

    file: str
    devices: tuple[str, ...]
    point: str


def command(
    images: Sequence[ErofsMount],
    *,
    lowers: Sequence[str],
    options: Sequence[str],
    target: str,
    argv: Sequence[str],
) -> list[str]:
    """What to execute: it mounts the images, an overlay of ``lowers`` at ``target``, and becomes ``argv``.

    The exit code is the program's, or `FAILED` with a line on standard error.
    """
    if not sys.executable:
        raise FailedPrecondition(f"run {argv[0]}", "this Python does not know its own executable")
    job = {
        "images": [asdict(image) for image in images],
        "lowers": list(lowers),
        "options": list(options),
        "target": target,
        "argv": list(argv),
        "parent": os.getpid(),
    }
    path = [os.path.abspath(entry) for entry in sys.path]
    start = (
        f"import sys; sys.path[:] = {path!r}; from orlop.hints import stand_in; stand_in(); "
        f"from {__name__} import main; main({json.dumps(job)!r})"
    )
    return [sys.executable, "-I", "-S", "-c", start]


def main(text: str) -> None:
    """The child's part; does not return."""
    job = json.loads(text)
    try:
        call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != job["parent"]:
            os._exit(FAILED)
        call("unshare", CLONE_NEWNS)
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        # Not private: what is unmounted elsewhere goes here, too; else all roots would be in use meanwhile.
        mount.mount_setattr(root, propagation=_MS_SLAVE, recursive=True)
        images = [path for one in job["images"] for path in (one["file"], one["point"], *one["devices"])]
        leave_behind([*images, *job["lowers"], job["target"], *job["argv"]])
        for image in job["images"]:
            _attach(
                mount.mount_erofs(Path(image["file"]), [Path(one) for one in image["devices"]]),
                image["point"],
            )
        merged = mount.mount_overlay(
            lowers=job["lowers"], upper=None, work=None, options=job["options"], attrs=mount.SEALED
        )
        _attach(merged, job["target"])
        os.execv(job["argv"][0], job["argv"])  # noqa: S606 - no shell is wanted
    except OSError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.stderr.flush()
    os._exit(FAILED)


def leave_behind(texts: Sequence[str]) -> None:
    """Let go of all mounts of our own namespace, slaves of the others', that are not needed for some paths.

    Where they were private before, as in most containers, nobody else could undo them as long as we run.
    As ours are slaves nothing of this reaches the others.  What is mounted below the paths stays, too.
    """
    given = tuple(os.fsencode(os.path.realpath(text)) + b"/" for text in texts if text.startswith("/"))
    places = (sys.prefix, sys.base_prefix, *sys.path)
    python = (os.fsencode(os.path.realpath(text)) + b"/" for text in places if text.startswith("/"))
    needed = [*given, *python, b"/tmp/", b"/var/tmp/"]
    for target in [entry.target for entry in mount_table()]:
        inside = target.rstrip(b"/") + b"/"
        if inside.startswith((*_SYSTEM, *given)) or any(path.startswith(inside) for path in needed):
            continue
        with suppress(OSError):  # one that was below another is gone already
            mount.umount(os.fsdecode(target), detach=True)


def _attach(fd: int, point: str) -> None:
    mount.move_mount(fd, point)
    os.close(fd)
