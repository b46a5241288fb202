"""Which proxy a request goes through, if any, and what may be asked of it.  No I/O.

The rules of NO_PROXY are those of Go's programs (docker, containerd, podman): a host means its subdomains,
too, ``.host`` those alone; addresses and CIDR blocks; each with a port or for all; ``*`` is everything.  This
machine's own addresses are never reached through a proxy.

A proxy resolves names where we cannot look: of an address that a registry sends us to, what is literal is
checked as ever, and of names those that mean this machine or a metadata service.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from typing import Self
from urllib.parse import unquote, urlsplit

from orlop.config import ProxySettings
from orlop.errors import Error, InvalidArgument
from orlop.registry.finding.hosts import Origin, origin_of
from orlop.registry.net.addresses import Zone, is_loopback_host, may_follow
from orlop.values import dataclass, field

__all__ = ["Exceptions", "Proxies", "Proxy", "may_ask"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_METADATA = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f]*")  # said so, for of all characters a set takes 4 ms to compile


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy: where it is, and the header that lets us in (empty: none), which goes to it alone."""

    origin: Origin
    authorization: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, name: str) -> Self | None:
        """Read a URL, or a host and a port; None for an empty one.

        Raises `InvalidArgument` that names the setting, not the URL, which may hold a password.
        """
        url = url.strip()
        if not url:
            return None
        if "://" not in url:
            url = f"http://{url}"
        attempted = f"use {name}"
        try:
            parts = urlsplit(url)
            scheme = parts.scheme
        except ValueError:
            raise InvalidArgument(attempted, "it is not a URL") from None
        if scheme != "http":
            raise InvalidArgument(
                attempted,
                f"a proxy is spoken to over http, not {scheme[:20]!r}",
                hint="write http://HOST:PORT; what goes to a registry is still TLS, through it",
            )
        try:
            origin = origin_of(url, attempted)
        except Error:
            raise InvalidArgument(attempted, "it has no host, or an impossible port") from None
        authorization = ""
        if "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise InvalidArgument(attempted, "its password holds one of / ? #: write %2F, %3F, %23")
        if parts.username is not None:
            user, password = unquote(parts.username), unquote(parts.password or "")
            if not _PRINTABLE.fullmatch(user + password):
                raise InvalidArgument(attempted, "its user or password has characters that cannot be sent")
            authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        return cls(origin=origin, authorization=authorization)


class Exceptions:
    """Hosts that are reached without a proxy: the entries of NO_PROXY.  What is none matches nothing."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._everything = False
        self._networks: list[_Network] = []
        self._addresses: list[tuple[str, int | None]] = []
        self._names: list[tuple[str, int | None]] = []  # with a dot before those of subdomains alone
        for entry in entries:
            self._add(entry.strip().lower())

    def _add(self, entry: str) -> None:
        if entry == "*":
            self._everything = True
        if not entry or entry == "*":
            return
        if "/" in entry:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                return
            return
        host, port = _host_and_port(entry)
        if (address := _address(host)) is not None:
            self._addresses.append((str(address), port))
            return
        host = host.removeprefix("*").rstrip(".")
        if host.strip("."):
            self._names.append((host, port))

    def has(self, origin: Origin) -> bool:
        """Whether a host is among them."""
        if self._everything:
            return True
        host = origin.host.rstrip(".")
        if (address := _address(host)) is not None:
            return any(address in network for network in self._networks) or any(
                text == str(address) and port in (None, origin.port) for text, port in self._addresses
            )
        for name, port in self._names:
            fits = host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")
            if fits and port in (None, origin.port):
                return True
        return False


class Proxies:
    """The proxies of the settings.  Raises `InvalidArgument` for URLs that are none."""

    def __init__(self, settings: ProxySettings | None = None) -> None:
        settings = settings or ProxySettings()
        self._by_scheme = {
            "http": Proxy.parse(settings.http, "the proxy for http"),
            "https": Proxy.parse(settings.https, "the proxy for https"),
        }
        self._without = Exceptions(settings.no)

    def of(self, origin: Origin) -> Proxy | None:
        """The proxy for a server, or None where it is reached directly."""
        proxy = self._by_scheme[origin.scheme]
        if proxy is None or _is_local(origin.host) or self._without.has(origin):
            return None
        return proxy


def may_ask(registry: Origin, target: Origin, classify: Callable[[str], Zone]) -> bool:
    """Whether a proxy may be asked to connect to a server that a registry sends us to."""
    if target == registry:
        return True
    if (literal := _numeric(target.host)) is None:
        name = target.host.rstrip(".")
        return not (_is_local(name) or name in _METADATA)
    near = _numeric(registry.host)
    return may_follow(Zone.PUBLIC if near is None else classify(near), classify(literal))


def _is_local(host: str) -> bool:
    host = host.rstrip(".")
    return is_loopback_host(host) or host.endswith(".localhost")


def _numeric(host: str) -> str | None:
    """The address that a host is, also as the C library reads numbers (``127.1``, ``0x7f000001``)."""
    if (address := _address(host)) is not None:
        return str(address)
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError, ValueError):
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None


def _host_and_port(entry: str) -> tuple[str, int | None]:
    """``host:80``, ``[::1]:80``, and both without a port; an address of IPv6 needs no brackets."""
    host, colon, port = entry.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5:
        return entry, None
    if ":" in host and not host.endswith("]"):
        return entry, None
    return host, int(port)
