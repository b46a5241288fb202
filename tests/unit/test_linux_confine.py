"""Confinement, tried from inside by a process of its own.  Needs no privilege; root drops more."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from orlop.linux._syscall import call

PROBE = """
import errno, fcntl, json, os, resource, shutil, socket, sys, tempfile, threading, zlib, ctypes, mmap, time
import subprocess, signal
from orlop.linux import confine

libc = ctypes.CDLL(None, use_errno=True)
secret = os.open("/etc/passwd", os.O_RDONLY)
packed = zlib.compress(b"x" * 1_000_000)
folder = tempfile.mkdtemp()
with open(folder + "/file", "wb") as file:
    file.write(bytes(4096))
source = os.open(folder + "/file", os.O_RDONLY)
writable = os.open(folder + "/file", os.O_RDWR)
shutil.rmtree(folder)

def outcome(action):
    try:
        action()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    except Exception as exc:
        return type(exc).__name__
    return "done"

def in_thread():
    out = []
    thread = threading.Thread(target=lambda: out.append(len(zlib.decompress(packed))))
    thread.start()
    thread.join()
    if out != [1_000_000]:
        raise ValueError(out)

def stat_past(name):
    # A flag says that the name may be empty; it need not be.
    number = 262 if os.uname().machine == "x86_64" else 79
    if libc.syscall(number, source, name, ctypes.create_string_buffer(512), 0x1000):
        raise OSError(ctypes.get_errno(), "newfstatat")

def code():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)

result = confine.confine_worker(
    [0, 1, 2, source, writable], memory=1 << 30, cpu_seconds=60, file_size=1 << 20, open_files=32)
answer = {
    "landlock": result.landlock, "seccomp": result.seccomp, "changed": result.user_changed,
    "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
    "open": outcome(lambda: open("/etc/passwd")),
    "list": outcome(lambda: os.listdir("/")),
    "make": outcome(lambda: open("/tmp/orlop-confine-test", "w")),
    "stat": outcome(lambda: os.stat("/etc/passwd")),
    "stat past a descriptor": outcome(lambda: stat_past(b"/etc/passwd")),
    "socket": outcome(lambda: socket.socket()),
    "unix": outcome(lambda: socket.socket(socket.AF_UNIX)),
    "fork": outcome(os.fork),
    "exec": outcome(lambda: os.execv("/bin/true", ["true"])),
    "signal": outcome(lambda: os.kill(os.getppid(), 0)),
    "code": outcome(code),
    "shorten": outcome(lambda: os.ftruncate(writable, 0)),
    "write at": outcome(lambda: os.pwrite(writable, b"x", 0)),
    "overwrite": outcome(lambda: mmap.mmap(source, 4096)),
    "steer": outcome(lambda: fcntl.fcntl(source, fcntl.F_SETOWN, os.getppid())),
    "raise limit": outcome(lambda: resource.setrlimit(resource.RLIMIT_CPU, (61, 61))),
    "closed": outcome(lambda: os.read(secret, 1)),
    "thread": outcome(in_thread),
    "memory": outcome(lambda: bytearray(50 << 20)),
    "too much memory": outcome(lambda: bytearray(2 << 30)),
    "read": outcome(lambda: sys.stdin.buffer.read()),
    "sleep": outcome(lambda: time.sleep(0.001)),
    "random": outcome(lambda: os.urandom(8)),
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
}
print(json.dumps(answer))
"""


def run(script: str, *, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run(
        [*prefix, sys.executable, "-c", script], input=b"in", capture_output=True, env=env, check=False
    )


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    done = run(PROBE)
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("what", ["memory", "read", "sleep", "random"])
def test_a_confined_worker_can_still(answer: dict[str, Any], what: str) -> None:
    assert answer[what] == "done"


@pytest.mark.parametrize(
    "what",
    [
        "open",
        "list",
        "make",
        "stat",
        "stat past a descriptor",
        "socket",
        "unix",
        "fork",
        "thread",
        "exec",
        "signal",
        "code",
        "raise limit",
        "shorten",
        "overwrite",
        "write at",
        "steer",
    ],
)
def test_a_confined_worker_cannot(answer: dict[str, Any], what: str) -> None:
    assert answer["seccomp"], "this kernel or machine has no seccomp filters"
    refused = {
        "EPERM",
        "EACCES",
        "ValueError",
        "RuntimeError",
    }  # setrlimit and threads have classes of their own
    assert answer[what] in refused


def test_only_the_kept_descriptors_are_left(answer: dict[str, Any]) -> None:
    assert answer["closed"] == "EBADF"


def test_limits_hold_and_do_not_exceed_what_was_there(answer: dict[str, Any]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    expected = 32 if hard == resource.RLIM_INFINITY else min(32, hard)
    assert answer["limits"] == [expected, expected]
    assert answer["too much memory"] == "MemoryError"


def test_what_is_reported_took_effect(answer: dict[str, Any]) -> None:
    root = os.geteuid() == 0
    assert answer["changed"] is root
    try:
        landlock = call("landlock_create_ruleset", None, 0, 1)  # LANDLOCK_CREATE_RULESET_VERSION
    except OSError:
        landlock = 0
    assert answer["landlock"] == landlock
    assert answer["ids"] == ([65534] * 4 if root else [os.getuid(), os.geteuid(), os.getgid(), os.getegid()])


def test_descriptors_are_closed_around_the_kept_ones() -> None:
    script = (
        "import os; from orlop.linux.confine import close_fds_except\n"
        "a, b, c = (os.open('/dev/null', os.O_RDONLY) for _ in range(3))\n"
        "d = os.dup2(a, 900)\n"
        "close_fds_except([2, b, 1, b])\n"
        "print([fd for fd in (0, 1, 2, a, b, c, d) if os.path.exists(f'/proc/self/fd/{fd}')] == [1, 2, b])\n"
    )
    assert run(script).stdout == b"True\n"


def test_landlock_alone_keeps_files_and_tcp_away() -> None:
    """The second fence must stand without the first."""
    script = (
        "import os, socket; from orlop.linux import confine\n"
        "s = socket.socket()\n"
        "confine.no_new_privs(); abi = confine.landlock_nothing()\n"
        "def refused(action):\n"
        "    try: action()\n"
        "    except PermissionError: return True\n"
        "    except OSError: pass\n"
        "    return False\n"
        "print(abi, refused(lambda: open('/etc/passwd')), refused(lambda: os.listdir('/')),"
        " refused(lambda: s.connect(('127.0.0.1', 1))))\n"
    )
    done = run(script)
    abi, *refused = done.stdout.split()
    if int(abi) == 0:
        assert refused == [b"False"] * 3
        pytest.skip("this kernel has no Landlock: nothing was tried against it")
    assert refused == [b"True", b"True", b"True" if int(abi) >= 4 else b"False"]


def test_landlock_that_a_filter_around_us_forbids_is_no_landlock() -> None:
    """As in a container whose seccomp profile is older than Landlock: the worker has the rest."""
    script = (
        "from orlop.linux import confine\n"
        "confine.no_new_privs(); filtered = confine.seccomp_allow(confine.WORKER_SYSCALLS)\n"
        "print(filtered, confine.landlock_nothing() if filtered else 0)\n"
    )
    done = run(script)
    assert done.stdout in (b"True 0\n", b"False 0\n"), done.stderr.decode()


@pytest.mark.parametrize(
    ("abi", "size", "fs"),
    [(1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (5, 16, 16), (6, 24, 16), (9, 24, 16)],
)
def test_a_ruleset_handles_all_that_its_abi_knows(abi: int, size: int, fs: int) -> None:
    from orlop.linux.confine import _ruleset

    ruleset = _ruleset(abi)
    assert len(ruleset) == size
    assert int.from_bytes(ruleset[:8], sys.byteorder) == (1 << fs) - 1


LACKING = """
import os, re
from orlop.linux import confine
from orlop.linux._syscall import call

call("prctl", 24, 0, 0, 0, 0)  # PR_CAPBSET_DROP: as in a container that has no CAP_CHOWN
confine.prepare()
if (pid := os.fork()) == 0:
    confine.drop_privileges()
    print(re.search(r"CapBnd:\\t(.*)", open("/proc/self/status").read())[1], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may empty the set")
def test_no_capability_is_left_to_a_worker_where_the_first_was_taken_before() -> None:
    done = run(LACKING)
    assert int(done.stdout, 16) == 0, done.stderr.decode()
