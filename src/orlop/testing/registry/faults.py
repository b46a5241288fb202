"""The ways in which the registry of tests misbehaves, and what it saw."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

from orlop.values import dataclass, field

__all__ = ["Fault", "Seen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A way to misbehave, for the first ``times`` requests (None: all) that match method and path.

    ``path`` is a regular expression, searched in path and query.  The rest says what goes wrong; what
    is left alone goes right.
    """

    method: str = ""
    path: str = ""
    times: int | None = None
    status: int | None = None  # answer with this, ``headers`` and ``body``, instead
    headers: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({})
    )  # also with right answers
    body: bytes = b""
    drop: bool = False  # cut the connection instead of answering
    cut_after: int | Callable[[int], int] | None = None  # bytes of the body (or what a body of so many
    # bytes is asked for, such as ``random.randrange``), after which the connection is cut
    cut_request: int | None = None  # bytes of the request's body, after which the connection is cut
    hold_after: int | None = None  # bytes of the body, after which it waits for ``release`` or the end
    hold_head: int | None = None  # the same for the answer's head
    hold_request: int | None = None  # bytes of the request's body, after which it reads no more, likewise
    early: bool = False  # answer before the request's body is read, and read none of it until ``release``
    release: threading.Event = field(default_factory=threading.Event)
    pace: int | None = None  # bytes of the body a second
    trickle: float | None = None  # seconds between one byte of the body and the next
    trickle_head: float | None = None  # the same for the answer's head
    ignore_range: bool = False  # 200 and everything, whatever range was asked for
    content_range: str | None = None  # the lie to tell in a 206
    shift: int = 0  # bytes by which a range lies beside where it is said to
    length: int | None = None  # the Content-Length to announce, whatever comes
    corrupt: bool = False  # the body's first byte is wrong
    no_length: bool = False  # neither Content-Length nor chunks: the body ends with the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as it came in.  Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
