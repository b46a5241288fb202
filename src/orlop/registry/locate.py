"""Finding out which of a registry's endpoints answers.

Most registries have one, and no request is spent.  Where there are several (this machine's own, and
those called insecure: TLS, then plain http), ``/v2/`` is asked once, and the answer remembered.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from orlop.observe import Call
from orlop.registry.addresses import is_loopback_host
from orlop.registry.faults import NetworkFault
from orlop.registry.hosts import Endpoint, endpoints
from orlop.registry.messages import Request, Sender

__all__ = ["Locator"]

# Of the timeout: a plain http server may wait long for a TLS greeting to make sense.
PROBE_PATIENCE = 0.3
LOOPBACK_PATIENCE = 0.1


class Locator:
    """Remembers where each registry answers.  Thread-safe.

    ``once`` sends without retrying, ``retrying`` with.
    """

    def __init__(self, once: Sender, retrying: Sender, *, insecure: Collection[str]) -> None:
        self._once = once
        self._retrying = retrying
        self._insecure = insecure
        self._lock = threading.Lock()  # guards the found
        self._found: dict[str, Endpoint] = {}

    def __call__(self, registry: str, attempted: str, call: Call) -> Endpoint:
        """The endpoint to use.  Raises `Unavailable` where none answers."""
        with self._lock:
            endpoint = self._found.get(registry)
        if endpoint is not None:
            return endpoint
        candidates = endpoints(registry, self._insecure)
        endpoint = candidates[-1]
        for candidate in candidates[:-1]:
            if self._answers(candidate, self._once, attempted, call):
                endpoint = candidate
                break
        else:
            if len(candidates) > 1:
                self._retrying(_probe(endpoint, attempted, patience=1.0), call).close()
        with self._lock:
            return self._found.setdefault(registry, endpoint)

    @staticmethod
    def _answers(endpoint: Endpoint, send: Sender, attempted: str, call: Call) -> bool:
        patience = LOOPBACK_PATIENCE if is_loopback_host(endpoint.origin.host) else PROBE_PATIENCE
        try:
            send(_probe(endpoint, attempted, patience=patience), call).close()
        except NetworkFault:
            return False
        return True


def _probe(endpoint: Endpoint, attempted: str, *, patience: float) -> Request:
    return Request(
        method="GET", url=endpoint.url(""), endpoint=endpoint, attempted=attempted, patience=patience
    )
