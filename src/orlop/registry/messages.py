"""Requests and responses, as the layers of the transport hand them on.

A `Sender` takes a request and gives a response.  Senders stack: authentication over redirects over
retries over the wire (`orlop.registry.net.wire`), each knowing only the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from orlop.errors import DataLoss
from orlop.observe import Call
from orlop.registry.finding.hosts import Endpoint, Route
from orlop.values import dataclass, field

__all__ = ["Outgoing", "Request", "Response", "Sender", "Source", "repeatable"]

_NONE: Mapping[str, str] = MappingProxyType({})


class Outgoing:
    """A body that is streamed once.  Remembers what the caller's own iterator raised.

    An OSError of the caller's disk must not look like one of the network, so it is kept in
    ``failure`` and raised again by the wire.  ``size`` is the number of bytes promised, or None.
    """

    __slots__ = ("_attempted", "_call", "_chunks", "failure", "sent", "size")

    def __init__(self, chunks: Iterable[bytes], *, size: int | None, call: Call, attempted: str) -> None:
        self._chunks = chunks
        self._call = call
        self._attempted = attempted
        self.size = size
        self.sent = 0
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                self._call.check(self._attempted)
                self.sent += len(chunk)
                if self.size is not None and self.sent > self.size:
                    break
                yield chunk
            if self.size is not None and self.sent != self.size:
                more = "more than " if self.sent > self.size else ""
                got = f"{more}{min(self.sent, self.size)} bytes to send"
                raise DataLoss(self._attempted, f"{got}, {self.size} were promised")
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.failure = exc
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, made on behalf of a registry's endpoint.

    ``read`` is how many bytes of a successful body to read at once, None to leave it open as a
    stream.  ``scopes`` are what a token must allow (`repository:a:pull`), ``repository`` chooses among
    credentials.  ``patience`` multiplies the timeout, for requests that a registry takes long
    over.  ``attempted`` begins errors.  ``retries`` is how often it is sent again at most (None: as the
    settings say); ``route`` where else an answer may be had (`orlop.registry.finding.fallback`); ``secrets``
    what goes along and must not be quoted from an answer.
    """

    method: str
    url: str
    endpoint: Endpoint
    attempted: str
    headers: Mapping[str, str] = field(default_factory=lambda: _NONE)
    body: bytes | Outgoing | None = None
    read: int | None = 0
    scopes: tuple[str, ...] = ()
    repository: str = ""
    patience: float = 1.0
    retries: int | None = None
    route: Route | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def repeatable(request: Request) -> bool:
    """Whether the same request can be sent once more: nothing of a body that is streamed has left."""
    return not isinstance(request.body, Outgoing) or request.body.sent == 0


class Source(Protocol):
    """The open body of a response."""

    def chunks(self, call: Call, attempted: str) -> Iterator[bytes]:
        """Its bytes as they come, as they are on the wire (no content coding is undone)."""
        ...

    def fill(self, buffer: memoryview, call: Call, attempted: str) -> int:
        """The same into a buffer; how many came, 0 at the end."""
        ...

    def close(self) -> None:
        """Give the connection back, or up where bytes are left.  Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One response.  ``headers`` have names in lower case; ``url`` is where it came from.

    ``data`` is the body where it was read, or its beginning, longer than `Request.read` by at least a
    byte, where it is too long; ``source`` is the open body where it was not read.  ``authenticated``
    tells that a user's credentials, not just an anonymous token, went with the request.  ``endpoint`` is the
    one of several that answered, ``before`` what those said that were asked before it; ``tries`` how often
    that one was asked; ``secrets`` what it was told and must not be quoted with.
    """

    status: int
    reason: str
    url: str
    headers: Mapping[str, str]
    data: bytes = b""
    source: Source | None = None
    authenticated: bool = False
    endpoint: Endpoint | None = None
    before: str = ""
    tries: int = 1
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def close(self) -> None:
        """Let go of an open body."""
        if self.source is not None:
            self.source.close()


Sender = Callable[[Request, Call], Response]
"""Sends a request.  Raises `orlop.errors.Error`; any status is a response, not an error."""
