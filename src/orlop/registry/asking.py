"""Requests to a repository: which places they go to, and what a token for them must allow.

The verbs (`orlop.registry.client` and its neighbours) say what they want of a repository; this module knows
where that is.  Reads go to the mirrors and the registry, in order (`orlop.registry.finding.fallback`);
writes, and reads that prepare a write, to the one place that may be written to.
"""

from __future__ import annotations

from collections.abc import Mapping

from orlop.observe import Call
from orlop.registry.finding.fallback import Check, Fallback
from orlop.registry.finding.hosts import Capability, Endpoint, Place, Route
from orlop.registry.finding.locate import Locator
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.spec.reference import Reference
from orlop.values import replace

__all__ = ["Asker", "needed"]


def needed(path: str) -> Capability:
    """What a host must be trusted with to answer for a path below a repository.

    >>> needed("blobs/sha256:00"), needed("manifests/latest"), needed("manifests/sha256:00")
    ('pull', 'resolve', 'pull')
    """
    kind, _, rest = path.partition("/")
    if kind == "referrers":
        return "referrers"
    return "pull" if kind == "blobs" or (kind == "manifests" and ":" in rest) else "resolve"


class Asker:
    """Makes requests to repositories, and sends them.  Thread-safe.

    ``send`` takes requests that `request` made, and goes to other places where the first does not answer.
    """

    def __init__(self, send: Sender, locate: Locator) -> None:
        self._fallback = Fallback(send, locate)
        self.send: Sender = self._fallback
        self._locate = locate

    def request(
        self,
        ref: Reference,
        method: str,
        path: str,
        attempted: str,
        call: Call,
        *,
        push: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | Outgoing | None = None,
        read: int | None = 0,
    ) -> Request:
        """A request to a path below a repository (``manifests/latest``); the rest as in `Request`.

        ``push`` is for writes, and for reads that prepare one: a mirror's answer would be another place's.
        """
        places = self._locate.places
        route = None
        if push:
            chosen: tuple[Place, ...] = (places.push(ref, attempted),)
        else:
            chosen = places.route(ref, needed(path), attempted)
        first = chosen[0]
        if len(chosen) > 1:
            endpoint = first.ways[0]
            route = Route(places=chosen, path=path, url=endpoint.url(f"{first.repository}/{path}"))
        else:
            endpoint = self._locate.way(first.ways, attempted, call)
        request = Request(
            method=method,
            url=endpoint.url(f"{first.repository}/{path}"),
            endpoint=endpoint,
            attempted=attempted,
            body=body,
            read=read,
            scopes=(f"repository:{first.repository}:pull{',push' if push else ''}",),
            repository=first.repository,
            route=route,
        )
        return request if headers is None else replace(request, headers=headers)

    def ask(
        self,
        ref: Reference,
        method: str,
        path: str,
        attempted: str,
        call: Call,
        *,
        push: bool = False,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        read: int | None = 0,
        check: Check | None = None,
    ) -> tuple[Request, Response]:
        """Send a request as `request` makes it; any status is a response.  Raises as a `Sender` does.

        The request that is returned is the one that was answered.  ``check`` raises for an answer that is not
        what was asked for, if that matters: it is called where another place can be asked.
        """
        request = self.request(
            ref, method, path, attempted, call, push=push, headers=headers, body=body, read=read
        )
        return self._fallback.exchange(request, call, check=check)

    def distrust(self, endpoint: Endpoint, call: Call, why: str, *, sure: bool) -> bool:
        """A place sent bytes that are not what their digest says; True if another will be asked now."""
        return self._fallback.distrust(endpoint, call, why, sure=sure)
