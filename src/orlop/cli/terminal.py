"""Standing between a user's descriptors and a container's: raw mode, the pty's size, and the copying.

Not a terminal emulator: bytes are passed on as they are.  `Relay` copies in one thread and blocks only
in poll(2) (and in a write to the user's own terminal or socket that is stopped half-way).

Invariants: flags of the user's descriptors are never changed, since the shell shares them; a terminal's
mode is restored however the block is left; what a container wrote before it ended reaches the user.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
import stat
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orlop.errors import FailedPrecondition, from_oserror
from orlop.values import dataclass, field

__all__ = ["ConsoleSocket", "Relay", "raw_mode", "window_size"]

_CHUNK = 65_536  # a pipe's usual size
_SMALL = 4_096  # PIPE_BUF: what a pipe that poll(2) calls writable takes without blocking
_LOOK = 250  # ms between looks at whether the user has had enough, once the container is gone
# The other end went away; EIO is a terminal's word for it, EBADF that it never was open.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)
_CONSOLE_TIMEOUT = 10.0  # s; by then the runtime has said that it sent the pty


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """While inside, keys reach us one by one and unread: Ctrl-C is a byte for the container.

    Without waiting for output to drain, which a terminal stopped by Ctrl-S would hold up for ever.
    """
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        with suppress(termios.error):  # hung up: there is nothing left to restore
            termios.tcsetattr(fd, termios.TCSANOW, before)


def window_size(fds: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of the first of ``fds`` that is a terminal; 24 and 80 without one."""
    for fd in fds:
        with suppress(termios.error, OSError):
            rows, columns = termios.tcgetwinsize(fd)
            if rows and columns:
                return rows, columns
    return 24, 80


class ConsoleSocket:
    """Where a runtime sends the controlling end of the pty that it made (its ``--console-socket``).

    A socket's path has at most 107 bytes, so it is bound through the folder's descriptor, and ``name``
    is to be used by a process whose working directory is ``folder``.
    """

    name = "console.sock"

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._socket.bind(f"/proc/self/fd/{fd}/{self.name}")
            finally:
                os.close(fd)
            self._socket.listen(1)
        except OSError as exc:
            self._socket.close()
            raise from_oserror(f"listen for the container's terminal at {self._path}", exc) from exc

    def receive(self) -> int:
        """The pty's descriptor; the caller closes it.  Raises `FailedPrecondition` if none came."""
        self._socket.settimeout(_CONSOLE_TIMEOUT)
        try:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(_CONSOLE_TIMEOUT)
                _, fds, _, _ = socket.recv_fds(connection, _SMALL, 1)
        except OSError as exc:
            raise FailedPrecondition("receive the container's terminal", str(exc)) from exc
        if not fds:
            raise FailedPrecondition("receive the container's terminal", "the runtime sent none")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def close(self) -> None:
        """Close the socket and take its name away."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


@dataclass(slots=True, eq=False)
class _Flow:
    """Bytes on their way from ``source``, None once it has ended, to ``sink``.

    ``limit`` is how much the sink may be given at a time.  ``tail`` makes a last word out of the last
    byte read.  ``on_end`` is called when all of it was written, ``on_broken`` when the sink is gone.
    """

    source: int | None
    sink: int
    on_end: Callable[[], None]
    on_broken: Callable[[], None]
    limit: int = _CHUNK
    tail: Callable[[bytes], bytes] = lambda _: b""
    pending: bytearray = field(default_factory=bytearray)
    last: bytes = b""

    @property
    def hungry(self) -> bool:
        """Whether to read more."""
        return self.source is not None and len(self.pending) < _CHUNK


class Relay:
    """Copies between the user's descriptors and a container's until the container has ended.

    The relay owns the container's ends and closes them; the user's stay open.
    """

    def __init__(self) -> None:
        self._flows: list[_Flow] = []
        self._owned: set[int] = set()
        self._console = -1
        self._given_up = False

    def into_pipe(self, user: int, pipe: int) -> None:
        """Send the user's input to a container's standard input, its end included."""
        close = functools.partial(self._close, self._own(pipe))
        self._flows.append(_Flow(user, pipe, on_end=close, on_broken=close))

    def out_of_pipe(self, pipe: int, user: int) -> None:
        """Send a container's output to the user.

        If nobody reads that any more, the pipe is closed, too, so that the container gets SIGPIPE.
        """
        close = functools.partial(self._close, self._own(pipe))
        self._flows.append(_Flow(pipe, user, on_end=close, on_broken=close, limit=_limit(user)))

    def console(self, console: int, user_input: int | None, user_output: int) -> None:
        """Connect a pty with the user's terminal, or with whatever stands in for one.

        The end of a file or pipe becomes what a keyboard has for it, Ctrl-D.  The end of a terminal is
        a hang-up, which the container sees, too: its pty is closed.
        """
        hang_up = functools.partial(self._close, self._own(console))
        self._console = console
        # Processes may close their terminal and open /dev/tty again, so its end does not hang up.
        flow = _Flow(console, user_output, on_end=_nothing, on_broken=hang_up, limit=_limit(user_output))
        self._flows.append(flow)
        if user_input is None:
            return
        flow = _Flow(user_input, console, on_end=hang_up, on_broken=_nothing)
        if not os.isatty(user_input):
            flow.on_end, flow.tail = _nothing, _end_of_file
        self._flows.append(flow)

    def resize(self, user: tuple[int, ...]) -> None:
        """Give the pty, if there is one, the size of the user's terminal.  Also for signal handlers.

        The kernel sends SIGWINCH to whoever is in the foreground there.
        """
        if self._console in self._owned:
            with suppress(termios.error):  # the container has ended
                termios.tcsetwinsize(self._console, window_size(user))

    def give_up(self) -> None:
        """Stop delivering what is left of an ended container's output.  For signal handlers."""
        self._given_up = True

    def close(self) -> None:
        """Close what the relay owns.  Idempotent."""
        for fd in list(self._owned):
            self._close(fd)

    def run(self, pidfd: int) -> None:
        """Copy until the process of ``pidfd`` has ended.

        Raises OSError where the user's own descriptors fail, other than by going away.
        """
        ready: set[int] = set()
        while pidfd not in ready:
            hungry = {flow.source for flow in self._flows if flow.source is not None and flow.hungry}
            ready = self._wait({pidfd, *hungry}, None)
            self._empty_all(ready)
            for flow in [flow for flow in self._flows if flow.source in ready]:
                self._fill(flow)

    def deliver_the_rest(self) -> None:
        """After `run`, pass on what the container wrote last.  Raises as `run` does.

        Its processes are dead, so there is nothing to wait for but whoever reads it.
        """
        self._flows = [flow for flow in self._flows if flow.sink not in self._owned]  # the user's input
        while not self._given_up:
            for flow in list(self._flows):
                while self._fill(flow):
                    pass
            if not any(flow.pending for flow in self._flows):
                return
            self._empty_all(self._wait(set(), _LOOK))

    def _wait(self, sources: set[int], timeout: int | None) -> set[int]:
        """The descriptors, of ``sources`` and of the sinks that are written to, with something to do."""
        poll = select.poll()
        sinks = {flow.sink for flow in self._flows if flow.pending}
        for fd in sources | sinks:
            poll.register(fd, select.POLLIN * (fd in sources) | select.POLLOUT * (fd in sinks))
        return {fd for fd, _ in poll.poll(timeout)}

    def _empty_all(self, ready: set[int]) -> None:
        for flow in [flow for flow in self._flows if flow.pending and flow.sink in ready]:
            self._empty(flow)

    def _fill(self, flow: _Flow) -> bool:
        """Read once; whether anything came."""
        source = flow.source
        if source is None or not flow.hungry or flow not in self._flows:
            return False
        try:
            data = os.read(source, _CHUNK)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno not in _GONE:
                raise
            data = b""
        flow.last = data[-1:] or flow.last
        flow.pending += data
        if not data:
            flow.source = None
            flow.pending += flow.tail(flow.last)
            self._end_if_done(flow)
        return bool(data)

    def _empty(self, flow: _Flow) -> None:
        """Write once."""
        if flow not in self._flows:
            return
        try:
            count = os.write(flow.sink, flow.pending[: flow.limit])
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno not in _GONE:
                raise
            self._flows.remove(flow)
            flow.on_broken()
            return
        del flow.pending[:count]
        self._end_if_done(flow)

    def _end_if_done(self, flow: _Flow) -> None:
        if flow.source is None and not flow.pending:
            self._flows.remove(flow)
            flow.on_end()

    def _own(self, fd: int) -> int:
        os.set_blocking(fd, False)
        self._owned.add(fd)
        return fd

    def _close(self, fd: int) -> None:
        if fd in self._owned:
            self._owned.discard(fd)
            os.close(fd)
        self._flows = [flow for flow in self._flows if fd not in {flow.source, flow.sink}]


def _nothing() -> None:
    """The end of a flow that ends nothing else."""


def _end_of_file(last: bytes) -> bytes:
    """Ctrl-D; within a line the first one only ends that line (termios(3), VEOF)."""
    return b"\x04" if last in {b"", b"\n"} else b"\x04\x04"


def _limit(user: int) -> int:
    """How much may be written at a time without blocking when poll(2) says that some of it may."""
    try:
        return _CHUNK if stat.S_ISREG(os.fstat(user).st_mode) else _SMALL
    except OSError:
        return _SMALL  # not open: the first write tells
