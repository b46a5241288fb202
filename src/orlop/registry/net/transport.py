"""Retries and redirects: the two senders between the wire and authentication.

Both are thin: the rules are in `orlop.registry.net.retry`, `orlop.registry.net.ratelimits` and
`orlop.registry.net.redirects`, the bytes in `orlop.registry.net.wire`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from orlop.errors import Unavailable
from orlop.observe import Call
from orlop.registry.access.tokens import mask
from orlop.registry.faults import NetworkFault, scrub
from orlop.registry.finding.hosts import Origin, origin_of
from orlop.registry.messages import Request, Response, Sender, repeatable
from orlop.registry.net.ratelimits import Pauses, limit_of
from orlop.registry.net.redirects import next_hop
from orlop.registry.net.retry import RETRY_STATUS, Backoff
from orlop.registry.warnings import parse_warnings
from orlop.values import replace

__all__ = ["RETRY_WAIT", "Redirecting", "Retrying"]

RETRY_WAIT = 300.0  # seconds that one call may spend between tries, all its requests together


def _now() -> datetime:
    return datetime.now(UTC)


class Retrying:
    """Sends again after network faults, 408, 429 and 5xx, with pauses that a cancelled call ends.

    A streamed body is sent again only if none of it has left.
    The last failure is what the caller sees: the response, or the `NetworkFault`, with the number of
    tries.  A server that says 429 is left alone by all threads for as long as it asks.  ``budget`` is how
    many seconds one call may spend between tries: many requests in trouble do not wait one after the other.
    """

    def __init__(
        self,
        inner: Sender,
        *,
        retries: int,
        backoff: Backoff,
        budget: float = RETRY_WAIT,
        now: Callable[[], datetime] = _now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._retries = retries
        self._backoff = backoff
        self._budget = budget
        self._now = now
        self._pauses: Pauses[Origin] = Pauses(clock)

    def __call__(self, request: Request, call: Call) -> Response:
        """Send ``request``, up to ``retries`` further times."""
        retries = self._retries if request.retries is None else min(self._retries, request.retries)
        origin = origin_of(request.url, request.attempted)
        attempt = 0
        while True:
            attempt += 1
            if left := self._pauses.left(origin):
                if request.retries == 0 or not self._may_wait(left, call):  # somebody else may answer at once
                    raise Unavailable(
                        request.attempted, f"{origin.netloc} wants to be left alone for {left:.0f} s"
                    )
                wait = left + self._backoff.spread(left)
                call.pause(wait, request.attempted, why=f"{origin.netloc} wants to be left alone")
            try:
                response = self._inner(request, call)
            except NetworkFault as fault:
                why = fault.reason
                delay = self._backoff.delay(attempt)
                again = fault.retry and self._may_wait(delay, call)
                if not again or attempt > retries or not repeatable(request):
                    if attempt > 1:
                        fault.reason += f" ({attempt} tries)"
                    raise
            else:
                delay = self._after(response, request, origin, attempt, call)
                again = delay is not None and self._may_wait(delay, call)
                if not again or attempt > retries or not repeatable(request):
                    return replace(response, tries=attempt)
                response.close()
                why = f"{origin.netloc} answered {response.status}"
            call.pause(delay or 0.0, request.attempted, why=why)

    def _after(
        self, response: Response, request: Request, origin: Origin, attempt: int, call: Call
    ) -> float | None:
        """Seconds to wait before the next try; None where the answer is the last."""
        if warned := response.headers.get("warning"):
            for text in parse_warnings(warned):
                call.warn_once(f"{origin.netloc} warns: {scrub(mask(text, request.secrets))}")
        if response.ok:
            return None
        limit = limit_of(response.status, response.headers, self._now())
        limited = response.status == 429 or (response.status == 403 and limit.used_up)
        if not limited and response.status not in RETRY_STATUS:
            return None
        delay = self._backoff.delay(attempt, limit.seconds)
        if delay is not None and (limited or limit.seconds is not None):
            self._pauses.hold(origin, delay)
        return delay

    def _may_wait(self, delay: float | None, call: Call) -> bool:
        return call.tally.paused + (delay or 0.0) <= self._budget


class Redirecting:
    """Follows redirects, by the rules of `orlop.registry.net.redirects`."""

    def __init__(self, inner: Sender) -> None:
        self._inner = inner

    def __call__(self, request: Request, call: Call) -> Response:
        """Send ``request``; the response is the last one, its ``url`` tells where it came from."""
        been: list[str] = []
        while True:
            been.append(request.url)
            response = self._inner(request, call)
            following = next_hop(request, response, been)
            if following is None:
                return response
            response.close()
            request = following
