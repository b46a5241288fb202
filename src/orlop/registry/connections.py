"""Connections that ask before they connect, and that wake while they wait.

urllib3's, with three differences: every address is looked at first (`orlop.registry.addresses`, through the
gate that a pool is given); a waiting read wakes five times a second to look at the call that waits; an
answer's head neither trickles nor goes on for ever.  The thread says in ``waiting`` which call it works for.
"""

from __future__ import annotations

import http.client
import io
import logging
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
from urllib3.util.connection import create_connection

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
    "tls_context",
    "wait_readable",
    "waiting",
]

MAX_HEAD = 1 << 20  # bytes of an answer's status and headers, those of `100 Continue` included
CONNECT_TIMEOUT = 10.0  # seconds to connect, whatever the patience for bytes

NETWORK = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
Gate = Callable[[str], bool]


class Waiting(threading.local):
    """What this thread's request belongs to, for the connection that waits for its answer."""

    check: Callable[[], None] | None = None


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
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    end = time.monotonic() + seconds
    while not poller.poll(200):
        check()
        if time.monotonic() > end:
            raise TimeoutError


class _Watched(io.RawIOBase):
    """The bytes that a socket receives; each wait for some wakes to look at the call.

    While ``end`` is set, in seconds of the monotonic clock, what comes is an answer's head: it must be whole
    by then, and within `MAX_HEAD` bytes.
    """

    def __init__(self, sock: socket.socket, check: Callable[[], None]) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._check = check
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
        wait_readable(self._sock, seconds, self._check)
        got = self._raw.readinto(buffer)
        self._head += got or 0
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
            self._watched = _Watched(sock, waiting.check)
            self.fp = io.BufferedReader(self._watched)
            self._patience = sock.gettimeout() or CONNECT_TIMEOUT

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

    def _new_conn(self) -> socket.socket:
        try:
            infos = socket.getaddrinfo(self.host, self.port, socket.AF_UNSPEC, socket.SOCK_STREAM)
        except (socket.gaierror, UnicodeError) as exc:
            cause = exc if isinstance(exc, socket.gaierror) else socket.gaierror(str(exc))
            raise urllib3.exceptions.NameResolutionError(self.host, self, cause) from exc
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        if not all(self._gate(address) for address in addresses):
            raise RefusedAddress
        failure: OSError | None = None
        for address in addresses:
            try:
                return create_connection(
                    (address, self.port or 0), self.timeout, socket_options=self.socket_options
                )
            except OSError as exc:
                failure = exc
        if isinstance(failure, TimeoutError):
            raise urllib3.exceptions.ConnectTimeoutError(self, "timed out") from failure
        raise urllib3.exceptions.NewConnectionError(self, "cannot connect") from failure

    def getresponse(self) -> urllib3.response.HTTPResponse:  # type: ignore[override] # as in urllib3
        """Wait for the answer's first byte, waking to look at the call; then read its head."""
        if self.sock is not None and waiting.check is not None:
            wait_readable(self.sock, self.sock.gettimeout() or CONNECT_TIMEOUT, waiting.check)
        return super().getresponse()


class _GatedTLS(_Gated, urllib3.connection.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        """Connect; an unverified certificate was the settings' choice, and urllib3 need not warn."""
        super().connect()
        self.is_verified = True


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
