"""Downloads of blobs as streams, from an offset where the registry can.

A `BlobStream` does not verify: its user hashes what it gets, and what it had before.  Sources:
distribution-spec, "Pulling blobs"; RFC 9110, sections 14.4 and 15.3.7.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from orlop.observe import Call
from orlop.registry.faults import from_status
from orlop.registry.messages import Request, Response, Sender

__all__ = ["BlobStream", "Extent", "open_stream", "parse_content_range"]

_CONTENT_RANGE = re.compile(r"bytes\s+(?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A Content-Range: first and last byte (None in an unsatisfied one), and the whole's size."""

    first: int | None
    last: int | None
    size: int | None


def parse_content_range(value: str | None) -> Extent | None:
    """A Content-Range header; None where it is missing or contradicts itself.

    >>> parse_content_range("bytes 5-9/10")
    Extent(first=5, last=9, size=10)
    """
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None:
        return None
    first, last = (int(match[1]), int(match[2])) if match[1] else (None, None)
    size = None if match[3] == "*" else int(match[3])
    if first is not None and last is not None and (last < first or (size is not None and last >= size)):
        return None
    return Extent(first=first, last=last, size=size)


class BlobStream:
    """The bytes of a blob from ``offset`` on; iterate once, in one thread, inside ``with``.

    ``offset`` is where it truly starts, 0 where the registry ignored the range or lied about it;
    ``size`` that of the whole blob in bytes, or None where the registry does not say.  Iterating
    raises `Unavailable` where the body is cut, stalls or trickles: open again at the new offset.
    """

    __slots__ = ("_attempted", "_call", "_response", "offset", "size")

    def __init__(
        self, response: Response, *, offset: int, size: int | None, call: Call, attempted: str
    ) -> None:
        self._response = response
        self._call = call
        self._attempted = attempted
        self.offset = offset
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        source = self._response.source
        return iter(()) if source is None else source.chunks(self._call, self._attempted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection.  Idempotent."""
        self._response.close()


def open_stream(send: Sender, request: Request, *, offset: int, call: Call) -> BlobStream:
    """Start the download that ``request`` (a GET) describes, at ``offset`` where that can be.

    Raises what `from_status` makes of a status that is not success.
    """
    attempted = request.attempted
    if offset > 0:
        ranged = replace(request, headers={**request.headers, "Range": f"bytes={offset}-"})
        response = send(ranged, call)
        extent = parse_content_range(response.headers.get("content-range"))
        if response.status == 206 and extent is not None and extent.first == offset:
            # It may end before the blob does (RFC 9110, 14.2): then the caller opens again from there.
            return BlobStream(response, offset=offset, size=extent.size, call=call, attempted=attempted)
        if response.status == 416 and extent is not None and extent.size == offset:
            return BlobStream(response, offset=offset, size=offset, call=call, attempted=attempted)
        if response.status == 200:
            return _whole(response, call, attempted)
        response.close()
        if not (response.ok or response.status == 416):
            raise from_status(request.endpoint, response, attempted)
    response = send(request, call)
    if not response.ok:
        raise from_status(request.endpoint, response, attempted)
    return _whole(response, call, attempted)


def _whole(response: Response, call: Call, attempted: str) -> BlobStream:
    length = response.headers.get("content-length", "")
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
    return BlobStream(response, offset=0, size=size, call=call, attempted=attempted)
