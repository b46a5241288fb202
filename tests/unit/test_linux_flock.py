"""Locks between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orlop.errors import Cancelled, DeadlineExceeded
from orlop.linux.flock import FileLock, TurnLock, hold
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


QUEUER = """
import sys, threading
from orlop.linux.flock import TurnLock
from orlop.observe import Call
lock = TurnLock(sys.argv[1])
asking = threading.Thread(target=lambda: lock.acquire(call=Call(), attempted="queue"))
asking.start()
while not lock.queued:
    asking.join(0.001)
print("queued", flush=True)
asking.join()
with open(sys.argv[2], "a") as log:
    log.write(sys.argv[3])
print("inside", flush=True)
sys.stdin.read()
lock.release()
print("out", flush=True)
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


# ------------------------------------------------------------------ turns


def soon() -> Call:
    return Call(deadline=time.monotonic() + 60)


def asked(lock: TurnLock) -> threading.Thread:
    """A thread that has asked for a lock and is in the queue."""
    thread = threading.Thread(target=lambda: lock.acquire(call=soon(), attempted="ask"))
    thread.start()
    while not lock.queued:
        thread.join(0.001)
    return thread


def queue(path: Path, log: Path, name: str) -> subprocess.Popen[bytes]:
    """A process that is in the queue, writes its name once it is inside, and leaves when its input ends."""
    child = start(QUEUER, str(path), str(log), name)
    assert said(child) == "queued"
    return child


def said(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().decode().strip()


def leave(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    assert said(child) == "out"
    assert child.wait(30) == 0


def test_turns_come_in_the_order_of_asking(tmp_path: Path) -> None:
    path, log = tmp_path / "write", tmp_path / "log"
    mine = TurnLock(path)
    mine.acquire(call=soon(), attempted="x")
    children = [queue(path, log, name) for name in "abc"]
    mine.release()
    greedy = asked(mine)  # whoever asks again at once stands behind those who wait
    for child in children:
        assert said(child) == "inside"
        assert not mine.held
        leave(child)
    greedy.join(60)
    assert mine.held
    assert log.read_text() == "abc"
    mine.release()


@pytest.mark.parametrize("place", ["inside", "first", "second"])
def test_a_process_that_is_killed_holds_nobody_up(tmp_path: Path, place: str) -> None:
    path, log = tmp_path / "write", tmp_path / "log"
    first, mine = TurnLock(path), TurnLock(path)
    if place != "inside":
        first.acquire(call=soon(), attempted="x")
    if place == "second":
        other = TurnLock(path)
        waiting = asked(other)
    with queue(path, log, "a") as child:
        if place == "inside":
            assert said(child) == "inside"
        behind = asked(mine)
        child.kill()
        child.wait()
        first.release()
        if place == "second":
            waiting.join(60)
            assert other.held
            other.release()
        behind.join(60)
    assert mine.held
    mine.release()


def test_a_process_that_is_stopped_in_the_queue_is_passed_by(tmp_path: Path) -> None:
    path, log = tmp_path / "write", tmp_path / "log"
    first, mine = TurnLock(path), TurnLock(path)
    first.acquire(call=soon(), attempted="x")
    with queue(path, log, "a") as child:
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        behind = asked(mine)
        first.release()
        behind.join(60)
        assert mine.held
        child.send_signal(signal.SIGCONT)
        mine.release()
        assert said(child) == "inside"
        leave(child)


@pytest.mark.parametrize("why", ["cancel", "deadline"])
def test_waiting_for_a_turn_ends_with_the_call_and_keeps_the_place(tmp_path: Path, why: str) -> None:
    path, token = tmp_path / "write", CancelToken()
    first, second, third = TurnLock(path), TurnLock(path), TurnLock(path)
    first.acquire(call=soon(), attempted="x")
    if why == "cancel":
        threading.Timer(0.02, token.cancel).start()
        call, expected = Call(cancel=token), Cancelled
    else:
        call, expected = Call(deadline=time.monotonic() + 0.02), DeadlineExceeded
    with pytest.raises(expected, match="tag a"):
        second.acquire(call=call, attempted="tag a")
    assert second.queued
    assert not second.held
    behind = asked(third)
    first.release()
    second.acquire(call=soon(), attempted="again")
    assert not third.held
    second.release()
    behind.join(60)
    assert third.held
    third.release()


def test_whoever_gives_up_leaves_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "write"
    first, second, third = TurnLock(path), TurnLock(path), TurnLock(path)
    before = os.listdir("/proc/self/fd")
    first.acquire(call=soon(), attempted="x")
    with pytest.raises(DeadlineExceeded):
        second.acquire(call=Call(deadline=time.monotonic()), attempted="y")
    second.release()
    second.release()
    first.release()
    third.acquire(call=soon(), attempted="z")
    third.release()
    assert os.listdir("/proc/self/fd") == before
    assert (tmp_path / "write.queue").stat().st_size == 0


def test_a_turn_can_be_taken_though_nobody_can_join_the_queue(tmp_path: Path) -> None:
    path = tmp_path / "write"
    script = (
        "import fcntl, struct, sys; file = open(sys.argv[1], 'w')\n"
        "gate = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 1, 0)\n"
        "fcntl.fcntl(file, fcntl.F_OFD_SETLK, gate); print('held', flush=True); sys.stdin.read()\n"
    )
    with start(script, f"{path}.queue") as child:
        assert said(child) == "held"
        lock = TurnLock(path)
        lock.acquire(call=soon(), attempted="x")
        assert lock.held
        assert lock._place == 0
        lock.release()
        child.kill()
