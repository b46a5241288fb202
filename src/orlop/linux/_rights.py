"""What a process may do about namespaces, and the helper process that finds out or does it.

Privilege is read from /proc and imports no ctypes.  Whether a namespace can be made is tried, for the
sysctls tell half of it.

Invariants: a process with threads is never forked; no helper outlives the block that started it.

Sources: user_namespaces(7), proc(5), capabilities(7).
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from orlop.errors import Internal, Unavailable, from_oserror
from orlop.hints import Literal
from orlop.linux._syscall import call

__all__ = [
    "CLONE_NEWNS",
    "CLONE_NEWUSER",
    "Privilege",
    "can_unshare",
    "has_many_ids",
    "head",
    "helper",
    "in_initial_namespace",
    "privilege",
    "reason",
    "status",
    "threads",
    "why_not",
]

Privilege = Literal["root", "user-namespace", "single-id", "container", "none"]

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # include/uapi/linux/sched.h
_CAP_SYS_ADMIN = 21  # include/uapi/linux/capability.h
_CAPS_OF_CONTAINERS = (0, 1, 3)  # CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER
_INITIAL = 0xEFFFFFFD  # inode of the first user namespace: PROC_USER_INIT_INO, include/linux/proc_ns.h
_MOST = 1 << 20  # bytes of a file that we look at

# Runs with -I -S.  Goes to standard output: the errno of the first call that fails, after its number.
_HELPER = """\
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for step, name, *args in {calls!r}:
    if getattr(libc, name)(*args):
        print(step, ctypes.get_errno(), flush=True)
        break
else:
    print("ready", flush=True)
sys.stdin.buffer.read()
"""


def in_initial_namespace() -> bool:
    """Whether we are in the machine's first user namespace, where root is root.

    Asked by inode: a namespace of all ids, as systemd makes for ``PrivateUsers=full``, has the same map.
    """
    with _reading():
        return os.stat("/proc/self/ns/user").st_ino == _INITIAL


def has_many_ids() -> bool:
    """Whether our user namespace has more than one user id."""
    with _reading(), open("/proc/self/uid_map", encoding="ascii") as file:
        return sum(int(line.split()[2]) for line in file) > 1


def privilege() -> Privilege:
    """What we may do: all, or what root may do in a user namespace of many ids or of one, or little.

    Without CAP_SYS_ADMIN, as in most containers, root cannot mount; what is left is to give files away.
    """
    if os.geteuid() != 0:
        return "none"
    if not _has_capability(_CAP_SYS_ADMIN):
        return "container" if all(map(_has_capability, _CAPS_OF_CONTAINERS)) else "none"
    if in_initial_namespace():
        return "root"
    return "user-namespace" if has_many_ids() else "single-id"


def _has_capability(number: int) -> bool:
    return bool(int(status("CapEff"), 16) >> number & 1)


def status(field: str) -> str:
    """A field of /proc/self/status; empty where this kernel has none of that name."""
    with _reading(), open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
    return ""


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_oserror("find out what we may do here", exc, hint="is /proc mounted?") from exc


def head(path: str) -> str:
    """The text of a small file; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST)
    except OSError:
        return ""


def can_unshare() -> str | None:
    """Whether we may make a user namespace and mount in it: None, or why not, in a sentence.

    Tried in a process of its own, for a file under /proc/sys tells half of it.
    """
    calls = ((1, "unshare", CLONE_NEWUSER), (2, "unshare", CLONE_NEWNS))
    if threads() > 1:
        with helper(calls) as (_, failed):
            return failed and why_not(*failed)
    pid = os.fork()
    if pid == 0:
        for step, name, flag in calls:
            try:
                call(name, flag)
            except OSError as exc:
                os._exit(step * 128 - 128 | (exc.errno or 0) & 127)
            except BaseException:  # noqa: BLE001 - this process may not go on in the caller's code
                os._exit(127)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return f"a user namespace cannot be made here: who tries is killed by signal {-code}"
    return why_not(code // 128 + 1, code % 128) if code else None


def threads() -> int:
    """How many threads this process has, Python's or not."""
    return int(status("Threads"))


def why_not(step: int, code: int) -> str:
    """The reason in words: what failed is the user namespace (1) or the right to mount in it (2)."""
    knobs = {
        name: head(f"/proc/sys/{name.replace('.', '/')}").strip()
        for name in (
            "kernel.unprivileged_userns_clone",
            "kernel.apparmor_restrict_unprivileged_userns",
            "user.max_user_namespaces",
        )
    }
    return reason(step, code, knobs=knobs, filtered=status("Seccomp") == "2")


def reason(step: int, code: int, *, knobs: Mapping[str, str], filtered: bool) -> str:
    """`can_unshare`'s sentence from what there is to know: see there.  ``knobs`` are sysctls' values."""
    if knobs.get("user.max_user_namespaces") == "0":
        return "user namespaces are switched off: sysctl user.max_user_namespaces is 0"
    if code in {errno.ENOSPC, errno.EUSERS}:
        return "there are as many user namespaces as sysctl user.max_user_namespaces and the kernel allow"
    if code in {errno.EINVAL, errno.ENOSYS} and not filtered:
        return "this kernel has no user namespaces (CONFIG_USER_NS)"
    if knobs.get("kernel.unprivileged_userns_clone") == "0":
        return "user namespaces are for root here: sysctl kernel.unprivileged_userns_clone is 0"
    if knobs.get("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor keeps programs without a profile from user namespaces: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns is 1"
        )
    if filtered:
        return "a seccomp filter forbids user namespaces, as in a container that is not privileged"
    what = "user namespaces" if step == 1 else "mounting in a user namespace"
    return f"the kernel refuses {what} ({os.strerror(code)}): a security module, or we are in a chroot"


@contextmanager
def helper(
    calls: tuple[tuple[int, str, *tuple[int, ...]], ...], pass_fds: tuple[int, ...] = ()
) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """A process that makes calls of the C library and then waits for the end of the block.

    Yields its pid, and the number and errno of the call that failed, if one did.
    """
    import subprocess

    if not sys.executable:
        raise Unavailable("make a user namespace", "Python does not know its own program")
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HELPER.format(calls=calls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=pass_fds,
            cwd="/",  # that it may outlive us for a moment holds up no unmount
            process_group=0,  # not the terminal's business: a Ctrl-C is for us
        )
    except OSError as exc:
        raise Unavailable("make a user namespace", f"{sys.executable}: {exc.strerror}") from exc
    with process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if not words:
            raise Internal("make a user namespace", "the process that should do it came to nothing")
        yield process.pid, None if words == [b"ready"] else (int(words[0]), int(words[1]))
