"""The lowest sender: one request, one response, over urllib3's connection pools.

It follows no redirect, tries nothing twice and knows no credentials.  Invariants: an address is
looked at before it is connected to (`orlop.registry.net.addresses`); a waiting read wakes five times a
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
from orlop.registry.faults import NetworkFault, from_network, redact, scrub
from orlop.registry.finding.hosts import Origin, origin_of
from orlop.registry.messages import Outgoing, Request, Response
from orlop.registry.net.addresses import Zone, is_loopback_host, may_follow, zone_of
from orlop.registry.net.bodies import Body
from orlop.registry.net.certificates import Contexts
from orlop.registry.net.connections import (
    CONNECT_TIMEOUT,
    HEADS,
    NETWORK,
    QUIET,
    Gate,
    Pool,
    PoolTLS,
    RefusedAddress,
    RefusedTunnel,
    waiting,
)
from orlop.registry.net.proxies import Proxies, Proxy, may_ask

__all__ = ["MAX_ANSWER", "Wire"]

MAX_ANSWER = 65_536  # bytes read of an answer that is not what was asked for: errors, redirects
STALL_RATE = 512.0  # bytes a second
_PROXY_AUTH = 407
MAX_ZONES = 4_096  # registries whose zones are remembered; one that is forgotten counts as public
MAX_POOLS = 64  # origins with open connections; a registry may redirect to ever new ones


class Wire:
    """Sends single requests.  Thread-safe; holds connections until `close`.

    ``timeout`` is in seconds without a byte, ``stall_rate`` in bytes a second: a body that is slower over a
    whole timeout, either way, counts as dead; ``insecure`` names the hosts, beside a request's own
    endpoint, whose certificates need not be valid; ``proxies`` are those to go through; ``classify`` tells an
    address's zone.
    """

    def __init__(
        self,
        *,
        timeout: float,
        stall_rate: float = STALL_RATE,
        insecure: Collection[str] = (),
        agent: str = "orlop",
        proxies: Proxies | None = None,
        classify: Callable[[str], Zone] = zone_of,
    ) -> None:
        self._timeout = timeout
        self._stall_rate = stall_rate
        self._insecure = frozenset(insecure)
        self._agent = agent
        self._classify = classify
        self._proxies = proxies or Proxies()
        self._lock = threading.Lock()  # guards the two below
        self._pools: OrderedDict[tuple[object, ...], urllib3.HTTPConnectionPool] = OrderedDict()
        self._zones: dict[Origin, Zone] = {}  # the most public zone a registry was ever reached in
        self._contexts = Contexts()
        for name in ("urllib3.connectionpool", HEADS):
            logging.getLogger(name).addFilter(QUIET)

    def __call__(self, request: Request, call: Call) -> Response:
        """Send one request; any status is a response.

        Raises `NetworkFault`, and what `Call.check` raises.
        """
        call.check(request.attempted)
        origin = origin_of(request.url, request.attempted)
        proxy = self._proxies.of(origin)
        timeout = self._timeout * request.patience
        waiting.check = lambda: call.check(request.attempted)
        waiting.stall = (self._timeout, self._stall_rate)
        try:
            if proxy is not None and not may_ask(request.endpoint.origin, origin, self._classify):
                raise RefusedAddress
            raw = self._open(self._pool(request, origin, proxy), request, origin, proxy, timeout)
        except RefusedTunnel as exc:
            raise self._refused(exc.status, exc.reason, origin, proxy, request) from exc
        except RefusedAddress as exc:
            reason = f"{request.endpoint.host} sends us to an internal address: {redact(request.url)}"
            raise NetworkFault(request.attempted, f"{reason}: not followed", retry=False) from exc
        except NETWORK as exc:
            if isinstance(request.body, Outgoing) and request.body.failure is not None:
                raise request.body.failure from None
            raise from_network(*_blamed(exc, origin, proxy), request.attempted) from exc
        finally:
            waiting.check = None
        if raw.status == _PROXY_AUTH and proxy is not None and origin.scheme == "http":
            raw.close()
            raise self._refused(raw.status, raw.reason or "", origin, proxy, request)
        body = Body(raw, origin.netloc, timeout=timeout, stall_rate=self._stall_rate)
        return self._answer(raw, request, call, body)

    def close(self) -> None:
        """Close the idle connections.  Idempotent."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def _open(
        self,
        pool: urllib3.HTTPConnectionPool,
        request: Request,
        origin: Origin,
        proxy: Proxy | None,
        timeout: float,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": self._agent, "Accept-Encoding": "identity", **request.headers}
        endpoint, connect = request.endpoint, min(CONNECT_TIMEOUT, timeout)
        if origin == endpoint.origin:
            given = {name.lower() for name in headers}
            headers |= {name: value for name, value in endpoint.headers if name.lower() not in given}
            if endpoint.connect is not None:
                connect = min(endpoint.connect, connect)
        start = ""
        if proxy is not None and origin.scheme == "http":
            start = str(origin)
            headers["Host"] = origin.netloc
            if proxy.authorization:
                headers["Proxy-Authorization"] = proxy.authorization
        body = request.body
        if isinstance(body, Outgoing) and body.size is not None:
            headers["Content-Length"] = str(body.size)
        parts = urlsplit(request.url)
        return pool.urlopen(
            request.method,
            start + (f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"),
            body=body,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=connect, read=timeout),
            preload_content=False,
            decode_content=False,
            chunked=isinstance(body, Outgoing) and body.size is None,
        )

    def _answer(self, raw: urllib3.BaseHTTPResponse, request: Request, call: Call, body: Body) -> Response:
        headers = {name.lower(): value for name, value in raw.headers.itermerged()}
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

    def _pool(self, request: Request, origin: Origin, proxy: Proxy | None) -> urllib3.HTTPConnectionPool:
        """The connections to a server for a registry.

        Authorities that are trusted for a registry are so for where it sends us, too, since it could send us
        anywhere; who we are is said to the registry alone.
        """
        endpoint = request.endpoint
        verify = endpoint.verify
        if origin.host != endpoint.origin.host:
            listed = origin.host in self._insecure or origin.netloc in self._insecure
            verify = not (listed or is_loopback_host(origin.host))
        trust, context = None, None
        if origin.scheme == "https":
            client = endpoint.client if origin == endpoint.origin else ()
            trust, context = self._contexts.get(
                verify=verify, ca=endpoint.ca, client=client, attempted=request.attempted
            )
        key = (origin, endpoint.origin, trust, proxy)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = self._pools[key] = self._make_pool(origin, endpoint.origin, context, proxy)
            self._pools.move_to_end(key)
            evicted = self._pools.popitem(last=False)[1] if len(self._pools) > MAX_POOLS else None
        if evicted is not None:
            evicted.close()
        return pool

    def _make_pool(
        self, origin: Origin, registry: Origin, context: ssl.SSLContext | None, proxy: Proxy | None
    ) -> urllib3.HTTPConnectionPool:
        options: dict[str, Any] = {"maxsize": 16, "block": False, "gate": self._gate(origin, registry)}
        if proxy is not None:
            options["gate"] = _anywhere  # the user named the proxy; what it may be asked was looked at
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if context is None:
            if proxy is not None:
                host = f"[{proxy.origin.host}]" if ":" in proxy.origin.host else proxy.origin.host
            return Pool(host, origin.port if proxy is None else proxy.origin.port, **options)
        if proxy is not None:
            options["_proxy"] = urllib3.util.Url("http", host=proxy.origin.host, port=proxy.origin.port)
            if proxy.authorization:
                options["_proxy_headers"] = {"Proxy-Authorization": proxy.authorization}
        verified = context.verify_mode is ssl.CERT_REQUIRED
        options |= {"ssl_context": context, "assert_hostname": None if verified else False}
        return PoolTLS(host, origin.port, **options)

    @staticmethod
    def _refused(
        status: int, reason: str, origin: Origin, proxy: Proxy | None, request: Request
    ) -> NetworkFault:
        """The error for a proxy that does not connect us."""
        host = proxy.origin.netloc if proxy is not None else ""
        hint = "put its user and password in the proxy's URL" if status == _PROXY_AUTH else ""
        return NetworkFault(
            request.attempted,
            f"the proxy {host} refuses to connect us to {origin.netloc}: {status} {scrub(reason)}".rstrip(),
            retry=status >= 500,
            hint=hint,
        )

    def _gate(self, origin: Origin, registry: Origin) -> Gate:
        """Says whether a connection to an address may be made, for ``registry``, at ``origin``."""

        def home(address: str) -> bool:
            zone = self._classify(address)
            with self._lock:
                while registry not in self._zones and len(self._zones) >= MAX_ZONES:
                    self._zones.pop(next(iter(self._zones)))
                self._zones[registry] = min(zone, self._zones.get(registry, zone))
            return True

        def away(address: str) -> bool:
            with self._lock:
                near = self._zones.get(registry, Zone.PUBLIC)
            return may_follow(near, self._classify(address))

        return home if origin == registry else away


def _anywhere(address: str) -> bool:
    """Let every address pass: a proxy's own."""
    return bool(address)


def _blamed(exc: Exception, origin: Origin, proxy: Proxy | None) -> tuple[Exception, str]:
    """What failed, and whose failure it is: the server's, or that of the proxy before it."""
    if proxy is None:
        return exc, origin.netloc
    if isinstance(exc, urllib3.exceptions.ProxyError):
        return exc.original_error, f"the proxy {proxy.origin.netloc}"
    unreached = (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)
    if origin.scheme == "http" and isinstance(exc, unreached):
        return exc, f"the proxy {proxy.origin.netloc}"
    return exc, f"{origin.netloc} (through the proxy {proxy.origin.netloc})"
