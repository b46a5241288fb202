"""A proxy on loopback, for tests: CONNECT and absolute URLs, names of its own, perhaps a password."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Asked", "Proxy", "serve_proxy"]

PATIENCE = 300.0  # seconds that a connection may be idle
_MAX_HEAD = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that came: its method, its target as it was written, its headers in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class Proxy:
    """A running proxy.  ``names`` are the hosts (``name:port``) it connects to, and where they truly are."""

    host: str
    names: dict[str, str]
    user: str = ""
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.user}@{self.host}" if self.user else f"http://{self.host}"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever went away, the test sees it at the other end."""


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        client: socket.socket = self.request
        client.settimeout(PATIENCE)
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined] # as `serve_proxy` made it
        head, rest = _head(client)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        proxy.asked.append(Asked(method=method, target=target, headers=headers))
        wanted = base64.b64encode(proxy.user.encode()).decode()
        if proxy.user and headers.get("proxy-authorization") != f"Basic {wanted}":
            client.sendall(b"HTTP/1.1 407 Who Are You\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        parts = urlsplit(target if "://" in target else f"//{target}")
        place = proxy.names.get(f"{parts.hostname}:{parts.port or 80}")
        if place is None:
            client.sendall(b"HTTP/1.1 502 No Such Host\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        address, _, port = place.rpartition(":")
        with socket.create_connection((address, int(port)), PATIENCE) as server:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 Go On\r\n\r\n")
                server.sendall(rest)
            else:
                # One request to a connection: the next may be for another host.
                kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                text = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close"])
                server.sendall(text.encode("latin-1") + b"\r\n\r\n" + rest)
            _relay(client, server)


def _head(client: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data and len(data) < _MAX_HEAD:
        more = client.recv(65_536)
        if not more:
            raise ConnectionError
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _relay(one: socket.socket, other: socket.socket) -> None:
    """Hand bytes on until either end closes or nothing moves for long."""
    while True:
        ready, _, _ = select.select([one, other], [], [], PATIENCE)
        if not ready:
            return
        for source in ready:
            data = source.recv(65_536)
            if not data:
                return
            (other if source is one else one).sendall(data)


@contextmanager
def serve_proxy(names: Mapping[str, str], *, user: str = "") -> Iterator[Proxy]:
    """Run a proxy until the context ends; ``user`` is ``name:password``."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = Proxy(f"127.0.0.1:{server.server_address[1]}", dict(names), user)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.proxy
        finally:
            with contextlib.suppress(OSError):
                server.shutdown()
            thread.join(10)
