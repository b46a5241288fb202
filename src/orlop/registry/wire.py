"""The lowest sender: one request, one response, over urllib3's connection pools.

It follows no redirect, tries nothing twice and knows no credentials.  Invariants: an address is
looked at before it is connected to (`orlop.registry.addresses`); a waiting read wakes five times a
second to look at the call, so cancelling stops it soon; bodies are handed on as they are on the
wire; urllib3's debug log says nothing of queries while it works for us.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

import urllib3

from orlop.observe import Call
from orlop.registry.addresses import Zone, is_loopback_host, may_follow, zone_of
from orlop.registry.bodies import Body
from orlop.registry.connections import (
    CONNECT_TIMEOUT,
    HEADS,
    NETWORK,
    QUIET,
    Gate,
    Pool,
    PoolTLS,
    RefusedAddress,
    tls_context,
    waiting,
)
from orlop.registry.faults import NetworkFault, from_network, redact
from orlop.registry.hosts import Origin, origin_of
from orlop.registry.messages import Outgoing, Request, Response

__all__ = ["MAX_ANSWER", "Wire"]

MAX_ANSWER = 65_536  # bytes read of an answer that is not what was asked for: errors, redirects
MAX_POOLS = 64  # origins with open connections; a registry may redirect to ever new ones


class Wire:
    """Sends single requests.  Thread-safe; holds connections until `close`.

    ``timeout`` is in seconds without a byte; ``insecure`` names the hosts, beside a request's own
    endpoint, whose certificates need not be valid; ``classify`` tells an address's zone.
    """

    def __init__(
        self,
        *,
        timeout: float,
        insecure: Collection[str] = (),
        agent: str = "orlop",
        classify: Callable[[str], Zone] = zone_of,
    ) -> None:
        self._timeout = timeout
        self._insecure = frozenset(insecure)
        self._agent = agent
        self._classify = classify
        self._lock = threading.Lock()  # guards the three below
        self._pools: OrderedDict[tuple[Origin, Origin, bool], urllib3.HTTPConnectionPool] = OrderedDict()
        self._zones: dict[Origin, Zone] = {}  # the most public zone a registry was ever reached in
        self._contexts: dict[bool, ssl.SSLContext] = {}
        for name in ("urllib3.connectionpool", HEADS):
            logging.getLogger(name).addFilter(QUIET)

    def __call__(self, request: Request, call: Call) -> Response:
        """Send one request; any status is a response.

        Raises `NetworkFault`, and what `Call.check` raises.
        """
        call.check(request.attempted)
        origin = origin_of(request.url, request.attempted)
        pool = self._pool(request, origin)
        timeout = self._timeout * request.patience
        waiting.check = lambda: call.check(request.attempted)
        try:
            raw = self._open(pool, request, timeout)
        except RefusedAddress as exc:
            reason = f"{request.endpoint.host} sends us to an internal address: {redact(request.url)}"
            raise NetworkFault(request.attempted, f"{reason}: not followed", retry=False) from exc
        except NETWORK as exc:
            if isinstance(request.body, Outgoing) and request.body.failure is not None:
                raise request.body.failure from None
            raise from_network(exc, origin.netloc, request.attempted) from exc
        finally:
            waiting.check = None
        return self._answer(raw, request, call, Body(raw, origin.netloc, timeout))

    def close(self) -> None:
        """Close the idle connections.  Idempotent."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _open(
        self, pool: urllib3.HTTPConnectionPool, request: Request, timeout: float
    ) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": self._agent, "Accept-Encoding": "identity", **request.headers}
        body = request.body
        if isinstance(body, Outgoing) and body.size is not None:
            headers["Content-Length"] = str(body.size)
        parts = urlsplit(request.url)
        return pool.urlopen(
            request.method,
            f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/",
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, timeout), read=timeout),
            preload_content=False,
            decode_content=False,
            chunked=isinstance(body, Outgoing) and body.size is None,
        )

    def _answer(self, raw: urllib3.BaseHTTPResponse, request: Request, call: Call, body: Body) -> Response:
        headers = {name.lower(): value for name, value in raw.headers.items()}
        good = 200 <= raw.status < 300
        if good and request.read is None:
            return Response(
                status=raw.status, reason=raw.reason or "", url=request.url, headers=headers, source=body
            )
        limit = max(request.read or 0, 0) if good else 0
        data, end = bytearray(), time.monotonic() + 10 * self._timeout * request.patience
        try:
            for chunk in body.chunks(call, request.attempted):
                data += chunk
                if len(data) > max(limit, MAX_ANSWER):
                    break
                if time.monotonic() > end:
                    raise NetworkFault(request.attempted, f"{redact(request.url)} takes too long to send")
        except NetworkFault:
            # What explains an error may be short: docker-registry 2.8 answers 416 with the blob's length.
            if good:
                raise
        finally:
            body.close()
        if not good:
            del data[MAX_ANSWER:]
        return Response(
            status=raw.status, reason=raw.reason or "", url=request.url, headers=headers, data=bytes(data)
        )

    def _pool(self, request: Request, origin: Origin) -> urllib3.HTTPConnectionPool:
        endpoint = request.endpoint
        verify = endpoint.verify
        if origin.host != endpoint.origin.host:
            listed = origin.host in self._insecure or origin.netloc in self._insecure
            verify = not (listed or is_loopback_host(origin.host))
        key = (origin, endpoint.origin, verify)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._make_pool(origin, endpoint.origin, verify)
            self._pools.move_to_end(key)
            evicted = self._pools.popitem(last=False)[1] if len(self._pools) > MAX_POOLS else None
        if evicted is not None:
            evicted.close()
        return pool

    def _make_pool(self, origin: Origin, registry: Origin, verify: bool) -> urllib3.HTTPConnectionPool:
        options: dict[str, Any] = {"maxsize": 16, "block": False, "gate": self._gate(origin, registry)}
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if origin.scheme == "http":
            return Pool(host, origin.port, **options)
        if verify not in self._contexts:
            self._contexts[verify] = tls_context(verify=verify)
        options |= {"ssl_context": self._contexts[verify], "assert_hostname": None if verify else False}
        return PoolTLS(host, origin.port, **options)

    def _gate(self, origin: Origin, registry: Origin) -> Gate:
        """Says whether a connection to an address may be made, for ``registry``, at ``origin``."""

        def home(address: str) -> bool:
            zone = self._classify(address)
            with self._lock:
                self._zones[registry] = min(zone, self._zones.get(registry, zone))
            return True

        def away(address: str) -> bool:
            with self._lock:
                near = self._zones.get(registry, Zone.PUBLIC)
            return may_follow(near, self._classify(address))

        return home if origin == registry else away
