"""User namespaces: what we may do here, id maps, and how to get into a namespace or have one made.

Not a container runtime: `enter` runs a program as root of a new user namespace and stays its parent in
the foreground, as ``podman unshare`` does; `make` keeps nothing of a namespace but its descriptor, for
idmapped mounts.

Invariants: a process with threads is neither forked nor unshared, for it is a fresh process that makes
the system call; no helper outlives the call that started it; a map of more than one's own id is written
by newuidmap(1), unless we are root; the child of `enter` ends with its parent.

Sources: user_namespaces(7), mount_namespaces(7), newuidmap(1), kernel/user_namespace.c.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from orlop.errors import Error, FailedPrecondition, Internal, from_oserror
from orlop.hints import NoReturn
from orlop.linux._idmaps import (
    IdRange,
    Maps,
    map_text,
    parse_map,
    parse_subordinate,
    subordinate_ids,
    usual_maps,
    why_single_id,
    write_maps,
)
from orlop.linux._rights import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    Privilege,
    can_unshare,
    has_many_ids,
    helper,
    in_initial_namespace,
    privilege,
    threads,
    why_not,
)
from orlop.linux._syscall import call

__all__ = [
    "IdRange",
    "Maps",
    "Privilege",
    "can_unshare",
    "enter",
    "has_many_ids",
    "in_initial_namespace",
    "make",
    "map_text",
    "maps_of",
    "parse_map",
    "parse_subordinate",
    "privilege",
    "subordinate_ids",
    "usual_maps",
    "why_single_id",
]

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h

# What a terminal or a supervisor sends a program that runs in the foreground.
_FORWARDED = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
_WATCHED = _FORWARDED | {signal.SIGCHLD}


def make(uid_map: Sequence[IdRange], gid_map: Sequence[IdRange]) -> int:
    """A new user namespace with these maps: a CLOEXEC descriptor that the caller owns.

    For MOUNT_ATTR_IDMAP: there, what is ``inside`` on disk shows as ``outside`` through the mount.
    Safe in a process with threads.  Raises `FailedPrecondition` where namespaces cannot be made,
    `InvalidArgument` or `PermissionDenied` for maps that we cannot have.
    """
    with helper(((1, "unshare", CLONE_NEWUSER),)) as (pid, failed):
        if failed:
            raise FailedPrecondition("make a user namespace", why_not(*failed))
        write_maps(pid, (tuple(uid_map), tuple(gid_map)))
        return _open(f"/proc/{pid}/ns/user")


def maps_of(userns_fd: int) -> Maps:
    """The maps of a user namespace, given by descriptor, in ids of our own namespace.

    It must be ours or one below it, and its owner ours or us.  Safe in a process with threads.
    """
    attempted = "read the id maps of a user namespace"
    try:
        if os.path.samestat(os.fstat(userns_fd), os.stat("/proc/self/ns/user")):
            return _maps_in("/proc/self")  # nobody can enter where he is
        with helper(((1, "setns", userns_fd, CLONE_NEWUSER),), (userns_fd,)) as (pid, failed):
            if failed:
                raise OSError(failed[1], os.strerror(failed[1]))
            return _maps_in(f"/proc/{pid}")
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


def _maps_in(process: str) -> Maps:
    with (
        open(f"{process}/uid_map", encoding="ascii") as users,
        open(f"{process}/gid_map", encoding="ascii") as groups,
    ):
        return parse_map(users.read()), parse_map(groups.read())


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror("make a user namespace", exc) from exc


def enter(argv: Sequence[str], *, env: Mapping[str, str], maps: Maps, mount_namespace: bool = True) -> int:
    """Run a program as root of a new user namespace; its exit code, or 128 + n where signal n ended it.

    The namespace of mounts is new, too, unless told not to be: what others mount arrives there, what
    is mounted there shows to nobody else.  The program stays in our session and process group, so a
    terminal's signals reach it at once; those that a process sends us are passed on.  If we are
    killed, so is it.  Supplementary groups stay, as access may depend on them.

    Raises `FailedPrecondition` in a process with threads and where namespaces cannot be made,
    `PermissionDenied` where the ids cannot be had, and for a program that cannot be run the class of
    its errno, with ``exit_code`` among the details as shells have it.
    """
    if threads() > 1:
        raise FailedPrecondition(
            "make a user namespace", "this process has threads", hint="do it first thing in the program"
        )
    with _signals_held() as release:
        parent = os.getpid()
        hear, say = os.pipe()
        wait, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            _become(argv, env, mount_namespace, say=say, wait=wait, release=release, parent=parent)
        try:
            os.close(say)
            os.close(wait)
            _see_off(argv[0], child, maps, hear=hear, go=go)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        finally:
            os.close(hear)
            os.close(go)
        return _stand_by(child)


@contextmanager
def _signals_held() -> Iterator[Callable[[], None]]:
    """Block the signals of `_WATCHED`; yields what a child calls to have them as we had them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    # With SIGCHLD ignored the kernel would reap the child for us, and keep its exit status.
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def release() -> None:
        for signum in _FORWARDED:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for signum in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(signum, signal.SIG_DFL)  # Python ignores them, its children should not
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        yield release
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _become(
    argv: Sequence[str],
    env: Mapping[str, str],
    mount_namespace: bool,
    *,
    say: int,
    wait: int,
    release: Callable[[], None],
    parent: int,
) -> NoReturn:
    """The child's part.  Says ``ready`` once the namespace waits for its maps, or what failed and how."""
    import warnings  # noqa: F401 - execvpe wants it, and inside we may be nobody who can read it

    step = "1"
    try:
        call("unshare", CLONE_NEWUSER)
        os.write(say, b"ready\n")
        if os.read(wait, 1):
            step = "ids"
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            if mount_namespace:
                step = "2"
                call("unshare", CLONE_NEWNS)  # one with fewer rights gets no shared mount, but slaves
            call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                step = "exec"
                release()
                os.execvpe(argv[0], list(argv), env)  # noqa: S606 - no shell is wanted
    except OSError as exc:
        os.write(say, f"{step} {exc.errno}\n".encode())
    finally:
        os._exit(127)


def _see_off(program: str, child: int, maps: Maps, *, hear: int, go: int) -> None:
    """The parent's part, until the child runs its program."""
    said = _line(hear)
    if said == "ready":
        write_maps(child, maps)
        with suppress(BrokenPipeError):  # its last words tell
            os.write(go, b"1")
        said = _line(hear)
        if not said:
            return
    raise _failure(program, said)


def _line(fd: int) -> str:
    """A line without its end; empty at the end of the pipe."""
    said = b""
    while not said.endswith(b"\n") and (more := os.read(fd, 1)):
        said += more
    return said.decode().strip()


def _failure(program: str, said: str) -> Error:
    step, _, code = said.partition(" ")
    if not code:
        return Internal("make a user namespace", "the process that should do it came to nothing")
    if step in {"1", "2"}:
        return FailedPrecondition("make a user namespace", why_not(int(step), int(code)))
    cause = OSError(int(code), os.strerror(int(code)))
    if step == "ids":
        return from_oserror("become root of a user namespace", cause)
    error = from_oserror(f"run {program}", cause)
    error.details["exit_code"] = "127" if isinstance(cause, FileNotFoundError) else "126"
    return error


def _stand_by(child: int) -> int:
    """Wait for the child, and pass signals on."""
    while True:
        info = signal.sigwaitinfo(_WATCHED)
        if info.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        elif info.si_code <= 0:  # a process sent it; what the kernel sends for a terminal, all of us got
            os.kill(child, info.si_signo)
