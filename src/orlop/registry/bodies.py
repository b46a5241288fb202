"""The open body of an answer: its bytes as they come, and when they have stopped coming."""

from __future__ import annotations

import time
from collections.abc import Iterator

import urllib3
import urllib3.connection

from orlop.observe import Call
from orlop.registry.connections import NETWORK, wait_readable
from orlop.registry.faults import NetworkFault, from_network

__all__ = ["Body"]

TRICKLE = 512  # bytes a second; slower than this over a whole timeout counts as dead
READ_SIZE = 1 << 20
CHUNK_MIN = 256 << 10  # small pieces are joined up to this, to spare the consumer calls...
CHUNK_AGE = 0.2  # ...but no longer than this many seconds


class Body:
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
                    wait_readable(self._sock, self._timeout, check)
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
        except NETWORK as exc:
            raise from_network(exc, self._host, attempted) from exc
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if self._raw.length_remaining != 0:
            self._raw.close()
        self._raw.release_conn()
