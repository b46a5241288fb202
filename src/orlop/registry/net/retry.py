"""When to try again, and how long to wait.  No I/O, no clock of its own.

Sources: RFC 9110, section 10.2.3 (Retry-After, in seconds or as a date); exponential backoff with
jitter as in AWS's architecture blog, so that clients cut off together do not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from orlop.values import dataclass

__all__ = ["MAX_WAIT", "RETRY_STATUS", "Backoff", "parse_retry_after"]

RETRY_STATUS = frozenset({408, 429, 500, 502, 503, 504})
MAX_WAIT = 120.0  # seconds; a registry that asks for more gets an error that says so, not a hung caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits between tries, in seconds: ``base`` doubled each time up to ``cap``, less up to half."""

    base: float = 0.25
    cap: float = 20.0
    jitter: Callable[[], float] = random.random

    def delay(self, attempt: int, retry_after: float | None = None) -> float | None:
        """Seconds before try number ``attempt + 1``; ``attempt`` counts from 1.

        What the server asked for is a floor.  None: it asked for more than `MAX_WAIT`.
        """
        if retry_after is not None and retry_after > MAX_WAIT:
            return None
        wait = min(self.cap, self.base * 2.0 ** min(attempt - 1, 30))
        wait *= 0.5 + 0.5 * self.jitter()
        return wait if retry_after is None else retry_after + min(wait, self.base)

    def spread(self, seconds: float) -> float:
        """A little longer after a pause that many share, so that they do not come back together."""
        return min(self.base, 0.1 * seconds) * self.jitter()


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from ``now`` until a Retry-After is over; None where there is none to understand.

    >>> parse_retry_after("7", datetime.now(UTC))
    7.0
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now).total_seconds())
