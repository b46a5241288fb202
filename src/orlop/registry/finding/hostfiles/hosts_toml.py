"""containerd's `hosts.toml`: mirrors of a registry, and how each of them and the registry itself are reached.

    server = "https://registry-1.docker.io"       # what is asked last; the registry itself where not said

    [host."https://mirror.example"]               # asked before it, in the file's order
      capabilities = ["pull", "resolve"]
      ca = "mirror.crt"

No I/O: paths are made absolute, not looked at.  Source: containerd, docs/hosts.md, and for what that leaves
open core/remotes/docker/config/hosts.go (1.7 and 2.x).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from typing import cast
from urllib.parse import quote, urlsplit

from orlop.errors import Error
from orlop.registry.finding.hostfiles.values import Table, parse_toml
from orlop.registry.finding.hosts import (
    DOCKER_HUB,
    EVERYTHING,
    URL_SAFE,
    Capability,
    Endpoint,
    endpoints,
    is_named,
    origin_of,
)
from orlop.values import replace

__all__ = ["parse_hosts_toml"]

MAX_HOSTS = 64  # a request may be made to each of them
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, a token
_VALUE = re.compile(r"[\t\x20-\x7e]{0,8000}")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "range", "te", "upgrade"})
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|\u00b5s|\u03bcs|ms|s|m|h))+")
_PART = re.compile(r"([0-9.]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def parse_hosts_toml(
    data: bytes, *, registry: str, folder: str, source: str, insecure: Collection[str] = ()
) -> tuple[tuple[Endpoint, ...], ...]:
    """The places of a registry in the order in which they are asked, each with the ways to speak to it.

    ``folder`` is where relative paths begin; ``insecure`` is as in
    `orlop.registry.finding.hosts.endpoints`.  Raises `InvalidArgument` with the file's name (``source``) for
    what the file may not say.
    """
    top = parse_toml(data, source)
    hosts = top.table("host")
    if len(hosts.values) >= MAX_HOSTS:
        raise top.refused(f"it has more than {MAX_HOSTS} hosts")
    places: list[tuple[Endpoint, ...]] = []
    for url in hosts.values:
        table = hosts.table(url)
        if "host" in table.values:
            raise table.refused(f"{table.where} may not have hosts of its own")
        places.append((_host(url, table, registry, folder),))
    server = top.text("server")
    if server:
        places.append((_host(server, top, registry, folder),))
    else:
        places.append(_itself(top, registry, folder, insecure))
    return tuple(places)


def _host(url: str, table: Table, registry: str, folder: str) -> Endpoint:
    """The endpoint that a URL and the table beside it describe."""
    shown = table.path("server") if not table.where else table.where
    if "://" not in url:
        url = f"https://{url}"
    try:
        origin = origin_of(url, f"read {table.source}")
        parts = urlsplit(url)
    except Error as exc:
        raise table.refused(f"{shown}: {exc.reason}") from exc
    if parts.username is not None or parts.password is not None:
        raise table.refused(f"{shown}: a URL with a user or a password; keep them as credentials")
    if parts.query or parts.fragment:
        raise table.refused(f"{shown}: a URL with a query or a fragment")
    if origin.netloc == DOCKER_HUB:
        origin = endpoints(DOCKER_HUB)[0].origin
    itself = is_named(registry, origin.netloc)
    endpoint = Endpoint(
        registry=registry if itself else origin.netloc,
        origin=origin,
        base=_base(parts.path, override=table.flag("override_path")),
        mirror=not itself,
        namespace="" if itself else registry,
    )
    return _with(endpoint, table, folder)


def _itself(table: Table, registry: str, folder: str, insecure: Collection[str]) -> tuple[Endpoint, ...]:
    """The registry under its own name, with what the file's top says of it.

    Files that say who may be believed mean verified TLS, also where it would be tried unverified and in the
    clear (`orlop.registry.finding.hosts`).
    """
    ways = tuple(_with(way, table, folder) for way in endpoints(registry, insecure))
    if len(ways) > 1 and (ways[0].ca or ways[0].client):
        return (replace(ways[0], verify=not table.flag("skip_verify")),)
    return ways


def _with(endpoint: Endpoint, table: Table, folder: str) -> Endpoint:
    timeout = table.text("dial_timeout")
    return replace(
        endpoint,
        verify=endpoint.verify and not table.flag("skip_verify"),
        capabilities=_capabilities(table),
        ca=tuple(_path(folder, name) for name in table.texts("ca")),
        client=_client(table, folder),
        headers=_headers(table.table("header")),
        connect=_duration(timeout, table) if timeout else None,
        source=table.source,
    )


def _base(path: str, *, override: bool) -> str:
    if path:
        path = "/" + posixpath.normpath(path).lstrip("/")
    path = quote(path.rstrip("/"), safe=URL_SAFE)
    return path if override or path.endswith("/v2") else f"{path}/v2"


def _capabilities(table: Table) -> frozenset[Capability]:
    names = {name.lower() for name in table.texts("capabilities")}
    if unknown := sorted(names - EVERYTHING):
        raise table.refused(f"{table.path('capabilities')}: not a capability: {unknown[0][:40]!r}")
    if "resolve" in names:
        names.add("referrers")  # younger than most files, and a smaller trust
    return frozenset(cast("set[Capability]", names)) or EVERYTHING


def _client(table: Table, folder: str) -> tuple[tuple[str, str], ...]:
    """Certificates and their keys: a path, paths, or pairs of paths of which the second may be empty."""
    value = table.values.get("client", [])
    found: list[tuple[str, str]] = []
    for one in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        pair = [one, ""] if isinstance(one, str) else one
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(name, str) and "\0" not in name for name in pair)
            or not pair[0]
        ):
            raise table.wrong("client", "a path, a list of paths, or a list of pairs of paths")
        found.append((_path(folder, pair[0]), _path(folder, pair[1]) if pair[1] else ""))
    return tuple(found)


def _headers(table: Table) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for name in table.values:
        if not _NAME.fullmatch(name) or name.lower() in _OURS:
            raise table.refused(f"{table.where}: not a header that can be set: {name[:40]!r}")
        value = ", ".join(table.texts(name))
        if not _VALUE.fullmatch(value):
            raise table.refused(f"{table.path(name)} cannot stand in a header")
        found.append((name, value.strip()))
    return tuple(found)


def _duration(text: str, table: Table) -> float:
    """Seconds, of a duration as Go writes it: ``1m30s``, ``250ms``."""
    if not _DURATION.fullmatch(text):
        raise table.wrong("dial_timeout", "a duration, as in 500ms or 1m30s")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return max(seconds, 0.001)


def _path(folder: str, name: str) -> str:
    return posixpath.join(folder, name)
