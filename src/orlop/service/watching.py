"""What watches a daemon: told of each call's begin and end, for logs, metrics and traces.

Protocols, and the part that costs nothing when nobody watches.  What does the work is not here: the log in
`orlop.service.logs`, metrics and traces in `orlop.telemetry`, which this room does not import.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import grpc

from orlop.images.api import Store
from orlop.service.pools import Pools
from orlop.values import dataclass

__all__ = ["Begun", "CallWatcher", "Seen", "Seer", "metadata_of", "request_id"]

_REQUEST_ID = "x-request-id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,63}")  # no control characters, and of bounded length


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A call that has begun: its full method, who calls, its number, and the metadata that came with it."""

    method: str
    client: str
    number: str
    metadata: Mapping[str, str]


class Seen(Protocol):
    """One call, as a watcher sees it."""

    def ended(self, code: str, seconds: float) -> None:
        """It has ended with a status (``OK``, ``NOT_FOUND``); in the thread that began it, once."""


class CallWatcher(Protocol):
    """Something that watches all calls of one daemon.  Called from all threads; must not block or raise."""

    def attached(self, store: Store, pools: Pools) -> AbstractContextManager[object]:
        """For as long as the daemon serves.  May raise on the way in: then it does not begin to serve."""
        ...

    def began(self, call: Begun) -> Seen:
        """A call begins in this thread."""
        ...


class Seer:
    """One call, for all watchers."""

    __slots__ = ("_begun", "_seen")

    def __init__(self, watchers: Sequence[CallWatcher], call: Begun) -> None:
        self._begun = time.monotonic()
        self._seen: list[Seen] | None = [watcher.began(call) for watcher in watchers]

    @property
    def seconds(self) -> float:
        """Since it began."""
        return round(time.monotonic() - self._begun, 6)

    def ended(self, code: str) -> None:
        """Tell them, once: a second end is none."""
        seen, self._seen = self._seen, None
        if seen is not None:
            seconds = time.monotonic() - self._begun
            for one in reversed(seen):
                one.ended(code, seconds)


def metadata_of(context: grpc.ServicerContext) -> dict[str, str]:
    """A call's metadata that are texts."""
    pairs: Any = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def request_id(number: str, metadata: Mapping[str, str]) -> str:
    """A name for a call: our number and, where the client gave a sane one, its own.

    >>> request_id("1a-7", {"x-request-id": "job/12"})
    '1a-7/job/12'
    >>> request_id("1a-7", {"x-request-id": "a b"})
    '1a-7'
    """
    own = metadata.get(_REQUEST_ID, "")
    return f"{number}/{own}" if _SANE.fullmatch(own) else number
