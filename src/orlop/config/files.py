"""Configuration files: TOML in, settings out, and for every value where it came from.

A file has keys of `orlop.config.settings.Settings` at its top, and tables::

    driver = "overlay"
    insecure_registries = ["registry.lan:5000"]

    [limits]                 # fields of orlop.config.Limits
    layer_size = "512GiB"

    [proxy]                  # fields of orlop.config.ProxySettings
    https = "http://proxy.lan:3128"

    [daemon]                 # what `orlop daemon` takes: its options and what clients may ask of it
    group = "containers"

Invariants: a later file, and then the environment and flags, speak over an earlier one key by key.  A key
that is not known is refused with what was perhaps meant, a value of a wrong type with the key's name; a
file is read whole or not at all.  The keys of ``[daemon]`` are carried and checked by the daemon.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from orlop.config.limits import Limits
from orlop.config.settings import ProxySettings, Settings
from orlop.config.values import convert, kinds_of
from orlop.errors import InvalidArgument, PermissionDenied, from_oserror
from orlop.values import dataclass, field, fields, replace

__all__ = [
    "PLACES",
    "Configuration",
    "Given",
    "load",
    "meant",
    "read_bytes",
    "read_file",
    "read_limit",
    "read_table",
]

_T = TypeVar("_T")

MAX_FILE = 1 << 20
PLACES: Mapping[str, Any] = {"root": str, "run": str, "host": str}
"""Keys beside those of `Settings`: which store is meant.  The command line uses them."""
_TABLES = ("limits", "proxy", "daemon")
_DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value, and where it was given: a file, a variable, an option."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Values by dotted name (``driver``, ``limits.layer_size``, ``daemon.group``); the rest is default.

    Those of `Settings` and `Limits` have their fields' types; those of ``daemon`` are as TOML has them.
    """

    given: Mapping[str, Given] = field(default_factory=dict)

    def over(self, other: Mapping[str, Given]) -> Configuration:
        """These values, and those of ``other`` where it has any."""
        return Configuration(given={**self.given, **other})

    def source(self, name: str) -> str:
        """Where a value came from; ``default`` for what was not given."""
        found = self.given.get(name)
        return found.source if found is not None else _DEFAULT

    def get(self, name: str) -> Any:  # noqa: ANN401 - of the field's type
        """A value that was given, or None."""
        found = self.given.get(name)
        return found.value if found is not None else None

    def table(self, name: str) -> dict[str, Given]:
        """What was given of a table, by the last part of its names."""
        start = f"{name}."
        return {key[len(start) :]: value for key, value in self.given.items() if key.startswith(start)}

    def limits(self, base: Limits | None = None) -> Limits:
        """The limits: as `settings`.  Raises `InvalidArgument` for one that cannot be."""
        return self._made(base or Limits(), {name: item.value for name, item in self.table("limits").items()})

    def settings(self, base: Settings | None = None) -> Settings:
        """The settings: ``base``, or the defaults, and over them what was given."""
        known = {item.name for item in fields(Settings)} - {*_TABLES}
        values = {name: item.value for name, item in self.given.items() if name in known}
        base = base or Settings()
        proxy = {name: item.value for name, item in self.table("proxy").items()}
        tables = {"limits": self.limits(base.limits), "proxy": self._made(base.proxy, proxy)}
        return self._made(base, {**values, **tables})

    def _made(self, base: _T, values: Mapping[str, Any]) -> _T:
        """A dataclass with some fields replaced; where it refuses one, the error says who gave it."""
        try:
            return cast("_T", replace(cast("Any", base), **values))
        except InvalidArgument as exc:
            source = self.source(exc.details.get("key", ""))
            raise InvalidArgument(f"read {source}", exc.reason, hint=exc.hint, details=exc.details) from exc


def load(*paths: str | os.PathLike[str]) -> Configuration:
    """What some files say together; later ones speak over earlier ones.

    ``orlop.open(settings=orlop.config.load("my.toml").settings())``.  Raises `NotFound` for a file that is
    not there, `InvalidArgument` for what is no TOML, and for a key or value that cannot be.
    """
    found = Configuration()
    for path in paths:
        found = found.over(read_file(path))
    found.settings()
    return found


def read_file(path: str | os.PathLike[str], *, trusted: bool = True) -> dict[str, Given]:
    """The values of one file.  Raises as `load` does.

    Where the file was not named by the user it is not ``trusted``: one that others could have written is
    refused with `PermissionDenied`, one that is no regular file with `InvalidArgument`.  Others are not the
    owner of ``/``, who in a user namespace is the machine's root and has another number.
    """
    name = os.fspath(path)
    attempted = f"read {name}"
    data = read_bytes(name, attempted, trusted=trusted)
    if not data:
        return {}
    import tomllib  # only where there is something to read

    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise InvalidArgument(attempted, f"not TOML: {exc}"[:300]) from exc
    return read_table(document, name)


def read_bytes(name: str, attempted: str, *, trusted: bool) -> bytes:
    """A file's bytes, at most `MAX_FILE`.  ``trusted`` and the errors are as in `read_file`."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | (0 if trusted else os.O_NONBLOCK)
    try:
        with open(name, "rb", opener=lambda path, _: os.open(path, flags)) as file:
            about = os.fstat(file.fileno())
            if not trusted and not stat.S_ISREG(about.st_mode):
                raise InvalidArgument(attempted, "it is not a regular file")
            if not trusted and (
                about.st_mode & stat.S_IWOTH or about.st_uid not in (0, os.geteuid(), os.stat("/").st_uid)
            ):
                raise PermissionDenied(
                    attempted, "others may have written it", hint=f"chown and chmod o-w {name}"
                )
            data = file.read(MAX_FILE + 1)
    except IsADirectoryError as exc:
        raise InvalidArgument(attempted, "it is a folder") from exc
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    if len(data) > MAX_FILE:
        raise InvalidArgument(attempted, f"it has more than {MAX_FILE} bytes")
    return data


def read_table(document: Mapping[str, object], source: str) -> dict[str, Given]:
    """The values of a document as TOML has it, checked.  Raises `InvalidArgument`."""
    attempted = f"read {source}"
    found: dict[str, Given] = {}
    for key, value in document.items():
        if key not in _TABLES:
            found[key] = _value(key, value, source)
            continue
        if not isinstance(value, dict):
            raise InvalidArgument(attempted, f"{key} is a table: write [{key}]", details={"key": key})
        for name, inner in value.items():
            dotted = f"{key}.{name}"
            found[dotted] = _value(dotted, inner, source)
    return found


def read_limit(text: str, source: str) -> dict[str, Given]:
    """A limit as flags and the environment have it: ``layer_size=1TiB``, ``daemon.quick=8``."""
    name, equals, value = text.partition("=")
    dotted = name.strip()
    if not equals or not dotted:
        raise InvalidArgument(f"read {source}", f"not NAME=VALUE: {text[:100]!r}")
    if not dotted.startswith(tuple(f"{table}." for table in _TABLES)):
        dotted = f"limits.{dotted}"
    return {dotted: _value(dotted, value.strip(), source)}


def _value(name: str, value: object, source: str) -> Given:
    attempted = f"read {source}"
    kind = _known().get(name)
    if kind is None and not name.startswith("daemon."):
        raise InvalidArgument(
            attempted,
            f"there is no setting {name[:100]!r}",
            hint=meant(name, _known()),
            details={"key": name},
        )
    if kind is None:
        if isinstance(value, dict):
            raise InvalidArgument(attempted, f"{name} is a table, and takes a value", details={"key": name})
        return Given(value=value, source=source)
    return Given(value=convert(value, kind, name, attempted), source=source)


def meant(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: those that were perhaps meant."""
    from difflib import get_close_matches

    names = sorted(known)
    last = {other.rpartition(".")[2]: other for other in names}
    found = get_close_matches(name, names, n=1, cutoff=0.7)
    found = found or [
        last[other] for other in get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.7)
    ]
    return f"did you mean {found[0]}?" if found else "docs/limits.md and docs/library.md have them all"


def _settings_kinds() -> dict[str, Any]:
    return {name: kind for name, kind in kinds_of(Settings).items() if name not in _TABLES}


@cache
def _known() -> dict[str, Any]:
    """All dotted names but the daemon's, and their types."""
    limits = {f"limits.{name}": kind for name, kind in kinds_of(Limits).items()}
    proxy = {f"proxy.{name}": kind for name, kind in kinds_of(ProxySettings).items()}
    return {**PLACES, **_settings_kinds(), **limits, **proxy}
