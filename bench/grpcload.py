"""Unary gRPC calls over a unix socket at almost no cost to the caller: the server is what is measured.

One call at a time on one connection.  It speaks as much HTTP/2 (RFC 9113) as that takes: headers are
literals, answers are read by their frames alone.  A call's answer has a message exactly if it is OK; what
else a server said is not looked at, so this is no client for anything but a benchmark.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_WIDE = 0x7FFFFFFF  # the largest window there is
_LAST_STREAM = 0x7FFFFF00
_PATIENCE = 120.0  # seconds for an answer


class Failed(Exception):
    """The server answered with an error, or went away."""


class Line:
    """One connection.  Not thread-safe."""

    def __init__(self, path: str, metadata: Mapping[str, str]) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(_PATIENCE)
        self._sock.connect(path)
        self._metadata = metadata
        self._heads: dict[str, bytes] = {}
        self._stream = 1
        self._buffer = b""
        settings = struct.pack(">HI", 4, _WIDE)  # INITIAL_WINDOW_SIZE
        self._sock.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _WIDE - 65_535))
        )

    def call(self, method: str, request: bytes) -> bytes:
        """The answer's bytes; raises `Failed`."""
        head = self._heads.get(method)
        if head is None:
            head = self._heads[method] = self._head(method)
        stream, self._stream = self._stream, self._stream + 2
        if stream > _LAST_STREAM:
            raise Failed("the connection has no more streams")
        message = b"\0" + struct.pack(">I", len(request)) + request
        self._sock.sendall(
            _frame(_HEADERS, _END_HEADERS, stream, head) + _frame(_DATA, _END_STREAM, stream, message)
        )
        answer = b""
        while True:
            kind, flags, number, payload = self._read()
            if kind == _SETTINGS and not flags & _ACK:
                self._sock.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._sock.sendall(_frame(_PING, _ACK, 0, payload))
            elif kind == _GOAWAY or (kind == _RESET and number == stream):
                raise Failed(f"{method}: the server ended the call: {payload!r}")
            elif number == stream and kind in {_DATA, _HEADERS}:
                if kind == _DATA:
                    answer += payload
                if flags & _END_STREAM:
                    break
        if not answer:
            raise Failed(f"{method} of {request!r} fails: {payload!r}")
        return answer[5:]

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def _read(self) -> tuple[int, int, int, bytes]:
        while len(self._buffer) < 9 or len(self._buffer) < 9 + int.from_bytes(self._buffer[:3], "big"):
            more = self._sock.recv(65_536)
            if not more:
                raise Failed("the server has closed the connection")
            self._buffer += more
        size = int.from_bytes(self._buffer[:3], "big")
        kind, flags = self._buffer[3], self._buffer[4]
        number = int.from_bytes(self._buffer[5:9], "big") & 0x7FFFFFFF
        payload = self._buffer[9 : 9 + size]
        self._buffer = self._buffer[9 + size :]
        return kind, flags, number, payload

    def _head(self, method: str) -> bytes:
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
            **self._metadata,
        }
        return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())


def _text(text: str) -> bytes:
    """A literal of HPACK (RFC 7541, 5.2), without Huffman's code."""
    raw = text.encode()
    if len(raw) < 0x7F:
        return bytes([len(raw)]) + raw
    rest, size = len(raw) - 0x7F, b"\x7f"
    while rest >= 0x80:
        size, rest = size + bytes([rest % 0x80 + 0x80]), rest // 0x80
    return size + bytes([rest]) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
