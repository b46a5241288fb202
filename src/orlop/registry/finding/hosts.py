"""How a registry's name becomes the endpoints where it may answer.

Docker's rules: `docker.io` answers at registry-1.docker.io; a registry is spoken to over verified
TLS, but for this machine's own addresses and those the settings call insecure, where unverified TLS
is tried first and plain http after it.  No I/O: `orlop.registry.net.wire` finds out which one answers.

Mirrors and per-host files (`orlop.registry.finding.hostfiles`) become further endpoints of the same kind.  A
`Place` is one server that may have a repository; a `Route` is the places of one request, the registry itself
last.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal
from urllib.parse import quote, urlsplit

from orlop.errors import InvalidArgument
from orlop.registry.net.addresses import is_loopback_host
from orlop.values import dataclass, field

__all__ = [
    "DOCKER_HUB",
    "EVERYTHING",
    "URL_SAFE",
    "Capability",
    "Endpoint",
    "Origin",
    "Place",
    "Route",
    "endpoints",
    "is_named",
    "origin_of",
]

Capability = Literal["pull", "resolve", "push", "referrers"]
"""What a host is trusted with: content by its digest; what a name means; writing; lists of referrers."""
EVERYTHING: frozenset[Capability] = frozenset({"pull", "resolve", "push", "referrers"})

URL_SAFE = "/%:=&?~#+!$,;'@()*[]-._"
"""What may stand in a path or a query as it is (`urllib.parse.quote`); all else is percent-encoded."""

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._~%:-]+")  # names in punycode, addresses with a zone
DOCKER_HUB = "docker.io"
_DOCKER_HUB = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Scheme, host and port: what credentials are bound to (RFC 6454).  The host has no brackets."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port as in a URL, the port left out where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One server where a registry may answer, and how it is spoken to.

    ``registry`` is the name under which credentials for it are kept: that of a `Reference`, for a mirror
    its own; ``verify`` whether its certificate must be valid.  ``base`` is the path of the API's root.
    ``mirror`` tells that it stands in for the registry that is meant, ``namespace`` that registry's name,
    where the mirror is to be told.  ``ca`` are files with authorities beside the system's, ``client`` files
    with certificates and keys (empty: in the same file) that say who we are, ``headers`` what this server,
    and no other, is sent with every request; they may be secrets.  ``connect`` is how many seconds a
    connection may take to be made; ``source`` the file that says all this.
    """

    registry: str
    origin: Origin
    verify: bool = True
    base: str = "/v2"
    capabilities: frozenset[Capability] = EVERYTHING
    mirror: bool = False
    namespace: str = ""
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect: float | None = None
    source: str = ""

    def url(self, path: str) -> str:
        """The URL of a path below the API's root (``/v2/``)."""
        url = f"{self.origin}{self.base}/{path}"
        if not self.namespace:
            return url
        return f"{url}{'&' if '?' in path else '?'}ns={quote(self.namespace, safe=':')}"

    @property
    def host(self) -> str:
        """Host and port, as error messages name them."""
        return self.origin.netloc


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One server that may have a repository, and what the repository is called there.

    ``ways`` are how the server may be spoken to, of which the first that answers is used: TLS, plain http.
    """

    ways: tuple[Endpoint, ...]
    repository: str

    @property
    def host(self) -> str:
        """Host and port, as error messages name them."""
        return self.ways[0].host


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The places that may answer a request, in order, and its path below the repository.

    ``url`` is what the request was first addressed with: one with another URL has left the route.
    """

    places: tuple[Place, ...]
    path: str
    url: str


def origin_of(url: str, attempted: str) -> Origin:
    """The origin of an absolute http or https URL.

    Raises `InvalidArgument` for anything else: other schemes, no host, an impossible port.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:  # its words may be a password's that has a slash in it
        raise InvalidArgument(attempted, "not a URL: an impossible host or port") from None
    if host and not _HOST.fullmatch(host):
        raise InvalidArgument(attempted, f"not a host name: {host[:100]!r}")
    if parts.scheme not in _PORTS or not host:
        raise InvalidArgument(attempted, f"not an http or https URL (scheme {parts.scheme[:20]!r})")
    return Origin(scheme=parts.scheme, host=host.lower(), port=port or _PORTS[parts.scheme])


def is_named(registry: str, host: str) -> bool:
    """Whether a host, with its port where it is not the usual one, is the registry of that name itself.

    >>> is_named("docker.io", "registry-1.docker.io"), is_named("r.example:443", "r.example")
    (True, True)
    """
    if registry in _DOCKER_HUB:
        return host in _DOCKER_HUB
    return registry.lower().removesuffix(":443") == host


def endpoints(registry: str, insecure: Collection[str] = ()) -> tuple[Endpoint, ...]:
    """Where to look for a registry, in order.

    ``insecure`` holds registries' names, or hosts without a port, that may be spoken to unverified.

    >>> [str(endpoint.origin) for endpoint in endpoints("docker.io")]
    ['https://registry-1.docker.io']
    >>> [str(endpoint.origin) for endpoint in endpoints("localhost:5000")]
    ['https://localhost:5000', 'http://localhost:5000']
    """
    name = "registry-1.docker.io" if registry in _DOCKER_HUB else registry
    secure = origin_of(f"https://{name}", f"find registry {registry!r}")
    if not (is_loopback_host(secure.host) or registry in insecure or secure.host in insecure):
        return (Endpoint(registry=registry, origin=secure),)
    plain = origin_of(f"http://{name}", f"find registry {registry!r}")
    return tuple(Endpoint(registry=registry, origin=origin, verify=False) for origin in (secure, plain))
