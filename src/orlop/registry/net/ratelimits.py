"""What a server says about when it may be asked again, and the pause that all requests to it then share.

No I/O.  Sources: RFC 9110, section 10.2.3 (Retry-After); the IETF's draft on RateLimit header fields, in its
older forms (`RateLimit-Reset: 30`) and its newer (`RateLimit: "default";r=0;t=30`); Docker Hub's
(`ratelimit-remaining: 0;w=21600`: how long its window is, not when it ends); GitHub's and others'
`X-RateLimit-Reset`, in seconds since 1970.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from orlop.registry.net.retry import parse_retry_after
from orlop.values import dataclass

__all__ = ["Limit", "Pauses", "in_words", "limit_of"]

EPOCH_FROM = 1_000_000_000.0  # a reset larger than this is a date, not a number of seconds (2001)
LONGEST = 400 * 86_400.0  # seconds; what is further away is not believed
MAX_PAUSES = 1_024  # origins whose pauses are remembered

_ITEM = re.compile(r"^\s*(\d{1,15})(?:\.\d{0,9})?\s*(?:;|,|$)")
_WINDOW = re.compile(r";\s*w\s*=\s*\"?(\d{1,9})")
_LEFT = re.compile(r"(?:;\s*r|\bremaining)\s*=\s*(\d{1,12})")
_RESET = re.compile(r"(?:;\s*t|\breset)\s*=\s*(\d{1,12})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """When a server may be asked again.

    ``seconds`` from now, None where it does not say; ``at_most`` where it is only known not to be longer.
    ``used_up`` tells that it counts requests and that none is left.
    """

    seconds: float | None = None
    at_most: bool = False
    used_up: bool = False


def limit_of(status: int, headers: Mapping[str, str], now: datetime) -> Limit:
    """What an answer says about it.  ``headers`` have names in lower case.

    The headers of a rate limit count only with 429, or where they say that nothing is left: every good
    answer carries them too.

    >>> limit_of(429, {"ratelimit-remaining": "0;w=21600"}, datetime(2026, 1, 1))
    Limit(seconds=21600.0, at_most=True, used_up=True)
    """
    left = _remaining(headers)
    after = parse_retry_after(headers.get("retry-after"), now)
    if after is not None:
        return Limit(seconds=after, used_up=left == 0)
    if status != 429 and left != 0:
        return Limit()
    reset = _reset(headers, now)
    if reset is not None:
        return Limit(seconds=reset, used_up=left == 0)
    for name in ("ratelimit-remaining", "ratelimit-limit", "ratelimit-policy"):
        if left == 0 and (window := _WINDOW.search(headers.get(name, "")[:1000])):
            return Limit(seconds=float(window[1]), at_most=True, used_up=True)
    return Limit(used_up=left == 0)


def in_words(limit: Limit, now: datetime) -> str:
    """When a limit ends, for people; empty where nothing is known of one.

    >>> from datetime import UTC
    >>> in_words(Limit(seconds=7500.0, used_up=True), datetime(2026, 1, 1, 12, tzinfo=UTC))
    'its limit of requests is used up; that ends in 2 h 5 min, at 2026-01-01 14:05:00 UTC'
    """
    head = "its limit of requests is used up" if limit.used_up else ""
    if limit.seconds is None:
        return head
    seconds = min(limit.seconds, LONGEST)
    until = f"{now + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S} UTC"
    if not head:
        return f"it may be asked again in {_span(seconds)}, at {until}"
    if limit.at_most:
        return f"{head}; that ends within {_span(seconds)}, by {until}"
    return f"{head}; that ends in {_span(seconds)}, at {until}"


def _span(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes and not whole % 60 else f"{whole} s"


def _remaining(headers: Mapping[str, str]) -> int | None:
    for name in ("ratelimit-remaining", "x-ratelimit-remaining", "x-rate-limit-remaining"):
        if (found := _ITEM.match(headers.get(name, "")[:1000])) is not None:
            return int(found[1])
    found = _LEFT.search(headers.get("ratelimit", "")[:1000])
    return None if found is None else int(found[1])


def _reset(headers: Mapping[str, str], now: datetime) -> float | None:
    for name in ("ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset"):
        if (found := _ITEM.match(headers.get(name, "")[:1000])) is not None:
            value = float(found[1])
            return max(0.0, value - now.timestamp()) if value > EPOCH_FROM else value
    found = _RESET.search(headers.get("ratelimit", "")[:1000])
    return None if found is None else float(found[1])


K = TypeVar("K")


class Pauses(Generic[K]):
    """Until when each server wants to be left alone.  Thread-safe; times are those of ``clock``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the ends
        self._ends: dict[K, float] = {}

    def hold(self, key: K, seconds: float) -> None:
        """Leave a server alone for so many seconds from now, or longer where that was said before."""
        now = self._clock()
        with self._lock:
            if len(self._ends) >= MAX_PAUSES:
                self._ends = {key: end for key, end in self._ends.items() if end > now}
            if len(self._ends) < MAX_PAUSES:
                self._ends[key] = max(self._ends.get(key, 0.0), now + seconds)

    def left(self, key: K) -> float:
        """How many seconds are left."""
        with self._lock:
            end = self._ends.get(key)
            if end is None:
                return 0.0
            left = end - self._clock()
            if left <= 0:
                del self._ends[key]
            return max(0.0, left)
