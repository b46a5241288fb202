"""The copying between a user and a container, with pipes and ptys in the places of both."""

from __future__ import annotations

import os
import socket
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from orlop.cli.terminal import ConsoleSocket, Relay, raw_mode, window_size
from orlop.errors import FailedPrecondition

pytestmark = pytest.mark.timeout(30)
BIG = bytes(range(256)) * 4096  # a megabyte: more than any pipe holds


class Process:
    """A process that ends when it is told to; its pidfd is what the relay waits for."""

    def __init__(self) -> None:
        self._cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self.pidfd = os.pidfd_open(self._cat.pid)

    def end(self) -> None:
        self._cat.communicate()


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.end()
    os.close(made.pidfd)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def relay(stack: ExitStack) -> Relay:
    made = Relay()
    stack.callback(made.close)
    return made


def pipe(stack: ExitStack, *, keep: str = "rw") -> tuple[int, int]:
    """A pipe of which the test closes the ends named in ``keep``; the relay closes the others."""
    read, write = os.pipe()
    for fd, name in ((read, "r"), (write, "w")):
        if name in keep:
            stack.callback(os.close, fd)
    return read, write


def pty(stack: ExitStack) -> tuple[int, int]:
    """A pty of the test's: the user's side, as (keyboard and screen, terminal)."""
    screen, terminal = os.openpty()
    stack.callback(os.close, screen)
    stack.callback(os.close, terminal)
    return screen, terminal


def read_all(fd: int) -> bytes:
    """All bytes up to the end; a pty ends with EIO."""
    data = bytearray()
    while True:
        try:
            chunk = os.read(fd, 65_536)
        except OSError:
            return bytes(data)
        if not chunk:
            return bytes(data)
        data += chunk


def fill(writer: int) -> None:
    """Write into a pipe that nobody reads until no more fits."""
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)


def test_input_arrives_whole_and_with_its_end(relay: Relay, stack: ExitStack, process: Process) -> None:
    user, typed = os.pipe()
    stack.callback(os.close, user)
    inner, ours = pipe(stack, keep="r")
    relay.into_pipe(user, ours)
    seen: list[bytes] = []

    def play() -> None:
        with open(typed, "wb") as file:
            file.write(BIG)

    def contain() -> None:
        seen.append(read_all(inner))
        process.end()

    threads = [threading.Thread(target=play), threading.Thread(target=contain)]
    for thread in threads:
        thread.start()
    relay.run(process.pidfd)
    for thread in threads:
        thread.join()
    assert seen == [BIG]


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_what_was_written_before_the_end_is_delivered(
    relay: Relay, stack: ExitStack, process: Process, tmp_path: Path, kind: str
) -> None:
    inner, writer = os.pipe()
    os.set_blocking(writer, False)
    written = os.write(writer, BIG)  # as much as fits
    os.close(writer)
    process.end()
    if kind == "file":
        user = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
        stack.callback(os.close, user)
        reader = os.open(tmp_path / "out", os.O_RDONLY)
    else:
        reader, user = os.pipe()
    stack.callback(os.close, reader)
    relay.out_of_pipe(inner, user)
    relay.run(process.pidfd)
    relay.deliver_the_rest()
    if kind == "pipe":
        os.close(user)
    assert read_all(reader) == BIG[:written]


def test_an_open_end_elsewhere_does_not_hold_up_the_end(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    inner, writer = pipe(stack, keep="w")  # as if a descriptor had been passed out of the container
    reader, user = pipe(stack)
    os.write(writer, b"last words")
    relay.out_of_pipe(inner, user)
    process.end()
    relay.run(process.pidfd)
    relay.deliver_the_rest()
    assert os.read(reader, 100) == b"last words"


def test_a_container_whose_reader_went_away_gets_a_broken_pipe(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    inner, writer = pipe(stack, keep="w")
    reader, user = pipe(stack, keep="w")
    os.close(reader)
    relay.out_of_pipe(inner, user)
    failed = threading.Event()

    def contain() -> None:
        try:
            while True:
                os.write(writer, b"y\n" * 1000)
        except BrokenPipeError:
            failed.set()
        process.end()

    thread = threading.Thread(target=contain)
    thread.start()
    relay.run(process.pidfd)
    thread.join()
    assert failed.is_set()


def test_a_slow_reader_of_one_output_does_not_hold_up_the_other(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    inner_out, out = pipe(stack, keep="w")
    inner_err, err = pipe(stack, keep="w")
    user_out = pipe(stack)  # nobody reads it until the other has said its word
    user_err = pipe(stack)
    fill(user_out[1])
    os.read(user_out[0], 4096)  # now it counts as writable, but a larger write would block
    relay.out_of_pipe(inner_out, user_out[1])
    relay.out_of_pipe(inner_err, user_err[1])
    seen: list[bytes] = []

    def contain() -> None:
        os.write(out, b"x" * 60_000)
        os.write(err, b"urgent")
        seen.append(os.read(user_err[0], 100))
        process.end()

    thread = threading.Thread(target=contain)
    thread.start()
    relay.run(process.pidfd)
    thread.join()
    assert seen == [b"urgent"]


def test_nothing_is_waited_for_once_the_user_has_had_enough(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    inner, writer = pipe(stack, keep="w")
    _, user = pipe(stack)
    fill(user)
    os.write(writer, b"never read")
    relay.out_of_pipe(inner, user)
    process.end()
    relay.run(process.pidfd)
    timer = threading.Timer(0.3, relay.give_up)
    timer.start()
    relay.deliver_the_rest()
    timer.join()


def test_closed_descriptors_of_the_user_are_no_error(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    closed = os.open(os.devnull, os.O_RDWR)
    inner_in, ours = pipe(stack, keep="r")
    inner_out, writer = pipe(stack, keep="w")
    os.close(closed)
    relay.into_pipe(closed, ours)
    relay.out_of_pipe(inner_out, closed)
    os.write(writer, b"to nobody")

    def contain() -> None:
        assert read_all(inner_in) == b""
        process.end()

    thread = threading.Thread(target=contain)
    thread.start()
    relay.run(process.pidfd)
    relay.deliver_the_rest()
    thread.join()


# ------------------------------------------------------------------ ptys


@pytest.mark.parametrize(("typed", "seen"), [(b"", b""), (b"a line\n", b"a line\n"), (b"half", b"half")])
def test_the_end_of_a_file_is_the_end_of_a_ptys_input(
    relay: Relay, stack: ExitStack, process: Process, typed: bytes, seen: bytes
) -> None:
    console, terminal = os.openpty()
    stack.callback(os.close, terminal)
    user, writer = pipe(stack, keep="r")
    os.write(writer, typed)
    os.close(writer)
    relay.console(console, user, os.open(os.devnull, os.O_WRONLY))
    got: list[bytes] = []

    def contain() -> None:
        got.append(read_all(terminal))
        process.end()

    thread = threading.Thread(target=contain)
    thread.start()
    relay.run(process.pidfd)
    thread.join()
    assert got == [seen]


def test_a_hang_up_of_the_users_terminal_is_one_in_the_container(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    console, terminal = os.openpty()
    stack.callback(os.close, terminal)
    screen, user = os.openpty()
    stack.callback(os.close, user)
    relay.console(console, user, user)
    os.close(screen)
    got: list[bytes] = []

    def contain() -> None:
        got.append(read_all(terminal))  # ends only when the other side is closed
        process.end()

    thread = threading.Thread(target=contain)
    thread.start()
    relay.run(process.pidfd)
    thread.join()
    assert got == [b""]


def test_a_pty_that_is_let_go_for_a_moment_can_be_opened_again(
    relay: Relay, stack: ExitStack, process: Process
) -> None:
    console, terminal = os.openpty()
    name = os.ttyname(terminal)
    _, user = pipe(stack)
    os.close(terminal)
    relay.console(console, None, user)
    process.end()
    relay.run(process.pidfd)
    os.close(os.open(name, os.O_RDWR | os.O_NOCTTY))  # EIO if the relay had closed its side


def test_keys_pass_raw_and_the_mode_comes_back(stack: ExitStack) -> None:
    screen, terminal = pty(stack)
    before = termios.tcgetattr(terminal)

    def fail() -> None:
        with raw_mode(terminal):
            os.write(screen, b"\x03\x04\r")
            assert os.read(terminal, 10) == b"\x03\x04\r"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert termios.tcgetattr(terminal) == before


def test_the_mode_of_a_terminal_that_hung_up_is_nobodys_business(stack: ExitStack) -> None:
    screen, terminal = os.openpty()
    stack.callback(os.close, terminal)
    with raw_mode(terminal):
        os.close(screen)


def test_the_size_is_that_of_the_first_terminal_that_has_one(relay: Relay, stack: ExitStack) -> None:
    _, unset = pty(stack)
    _, terminal = pty(stack)
    termios.tcsetwinsize(terminal, (11, 22))
    read, write = pipe(stack)
    assert window_size((read, unset, terminal)) == (11, 22)
    assert window_size((read, write)) == (24, 80)
    console, inner = os.openpty()
    stack.callback(os.close, inner)
    relay.console(console, None, terminal)
    relay.resize((terminal,))
    assert termios.tcgetwinsize(inner) == (11, 22)
    relay.close()
    relay.resize((terminal,))  # after the end: nothing


# ------------------------------------------------------------------ the console socket


def test_a_console_arrives_through_a_path_of_any_length(tmp_path: Path, stack: ExitStack) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    listener = ConsoleSocket(folder)
    stack.callback(listener.close)
    screen, _ = pty(stack)
    here = os.open(folder, os.O_PATH)
    stack.callback(os.close, here)
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(f"/proc/self/fd/{here}/{listener.name}")
        socket.send_fds(runtime, [b"/dev/ptmx"], [screen])
        received = listener.receive()
    stack.callback(os.close, received)
    assert os.path.sameopenfile(received, screen)
    assert not os.get_inheritable(received)
    listener.close()
    assert list(folder.iterdir()) == []


def test_a_runtime_that_sends_no_console_is_an_error(tmp_path: Path, stack: ExitStack) -> None:
    listener = ConsoleSocket(tmp_path)
    stack.callback(listener.close)
    with socket.socket(socket.AF_UNIX) as runtime:
        runtime.connect(str(tmp_path / listener.name))
        runtime.sendall(b"nothing attached")
        with pytest.raises(FailedPrecondition, match="the runtime sent none"):
            listener.receive()
