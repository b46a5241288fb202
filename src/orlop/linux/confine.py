"""Taking everything away from a process that parses bytes from strangers.

For a forked, single-threaded worker that has its descriptors open and its modules imported; there is
no way back.  Each function takes one thing away; `confine_worker` takes all, in the order that works,
and says what took effect.  The worker's answers are still not to be believed: this only bounds what a
parser's fault can reach.

Sources: capabilities(7), landlock(7), Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import errno
import functools
import os
import resource
import signal
import struct
from collections.abc import Iterable

from orlop.linux._syscall import call
from orlop.linux.seccomp import WORKER_SYSCALLS, seccomp_allow, seccomp_prepare
from orlop.values import dataclass

__all__ = [
    "NOBODY",
    "WORKER_SYSCALLS",
    "Confinement",
    "close_fds_except",
    "confine_worker",
    "die_with_parent",
    "drop_privileges",
    "landlock_abi",
    "landlock_nothing",
    "no_new_privs",
    "prepare",
    "seccomp_allow",
    "set_limits",
]

NOBODY = 65534  # the kernel's overflow ID: owns nothing

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_KILL = 5
_FD_MAX = 0xFFFF_FFFF
_LARGEST = 2**63 - 1  # that setrlimit(2) takes as a number

_LANDLOCK_VERSION_FLAG = 1
# Rights that each ABI has, from landlock.rst.
_LANDLOCK_FS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI: number of LANDLOCK_ACCESS_FS_ bits
_LANDLOCK_NET = (4, 0b11)  # from this ABI: bind and connect TCP
_LANDLOCK_SCOPED = (6, 0b11)  # from this ABI: abstract unix sockets and signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What took effect: ``landlock`` is the ABI (0 if the kernel has none)."""

    user_changed: bool
    landlock: int
    seccomp: bool


def close_fds_except(keep: Iterable[int]) -> None:
    """Close every descriptor but these."""
    start = 0
    for fd in sorted(set(keep)):
        if fd > start:
            call("close_range", start, fd - 1, 0)
        start = fd + 1
    call("close_range", start, _FD_MAX, 0)


def no_new_privs() -> None:
    """From now on no exec gives privileges (set-user-ID, file capabilities).  Inherited, for good."""
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_privileges(uid: int = NOBODY, gid: int = NOBODY) -> bool:
    """Give up root's IDs and every capability; True if the IDs changed.

    The IDs stay where they cannot be changed: without root, and in a user namespace that has no such
    ID mapped; and without CAP_KILL, for then our parent could not end us any more.  The capabilities are
    gone in every case.  The bounding set is emptied where CAP_SETPCAP allows it; elsewhere
    no-new-privileges makes it meaningless.
    """
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("prctl", _PR_SET_KEEPCAPS, 0, 0, 0, 0)
    _empty_bounding_set()
    header = bytearray(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    changed = os.geteuid() == 0 and _has_capability(_CAP_KILL, header) and _change_ids(uid, gid)
    call("capset", header, bytearray(24))  # effective, permitted, inheritable, twice 32 bits each
    return changed


def _has_capability(number: int, header: bytearray) -> bool:
    """Whether a capability, one of the first 32, is effective."""
    sets = bytearray(24)
    call("capget", header, sets)
    return bool(struct.unpack_from("=I", sets)[0] >> number & 1)


@functools.cache  # what was emptied stays so, also in what is forked
def _empty_bounding_set() -> None:
    for capability in range(64):
        try:
            call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)
        except OSError as exc:
            if exc.errno in {errno.EINVAL, errno.EPERM}:
                return  # past the last one, or not ours to drop
            raise


def _change_ids(uid: int, gid: int) -> bool:
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as exc:
        # EINVAL: not mapped; EPERM: setgroups is denied in this user namespace, or no CAP_SETUID.
        if exc.errno in {errno.EINVAL, errno.EPERM}:
            return False
        raise
    return True


def die_with_parent(parent: int) -> None:
    """Be killed when ``parent`` ends.  Raises ProcessLookupError if it has ended already.

    To be called by the parent's child, and after `drop_privileges`: a change of IDs undoes it.
    """
    call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise ProcessLookupError(errno.ESRCH, "the parent has ended")


def set_limits(*, memory: int, cpu_seconds: int, file_size: int, open_files: int) -> None:
    """Bound address space and file size (bytes), CPU (seconds) and the next descriptor's number.

    Also no process and no thread can be started, and no core is dumped.  Hard limits, so for good; a lower
    one that is there already stays.  At the end of its CPU time the process gets SIGXCPU, which says why it
    ended, and where that is ignored SIGKILL a second later.
    """
    limits = {
        resource.RLIMIT_AS: (memory, 0),
        resource.RLIMIT_CPU: (cpu_seconds, 1),
        resource.RLIMIT_FSIZE: (file_size, 0),
        resource.RLIMIT_NOFILE: (open_files, 0),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, (wanted, grace) in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = min(wanted + grace, _LARGEST if hard == resource.RLIM_INFINITY else hard)
        resource.setrlimit(kind, (min(wanted, most), most))


def landlock_abi() -> int:
    """The version of Landlock that can be had here; 0 for none."""
    try:
        return call("landlock_create_ruleset", None, 0, _LANDLOCK_VERSION_FLAG)
    except OSError as exc:
        # Not built in, not switched on, or kept from us by the seccomp filter of a container around us.
        if exc.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
            return 0
        raise


def landlock_nothing() -> int:
    """Forbid this thread every file and every TCP connection that is not open already, for good.

    Also signals and abstract unix sockets to others, where the kernel has these scopes.  Needs
    no-new-privileges.  Returns the kernel's ABI, or 0, and nothing changed, where it has no Landlock.
    """
    abi = landlock_abi()
    if not abi:
        return 0
    ruleset = bytearray(_ruleset(abi))
    fd = call("landlock_create_ruleset", ruleset, len(ruleset), 0)
    try:
        call("landlock_restrict_self", fd, 0)
    finally:
        os.close(fd)
    return abi


def _ruleset(abi: int) -> bytes:
    """A struct landlock_ruleset_attr that handles all an ABI can, in the size which that ABI knows.

    What is handled and has no rule is forbidden.
    """
    bits = max(count for since, count in _LANDLOCK_FS.items() if since <= abi)
    words = [(1 << bits) - 1]
    for since, rights in (_LANDLOCK_NET, _LANDLOCK_SCOPED):
        if abi >= since:
            words.append(rights)
    return struct.pack(f"={len(words)}Q", *words)


def prepare() -> None:
    """Do and load what can be had in the process that forks: half a short worker's time otherwise.

    It must have no program to start: what it would start had no capability that it has not itself.
    """
    landlock_abi()
    _empty_bounding_set()
    seccomp_prepare(WORKER_SYSCALLS)


def confine_worker(
    keep: Iterable[int],
    *,
    memory: int,
    cpu_seconds: int,
    file_size: int,
    open_files: int = 64,
    uid: int = NOBODY,
    gid: int = NOBODY,
    parent: int | None = None,
) -> Confinement:
    """Leave this process its memory, the descriptors ``keep``, and nothing else.

    To be called in a single-threaded process, after all imports: no module can be loaded afterwards, and
    neither processes nor threads can be started.  With ``parent``, the process does not outlive it.  Raises
    OSError if a step fails that this kernel has; the process must then end.
    """
    close_fds_except(keep)
    set_limits(memory=memory, cpu_seconds=cpu_seconds, file_size=file_size, open_files=open_files)
    changed = drop_privileges(uid, gid)
    if parent is not None:
        die_with_parent(parent)
    no_new_privs()
    landlock = landlock_nothing()
    return Confinement(user_changed=changed, landlock=landlock, seccomp=seccomp_allow(WORKER_SYSCALLS))
