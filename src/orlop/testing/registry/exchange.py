"""One request and its answer: reading the body, letting in, answering, and misbehaving while doing so.

What a request means is in `pages` and `uploads`.
"""

from __future__ import annotations

import io
import json
import socket
import ssl
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from orlop.testing.registry.faults import Fault, Seen
from orlop.testing.registry.pages import serve
from orlop.testing.registry.uploads import interrupted

if TYPE_CHECKING:
    from orlop.testing.registry.memory import MemoryRegistry

__all__ = ["Exchange", "Server"]

_PIECE = 65_536
_TLS_HELLO = b"\x16"


class Server(ThreadingHTTPServer):
    """A server that can cut what is open when it ends."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[Exchange], tls: ssl.SSLContext | None) -> None:
        super().__init__(address, handler)
        self._tls = tls
        self._open: set[socket.socket] = set()
        self.served = 0

    def finish_request(self, request: object, client_address: object) -> None:
        """Serve one connection, in its own thread; what goes wrong in it ends it."""
        sock = request
        assert isinstance(sock, socket.socket)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            elif sock.recv(1, socket.MSG_PEEK) == _TLS_HELLO:
                return
            self._open.add(sock)
            self.served += 1
            super().finish_request(sock, client_address)
        except OSError:
            return  # the client went away, or was cut off: what the tests are about
        finally:
            self._open.discard(sock)
            if sock is not request:
                sock.close()

    def sever(self) -> None:
        """Cut all open connections."""
        for sock in list(self._open):
            _shut(sock)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already gone


class Exchange(BaseHTTPRequestHandler):
    """One connection's handler; each request is an exchange."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: MemoryRegistry
    fault: Fault
    taken: bytearray  # the request's body as far as it came

    def handle_one_request(self) -> None:
        """Serve the next request of the connection."""
        self.fault = Fault()
        super().handle_one_request()

    def _serve(self) -> None:
        registry = self.registry
        headers = {name.lower(): value for name, value in self.headers.items()}
        registry.requests.append(Seen(method=self.command, path=self.path, headers=headers))
        self.fault = fault = registry.fault_for(self.command, self.path)
        if fault.drop:
            self.close_connection = True
            _shut(self.connection)
            return
        self.taken = bytearray()
        if fault.early and fault.status is not None:
            self.answer(fault.status, fault.body)
            fault.release.wait()
            self.close_connection = True
            return
        try:
            body = self.read_body()
        except OSError:
            interrupted(self, bytes(self.taken))
            self.close_connection = True
            _shut(self.connection)  # only now: who is cut off may ask at once how far it came
            raise
        if fault.status is not None:
            self.answer(fault.status, fault.body)
            return
        serve(self, body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def read_body(self) -> bytes:
        """The request's body, whole.  Raises ConnectionResetError where the client gives it up."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            self._exactly(int(self.headers.get("Content-Length", "0")))
            return bytes(self.taken)
        while size := self._chunk_size():
            self._exactly(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(self.taken)

    def _chunk_size(self) -> int:
        line = self.rfile.readline().split(b";")[0]
        if not line:
            raise ConnectionResetError
        return int(line, 16)

    def _exactly(self, size: int) -> None:
        """Read so many bytes to ``taken``, which has what came also where the connection is cut."""
        end, cut, hold = len(self.taken) + size, self.fault.cut_request, self.fault.hold_request
        while (at := len(self.taken)) < end:
            stop = end if cut is None else min(end, cut)
            if hold is not None and at >= hold:
                self.fault.release.wait()
            elif hold is not None:
                stop = min(stop, hold)
            piece = self.rfile.read1(min(stop - at, _PIECE)) if stop > at else b""
            if not piece:
                raise ConnectionResetError
            self.taken += piece
            self.registry.count(len(piece))

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Answer, and commit the fault of this exchange."""
        fault = self.fault
        self.send_response(status)
        merged = {**(headers or {}), **fault.headers}
        if fault.no_length:
            merged.pop("Content-Length", None)
            self.close_connection = True
        elif status != 204:
            merged.setdefault("Content-Length", str(len(body)))
        if fault.length is not None:
            merged["Content-Length"] = str(fault.length)
        for name, value in merged.items():
            self.send_header(name, value)
        self._send_head()
        if self.command != "HEAD":
            self._send_body(body)

    def _send_head(self) -> None:
        fault, held, real = self.fault, io.BytesIO(), self.wfile
        if fault.hold_head is None and fault.trickle_head is None:
            self.end_headers()
            return
        self.wfile = held
        self.end_headers()
        self.wfile = real
        head = held.getvalue()
        if fault.hold_head is not None:
            self.wfile.write(head[: fault.hold_head])
            fault.release.wait()
            head = head[fault.hold_head :]
        for at in range(len(head)):
            if fault.release.wait(fault.trickle_head or 0.0):
                self.wfile.write(head[at:])
                return
            self.wfile.write(head[at : at + 1])

    def _send_body(self, body: bytes) -> None:
        fault = self.fault
        if fault.corrupt and body:
            body = bytes([body[0] ^ 0xFF]) + body[1:]
        if fault.cut_after is not None:
            cut = fault.cut_after(len(body)) if callable(fault.cut_after) else fault.cut_after
            self.wfile.write(body[:cut])
            self.close_connection = True
            _shut(self.connection)
            return
        if fault.hold_after is not None:
            self._send_pieces(body[: fault.hold_after])
            fault.release.wait()
            body = body[fault.hold_after :]
        if fault.trickle is not None:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if fault.release.wait(fault.trickle):
                    break
            return
        self._send_pieces(body)

    def _send_pieces(self, body: bytes) -> None:
        for at in range(0, len(body), _PIECE):
            self.wfile.write(memoryview(body)[at : at + _PIECE])
            if self.fault.pace is not None:
                time.sleep(_PIECE / self.fault.pace)

    def error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an error of the distribution specification."""
        document = {"errors": [{"code": code, "message": message}]}
        self.answer(
            status, json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def allowed(self, repository: str, action: str, source: str = "") -> bool:
        """Whether the request may go on; answered with a challenge if not."""
        registry = self.registry
        sent = self.headers.get("Authorization", "")
        if registry.allows(sent, repository, action) and (
            not source or registry.allows(sent, source, "pull")
        ):
            return True
        challenge = 'Basic realm="registry"'
        if registry.auth == "bearer":
            challenge = (
                f'Bearer realm="{registry.realm or registry.url + "/token"}",service="{registry.host}"'
            )
            if repository:
                actions = "pull,push" if action == "push" else "pull"
                challenge += f',scope="repository:{repository}:{actions}"'
        self.error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return False
