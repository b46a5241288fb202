"""Metrics over HTTP, on a TCP port or a unix socket, for Prometheus to scrape.

``GET /metrics``, and nothing else.  Not the daemon's own socket: who scrapes may not do anything there.  A
TCP address is for whoever reaches it, so it is best ``127.0.0.1``; a unix socket has the mode 0660.
Each connection answers one request and has seconds to ask it; only so many are served at once.
"""

from __future__ import annotations

import http.server
import io
import logging
import os
import socket
import socketserver
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, from_oserror
from orlop.telemetry.metrics import CONTENT_TYPE

__all__ = ["Address", "parse", "serving"]

_log = logging.getLogger(__name__)

_MOST = 16  # connections at a time; Prometheus needs one
_PATIENCE = 10.0  # seconds for a whole request to come, and again for its answer to go
_PAUSE = 0.1  # seconds without a look, where a connection cannot be taken
_END = 5.0  # seconds for the thread to end
Address = str | tuple[str, int]


def parse(text: str) -> Address:
    """``HOST:PORT``, ``:PORT`` (of this machine alone), or a unix socket: ``unix:///PATH`` or ``/PATH``.

    >>> parse("127.0.0.1:9464"), parse(":9464"), parse("[::1]:9464"), parse("unix:///run/m.sock")
    (('127.0.0.1', 9464), ('127.0.0.1', 9464), ('::1', 9464), '/run/m.sock')
    """
    path = text.removeprefix("unix://")
    if path.startswith("/"):
        return path
    host, colon, port = text.removeprefix("tcp://").rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InvalidArgument(
            "serve metrics", f"no address: {text!r}", hint="write 127.0.0.1:9464, or unix:///run/orlop/m.sock"
        )
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


@contextmanager
def serving(address: Address, text: Callable[[], bytes], *, patience: float = _PATIENCE) -> Iterator[Address]:
    """Serve what ``text`` returns for the length of a ``with`` block; the address, with the port if it was 0.

    A request has ``patience`` seconds to come, and so has its answer to go.

    Raises the errno's class where the address cannot be had, `AlreadyExists` where something that is no
    socket is in its place, `FailedPrecondition` where somebody listens there.
    """
    with ExitStack() as undo:
        sock = _bound(address, undo)
        server = _Server(sock, text, patience)
        undo.callback(server.server_close)
        thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="orlop-metrics", daemon=True)
        thread.start()
        undo.callback(thread.join, _END)
        undo.callback(server.shutdown)
        where = address if isinstance(address, str) else (address[0], int(sock.getsockname()[1]))
        _log.info("metrics are at %s", where if isinstance(where, str) else f"{where[0]} port {where[1]}")
        yield where


def _bound(address: Address, undo: ExitStack) -> socket.socket:
    what = f"serve metrics at {address if isinstance(address, str) else ':'.join(map(str, address))}"
    try:
        if isinstance(address, str):
            _remove_stale(address, what)
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            before = os.umask(0o117)
            try:
                sock.bind(address)
            finally:
                os.umask(before)
            undo.callback(_unlink, address)
        else:
            family, kind, protocol, _, where = socket.getaddrinfo(
                *address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
        sock.listen(_MOST)
    except (socket.gaierror, UnicodeError) as exc:
        raise InvalidArgument(what, f"no address of this machine: {exc}") from exc
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    return sock


def _remove_stale(path: str, what: str) -> None:
    """Remove a socket that nobody listens on; anything else stays and is an error."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise AlreadyExists(what, "something that is not a socket is there", hint="choose another place")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:
            pass  # its backlog is full: somebody has it
    raise FailedPrecondition(what, "somebody listens there", hint="choose another place")


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    """A server on a socket that listens already; at most `_MOST` connections at a time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, sock: socket.socket, text: Callable[[], bytes], patience: float) -> None:
        super().__init__((), _Request)
        self.text = text
        self.patience = patience
        self._sock = sock
        self._room = threading.BoundedSemaphore(_MOST)

    def fileno(self) -> int:
        """For the selector."""
        return self._sock.fileno()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The next connection; there is always a name for who has it."""
        try:
            sock, peer = self._sock.accept()
        except OSError:  # no descriptor is left, say: what waits is still there at the next look
            time.sleep(_PAUSE)
            raise
        sock.settimeout(self.patience)
        return sock, peer or ("unix", 0)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Whether there is room for it; if not, it is closed."""
        return self._room.acquire(blocking=False)

    def process_request(self, request: object, client_address: object) -> None:
        """Begin a thread for it."""
        try:
            super().process_request(request, client_address)  # type: ignore[arg-type]  # as it came
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: object, client_address: object) -> None:
        """In a thread of its own."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]  # as it came
        finally:
            self._room.release()

    def shutdown_request(self, request: object) -> None:
        """Close it."""
        assert isinstance(request, socket.socket)
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say it in our log, not on standard error."""
        _log.debug("a scrape failed", exc_info=True)


class _Asked(io.RawIOBase):
    """What comes on a connection, all of it within a time: bytes that trickle do not begin it anew."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        super().__init__()
        self._sock = sock
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of io.BufferedReader alone
        """The next bytes; raises TimeoutError past the time."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request does not come")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)


class _Request(http.server.BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so that the connection ends with it."""

    server: _Server
    server_version = "orlop"
    sys_version = ""

    def setup(self) -> None:
        """Read within the time there is."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Asked(self.connection, self.server.patience))

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin an answer, which has a time of its own."""
        self.connection.settimeout(self.server.patience)
        super().send_response(code, message)

    def do_GET(self) -> None:
        """Answer with the metrics."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        body = self.server.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's
        """Say nothing: a scrape comes every few seconds, and its path is a stranger's text."""
