"""Connections that ask before they connect, and that wake while they wait.

urllib3's, with four differences: every address is looked at first (`orlop.registry.net.addresses`, through
the gate that a pool is given); whatever waits wakes five times a second to look at the call that waits
(`orlop.registry.net.sockets`); an answer's head neither trickles nor goes on for ever; a body is no longer
sent once its answer has come, nor to a server that does not take it.  The thread says in ``waiting`` which
call it works for.
"""

from __future__ import annotations

import http.client
import io
import logging
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import urllib3
import urllib3.connection
import urllib3.exceptions
import urllib3.response

from orlop.registry.net.sockets import (
    Pace,
    Resolver,
    connect,
    finish_handshake,
    receive_into,
    send_all,
    wait_ready,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CONNECT_TIMEOUT",
    "HEADS",
    "NETWORK",
    "QUIET",
    "Gate",
    "Pool",
    "PoolTLS",
    "RefusedAddress",
    "RefusedTunnel",
    "tls_context",
    "wait_readable",
    "waiting",
]

MAX_HEAD = 1 << 20  # bytes of an answer's status and headers, those of `100 Continue` included
CONNECT_TIMEOUT = 10.0  # seconds to connect, whatever the patience for bytes

_REFUSED = re.compile(r"Tunnel connection failed: (\d{3}) ?(.*)", re.DOTALL)  # http.client's words

NETWORK = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
Gate = Callable[[str], bool]


class Waiting(threading.local):
    """What this thread's request belongs to, for the connection that waits for its answer.

    ``stall`` is the seconds, and the bytes a second over them, below which a peer that takes a body counts
    as dead.
    """

    check: Callable[[], None] | None = None
    stall: tuple[float, float] = (30.0, 0.0)


waiting = Waiting()


class _QuietQueries(logging.Filter):
    """Cuts queries out of urllib3's records, for requests of ours (HOSTILE.md 25)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, but none that quotes a head; its arguments lose what follows a question mark."""
        if waiting.check is not None and record.name == HEADS:
            return False
        if waiting.check is not None and isinstance(record.args, tuple):
            record.args = tuple(
                arg.partition("?")[0] if isinstance(arg, str) and "?" in arg else arg for arg in record.args
            )
        return True


QUIET = _QuietQueries()
HEADS = "urllib3.connection"  # warns of headers it cannot read, in their own words


def wait_readable(sock: socket.socket, seconds: float, check: Callable[[], None]) -> None:
    """Wait for bytes or the end; raises TimeoutError after ``seconds``, and what ``check`` raises."""
    if isinstance(sock, ssl.SSLSocket) and sock.pending():
        return
    wait_ready(sock, select.POLLIN, seconds, check)


class _Watched(io.RawIOBase):
    """The bytes that a socket receives; each wait for some wakes to look at the call.

    While ``end`` is set, in seconds of the monotonic clock, what comes is an answer's head: it must be whole
    by then, and within `MAX_HEAD` bytes.  What comes later is paced: the framing of a chunked body could
    trickle for ever without a byte for whoever reads it.
    """

    def __init__(self, sock: socket.socket, check: Callable[[], None], pace: Pace) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open
        self._check = check
        self._pace = pace
        self._head = 0
        self.end: float | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Buffer, /) -> int | None:
        """Wait for bytes, and take them.  Raises TimeoutError, and what the call's check raises."""
        self._check()  # also where there is always something to read
        seconds = self._sock.gettimeout() or CONNECT_TIMEOUT
        if self.end is not None:
            seconds = min(seconds, self.end - time.monotonic())
            if seconds <= 0:
                raise TimeoutError
            if self._head > MAX_HEAD:
                raise http.client.HTTPException("the head of the answer is too long")
        start = time.monotonic()
        got = receive_into(self._sock, buffer, seconds=seconds, check=self._check)
        self._head += got
        if self.end is None and got:
            self._pace.add(time.monotonic() - start, got, "trickles")
        return got

    def close(self) -> None:
        """Let go of the socket.  Idempotent."""
        self._raw.close()
        super().close()


class _Head(http.client.HTTPResponse):
    """An answer whose head neither trickles for ever nor goes on for ever with ``100 Continue``."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:  # noqa: ANN401 - http.client's
        super().__init__(sock, *args, **options)
        self._watched: _Watched | None = None
        if waiting.check is not None:
            self.fp.close()
            self._patience = sock.gettimeout() or CONNECT_TIMEOUT
            pace = Pace(seconds=self._patience, rate=waiting.stall[1])
            self._watched = _Watched(sock, waiting.check, pace)
            self.fp = io.BufferedReader(self._watched)

    def begin(self) -> None:
        """Read the head."""
        if self._watched is None:
            super().begin()
            return
        self._watched.end = time.monotonic() + self._patience
        super().begin()
        self._watched.end = None


class _Gated(urllib3.connection.HTTPConnection):
    """A connection that asks before it connects, and wakes while it waits."""

    response_class = _Head

    def __init__(self, host: str, *args: Any, gate: Gate, **options: Any) -> None:  # noqa: ANN401 - urllib3's
        super().__init__(host, *args, **options)
        self._gate = gate
        self._pace: Pace | None = None  # that of the request being sent, from its head's end on
        self._cut_short = False  # a body was not sent to its end: the connection is of no more use

    def _new_conn(self) -> socket.socket:
        self._pace, self._cut_short = None, False
        check, seconds = waiting.check or _nothing, float(self.timeout or CONNECT_TIMEOUT)
        try:
            infos = resolve(self.host, self.port or 0, seconds=seconds, check=check)
        except socket.gaierror as exc:
            raise urllib3.exceptions.NameResolutionError(self.host, self, exc) from exc
        if not all(self._gate(str(address[0])) for _, address in infos):
            raise RefusedAddress
        try:
            sock = connect(infos, seconds=seconds, check=check, options=self.socket_options or ())
        except TimeoutError as exc:
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from exc
        except OSError as exc:
            raise urllib3.exceptions.NewConnectionError(self, "cannot connect") from exc
        sock.settimeout(seconds)
        return sock

    @property
    def is_connected(self) -> bool:
        """Whether the connection may be used again."""
        return not self._cut_short and super().is_connected

    def putrequest(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - http.client's
        """Begin a request."""
        self._pace = None
        super().putrequest(*args, **options)

    def send(self, data: Any) -> None:  # noqa: ANN401 - http.client's
        """Send a head, or a part of a body; both wake, and neither waits for a peer that takes nothing."""
        if waiting.check is None or not isinstance(data, (bytes, bytearray, memoryview)):
            super().send(data)
            return
        if self.sock is None:
            self.connect()
        watch, (seconds, rate) = self._pace is not None, waiting.stall
        if self._pace is None:
            self._pace = Pace(seconds=seconds, rate=rate)
        try:
            send_all(
                self.sock,
                memoryview(data),
                pace=self._pace,
                seconds=seconds,
                check=waiting.check,
                watch=watch,
            )
        except BaseException:
            self._cut_short = True
            raise

    def getresponse(self) -> urllib3.response.HTTPResponse:  # type: ignore[override] # as in urllib3
        """Wait for the answer's first byte, waking to look at the call; then read its head."""
        if self.sock is not None and waiting.check is not None:
            # Until now that was the patience for connecting, or for the connection's last answer.
            self.sock.settimeout(self.timeout)
            wait_readable(self.sock, self.sock.gettimeout() or CONNECT_TIMEOUT, waiting.check)
        return super().getresponse()


class _GatedTLS(_Gated, urllib3.connection.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        """Connect; an unverified certificate was the settings' choice, and urllib3 need not warn."""
        if self.ssl_context is not None:
            self.ssl_context.sslsocket_class = _Patient
        super().connect()
        self.is_verified = True

    def _tunnel(self) -> None:
        """Have the proxy connect us."""
        try:
            super()._tunnel()
        except OSError as exc:
            refused = _REFUSED.match(str(exc))
            if refused is None:
                raise
            raise RefusedTunnel(int(refused[1]), refused[2]) from exc


class _Patient(ssl.SSLSocket):
    """A TLS socket that wakes while it shakes hands."""

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands within the socket's timeout, looking at the call."""
        if waiting.check is None:
            super().do_handshake(block)
            return
        seconds = self.gettimeout() or CONNECT_TIMEOUT
        try:
            finish_handshake(self, super().do_handshake, seconds=seconds, check=waiting.check)
        except BaseException:
            self.close()
            raise


resolve = Resolver()
"""Names are looked up once for all connections that wait for the same."""


def _nothing() -> None:
    """Look at no call."""


class RefusedTunnel(Exception):
    """A proxy does not connect us: its answer's status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason


class RefusedAddress(Exception):
    """A name leads to an address that a registry may not send us to."""


class Pool(urllib3.HTTPConnectionPool):
    """Gated connections in the clear."""

    ConnectionCls = _Gated


class PoolTLS(urllib3.HTTPSConnectionPool):
    """Gated connections over TLS."""

    ConnectionCls = _GatedTLS


def tls_context(*, verify: bool) -> ssl.SSLContext:
    """A client's TLS context.  Loading the system's CAs takes tens of milliseconds, so only if used."""
    if verify:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
