"""Locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orlop.errors import Cancelled, DeadlineExceeded
from orlop.linux.flock import FileLock, hold
from orlop.observe import Call, CancelToken

COUNTER = """
import sys
from orlop.linux.flock import hold
from orlop.observe import Call
lock, counter, unlink = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
for _ in range(60):
    with hold(lock, call=Call(), attempted="count", unlink_on_release=unlink):
        value = int(open(counter).read())
        open(counter, "w").write(str(value + 1))
"""
HOLDER = """
import sys
from orlop.linux.flock import FileLock
from orlop.observe import Call
lock = FileLock(sys.argv[1])
lock.acquire(call=Call(), attempted="hold", exclusive=sys.argv[2] == "1")
print("held", flush=True)
sys.stdin.read()
"""


def start(script: str, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def attempt(path: Path, *, exclusive: bool = True) -> bool:
    lock = FileLock(path)
    got = lock.acquire(call=Call(), attempted="try", exclusive=exclusive, blocking=False)
    lock.release()
    return got


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
)
def test_only_shared_locks_go_together(tmp_path: Path, first: bool, second: bool, both: bool) -> None:
    path = tmp_path / "lock"
    with hold(path, call=Call(), attempted="x", exclusive=first) as lock:
        assert lock.held
        assert attempt(path, exclusive=second) is both
    assert not lock.held
    assert attempt(path, exclusive=True)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_lock_of_another_process_is_seen_and_ends_with_it(tmp_path: Path, exclusive: bool) -> None:
    path = tmp_path / "lock"
    with start(HOLDER, str(path), "1" if exclusive else "0") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert not attempt(path)
        assert attempt(path, exclusive=False) is not exclusive
        child.kill()
    assert attempt(path)


@pytest.mark.parametrize("unlink", ["0", "1"])
def test_no_two_processes_are_inside_at_once(tmp_path: Path, unlink: str) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    children = [start(COUNTER, str(tmp_path / "lock"), str(counter), unlink) for _ in range(4)]
    assert [child.communicate()[0] or child.returncode for child in children] == [0] * 4
    assert counter.read_text() == "240"
    assert (tmp_path / "lock").exists() is (unlink == "0")


def test_waiting_ends_when_the_lock_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first, second = FileLock(path), FileLock(path)
    first.acquire(call=Call(), attempted="first")
    waiter = threading.Thread(target=lambda: second.acquire(call=Call(), attempted="second"))
    waiter.start()
    assert not second.held
    first.release()
    waiter.join(timeout=10)
    assert second.held
    second.release()


def test_waiting_ends_at_the_deadline_and_says_what_was_attempted(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, call=Call(), attempted="x"):
        lock = FileLock(path)
        with pytest.raises(DeadlineExceeded, match="prepare /srv/a"):
            lock.acquire(call=Call(deadline=time.monotonic() + 0.02), attempted="prepare /srv/a")
        assert not lock.held
    assert lock.acquire(call=Call(), attempted="again")
    lock.release()


def test_waiting_ends_when_cancelled(tmp_path: Path) -> None:
    path, token = tmp_path / "lock", CancelToken()
    with hold(path, call=Call(), attempted="x"):
        timer = threading.Timer(0.02, token.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            FileLock(path).acquire(call=Call(cancel=token), attempted="y")


def test_failed_attempts_leave_no_descriptor_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path, call=Call(), attempted="x"):
        before = os.listdir("/proc/self/fd")
        assert not attempt(path)
        with pytest.raises(DeadlineExceeded):
            FileLock(path).acquire(call=Call(deadline=time.monotonic()), attempted="y")
        assert os.listdir("/proc/self/fd") == before


def test_the_file_is_private_and_a_symlink_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert attempt(path)
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        attempt(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_is_not_taken_twice_by_one_object(tmp_path: Path) -> None:
    with (
        hold(tmp_path / "lock", call=Call(), attempted="x") as lock,
        pytest.raises(RuntimeError, match="already"),
    ):
        lock.acquire(call=Call(), attempted="x")


def test_a_lock_on_a_file_that_was_replaced_is_not_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waiting = FileLock(path)
    with hold(path, call=Call(), attempted="x", unlink_on_release=True):
        waiter = threading.Thread(target=lambda: waiting.acquire(call=Call(), attempted="y"))
        waiter.start()  # it waits on the file that the release deletes
    waiter.join(timeout=10)
    assert waiting.held
    assert path.exists()
    assert not attempt(path)
    waiting.release()


@pytest.mark.parametrize("others", [0, 1])
def test_a_shared_holder_unlinks_only_as_the_last(tmp_path: Path, others: int) -> None:
    path = tmp_path / "lock"
    kept = [FileLock(path) for _ in range(others)]
    for lock in kept:
        lock.acquire(call=Call(), attempted="x", exclusive=False)
    with hold(path, call=Call(), attempted="y", exclusive=False, unlink_on_release=True):
        pass
    assert path.exists() is bool(others)
    for lock in kept:
        lock.release()


def test_release_frees_the_lock_though_a_child_has_the_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock(path)
    lock.acquire(call=Call(), attempted="x")
    os.set_inheritable(lock._fd or -1, True)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        assert attempt(path)
