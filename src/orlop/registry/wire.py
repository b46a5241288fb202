"""The lowest sender: one request, one response, over urllib3's connection pools.

It follows no redirect, tries nothing twice and knows no credentials.  Invariants: an address is
looked at before it is connected to (`orlop.registry.addresses`); a waiting read wakes five times a
second to look at the call, so cancelling stops it soon; bodies are handed on as they are on the
wire; urllib3's debug log says nothing of queries while it works for us.
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
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions
import urllib3.response
from urllib3.util.connection import create_connection

from orlop.observe import Call
from orlop.registry.addresses import Zone, is_loopback_host, may_follow, zone_of
from orlop.registry.faults import NetworkFault, from_network, redact
from orlop.registry.hosts import Origin, origin_of
from orlop.registry.messages import Outgoing, Request, Response

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["MAX_ANSWER", "Wire"]

MAX_ANSWER = 65_536  # bytes read of an answer that is not what was asked for: errors, redirects
MAX_HEAD = 1 << 20  # bytes of an answer's status and headers, those of `100 Continue` included
MAX_POOLS = 64  # origins with open connections; a registry may redirect to ever new ones
CONNECT_TIMEOUT = 10.0  # seconds to connect, whatever the patience for bytes
TRICKLE = 512  # bytes a second; slower than this over a whole timeout counts as dead
READ_SIZE = 1 << 20
CHUNK_MIN = 256 << 10  # small pieces are joined up to this, to spare the consumer calls...
CHUNK_AGE = 0.2  # ...but no longer than this many seconds

_NETWORK = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_Gate = Callable[[str], bool]


class _Waiting(threading.local):
    """What this thread's request belongs to, for the connection that waits for its answer."""

    check: Callable[[], None] | None = None


_waiting = _Waiting()


class _QuietQueries(logging.Filter):
    """Cuts queries out of urllib3's records, for requests of ours (HOSTILE.md 25)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, but none that quotes a head; its arguments lose what follows a question mark."""
        if _waiting.check is not None and record.name == _HEADS:
            return False
        if _waiting.check is not None and isinstance(record.args, tuple):
            record.args = tuple(
                arg.partition("?")[0] if isinstance(arg, str) and "?" in arg else arg for arg in record.args
            )
        return True


_QUIET = _QuietQueries()
_HEADS = "urllib3.connection"  # warns of headers it cannot read, in their own words


def _wait_readable(sock: socket.socket, seconds: float, check: Callable[[], None]) -> None:
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
        _wait_readable(self._sock, seconds, self._check)
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
        if _waiting.check is not None:
            self.fp.close()
            self._watched = _Watched(sock, _waiting.check)
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

    def __init__(self, host: str, *args: Any, gate: _Gate, **options: Any) -> None:  # noqa: ANN401 - urllib3's
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
            raise _RefusedAddress
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
        if self.sock is not None and _waiting.check is not None:
            _wait_readable(self.sock, self.sock.gettimeout() or CONNECT_TIMEOUT, _waiting.check)
        return super().getresponse()


class _GatedTLS(_Gated, urllib3.connection.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        """Connect; an unverified certificate was the settings' choice, and urllib3 need not warn."""
        super().connect()
        self.is_verified = True


def _tls(*, verify: bool) -> ssl.SSLContext:
    """A client's TLS context.  Loading the system's CAs takes tens of milliseconds, so only if used."""
    if verify:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class _RefusedAddress(Exception):
    """A name leads to an address that a registry may not send us to."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Gated


class _PoolTLS(urllib3.HTTPSConnectionPool):
    ConnectionCls = _GatedTLS


class _Body:
    """The open body of a response (`orlop.registry.messages.Source`).  Used by one thread."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, host: str, timeout: float) -> None:
        self._raw = raw
        self._host = host
        self._timeout = timeout
        connection = raw.connection
        self._sock = connection.sock if isinstance(connection, urllib3.connection.HTTPConnection) else None
        if getattr(raw, "chunked", False):
            self._sock = None  # the reader may hold a further chunk that the socket does not show

    def chunks(self, call: Call, attempted: str) -> Iterator[bytes]:
        """Bytes as they come, in chunks of at least 256 KiB where they come fast enough.

        Raises `NetworkFault` where the body ends early, stalls or trickles; what came before that is
        handed on first, so that a download resumes behind it.
        """
        pieces: list[bytes] = []
        size, since = 0, time.monotonic()
        try:
            for piece in self._pieces(call, attempted):
                pieces.append(piece)
                size += len(piece)
                now = time.monotonic()
                if size >= CHUNK_MIN or now - since > CHUNK_AGE:
                    yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
                    pieces, size, since = [], 0, now
        except NetworkFault:
            if pieces:
                yield b"".join(pieces)
            raise
        if pieces:
            yield b"".join(pieces)

    def _pieces(self, call: Call, attempted: str) -> Iterator[bytes]:
        raw, first = self._raw, True
        waited, got = 0.0, 0

        def check() -> None:
            call.check(attempted)

        try:
            while raw.length_remaining != 0:
                check()
                start = time.monotonic()
                # The first read may find bytes that came with the head; after it the socket shows all.
                if self._sock is not None and not first:
                    _wait_readable(self._sock, self._timeout, check)
                piece = raw.read1(READ_SIZE, decode_content=False)
                if not piece:
                    break
                first = False
                waited += time.monotonic() - start
                got += len(piece)
                if waited > self._timeout:
                    if got < TRICKLE * waited:
                        raise NetworkFault(attempted, f"{self._host} trickles: {got} bytes in {waited:.0f} s")
                    waited, got = 0.0, 0
                yield piece
        except _NETWORK as exc:
            raise from_network(exc, self._host, attempted) from exc
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if self._raw.length_remaining != 0:
            self._raw.close()
        self._raw.release_conn()


class Wire:
    """Sends single requests.  Thread-safe; holds connections until `close`.

    ``timeout`` is in seconds without a byte; ``insecure`` names the hosts, beside a request's own
    endpoint, whose certificates need not be valid; ``classify`` tells an address's zone.
    """

    def __init__(
        self,
        *,
        timeout: float,
        insecure: Collection[str] = (),
        agent: str = "orlop",
        classify: Callable[[str], Zone] = zone_of,
    ) -> None:
        self._timeout = timeout
        self._insecure = frozenset(insecure)
        self._agent = agent
        self._classify = classify
        self._lock = threading.Lock()  # guards the three below
        self._pools: OrderedDict[tuple[Origin, Origin, bool], urllib3.HTTPConnectionPool] = OrderedDict()
        self._zones: dict[Origin, Zone] = {}  # the most public zone a registry was ever reached in
        self._contexts: dict[bool, ssl.SSLContext] = {}
        for name in ("urllib3.connectionpool", _HEADS):
            logging.getLogger(name).addFilter(_QUIET)

    def __call__(self, request: Request, call: Call) -> Response:
        """Send one request; any status is a response.

        Raises `NetworkFault`, and what `Call.check` raises.
        """
        call.check(request.attempted)
        origin = origin_of(request.url, request.attempted)
        pool = self._pool(request, origin)
        timeout = self._timeout * request.patience
        _waiting.check = lambda: call.check(request.attempted)
        try:
            raw = self._open(pool, request, timeout)
        except _RefusedAddress as exc:
            reason = f"{request.endpoint.host} sends us to an internal address: {redact(request.url)}"
            raise NetworkFault(request.attempted, f"{reason}: not followed", retry=False) from exc
        except _NETWORK as exc:
            if isinstance(request.body, Outgoing) and request.body.failure is not None:
                raise request.body.failure from None
            raise from_network(exc, origin.netloc, request.attempted) from exc
        finally:
            _waiting.check = None
        return self._answer(raw, request, call, _Body(raw, origin.netloc, timeout))

    def close(self) -> None:
        """Close the idle connections.  Idempotent."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _open(
        self, pool: urllib3.HTTPConnectionPool, request: Request, timeout: float
    ) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": self._agent, "Accept-Encoding": "identity", **request.headers}
        body = request.body
        if isinstance(body, Outgoing) and body.size is not None:
            headers["Content-Length"] = str(body.size)
        parts = urlsplit(request.url)
        return pool.urlopen(
            request.method,
            f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/",
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout),
            preload_content=False,
            decode_content=False,
            chunked=isinstance(body, Outgoing) and body.size is None,
        )

    def _answer(self, raw: urllib3.BaseHTTPResponse, request: Request, call: Call, body: _Body) -> Response:
        headers = {name.lower(): value for name, value in raw.headers.items()}
        good = 200 <= raw.status < 300
        if good and request.read is None:
            return Response(
                status=raw.status, reason=raw.reason or "", url=request.url, headers=headers, source=body
            )
        limit = max(request.read or 0, 0) if good else 0
        data, end = bytearray(), time.monotonic() + 10 * self._timeout * request.patience
        try:
            for chunk in body.chunks(call, request.attempted):
                data += chunk
                if len(data) > max(limit, MAX_ANSWER):
                    break
                if time.monotonic() > end:
                    raise NetworkFault(request.attempted, f"{redact(request.url)} takes too long to send")
        except NetworkFault:
            # What explains an error may be short: docker-registry 2.8 answers 416 with the blob's length.
            if good:
                raise
        finally:
            body.close()
        if not good:
            del data[MAX_ANSWER:]
        return Response(
            status=raw.status, reason=raw.reason or "", url=request.url, headers=headers, data=bytes(data)
        )

    def _pool(self, request: Request, origin: Origin) -> urllib3.HTTPConnectionPool:
        endpoint = request.endpoint
        verify = endpoint.verify
        if origin.host != endpoint.origin.host:
            listed = origin.host in self._insecure or origin.netloc in self._insecure
            verify = not (listed or is_loopback_host(origin.host))
        key = (origin, endpoint.origin, verify)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._make_pool(origin, endpoint.origin, verify)
            self._pools.move_to_end(key)
            evicted = self._pools.popitem(last=False)[1] if len(self._pools) > MAX_POOLS else None
        if evicted is not None:
            evicted.close()
        return pool

    def _make_pool(self, origin: Origin, registry: Origin, verify: bool) -> urllib3.HTTPConnectionPool:
        options: dict[str, Any] = {"maxsize": 16, "block": False, "gate": self._gate(origin, registry)}
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if origin.scheme == "http":
            return _Pool(host, origin.port, **options)
        if verify not in self._contexts:
            self._contexts[verify] = _tls(verify=verify)
        options |= {"ssl_context": self._contexts[verify], "assert_hostname": None if verify else False}
        return _PoolTLS(host, origin.port, **options)

    def _gate(self, origin: Origin, registry: Origin) -> _Gate:
        """Says whether a connection to an address may be made, for ``registry``, at ``origin``."""

        def home(address: str) -> bool:
            zone = self._classify(address)
            with self._lock:
                self._zones[registry] = min(zone, self._zones.get(registry, zone))
            return True

        def away(address: str) -> bool:
            with self._lock:
                near = self._zones.get(registry, Zone.PUBLIC)
            return may_follow(near, self._classify(address))

        return home if origin == registry else away
