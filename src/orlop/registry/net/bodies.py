"""The open body of an answer: its bytes as they come, and when they have stopped coming."""

from __future__ import annotations

import time
from collections.abc import Iterator

import urllib3
import urllib3.connection

from orlop.errors import Cancelled, DeadlineExceeded
from orlop.observe import Call
from orlop.registry.faults import NetworkFault, from_network
from orlop.registry.net.connections import NETWORK, wait_readable
from orlop.registry.net.direct import Direct
from orlop.registry.net.sockets import Pace, Stalled

__all__ = ["Body"]

READ_SIZE = 1 << 20
CHUNK_MIN = 256 << 10  # small pieces are joined up to this, to spare the consumer calls...
CHUNK_AGE = 0.2  # ...but no longer than this many seconds


class Body:
    """The open body of a response (`orlop.registry.messages.Source`).  Used by one thread."""

    def __init__(
        self, raw: urllib3.BaseHTTPResponse, host: str, *, timeout: float, stall_rate: float
    ) -> None:
        self._raw = raw
        self._host = host
        self._timeout = timeout
        self._pace = Pace(seconds=timeout, rate=stall_rate)
        connection = raw.connection
        self._sock = connection.sock if isinstance(connection, urllib3.connection.HTTPConnection) else None
        if getattr(raw, "chunked", False):
            self._sock = None  # the reader may hold a further chunk that the socket does not show
        self._direct = Direct.of(raw, self._sock, self._pace)
        self._fault: NetworkFault | None = None  # to be raised by the next `fill`
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")

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

    def fill(self, buffer: memoryview, call: Call, attempted: str) -> int:
        """Bytes as they come, into a buffer: some, and more while they come fast; how many, 0 at the end.

        Raises as `chunks` does, but not before what came has been handed on.  Not together with `chunks`.
        """
        if self._direct is None:
            return self._fill_from_chunks(buffer, call, attempted)
        if self._fault is not None:
            raise self._fault
        got, since = 0, time.monotonic()
        try:
            while self._raw.length_remaining and got < min(len(buffer), CHUNK_MIN):
                seconds = since + CHUNK_AGE - time.monotonic() if got else self._timeout
                count = self._direct.receive(buffer[got:], seconds, lambda: call.check(attempted))
                got += count
                if not count:
                    break
        except NETWORK as exc:
            if not (got and isinstance(exc, TimeoutError)) or isinstance(exc, Stalled):
                self._fault = from_network(exc, self._host, attempted)
                self._fault.__cause__ = exc
        except BaseException as exc:
            if got and isinstance(exc, (Cancelled, DeadlineExceeded)):
                return got  # who asks again hears the same
            self.close()
            raise
        if self._fault is None and not (got and self._raw.length_remaining):
            self.close()
        if self._fault is not None:
            self.close()
            if not got:
                raise self._fault
        return got

    def _fill_from_chunks(self, buffer: memoryview, call: Call, attempted: str) -> int:
        if not self._rest:
            self._chunks = self._chunks or self.chunks(call, attempted)
            self._rest = memoryview(next(self._chunks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _pieces(self, call: Call, attempted: str) -> Iterator[bytes]:
        raw, first = self._raw, True

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
                self._pace.add(time.monotonic() - start, len(piece), "trickles")
                yield piece
        except NETWORK as exc:
            raise from_network(exc, self._host, attempted) from exc
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if self._raw.length_remaining != 0:
            self._raw.close()
        else:
            self._raw.drain_conn()  # reads nothing; but http.client takes an empty body for unread till then
        self._raw.release_conn()
