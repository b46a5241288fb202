"""An HTTP server that says what it is told, byte by byte: for answers that no server library would give.

    def answer(path: str, client: Client) -> None:
        client.send(b"HTTP/1.1 200 OK\\r\\n\\r\\n")

    with RawServer(answer) as server: ...

One request a connection, each in a thread; all end with the server, whatever they do.  A TLS greeting is cut.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_ROUNDS = 1_000_000  # more pieces than any client may take


class Client:
    """One connection, from the server's side."""

    def __init__(self, sock: socket.socket, server: RawServer) -> None:
        self._sock = sock
        self._server = server

    def send(self, data: bytes) -> None:
        """Send bytes.  Raises OSError when the client has gone, or the server ends."""
        self._sock.sendall(data)
        with self._server.lock:
            self._server.sent += len(data)

    def take(self, size: int) -> bytes:
        """Bytes of the request's body, ``size`` at most; none at its end."""
        return self._sock.recv(size)

    def flood(self, data: bytes) -> None:
        """Send the same bytes until the client goes."""
        for _ in range(_ROUNDS):
            self.send(data)

    def trickle(self, data: bytes, seconds: float) -> None:
        """Send the same bytes again and again, with pauses, until the client goes."""
        for _ in range(_ROUNDS):
            self.send(data)
            if self._server.stopping.wait(seconds):
                return

    def ok(self, body: bytes, media_type: str = "application/json", **headers: str) -> None:
        """A whole answer."""
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n{more}"
        self.send(head.encode() + b"Connection: close\r\n\r\n" + body)


class RawServer:
    """The server, on a free loopback port.  ``sent`` counts the bytes that left, ``requests`` are the paths."""

    def __init__(self, answer: Callable[[str, Client], None]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.stopping = threading.Event()
        self.lock = threading.Lock()  # guards what follows
        self.sent = 0
        self.requests: list[str] = []
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        _shut(self._listener)
        self._listener.close()
        self._acceptor.join(30)
        with self.lock:
            left = list(self._open)
        for sock in left:
            _shut(sock)
        for thread in self._threads:
            thread.join(30)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed: the end
            with self.lock:
                self._open.add(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock:
                sock.settimeout(60)
                head = b""
                while b"\r\n\r\n" not in head:
                    got = sock.recv(65536)
                    if not got or got[:1] == b"\x16":
                        return
                    head += got
                path = head.split(b" ", 2)[1].decode()
                with self.lock:
                    self.requests.append(path)
                self._answer(path, Client(sock, self))
        except OSError:
            return  # the client went away: what the tests are about
        finally:
            with self.lock:
                self._open.discard(sock)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already gone
