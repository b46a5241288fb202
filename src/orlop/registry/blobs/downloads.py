"""Downloads of blobs as streams, from an offset where the registry can.

A `BlobStream` does not verify: its user hashes what it gets, and what it had before.  Sources:
distribution-spec, "Pulling blobs"; RFC 9110, sections 14.4 and 15.3.7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self

from orlop.errors import NotFound, Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.faults import from_status, scrub
from orlop.registry.finding.hosts import origin_of
from orlop.registry.messages import Request, Response, Sender
from orlop.values import dataclass, replace

__all__ = [
    "Ask",
    "BlobStream",
    "Extent",
    "RangeRefused",
    "asking",
    "open_range",
    "open_stream",
    "parse_content_range",
]

Ask = Callable[[Mapping[str, str]], tuple[Request, Response]]
"""Sends a GET for one blob with some headers, its body left open; tells the request as it was sent."""


def asking(send: Sender, request: Request, call: Call) -> Ask:
    """Asks by a request that is ready but for the headers."""

    def ask(headers: Mapping[str, str]) -> tuple[Request, Response]:
        full = replace(request, headers={**request.headers, **headers})
        return full, send(full, call)

    return ask


_CONTENT_RANGE = re.compile(r"bytes\s+(?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A Content-Range: first and last byte (None in an unsatisfied one), and the whole's size."""

    first: int | None
    last: int | None
    size: int | None

    def ends_by(self, end: int | None) -> bool:
        """Whether no byte from ``end`` on is in it; None is the end of all."""
        return end is None or (self.last is not None and self.last < end)


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
    ``ranged`` says that it is the range that was asked for, and not the whole.  ``size`` is that of the whole
    blob in bytes, or None where the registry does not say.  ``etag`` is the strong one that the answer came
    with, or empty, and ``origin`` whose it is; ``endpoint`` is the registry or the mirror that was asked.
    Iterating raises `Unavailable` where the body is cut, stalls or trickles: open again at the new offset.
    """

    __slots__ = (
        "_attempted",
        "_call",
        "_response",
        "endpoint",
        "etag",
        "host",
        "offset",
        "origin",
        "ranged",
        "size",
    )

    def __init__(
        self, request: Request, response: Response, *, offset: int, size: int | None, call: Call
    ) -> None:
        self._response = response
        self._call = call
        self._attempted = request.attempted
        self.offset = offset
        self.ranged = response.status == 206
        self.size = size
        self.endpoint = request.endpoint
        self.host = request.endpoint.host
        self.origin = origin_of(response.url, request.attempted)
        etag = response.headers.get("etag", "")
        self.etag = etag if etag.startswith('"') else ""  # a weak one vouches for no byte (RFC 9110, 8.8.3)

    def __iter__(self) -> Iterator[bytes]:
        source = self._response.source
        return iter(()) if source is None else source.chunks(self._call, self._attempted)

    def fill(self, buffer: memoryview) -> int:
        """The next bytes into a buffer, instead of iterating; how many came, 0 at the end."""
        source = self._response.source
        return 0 if source is None else source.fill(buffer, self._call, self._attempted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection.  Idempotent."""
        self._response.close()


class RangeRefused(Exception):
    """The registry does not give the range that was asked for; ``reason`` says what it did instead."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def open_stream(ask: Ask, *, offset: int, call: Call) -> BlobStream:
    """Start the download that ``ask`` asks for, at ``offset`` where that can be, else from its start.

    Raises what `from_status` makes of a status that is not success.
    """
    if offset > 0:
        request, response = ask({"Range": f"bytes={offset}-"})
        extent = parse_content_range(response.headers.get("content-range"))
        if response.status == 206 and extent is not None and extent.first == offset:
            # It may end before the blob does (RFC 9110, 14.2): then the caller opens again from there.
            return BlobStream(request, response, offset=offset, size=extent.size, call=call)
        if response.status == 416 and extent is not None and extent.size == offset:
            return BlobStream(request, response, offset=offset, size=offset, call=call)
        if response.status == 200:
            return _whole(request, response, call)
        response.close()
        if not (response.ok or response.status == 416):
            raise from_status(request.endpoint, response, request.attempted)
    request, response = ask({})
    if not response.ok:
        raise from_status(request.endpoint, response, request.attempted)
    return _whole(request, response, call)


def open_range(ask: Ask, *, offset: int, end: int | None, etag: str, whole: bool, call: Call) -> BlobStream:
    """Start to download the bytes from ``offset`` to ``end`` (None: all the rest), and no others.

    With ``etag`` only of the entity that has it.  The answer may end earlier; with ``whole`` it may be
    everything from the start on.  Raises `NotFound`, `Unauthenticated` and `Unavailable` as the registry
    answers, and `RangeRefused` for any other answer, be it one of success.
    """
    headers = {"Range": f"bytes={offset}-{'' if end is None else end - 1}"}
    if etag:
        headers["If-Range"] = etag
    request, response = ask(headers)
    extent = parse_content_range(response.headers.get("content-range"))
    if response.status == 206 and extent is not None and extent.first == offset and extent.ends_by(end):
        return BlobStream(request, response, offset=offset, size=extent.size, call=call)
    if response.status == 200 and whole:
        return _whole(request, response, call)
    response.close()
    error = None if response.ok else from_status(request.endpoint, response, request.attempted)
    if isinstance(error, (NotFound, Unauthenticated, Unavailable)):
        raise error
    said = response.headers.get("content-range", "")
    raise RangeRefused(f"{request.endpoint.host} answers {response.status} {scrub(said)}".rstrip()) from error


def _whole(request: Request, response: Response, call: Call) -> BlobStream:
    length = response.headers.get("content-length", "")
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
    return BlobStream(request, response, offset=0, size=size, call=call)
