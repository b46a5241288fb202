"""Finding out how a place is to be spoken to.

Most have one way, and no request is spent.  Where there are several (this machine's own, and those called
insecure: TLS, then plain http), the API's root is asked once, and the answer remembered.
"""

from __future__ import annotations

import threading

from orlop.observe import Call
from orlop.registry.faults import NetworkFault
from orlop.registry.finding.hosts import Endpoint
from orlop.registry.finding.places import Places
from orlop.registry.messages import Request, Sender
from orlop.registry.net.addresses import is_loopback_host

__all__ = ["Locator"]

# Of the timeout: a plain http server may wait long for a TLS greeting to make sense.
PROBE_PATIENCE = 0.3
LOOPBACK_PATIENCE = 0.1
_MISUNDERSTOOD = 400  # what a server of TLS says to plain http
MAX_FOUND = 1_024  # kept at a time; files that change make new ones


class Locator:
    """Remembers how each place answers.  Thread-safe.

    ``once`` sends without retrying, ``retrying`` with.
    """

    def __init__(self, once: Sender, retrying: Sender, *, places: Places) -> None:
        self.places = places
        self._once = once
        self._retrying = retrying
        self._lock = threading.Lock()  # guards the found
        self._found: dict[tuple[Endpoint, ...], Endpoint] = {}

    def __call__(self, registry: str, attempted: str, call: Call) -> Endpoint:
        """The endpoint of a registry itself, not of a mirror.  Raises as `way` does."""
        return self.way(self.places.home(registry, "", attempted).ways, attempted, call)

    def way(
        self, ways: tuple[Endpoint, ...], attempted: str, call: Call, *, retries: int | None = None
    ) -> Endpoint:
        """The way that answers.  Raises `Unavailable` where none does."""
        if len(ways) == 1:
            return ways[0]
        with self._lock:
            endpoint = self._found.get(ways)
        if endpoint is not None:
            return endpoint
        endpoint, fault = ways[-1], None
        for candidate in ways[:-1]:
            fault = self._fault(candidate, self._once, attempted, call)
            if fault is None:
                endpoint = candidate
                break
        else:
            response = self._retrying(_probe(endpoint, attempted, patience=1.0, retries=retries), call)
            response.close()
            if response.status == _MISUNDERSTOOD and fault is not None:
                raise fault  # it does want TLS, but was in trouble: not to be remembered as in the clear
        with self._lock:
            while len(self._found) >= MAX_FOUND:
                self._found.pop(next(iter(self._found)))
            return self._found.setdefault(ways, endpoint)

    @staticmethod
    def _fault(endpoint: Endpoint, send: Sender, attempted: str, call: Call) -> NetworkFault | None:
        """Why a way does not answer; None where it does."""
        patience = LOOPBACK_PATIENCE if is_loopback_host(endpoint.origin.host) else PROBE_PATIENCE
        try:
            send(_probe(endpoint, attempted, patience=patience), call).close()
        except NetworkFault as fault:
            return fault
        return None


def _probe(endpoint: Endpoint, attempted: str, *, patience: float, retries: int | None = None) -> Request:
    return Request(
        method="GET",
        url=endpoint.url(""),
        endpoint=endpoint,
        attempted=attempted,
        patience=patience,
        retries=retries,
    )
