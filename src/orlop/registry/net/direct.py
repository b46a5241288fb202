"""A body's bytes straight from its socket into a caller's buffer, past the readers that urllib3 stacks on it.

They hand out new memory for every piece, which costs more than all else that we do with a byte but hashing
it.  Only for bodies of a known length without any coding; the readers are told what was taken from them, so
that the connection is used again.  This is the one place that knows their insides (urllib3 2, http.client).
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from typing import Any, Self, cast

import urllib3
import urllib3.exceptions

from orlop.registry.net.sockets import Check, Pace, receive_into

__all__ = ["Direct"]


class Direct:
    """The bytes of one body.  Used by one thread."""

    def __init__(
        self, raw: urllib3.BaseHTTPResponse, head: http.client.HTTPResponse, sock: socket.socket, pace: Pace
    ) -> None:
        self._raw, self._head, self._sock, self._pace = raw, head, sock, pace
        self._first = True

    @classmethod
    def of(cls, raw: urllib3.BaseHTTPResponse, sock: socket.socket | None, pace: Pace) -> Self | None:
        """The way straight to a body; None where there is none."""
        head = cast("Any", raw)._fp
        if sock is None or not raw.length_remaining or not isinstance(head, http.client.HTTPResponse):
            return None
        return cls(raw, head, sock, pace)

    def receive(self, buffer: memoryview, seconds: float, check: Check) -> int:
        """Wait for some bytes, at most ``seconds``; how many came, 0 at the end.

        Raises what the network does, TimeoutError among it, and what ``check`` raises.
        """
        check()
        start = time.monotonic()
        if self._first:  # some may have come with the head, and lie in the reader
            self._first = False
            piece = self._raw.read1(len(buffer), decode_content=False)
            count = len(piece)
            buffer[:count] = piece
        else:
            buffer = buffer[: self._raw.length_remaining or 0]
            try:
                count = receive_into(self._sock, buffer, seconds=seconds, check=check)
            except TimeoutError:
                self._pace.note(time.monotonic() - start)
                raise
            if count and isinstance(self._sock, ssl.SSLSocket):
                count += _drain(self._sock, buffer[count:])
            self._took(count)
        self._pace.add(time.monotonic() - start, count, "trickles")
        return count

    def _took(self, count: int) -> None:
        left = self._raw.length_remaining or 0
        if left and not count:
            raise urllib3.exceptions.IncompleteRead(0, left)
        self._raw.length_remaining = left - count
        self._head.length = left - count
        if not self._raw.length_remaining:
            self._head.close()  # so that the connection may ask for more


def _drain(sock: ssl.SSLSocket, buffer: memoryview) -> int:
    """Take what a TLS connection has without waiting: it gives out a record, 16 KiB at most, at a time."""
    timeout, got = sock.gettimeout(), 0
    sock.settimeout(0.0)
    try:
        while got < len(buffer) and (count := sock.recv_into(buffer[got:])):
            got += count
    except OSError:
        return got  # nothing there; or a trouble that whoever asks next will meet
    finally:
        sock.settimeout(timeout)
    return got
