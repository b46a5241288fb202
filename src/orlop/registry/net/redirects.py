"""Where a redirect or an upload's `Location` leads, and what may go along.  No I/O.

Rules (HOSTILE.md 22 to 24): at most five hops; http and https only; never from https to plain http;
the Authorization header, and a body, stay with the origin (scheme, host and port) they were made for;
a body goes along only with 307 and 308, and only if it can be sent again.  Whether the *address* may
be followed is asked when its name is resolved (`orlop.registry.net.addresses`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from orlop.errors import Error, InvalidArgument, Unavailable
from orlop.registry.faults import redact
from orlop.registry.finding.hosts import URL_SAFE, Endpoint, Origin, origin_of
from orlop.registry.messages import Outgoing, Request, Response
from orlop.values import replace

__all__ = ["MAX_HOPS", "next_hop", "settle"]

MAX_HOPS = 5
_FOLLOWED = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = (80, 443)


def next_hop(request: Request, response: Response, been: Sequence[str]) -> Request | None:
    """The request to make next, or None where the response is the last word.

    ``been`` are the URLs asked so far, that of ``request`` the last.  Raises `Unavailable` for a redirect
    that may not be followed, naming both ends.
    """
    location = response.headers.get("location")
    if response.status not in _FOLLOWED or location is None:
        return None
    if request.method not in ("GET", "HEAD") and response.status not in (307, 308):
        return None
    if isinstance(request.body, Outgoing):
        return None  # what is streamed cannot be sent again; the caller sees the status
    url = settle(request.endpoint, response.url, location, request.attempted)
    if len(been) > MAX_HOPS:  # not before: some send us to the same place until they have the thing
        circle = "in a circle, " if url in been else ""
        raise Unavailable(
            request.attempted,
            f"{request.endpoint.host} redirects more than {MAX_HOPS} times, {circle}last to {redact(url)}",
        )
    if origin_of(url, request.attempted) == origin_of(request.url, request.attempted):
        return replace(request, url=url)
    if request.body:
        return None  # it may hold a secret of this origin's (a refresh token)
    return replace(request, url=url, headers=_without_secrets(request.headers))


def settle(endpoint: Endpoint, base: str, location: str, attempted: str) -> str:
    """The absolute URL that a `Location` means, checked.

    A registry behind a proxy that ends TLS often names itself with http: that is read as https.
    Raises `Unavailable` for what is not a URL of http or https, and for a way down from TLS.
    """
    try:
        url = urljoin(base, location)
        parts = urlsplit(url)
        target, here = origin_of(url, attempted), origin_of(base, attempted)
    except (ValueError, InvalidArgument) as exc:
        said = exc.reason if isinstance(exc, Error) else str(exc)
        raise Unavailable(attempted, f"{endpoint.host} sends us to an impossible address: {said}") from exc
    if target.scheme == "http" and "https" in (here.scheme, endpoint.origin.scheme):
        if not _same_server(target, endpoint.origin):
            raise Unavailable(
                attempted, f"{endpoint.host} sends us from https to plain http: {redact(url)}: not followed"
            )
        target = endpoint.origin
    path, query = quote(parts.path or "/", safe=URL_SAFE), quote(parts.query, safe=URL_SAFE)
    return urlunsplit((target.scheme, target.netloc, path, query, ""))


def _same_server(target: Origin, registry: Origin) -> bool:
    """Whether a plain-http origin is the registry itself, named without its TLS."""
    return target.host == registry.host and (target.port == registry.port or target.port in _DEFAULT_PORTS)


def _without_secrets(headers: Mapping[str, str]) -> Mapping[str, str]:
    """The headers that may go to another origin."""
    secret = ("authorization", "cookie", "proxy-authorization")
    return {name: value for name, value in headers.items() if name.lower() not in secret}
