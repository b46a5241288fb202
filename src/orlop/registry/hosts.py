"""How a registry's name becomes the endpoints where it may answer.

Docker's rules: `docker.io` answers at registry-1.docker.io; a registry is spoken to over verified
TLS, but for this machine's own addresses and those the settings call insecure, where unverified TLS
is tried first and plain http after it.  No I/O: `orlop.registry.wire` finds out which one answers.

Mirrors and per-host files (containerd's `hosts.toml`) become further endpoints of the same kind.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from orlop.errors import InvalidArgument
from orlop.registry.addresses import is_loopback_host

__all__ = ["URL_SAFE", "Endpoint", "Origin", "endpoints", "origin_of"]

URL_SAFE = "/%:=&?~#+!$,;'@()*[]-._"
"""What may stand in a path or a query as it is (`urllib.parse.quote`); all else is percent-encoded."""

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._~%:-]+")  # names in punycode, addresses with a zone
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


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
    """One place where a registry may answer.

    ``registry`` is the name as in a `Reference`; ``verify`` whether its certificate must be valid.
    """

    registry: str
    origin: Origin
    verify: bool = True

    def url(self, path: str) -> str:
        """The URL of a path below ``/v2/``."""
        return f"{self.origin}/v2/{path}"

    @property
    def host(self) -> str:
        """Host and port, as error messages name them."""
        return self.origin.netloc


def origin_of(url: str, attempted: str) -> Origin:
    """The origin of an absolute http or https URL.

    Raises `InvalidArgument` for anything else: other schemes, no host, an impossible port.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as exc:
        raise InvalidArgument(attempted, f"not a URL: {exc}") from exc
    if host and not _HOST.fullmatch(host):
        raise InvalidArgument(attempted, f"not a host name: {host[:100]!r}")
    if parts.scheme not in _PORTS or not host:
        raise InvalidArgument(attempted, f"not an http or https URL (scheme {parts.scheme[:20]!r})")
    return Origin(scheme=parts.scheme, host=host.lower(), port=port or _PORTS[parts.scheme])


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
