"""Running a bundle with bubblewrap (bwrap), which needs no privilege where user namespaces are allowed to it.

Not an OCI runtime: no cgroups, no device rules, no masked paths.  The image's root is the root, as it is;
/proc, /dev and /sys are bubblewrap's own; a terminal is the user's.

Who the program can be: as root (of whatever namespace) root alone, for bubblewrap cannot become another of
its ids.  For others any single id, if bubblewrap may make a user namespace; where it may not but is setuid
root, only who we are.

Invariants: the environment goes to bubblewrap through a descriptor, never into an argument list that others
can read; bubblewrap is given no path of the image but ones that were resolved inside the root.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

from orlop.cli import output
from orlop.cli.foreground import run_program
from orlop.cli.jobs import CREATE, Job, JobMount, find_program, open_root, read_job, settled
from orlop.errors import Error, FailedPrecondition, from_oserror
from orlop.hints import Literal

__all__ = ["Ability", "ability", "arguments", "run_bwrap"]

# root: we are it already; mapped: any one id, in a user namespace; own: bubblewrap is setuid root
Ability = Literal["root", "mapped", "own"]

_NOT_GIVEN = {"CAP_MKNOD"}  # with no device rules it would open the machine's disks
_PROBE = ("--ro-bind", "/", "/", "--proc", "/proc", "--unshare-pid")
_MAX_STATUS = 65_536  # bytes of bubblewrap's own report


def ability(program: str) -> Ability:
    """What bubblewrap can do for us, by trying.  Raises `FailedPrecondition` if it cannot start anything."""
    refused = _try(program, *_PROBE)
    if os.geteuid() == 0 and not refused:
        return "root"
    if not _try(program, *_PROBE, "--unshare-user", "--uid", "0", "--gid", "0"):
        return "mapped"
    if not refused:
        return "own"
    raise FailedPrecondition(CREATE, refused.removeprefix("bwrap: "))


def _try(program: str, *args: str) -> str:
    """Why this cannot be, in bubblewrap's words; empty if it can."""
    command = [program, *args, "--", os.path.abspath(program), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    return "" if done.returncode == 0 else done.stderr.strip() or f"it ends with {done.returncode}"


def arguments(job: Job, can: Ability) -> list[str]:
    """Bubblewrap's options for a job whose places are there (`settled`), without the command.

    >>> job = Job(root="/r", args=("sh",), env=("A=b",), cwd="/tmp")
    >>> arguments(job, "own")[-7:]
    ['--die-with-parent', '--chdir', '/tmp', '--clearenv', '--setenv', 'A', 'b']
    """
    words = ["--bind", job.root, "/"]
    for mount in job.mounts:
        words += _mount(mount)
    if job.read_only:
        words += ["--remount-ro", "/"]
    words += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if job.network:
        words.append("--unshare-net")
    if job.hostname:
        words += ["--hostname", job.hostname]
    if can == "mapped":
        words += ["--unshare-user", "--uid", str(job.uid), "--gid", str(job.gid)]
    if can != "own":
        words += ["--cap-drop", "ALL"]
        if job.uid == 0:
            words += [w for cap in job.capabilities if cap not in _NOT_GIVEN for w in ("--cap-add", cap)]
    words += ["--die-with-parent", "--chdir", job.cwd, "--clearenv"]
    for name, value in job.variables.items():
        words += ["--setenv", name, value]
    return words


def _mount(mount: JobMount) -> list[str]:
    if mount.is_volume:
        return ["--ro-bind" if mount.read_only else "--bind", mount.source, mount.target]
    match mount.target:
        case "/proc":
            return ["--proc", "/proc"]
        case "/dev":
            return ["--dev", "/dev"]  # with pts and shm
        case "/sys":
            return ["--ro-bind", "/sys", "/sys"]
        case "/sys/fs/cgroup":
            return ["--tmpfs", mount.target, "--remount-ro", mount.target]
    return []


def run_bwrap(program: str, bundle: Path, *, interactive: bool) -> int:
    """Run a bundle's process to its end and return its exit code, 128 + n if signal n ended it.

    Raises `NotFound` and `PermissionDenied` with the exit codes of shells for a command that cannot be
    run, `FailedPrecondition` that attempted `CREATE` where bubblewrap cannot make the container.
    """
    job = read_job(bundle)
    can = ability(program)
    _check_user(job, can)
    root = open_root(job.root)
    with ExitStack() as stack:
        stack.callback(os.close, root)
        job = settled(job, root)
        options = _memory(stack, b"".join(os.fsencode(word) + b"\0" for word in arguments(job, can)))
        status = _memory(stack, b"")
        # bubblewrap takes none of our environment but what it needs itself
        code = run_program(
            [program, "--args", str(options), "--json-status-fd", str(status), "--", *job.args],
            interactive=interactive,
            pass_fds=(options, status),
            deliver=lambda _, signum: _deliver(status, signum),
        )
        report = _report(status)
        if "exit-code" in report or code > 128:
            return code
        # Its reason is on standard error.  A command that is not there is the user's business.
        find_program(root, job.args[0], search=job.variables.get("PATH", ""), cwd=job.cwd)
        raise FailedPrecondition(CREATE, "bwrap could not; what it said is above")


def _check_user(job: Job, can: Ability) -> None:
    if os.geteuid() == 0 and (job.uid, job.gid) != (0, 0):
        raise FailedPrecondition(
            CREATE, f"bwrap cannot become user {job.uid}", hint="use --user 0:0 or another --runtime"
        )
    if can == "own" and job.uid != os.geteuid():
        output.note(f"it runs as you ({os.geteuid()}), not as user {job.uid}: bwrap may not change that here")


def _memory(stack: ExitStack, data: bytes) -> int:
    """A file without a name, with some bytes to be read from its beginning."""
    try:
        fd = os.memfd_create("orlop")
        stack.callback(os.close, fd)
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError as exc:
        raise from_oserror(CREATE, exc) from exc
    return fd


def _report(status: int) -> dict[str, int]:
    """Bubblewrap's own words: ``child-pid``, and ``exit-code`` if the command was started."""
    found: dict[str, int] = {}
    for line in os.pread(status, _MAX_STATUS, 0).splitlines():
        with suppress(ValueError):
            found.update(json.loads(line))
    return found


def _deliver(status: int, signum: int) -> None:
    """Send a signal to the command itself: bubblewrap would end, and take the command with it unasked."""
    first = _report(status).get("child-pid")
    if first is None:
        return
    with suppress(OSError, Error), open(f"/proc/{first}/task/{first}/children", encoding="ascii") as file:
        for pid in file.read().split():
            os.kill(int(pid), signum)
