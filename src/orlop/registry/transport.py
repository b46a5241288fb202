"""Retries and redirects: the two senders between the wire and authentication.

Both are thin: the rules are in `orlop.registry.retry` and `orlop.registry.redirects`, the bytes in
`orlop.registry.wire`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from orlop.observe import Call
from orlop.registry.faults import NetworkFault
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.registry.redirects import next_hop
from orlop.registry.retry import RETRY_STATUS, Backoff, parse_retry_after

__all__ = ["Redirecting", "Retrying"]


def _now() -> datetime:
    return datetime.now(UTC)


class Retrying:
    """Sends again after network faults, 408, 429 and 5xx, with pauses that a cancelled call ends.

    A streamed body is sent again only if none of it has left.  The last failure is what the caller
    sees: the response, or the `NetworkFault` with the number of tries.
    """

    def __init__(
        self, inner: Sender, *, retries: int, backoff: Backoff, now: Callable[[], datetime] = _now
    ) -> None:
        self._inner = inner
        self._retries = retries
        self._backoff = backoff
        self._now = now

    def __call__(self, request: Request, call: Call) -> Response:
        """Send ``request``, up to ``retries`` further times."""
        attempt = 0
        while True:
            attempt += 1
            last = attempt > self._retries
            after: float | None = None
            try:
                response = self._inner(request, call)
            except NetworkFault as fault:
                if last or not fault.retry or not _repeatable(request):
                    if attempt > 1:
                        fault.reason += f" ({attempt} tries)"
                    raise
            else:
                if response.status not in RETRY_STATUS or last or not _repeatable(request):
                    return response
                after = parse_retry_after(response.headers.get("retry-after"), self._now())
                if self._backoff.delay(attempt, after) is None:
                    return response
                response.close()
            call.pause(self._backoff.delay(attempt, after) or 0.0, request.attempted)


class Redirecting:
    """Follows redirects, by the rules of `orlop.registry.redirects`."""

    def __init__(self, inner: Sender) -> None:
        self._inner = inner

    def __call__(self, request: Request, call: Call) -> Response:
        """Send ``request``; the response is the last one, its ``url`` tells where it came from."""
        hops = 0
        while True:
            response = self._inner(request, call)
            following = next_hop(request, response, hops)
            if following is None:
                return response
            response.close()
            request = following
            hops += 1


def _repeatable(request: Request) -> bool:
    return not isinstance(request.body, Outgoing) or request.body.sent == 0
