"""Waits on sockets and on names that look at the call: resolving, connecting, TLS, sending, receiving.

Each wakes several times a second, so that cancelling and deadlines act at once in every phase, and each is
bounded by seconds of its own.  Progress is bytes per interval (`Pace`): a trickle does not count as life, in
neither direction.  Nothing here knows HTTP, but for the one look at whether an answer has come early.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "Check",
    "Info",
    "Pace",
    "Resolver",
    "Stalled",
    "connect",
    "finish_handshake",
    "receive_into",
    "send_all",
    "wait_ready",
]

Check = Callable[[], None]
Info = tuple[socket.AddressFamily, tuple[Any, ...]]
"""A family, and an address with its port, as `socket.getaddrinfo` gives them."""

LOOK = 0.2  # seconds between two looks at the call
STAGGER = (
    0.25  # seconds until the next address is tried beside those that do not answer (RFC 8305, section 5)
)
SEND_SIZE = 256 << 10  # bytes handed to the kernel at a time


class Stalled(TimeoutError):
    """Too few bytes in too long a time; the words say how few, in which direction."""


class Pace:
    """Whether bytes move fast enough: ``rate`` a second or more over each ``seconds`` spent waiting for them.

    Only waiting counts, so that a slow consumer, or a slow producer, is not the peer's fault.
    """

    __slots__ = ("_moved", "_rate", "_seconds", "_waited")

    def __init__(self, *, seconds: float, rate: float) -> None:
        self._seconds = seconds
        self._rate = rate
        self._waited = 0.0
        self._moved = 0

    def note(self, waited: float) -> None:
        """Count a wait in vain; it is judged when something moves."""
        self._waited += waited

    def add(self, waited: float, moved: int, words: str) -> None:
        """Count.  Raises `Stalled` at the end of an interval in which too little moved."""
        self._waited += waited
        self._moved += moved
        if self._waited <= self._seconds:
            return
        if self._moved < self._rate * self._waited:
            raise Stalled(f"{words}: {self._moved} bytes in {self._waited:.3g} s")
        self._waited, self._moved = 0.0, 0


def wait_ready(sock: socket.socket, events: int, seconds: float, check: Check) -> int:
    """Wait for events of ``poll``, and say which came.

    Raises TimeoutError after ``seconds``, and what ``check`` raises.
    """
    poller = select.poll()
    poller.register(sock, events)
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        if ready := poller.poll(1000 * max(0.0, min(LOOK, left))):
            return ready[0][1]
        check()
        if left <= 0:
            raise TimeoutError


class _Lookup:
    """One lookup of a name, under way or done."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.infos: list[Info] = []
        self.failure: Exception | None = None


def _getaddrinfo(host: str, *args: int) -> list[Any]:
    """As `socket.getaddrinfo`, but imports no codec of international names (4 ms) for others."""
    usual = host.isascii() and "\0" not in host and all(0 < len(part) < 64 for part in host.split("."))
    return socket.getaddrinfo(host.encode() if usual else host, *args)


class Resolver:
    """Looks names up in threads of their own, as the C library cannot be interrupted.  Thread-safe.

    One lookup runs for a name at a time; who asks for it meanwhile waits for the same.  One that is given up
    goes on to its end, and nobody hears of it.
    """

    def __init__(self, lookup: Callable[..., list[Any]] = _getaddrinfo) -> None:
        self._lookup = lookup
        self._lock = threading.Lock()  # guards the lookups under way
        self._running: dict[tuple[str, int], _Lookup] = {}

    def __call__(self, host: str, port: int, *, seconds: float, check: Check) -> list[Info]:
        """The addresses of a host, in the order in which the system prefers them.

        Raises `socket.gaierror` where there is none, or after ``seconds``; and what ``check`` raises.
        """
        if _is_number(host):
            return self._look_up(host, port)  # a number: nobody is asked
        key = (host, port)
        with self._lock:
            running = self._running.get(key)
            if running is None:
                running = _Lookup()
                threading.Thread(target=self._run, args=(key, running), daemon=True).start()
                self._running[key] = running  # last: where no thread can be had, nobody waits for one
        end = time.monotonic() + seconds
        while not running.done.wait(LOOK):
            check()
            if time.monotonic() > end:
                raise socket.gaierror(socket.EAI_AGAIN, "timed out")
        if running.failure is not None:
            raise running.failure
        return running.infos

    def _run(self, key: tuple[str, int], running: _Lookup) -> None:
        try:
            running.infos = self._look_up(*key)
        except (OSError, UnicodeError) as exc:
            running.failure = exc
        finally:
            with self._lock:
                del self._running[key]
            running.done.set()

    def _look_up(self, host: str, port: int) -> list[Info]:
        try:
            found = self._lookup(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
        except UnicodeError as exc:
            raise socket.gaierror(socket.EAI_NONAME, str(exc)) from exc
        return list(dict.fromkeys((info[0], info[4]) for info in found))


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False  # also what looks like one, as 1.2.3.999: a server of names is asked about that
    return True


def connect(
    infos: Sequence[Info], *, seconds: float, check: Check, options: Iterable[tuple[int, int, Any]] = ()
) -> socket.socket:
    """A connection to the first of several addresses that takes one.

    Where one does not answer within a moment the next is tried beside it, the families taking turns
    (RFC 8305).  Raises TimeoutError where none has answered after ``seconds``, else the last one's OSError.
    """
    queue = deque(_by_turns(infos))
    options = list(options)
    trying: dict[int, socket.socket] = {}
    poller = select.poll()
    failure: OSError | None = None
    end, next_at = time.monotonic() + seconds, 0.0
    try:
        while queue or trying:
            check()
            now = time.monotonic()
            if now > end:
                raise TimeoutError
            if queue and (not trying or now >= next_at):
                try:
                    sock = _begin(queue.popleft(), options)
                except OSError as exc:
                    failure = exc
                    continue
                trying[sock.fileno()] = sock
                poller.register(sock, select.POLLOUT)
                next_at = now + STAGGER
            wake = min(LOOK, end - now, next_at - now if queue else LOOK)
            for fd, _ in poller.poll(1000 * max(0.0, wake)):
                poller.unregister(fd)
                sock = trying.pop(fd)
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    sock.close()
                    failure, next_at = OSError(code, os.strerror(code)), 0.0
                else:
                    return sock
    finally:
        for sock in trying.values():
            sock.close()
    raise failure or OSError(errno.EADDRNOTAVAIL, "no address")


def _by_turns(infos: Sequence[Info]) -> list[Info]:
    """The addresses with their families taking turns, in their order otherwise."""
    families = list(dict.fromkeys(family for family, _ in infos))
    ranks: dict[socket.AddressFamily, int] = dict.fromkeys(families, 0)
    keyed: list[tuple[int, int, Info]] = []
    for info in infos:
        keyed.append((ranks[info[0]], families.index(info[0]), info))
        ranks[info[0]] += 1
    return [info for _, _, info in sorted(keyed, key=lambda one: one[:2])]


def _begin(info: Info, options: Iterable[tuple[int, int, Any]]) -> socket.socket:
    family, address = info
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            sock.setsockopt(*option)
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS, errno.EINTR):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def finish_handshake(
    sock: ssl.SSLSocket, handshake: Callable[[], None], *, seconds: float, check: Check
) -> None:
    """Shake hands, ``handshake`` being the socket's own way of it.

    Raises TimeoutError after ``seconds``, and what ``check`` raises.
    """
    timeout, end = sock.gettimeout(), time.monotonic() + seconds
    sock.settimeout(0.0)
    try:
        while True:
            try:
                handshake()
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            else:
                return
            wait_ready(sock, events, end - time.monotonic(), check)
    finally:
        sock.settimeout(timeout)


def receive_into(sock: socket.socket, buffer: Buffer, *, seconds: float, check: Check) -> int:
    """Take the bytes that are there, or wait for some; 0 at the end.

    Raises TimeoutError after ``seconds``, and what ``check`` raises.
    """
    timeout, end = sock.gettimeout(), time.monotonic() + seconds
    sock.settimeout(0.0)
    try:
        while True:
            try:
                return sock.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                events = select.POLLIN
            except ssl.SSLWantWriteError:
                events = select.POLLOUT
            wait_ready(sock, events, end - time.monotonic(), check)
    finally:
        sock.settimeout(timeout)


def send_all(
    sock: socket.socket, data: memoryview, *, pace: Pace, seconds: float, check: Check, watch: bool = False
) -> None:
    """Send bytes, all of them.

    Raises `Stalled` where the peer takes none for ``seconds`` or too few for the pace, and what ``check``
    raises.  With ``watch``, raises BrokenPipeError as soon as the peer has answered: it will not read on.
    """
    watch = watch and not isinstance(
        sock, ssl.SSLSocket
    )  # which may have bytes of the protocol's own to read
    timeout = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        while data:
            check()
            if watch and _answered(sock):
                raise BrokenPipeError(errno.EPIPE, "answered before all was sent")
            start, sent = time.monotonic(), 0
            try:
                sent = sock.send(data[:SEND_SIZE])
            except (BlockingIOError, ssl.SSLWantWriteError):
                _await(sock, select.POLLOUT | (select.POLLIN if watch else 0), seconds, check)
            except ssl.SSLWantReadError:
                _await(sock, select.POLLIN, seconds, check)
            data = data[sent:]
            pace.add(time.monotonic() - start, sent, "takes too few bytes")
    finally:
        sock.settimeout(timeout)


def _await(sock: socket.socket, events: int, seconds: float, check: Check) -> None:
    try:
        wait_ready(sock, events, seconds, check)
    except Stalled:
        raise
    except TimeoutError:
        raise Stalled(f"takes no bytes for {seconds:.3g} s") from None


def _answered(sock: socket.socket) -> bool:
    """Whether the peer has closed its side, or begun an answer that is no interim one (RFC 9110, 15.2)."""
    try:
        head = sock.recv(10, socket.MSG_PEEK)
    except (BlockingIOError, InterruptedError):
        return False
    return not (len(head) == 10 and head[9:10] == b"1") and not (0 < len(head) < 10)
