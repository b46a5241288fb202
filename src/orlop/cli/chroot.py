"""Running a bundle with nothing but a changed root: for where no OCI runtime and no bubblewrap does it.

Two processes between us and the command, both this module's `main`: the outer one makes namespaces, the
inner one is the first process of its pid namespace, performs the bundle's mounts, changes the root, starts
the command and reaps what is left.  Of the namespaces only the one of mounts is needed; without the right
to mount, too, there is the root alone, with no /proc and no /dev.

Not a sandbox: no cgroups, no device rules, no masked paths.  What keeps the command inside is that it lacks
CAP_SYS_CHROOT and CAP_MKNOD.

Invariants: mounts are made at places resolved inside the root, and in a mount namespace of our own; what the
helper cannot do it tells before the command has begun; if we are killed, so is everything.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orlop.cli.foreground import WATCHED, run_program, stand_by
from orlop.cli.jobs import CREATE, Job, JobMount, make_place, open_root, read_job, settled
from orlop.errors import Error, FailedPrecondition, NotFound, PermissionDenied, from_oserror
from orlop.hints import NoReturn
from orlop.linux import mount as mounts
from orlop.linux._syscall import call
from orlop.linux.files import openat2
from orlop.linux.privatemounts import leave_behind

__all__ = ["main", "may_chroot", "run_chroot"]

# include/uapi/linux/sched.h
_NEWNS, _NEWUTS, _NEWIPC, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 1, 23, 24
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # include/uapi/linux/sockios.h, if.h
_CAP_SYS_CHROOT = 18
_CAPABILITIES = {  # include/uapi/linux/capability.h; those of `orlop.images.running.bundle` that it may keep
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    *((name, f"/proc/self/fd/{fd}") for fd, name in enumerate(("stdin", "stdout", "stderr"))),
)
_START = (
    "import sys; sys.path[:] = {path!r}; from orlop.hints import stand_in; stand_in(); "
    "from orlop.cli.chroot import main; main(sys.argv[1], {fd})"
)


def may_chroot() -> bool:
    """Whether we may change the root."""
    from orlop.linux._rights import status

    return bool(int(status("CapEff"), 16) >> _CAP_SYS_CHROOT & 1)


def run_chroot(bundle: Path, *, interactive: bool) -> int:
    """Run a bundle's process to its end and return its exit code, 128 + n if signal n ended it.

    Raises as `orlop.cli.bubblewrap.run_bwrap` does.
    """
    hear, say = os.pipe()
    words: list[bytes] = []
    path = [os.path.abspath(entry) for entry in sys.path]

    def listen() -> None:
        os.close(say)
        words.append(_read_all(hear))

    try:
        code = run_program(
            [sys.executable, "-I", "-S", "-c", _START.format(path=path, fd=say), os.fspath(bundle)],
            interactive=interactive,
            pass_fds=(say,),
            started=listen,
            blocked=True,
        )
    finally:
        os.close(hear)
    if words[0]:
        told = json.loads(words[0])
        kind = {127: NotFound, 126: PermissionDenied}.get(told["exit_code"], FailedPrecondition)
        details = {"exit_code": str(told["exit_code"])} if told["exit_code"] else {}
        raise kind(CREATE, told["reason"], details=details)
    return code


def _read_all(fd: int) -> bytes:
    data = b""
    while more := os.read(fd, 65_536):
        data += more
    return data


# ------------------------------------------------------------------ in the helper


def main(bundle: str, say: int) -> NoReturn:
    """The helper: run a bundle's process, and exit as it does.  ``say`` takes what went wrong before.

    It is started with the signals blocked that `stand_by` takes, and so is what it forks.
    """
    os.set_inheritable(say, False)
    try:
        _end_with_parent()
        job = read_job(Path(bundle))
        flags = _unshare(job)
        code = _run_child(lambda: _first(job, say, can_mount=bool(flags)), say)
    except (OSError, Error) as exc:
        _tell(say, exc)
        code = 125
    sys.stdout.flush()
    os._exit(code)


def _unshare(job: Job) -> int:
    """Make the namespaces that we can; 0 if we may not even mount."""
    network = _NEWNET if job.network else 0
    for flags in (_NEWNS | _NEWPID | _NEWUTS | _NEWIPC | network, _NEWNS | network):
        with suppress(OSError):
            call("unshare", flags)
            return flags
    if network or any(m.is_volume and not m.target.startswith("/etc/") for m in job.mounts):
        raise FailedPrecondition(CREATE, "volumes and networks cannot be had: we may not mount here")
    return 0


def _run_child(child: Callable[[], int], say: int) -> int:
    """Fork, and wait for the child, whose exit code ``child`` returns."""
    pid = os.fork()
    if pid == 0:
        code = 125
        try:
            code = child()
        except (OSError, Error) as exc:
            _tell(say, exc)
        finally:
            os._exit(code)
    os.close(say)
    return stand_by(lambda: _poll(pid), lambda signum: _kill(pid, signum))


def _kill(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def _poll(pid: int) -> int | None:
    """The return code of a child, if it has ended; whatever else has ended is reaped, too."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 125  # it cannot be: the child is reaped here alone
        if ended == pid:
            return os.waitstatus_to_exitcode(status)
        if ended == 0:
            return None


def _first(job: Job, say: int, *, can_mount: bool) -> int:
    """The first process of the pid namespace."""
    _end_with_parent()
    if job.hostname:
        with suppress(OSError):  # then it has the host's
            socket.sethostname(job.hostname)
    if can_mount:
        # Not private: what is unmounted elsewhere goes here, too; else all roots would be in use meanwhile.
        mounts.mount_setattr("/", propagation=mounts.MS_SLAVE, recursive=True)
        if job.network:
            _loopback_up()
        job = _mount_all(job)
        leave_behind([job.root])
    os.chroot(job.root)
    os.chdir("/")
    return _run_child(lambda: _become(job), say)


def _become(job: Job) -> int:
    """The command."""
    os.chdir(job.cwd)
    _drop_capabilities({_CAPABILITIES.get(name, -1) for name in job.capabilities})
    with suppress(PermissionError):  # forbidden in a namespace of a single id
        os.setgroups(job.groups)
    os.setresgid(job.gid, job.gid, job.gid)
    os.setresuid(job.uid, job.uid, job.uid)
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)  # Python ignores them, other programs should not
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
    try:
        os.execvpe(job.args[0], job.args, job.variables)  # noqa: S606 - no shell is wanted
    except OSError as exc:
        missing = isinstance(exc, FileNotFoundError | NotADirectoryError)
        kind, code = (NotFound, "127") if missing else (PermissionDenied, "126")
        reason = f"exec: {job.args[0]}: {exc.strerror}"
        raise kind(CREATE, reason, details={"exit_code": code}) from exc


def _drop_capabilities(kept: set[int]) -> None:
    """Take all but some from the bounding set: what is executed as root then has those alone."""
    for number in range(64):
        try:
            call("prctl", _PR_CAPBSET_READ, number, 0, 0, 0)
        except OSError:
            break  # past the last one
        if number not in kept:
            call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)


def _end_with_parent() -> None:
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _tell(say: int, exc: OSError | Error) -> None:
    error = from_oserror(CREATE, exc) if isinstance(exc, OSError) else exc
    told = {"reason": error.reason, "exit_code": int(error.details.get("exit_code", "0"))}
    with suppress(OSError):  # the command had begun: there is nobody to be told
        os.write(say, json.dumps(told).encode())


# ------------------------------------------------------------------ its mounts


def _mount_all(job: Job) -> Job:
    """Perform the mounts of a bundle.  Needs a mount namespace of our own."""
    root = open_root(job.root)
    try:
        job = settled(job, root)
    finally:
        os.close(root)
    _attach(mounts.open_tree(job.root, recursive=True), job.root)
    root = open_root(job.root)
    try:
        for entry in job.mounts:
            _mount(root, entry)
        if job.read_only:
            mounts.mount_setattr(root, set=mounts.MOUNT_ATTR_RDONLY)
    finally:
        os.close(root)
    return job


def _mount(root: int, entry: JobMount) -> None:
    folder = entry.type != "bind" or os.path.isdir(entry.source)
    place = make_place(root, entry.target, folder=folder)
    try:
        if entry.type == "bind":
            tree = mounts.open_tree(entry.source, recursive=True)
            if entry.read_only:
                mounts.mount_setattr(tree, set=mounts.MOUNT_ATTR_RDONLY, recursive=True)
            _attach(tree, place)
        elif entry.type != "cgroup":
            _mount_system(entry, place)
    finally:
        os.close(place)
    if entry.target == "/dev" and entry.type == "tmpfs":
        _fill_dev(root)


def _mount_system(entry: JobMount, place: int) -> None:
    """A file system of the kernel's; where it will not have that, as in a container, the host's own."""
    try:
        mounts.perform(entry.type, entry.source, f"/proc/self/fd/{place}", entry.options)
    except OSError as exc:
        if entry.type == "tmpfs" or exc.errno not in {errno.EPERM, errno.EINVAL, errno.ENODEV}:
            raise
        if os.path.isdir(entry.target):
            _attach(mounts.open_tree(entry.target, recursive=True), place)


def _attach(tree: int, place: int | str) -> None:
    """Attach a detached mount, and let go of its descriptor."""
    try:
        mounts.move_mount(tree, place)
    finally:
        os.close(tree)


def _fill_dev(root: int) -> None:
    """The devices that every program expects, each a bind mount of the host's, for none may be made."""
    dev = openat2(root, "dev", os.O_PATH | os.O_CLOEXEC)
    try:
        for name in _DEVICES:
            place = make_place(dev, f"/{name}", folder=False)
            try:
                _attach(mounts.open_tree(f"/dev/{name}"), place)
            finally:
                os.close(place)
        for name, target in _LINKS:
            os.symlink(target, name, dir_fd=dev)
    finally:
        os.close(dev)


def _loopback_up() -> None:
    import fcntl
    import struct

    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        fcntl.ioctl(made, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
