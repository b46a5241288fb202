"""What a service manager and the daemon tell each other: variables, datagrams, sockets, pings."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orlop.client.address import Address, TcpAddress
from orlop.errors import DeadlineExceeded, InvalidArgument
from orlop.service.listener import take_over
from orlop.service.systemd import VARIABLES, Notifier, Supervision, Watchdog

LONG = 30.0  # seconds, for what takes milliseconds


@contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.settimeout(LONG)
        yield sock


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@orlop-test-{os.getpid()}"


SAID = {
    "nothing": ({}, Supervision()),
    "two sockets with names": (
        {"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": "a:b"},
        Supervision(sockets=(("a", 3), ("b", 4))),
    ),
    "fewer names than sockets": (
        {"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": "a"},
        Supervision(sockets=(("a", 3), ("", 4))),
    ),
    "no names": ({"LISTEN_FDS": "1", "LISTEN_PID": "7"}, Supervision(sockets=(("", 3),))),
    "sockets of our parent, who entered the namespace": (
        {"LISTEN_FDS": "1", "LISTEN_PID": "8"},
        Supervision(sockets=(("", 3),)),
    ),
    "sockets of somebody else": ({"LISTEN_FDS": "x", "LISTEN_PID": "9"}, Supervision()),
    "sockets of nobody": ({"LISTEN_FDS": "1"}, Supervision()),
    "a watchdog": ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "7"}, Supervision(watchdog=1.5)),
    "a watchdog of all": ({"WATCHDOG_USEC": "1500000"}, Supervision(watchdog=1.5)),
    "another's watchdog": ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "9"}, Supervision()),
    "where to tell": ({"NOTIFY_SOCKET": "@x"}, Supervision(notify="@x")),
}


@pytest.mark.parametrize(("environ", "supervision"), SAID.values(), ids=SAID)
def test_variables_are_read_that_are_meant_for_us(environ: dict[str, str], supervision: Supervision) -> None:
    assert Supervision.of(environ, {7, 8}) == supervision
    assert set(environ) <= set(VARIABLES)


@pytest.mark.parametrize("text", ["-1", "x", "1025", "1 ", "٣"])
def test_a_number_of_sockets_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="LISTEN_FDS"):
        Supervision.of({"LISTEN_FDS": text, "LISTEN_PID": "7"}, {7})


def test_states_are_told_in_the_managers_words(address: str) -> None:
    with manager(address) as told:
        notifier = Notifier(address)
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.ready("serving\n/a  on b")
        notifier.reloading()
        notifier.stopping("stopping")
        notifier.extend()
        notifier.extend()  # too soon for another
        notifier.ping()
        said = [told.recv(4096).decode().split("\n") for _ in range(5)]
    assert said[0] == ["READY=1", "STATUS=serving /a on b"]
    state, when, _ = said[1]
    assert state == "RELOADING=1"
    assert int(when.removeprefix("MONOTONIC_USEC=")) >= before
    assert said[2:] == [["STOPPING=1", "STATUS=stopping"], ["EXTEND_TIMEOUT_USEC=60000000"], ["WATCHDOG=1"]]


@pytest.mark.parametrize("nobody", ["", "/nowhere/at/all", "vsock:2:1", "/a\0b", "@" + "x" * 200])
def test_a_manager_that_cannot_be_told_harms_nothing(nobody: str) -> None:
    Notifier(nobody).ready("serving")


def test_the_watchdog_is_told_of_answers_alone(address: str) -> None:
    answers, asked = threading.Event(), threading.Semaphore(0)

    def check(seconds: float) -> None:
        assert seconds > 0
        asked.release()
        if not answers.is_set():
            raise DeadlineExceeded("ask", "no answer")

    with manager(address) as told:
        dog = Watchdog(Notifier(address), 0.03, check)
        dog.start()
        try:
            assert all(asked.acquire(timeout=LONG) for _ in range(5))
            told.setblocking(False)
            with pytest.raises(BlockingIOError):
                told.recv(100)
            told.settimeout(LONG)
            answers.set()
            assert told.recv(100) == b"WATCHDOG=1"
            assert told.recv(100) == b"WATCHDOG=1"
        finally:
            dog.stop()


def test_a_watchdog_is_hushed_while_its_question_hangs_and_tells_nothing_after(address: str) -> None:
    asked, go_on, ends = threading.Event(), threading.Event(), []

    def check(seconds: float) -> None:
        asked.set()
        ends.append(go_on.wait(4 * LONG))

    with manager(address) as told:
        dog = Watchdog(Notifier(address), 1e6, check)
        dog.start()
        assert asked.wait(LONG)
        dog.hush()  # were it to wait for the check, that would end without the word
        go_on.set()
        dog.stop()
        assert ends == [True]
        told.setblocking(False)
        with pytest.raises(BlockingIOError):
            told.recv(100)


def test_a_bug_in_a_check_ends_no_watchdog(address: str) -> None:
    turns = iter([ZeroDivisionError, None])

    def check(seconds: float) -> None:
        error = next(turns, None)
        if error is not None:
            raise error

    with manager(address) as told:
        dog = Watchdog(Notifier(address), 0.03, check)
        dog.start()
        try:
            assert told.recv(100) == b"WATCHDOG=1"
        finally:
            dog.stop()


def test_sockets_that_listen_are_taken_over_with_their_addresses(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_INET6) as tcp:
        unix.bind(path)
        unix.listen()
        tcp.bind(("::1", 0))
        tcp.listen()
        port = tcp.getsockname()[1]
        for sock, address in ((unix, Address(path)), (tcp, TcpAddress("::1", port))):
            fd = os.dup(sock.fileno())
            os.set_inheritable(fd, True)
            taken, where = take_over("a", fd)
            with taken:
                assert where == address
                assert not taken.get_inheritable()
                assert taken.fileno() == fd


def _made(kind: str, tmp_path: Path) -> int:
    if kind == "a file":
        return os.open(tmp_path, os.O_RDONLY)
    if kind == "nothing":
        fd = os.open(tmp_path, os.O_RDONLY)
        os.close(fd)
        return fd
    family = socket.AF_INET if kind == "a datagram socket" else socket.AF_UNIX
    sock = socket.socket(family, socket.SOCK_DGRAM if kind == "a datagram socket" else socket.SOCK_STREAM)
    if kind == "an abstract name":
        sock.bind(f"\0orlop-test-{os.getpid()}")
        sock.listen()
    return sock.detach()


@pytest.mark.parametrize(
    "kind", ["a file", "nothing", "a datagram socket", "one that does not listen", "an abstract name"]
)
def test_what_cannot_be_served_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="take over the socket web"):
        take_over("web", _made(kind, tmp_path))
