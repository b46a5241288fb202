"""A registry of one image with one large layer, which counts every byte it sends and lies about ranges on demand.

The layer is a tar, not compressed, made as it is read: no test needs its size in memory.  What an answer does
is chosen by a function of the request, a `Way` at a time.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import tarfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from support import images

_BLOCK = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class BigLayer:
    """A tar with one file ``data`` of so many bytes, no two blocks of which are the same."""

    def __init__(self, file_size: int, seed: int = 1) -> None:
        header = tarfile.TarInfo("data")
        header.size = file_size
        self._head = header.tobuf(tarfile.USTAR_FORMAT)
        self._file = file_size
        self._base = random.Random(seed).randbytes(_BLOCK)
        self.size = 512 + -(-file_size // 512) * 512 + 1024

    def read(self, offset: int, count: int) -> bytes:
        """The bytes of the tar from ``offset`` on, as many as there are."""
        parts, end = [], min(offset + count, self.size)
        while offset < end:
            part = self._part(offset)[: end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def _part(self, offset: int) -> bytes:
        if offset < 512:
            return self._head[offset:]
        at = offset - 512
        if at >= self._file:
            return bytes(self.size - offset)
        number, within = divmod(at, _BLOCK)
        block = number.to_bytes(8, "big") + self._base[8:]
        return block[within : within + self._file - at]

    @cached_property
    def digest(self) -> str:
        hasher = hashlib.sha256()
        for at in range(0, self.size, 1 << 20):
            hasher.update(self.read(at, 1 << 20))
        return f"sha256:{hasher.hexdigest()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for the layer: its number from 0 on, first byte, last byte, headers in lower case."""

    number: int
    first: int | None
    last: int | None
    headers: dict[str, str]


@dataclass(slots=True, kw_only=True)
class Way:
    """How to answer a request for the layer; what is left alone goes right."""

    status: int = 0  # this status instead, and no bytes
    whole: bool = False  # 200 and all of it, whatever was asked for
    cut: int | None = None  # bytes of the body after which the connection is cut
    hold: int | None = None  # bytes of the body after which it waits for ``go``
    go: threading.Event = field(default_factory=threading.Event)
    said: str = ""  # Content-Range
    shift: int = 0  # bytes from elsewhere
    etag: str = '"one"'
    last: int | None = None  # the last byte to send, though more was asked for


class RangeServer:
    """The server.  A context manager; ``served`` counts the layer's bytes that were sent, over and over."""

    def __init__(self, layer: BigLayer, way: Callable[[Asked], Way] = lambda _: Way()) -> None:
        self.layer = layer
        self.way = way
        self.served = 0
        self.asked: list[Asked] = []
        self.most = 0  # answers about the layer at a time
        self.documents = _documents(layer)
        self._lock = threading.Lock()  # guards what follows, and what is counted
        self._now = 0
        self._open: set[socket.socket] = set()
        self._ways: list[Way] = []
        server = self

        class Handler(_Handler):
            """The handler of this very server."""

        Handler.owner = server
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads, self._http.block_on_close = True, False
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def name(self) -> str:
        """The image's name."""
        return f"{self.host}/app:v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for way in self._ways:
            way.go.set()
        self._http.shutdown()
        self._http.server_close()
        for sock in list(self._open):
            _cut(sock)
        self._thread.join()

    def choose(self, first: int | None, last: int | None, headers: dict[str, str]) -> Way:
        with self._lock:
            asked = Asked(number=len(self.asked), first=first, last=last, headers=headers)
            self.asked.append(asked)
            way = self.way(asked)
            self._ways.append(way)
            return way

    def enter(self, count: int) -> None:
        with self._lock:
            self._now += count
            self.most = max(self.most, self._now)

    def count(self, sent: int) -> None:
        with self._lock:
            self.served += sent


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: RangeServer

    def setup(self) -> None:
        super().setup()
        # What lies in our own buffer has not left, though it is counted.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 << 10)
        self.owner._open.add(self.connection)

    def finish(self) -> None:
        self.owner._open.discard(self.connection)
        super().finish()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return  # the client went away

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        owner = self.owner
        if self.path.endswith(owner.layer.digest):
            owner.enter(1)
            try:
                self._layer()
            finally:
                owner.enter(-1)
        elif self.path == "/v2/":
            self._say(200, b"{}", {})
        elif (found := owner.documents.get(self.path)) is not None:
            self._say(200, found[1], {"Content-Type": found[0]})
        else:
            self._say(404, b"{}", {})

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _layer(self) -> None:
        owner, size = self.owner, self.owner.layer.size
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = _RANGE.fullmatch(headers.get("range", ""))
        first = int(asked[1]) if asked else None
        last = int(asked[2]) if asked and asked[2] else None
        way = owner.choose(first, last, headers)
        if way.status:
            self._say(way.status, b"{}", {})
            return
        changed = headers.get("if-range", way.etag) != way.etag
        if first is None or way.whole or changed:
            start, end, status, said = 0, size, 200, {}
        else:
            start, end, status = first, min(size if last is None else last + 1, size), 206
            if way.last is not None:
                end = min(end, way.last + 1)
            said = {"Content-Range": way.said or f"bytes {start}-{end - 1}/{size}"}
        self.send_response(status)
        for name, value in {**said, "ETag": way.etag, "Content-Length": str(end - start)}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self._body(way, start, end)

    def _body(self, way: Way, start: int, end: int) -> None:
        at = start
        while at < end:
            stop = end
            if way.cut is not None:
                stop = min(stop, start + way.cut)
            if way.hold is not None and not way.go.is_set():
                stop = min(stop, start + way.hold)
            if at >= stop:
                if way.cut is not None and at >= start + way.cut:
                    self.close_connection = True
                    _cut(self.connection)
                    return
                way.go.wait()
                continue
            piece = self.owner.layer.read(at + way.shift, min(_BLOCK, stop - at))
            self.connection.sendall(piece)
            self.owner.count(len(piece))
            at += len(piece)


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already gone


def _documents(layer: BigLayer) -> dict[str, tuple[str, bytes]]:
    """What is served beside the layer, by path: media type and bytes."""
    made = images.make_image([b""])  # for its platform
    config = json.loads(made.config)
    config["rootfs"]["diff_ids"] = [layer.digest]
    config_bytes = json.dumps(config).encode()
    manifest = json.loads(made.document)
    manifest["config"] |= images.descriptor(manifest["config"]["mediaType"], config_bytes)
    media_type = "application/vnd.oci.image.layer.v1.tar"
    manifest["layers"] = [{"mediaType": media_type, "digest": layer.digest, "size": layer.size}]
    document = json.dumps(manifest).encode()
    return {
        "/v2/app/manifests/v1": (images.OCI_MANIFEST, document),
        f"/v2/app/blobs/{images.digest_of(config_bytes)}": ("application/json", config_bytes),
    }
