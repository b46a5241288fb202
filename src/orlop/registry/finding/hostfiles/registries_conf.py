"""`registries.conf`: prefixes of image names that are fetched from elsewhere, have mirrors, or are blocked.

    [[registry]]
    prefix = "example.com/foo"                   # the longest that fits a name counts, alone
    location = "internal.example/bar"            # where it is fetched from
    [[registry.mirror]]                          # asked before that, in order
    location = "mirror.example/foo"

No I/O.  Version 2, and version 1 as far as it goes.  Source: containers-registries.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, cast

from orlop.errors import Error, InvalidArgument, PermissionDenied
from orlop.registry.finding.hostfiles.values import Table, parse_toml
from orlop.registry.finding.hosts import is_named
from orlop.spec.reference import DEFAULT_TAG, Reference
from orlop.values import dataclass, field, replace

__all__ = ["Conf", "Location", "Namespace", "merged", "parse_registries_conf"]

Use = Literal["all", "digest-only", "tag-only"]
MAX_ENTRIES = 10_000
_SEPARATORS = (":", "/", "@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a prefix's images are: a host, and perhaps the beginning of repositories' names.

    Empty: where the image's name says.
    """

    place: str = ""
    insecure: bool = False
    use: Use = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One ``[[registry]]`` table."""

    prefix: str
    location: Location
    mirrors: tuple[Location, ...] = ()
    blocked: bool = False
    source: str = ""

    def matched(self, name: str) -> int:
        """How many characters of a whole image name the prefix stands for; -1 where it does not fit.

        ``*.example.com`` fits every host below example.com.
        """
        if self.prefix.startswith("*."):
            host = name.partition("/")[0]
            end = host.find(self.prefix[1:])
            end += len(self.prefix) - 1 if end >= 0 else 0
            return end if end > 0 and (end == len(name) or name[end] in _SEPARATORS) else -1
        end = len(self.prefix)
        fits = name.startswith(self.prefix) and (end == len(name) or name[end] in _SEPARATORS)
        return end if fits else -1

    def sources(self, ref: Reference, attempted: str) -> tuple[tuple[str, str, bool], ...]:
        """Registry, repository and ``insecure`` of where an image is looked for, in order.

        Raises `PermissionDenied` where its name is blocked.
        """
        self.allow(attempted)
        by = "digest-only" if ref.digest is not None else "tag-only"
        mirrors = [mirror for mirror in self.mirrors if mirror.use in ("all", by)]
        ref = replace(ref, registry=ref.registry.lower())
        end = min(self.matched(str(ref)), len(ref.name))
        return tuple(
            (*_rewritten(one, ref.name, end, self.source, attempted), one.insecure)
            for one in (*mirrors, self.location)
        )

    def allow(self, attempted: str) -> None:
        """Raise `PermissionDenied` where what has the prefix is blocked."""
        if self.blocked:
            raise PermissionDenied(
                attempted, f"{self.prefix} is blocked by {self.source}", details={"file": self.source}
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """What some files say together.

    ``search`` are the registries of short names, None where no file has a list; ``aliases`` short names and
    what they stand for.
    """

    namespaces: Mapping[str, Namespace] = field(default_factory=dict)
    search: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Namespace | None:
        """The table for an image's whole name, or a registry's: the one with the longest prefix that fits."""
        host, slash, rest = name.partition("/")
        name = f"{host.lower()}{slash}{rest}"
        fitting = [one for one in self.namespaces.values() if one.matched(name) >= 0]
        return max(fitting, key=lambda one: len(one.prefix), default=None)


def merged(confs: Iterable[Conf]) -> Conf:
    """Several files as one: a later one speaks over an earlier one, prefix by prefix and alias by alias."""
    namespaces: dict[str, Namespace] = {}
    aliases: dict[str, str] = {}
    search: tuple[str, ...] | None = None
    for conf in confs:
        namespaces |= conf.namespaces
        aliases |= conf.aliases
        search = conf.search if conf.search is not None else search
    return Conf(
        namespaces=namespaces,
        search=search,
        aliases={name: value for name, value in aliases.items() if value},
    )


def parse_registries_conf(data: bytes, *, source: str) -> Conf:
    """One file.  Raises `InvalidArgument` with its name for what it may not say."""
    top = parse_toml(data, source)
    if "registries" in top.values:
        if "registry" in top.values or "unqualified-search-registries" in top.values:
            raise top.refused("it mixes the two versions of the format")
        return _first_version(top.table("registries"))
    tables = top.tables("registry")
    if len(tables) + len(top.table("aliases").values) > MAX_ENTRIES:
        raise top.refused(f"it has more than {MAX_ENTRIES} entries")
    namespaces: dict[str, Namespace] = {}
    for table in tables:
        one = _namespace(table)
        namespaces.setdefault(one.prefix, one)
    aliases = top.table("aliases")
    return Conf(
        namespaces=namespaces,
        search=_hosts(top, "unqualified-search-registries"),
        aliases={name: _alias(name, aliases) for name in aliases.values},
    )


def _namespace(table: Table) -> Namespace:
    location = _location(table, "location")
    prefix = _location(table, "prefix") or location
    if not prefix:
        raise table.refused(f"{table.where} has neither prefix nor location")
    wild = prefix.startswith("*.")
    if not location and not wild:
        raise table.refused(f"{table.where} has no location (prefix {prefix[:100]!r})")
    if "*" in prefix[1 if wild else 0 :] or (wild and set(_SEPARATORS) & set(prefix)):
        raise table.refused(f"{table.where}.prefix: a * only stands for subdomains: *.example.com")
    by_digest = table.flag("mirror-by-digest-only")
    mirrors = tuple(_mirror(one, by_digest=by_digest) for one in table.tables("mirror"))
    if table.text("pull-from-mirror"):
        raise table.refused(f"{table.where}.pull-from-mirror is for mirrors")
    return Namespace(
        prefix=prefix,
        # A prefix with a tag or a digest chooses one image; it is fetched from where its name says.
        location=Location(place="" if location == prefix else location, insecure=table.flag("insecure")),
        mirrors=mirrors,
        blocked=table.flag("blocked"),
        source=table.source,
    )


def _mirror(table: Table, *, by_digest: bool) -> Location:
    place = _location(table, "location")
    if not place:
        raise table.refused(f"{table.where} has no location")
    use = table.text("pull-from-mirror")
    if use and by_digest:
        raise table.refused(f"{table.where}.pull-from-mirror beside mirror-by-digest-only")
    if use not in ("", "all", "digest-only", "tag-only"):
        raise table.wrong("pull-from-mirror", "all, digest-only or tag-only")
    return Location(
        place=place,
        insecure=table.flag("insecure"),
        use="digest-only" if by_digest else cast("Use", use or "all"),
    )


def _location(table: Table, key: str) -> str:
    value = table.text(key).rstrip("/")
    if "://" in value:
        raise table.refused(f"{table.path(key)}: a URL; write the host and what follows alone")
    host, slash, rest = value.partition("/")
    return f"{host.lower()}{slash}{rest}"


def _rewritten(location: Location, name: str, end: int, source: str, attempted: str) -> tuple[str, str]:
    """Registry and repository of a name whose first ``end`` characters the location stands for."""
    full = f"{location.place}{name[end:]}" if location.place else name
    registry = full.partition("/")[0]
    try:
        found = Reference.parse(full)
        if not (found.registry == registry or is_named(found.registry, registry)):
            raise InvalidArgument(attempted, f"{full[:200]!r} does not begin with a registry")
        if found.tag != DEFAULT_TAG or found.digest is not None:
            raise InvalidArgument(attempted, f"{full[:200]!r} has a tag or a digest of its own")
    except Error as exc:
        raise InvalidArgument(f"{attempted}, as {source} says", exc.reason) from exc
    return found.registry, found.repository


def _hosts(table: Table, key: str) -> tuple[str, ...] | None:
    if key not in table.values:
        return None
    hosts = tuple(name.rstrip("/") for name in table.texts(key))
    for host in hosts:
        try:
            named = Reference.parse(f"{host}/a/b")
        except Error as exc:
            raise table.refused(f"{table.path(key)}: {exc.reason}") from exc
        if named.repository != "a/b":
            raise table.refused(f"{table.path(key)}: not a registry: {host[:100]!r}")
    return hosts


def _alias(name: str, table: Table) -> str:
    """What a short name stands for: the canonical name without a tag; empty takes an alias back."""
    value = table.text(name)
    if not value:
        return ""
    try:
        short, found = Reference.parse(f"localhost/{name}"), Reference.parse(value)
    except Error as exc:
        raise table.refused(f"{table.path(name)}: {exc.reason}") from exc
    if short.repository != name or ":" in value.rpartition("/")[2] or found.digest is not None:
        raise table.refused(f"{table.path(name)}: names without tags and digests")
    return found.name


def _first_version(table: Table) -> Conf:
    """`[registries.search]`, `[registries.insecure]` and `[registries.block]`, each with a list."""
    insecure = {_plain(one) for one in table.table("insecure").texts("registries")}
    blocked = {_plain(one) for one in table.table("block").texts("registries")}
    namespaces = {
        prefix: Namespace(
            prefix=prefix,
            location=Location(insecure=prefix in insecure),
            blocked=prefix in blocked,
            source=table.source,
        )
        for prefix in sorted(insecure | blocked)
        if prefix
    }
    return Conf(namespaces=namespaces, search=_hosts(table.table("search"), "registries"))


def _plain(value: str) -> str:
    return value.rstrip("/").lower()
