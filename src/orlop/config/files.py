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

The environment says the same by `ORLOP_` and the key's name, and flags by ``--set KEY=VALUE``.

Invariants: a later file, and then the environment and flags, speak over an earlier one key by key.  A key
that is not known is refused with what was perhaps meant, a value of a wrong type with the key's name, both
with their line; a file is read whole or not at all.  `orlop.config.keys` has all keys.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping

from orlop.config.limits import Limits
from orlop.config.settings import Settings
from orlop.config.values import convert, of_text
from orlop.errors import Error, InvalidArgument, PermissionDenied, from_oserror
from orlop.hints import Any, Literal, TypeVar, cast
from orlop.values import dataclass, field, fields, replace

__all__ = [
    "Configuration",
    "Given",
    "lines_of",
    "load",
    "meant",
    "parse",
    "read_bytes",
    "read_file",
    "read_limit",
    "read_set",
    "read_table",
    "read_variables",
]

_T = TypeVar("_T")

MAX_FILE = 1 << 20
_TABLES = ("limits", "proxy", "daemon")
_DEFAULT = "default"
_LIMITS = "ORLOP_LIMITS"
_ASSIGNED = r"""\s*(?:\[\s*([\w-]+)\s*\]|(?:"([^"]*)"|'([^']*)'|([\w.-]+))\s*=)"""
_LONG_TEXT = r"\"{3}|'{3}"

Kind = Literal["file", "variable", "option"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value, and where it was given: a file and the line in it, a variable, an option."""

    value: Any
    source: str
    kind: Kind = "file"
    line: int = 0

    @property
    def place(self) -> str:
        """The source, with the line where that is known."""
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Values by dotted name (``driver``, ``limits.layer_size``, ``daemon.group``); the rest is default.

    All have their fields' types.  ``named`` is the file that somebody named in place of the usual ones.
    ``fault`` is why files or variables could not be read: for those that tell what is wrong, who go on.
    """

    given: Mapping[str, Given] = field(default_factory=dict)
    named: str | None = None
    fault: Error | None = field(default=None, compare=False)

    def over(self, other: Mapping[str, Given]) -> Configuration:
        """These values, and those of ``other`` where it has any."""
        return replace(self, given={**self.given, **other})

    def source(self, name: str) -> str:
        """Where a value came from; ``default`` for what was not given."""
        found = self.given.get(name)
        return found.source if found is not None else _DEFAULT

    def place(self, name: str) -> str:
        """As `source`, with the line of a file."""
        found = self.given.get(name)
        return found.place if found is not None else _DEFAULT

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
    return read_table(parse(data, attempted), name, lines=lines_of(data))


def parse(data: bytes, attempted: str) -> dict[str, object]:
    """A file's bytes as TOML.  Raises `InvalidArgument`."""
    import tomllib  # only where there is something to read

    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise InvalidArgument(attempted, f"not TOML: {exc}"[:300]) from exc


def lines_of(data: bytes) -> dict[str, int]:
    r"""The line of each key and table of a file that parses; of ``a = {b = 1}`` that of its first part.

    >>> lines_of(b"driver = 'erofs'\n[limits]\ndepth = 4")
    {'driver': 1, 'limits': 2, 'limits.depth': 3}
    """
    found: dict[str, int] = {}
    table, inside = "", ""
    for number, line in enumerate(data.decode(errors="replace").split("\n"), 1):
        if not inside and (match := re.match(_ASSIGNED, line)):
            if match[1]:
                table = match[1]
                found.setdefault(table, number)
            else:
                name = next(part for part in match.groups()[1:] if part is not None)
                found.setdefault(f"{table}.{name}" if table else name, number)
        for quotes in re.findall(_LONG_TEXT, line):  # texts of several lines may look like keys
            inside = "" if quotes == inside else inside or quotes
    return found


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


def read_table(
    document: Mapping[str, object],
    source: str,
    *,
    lines: Mapping[str, int] | None = None,
    problems: list[InvalidArgument] | None = None,
) -> dict[str, Given]:
    """The values of a document as TOML has it, checked.

    Raises `InvalidArgument` for the first that cannot be; where there is a list for ``problems`` all go into
    that, and the rest is read.
    """
    lines = lines or {}
    found: dict[str, Given] = {}
    for key, value in document.items():
        inner = {key: value}
        if key in _TABLES:
            if isinstance(value, dict):
                inner = {f"{key}.{name}": part for name, part in value.items()}
            else:
                reason = f"{key} is a table: write [{key}]"
                _refuse(InvalidArgument(f"read {source}", reason, details={"key": key}), lines, problems)
                continue
        for name, part in inner.items():
            try:
                found[name] = _value(name, part, source, line=_line(name, lines))
            except InvalidArgument as exc:
                _refuse(exc, lines, problems)
    return found


def _line(name: str, lines: Mapping[str, int]) -> int:
    """The line of a key, or of the table that it stands in."""
    return lines.get(name) or lines.get(name.partition(".")[0], 0)


def _refuse(error: InvalidArgument, lines: Mapping[str, int], problems: list[InvalidArgument] | None) -> None:
    """Raise an error, or put it to the others; with its line."""
    line = _line(error.details.get("key", ""), lines)
    if line:
        error.details["line"] = str(line)
        error.reason = f"line {line}: {error.reason}"
    if problems is None:
        raise error
    problems.append(error)


def read_limit(text: str, source: str) -> dict[str, Given]:
    """A limit as flags and the environment have it: ``layer_size=1TiB``, ``daemon.quick=8``."""
    name, value = _split(text, source)
    if not name.startswith(tuple(f"{table}." for table in _TABLES)):
        name = f"limits.{name}"
    return {name: _value(name, value, source, kind=_kind(source))}


def read_set(text: str, source: str = "--set") -> dict[str, Given]:
    """Any key as a flag has it: ``downloads=6``, ``proxy.no=a,b``.  Not those with an option of their own."""
    from orlop.config.keys import OWN_OPTIONS

    name, value = _split(text, source)
    if name in OWN_OPTIONS:
        raise InvalidArgument(
            f"read {source}", f"{name} has an option of its own", hint=f"use {OWN_OPTIONS[name]}"
        )
    return {name: _value(name, value, source, kind=_kind(source))}


def read_variables(environ: Mapping[str, str], *, own: bool = True) -> dict[str, Given]:
    """What the environment says: ORLOP_LIMITS, and over it a variable for each key.

    An empty variable says nothing.  One whose name only begins with ORLOP_ is somebody else's.  Without
    ``own`` those are left out whose keys have an option of their own, which reads its variable itself.
    """
    found: dict[str, Given] = {}
    for text in environ.get(_LIMITS, "").replace(",", " ").split():
        found |= read_limit(text, _LIMITS)
    left_out = _NO_KEYS if own else _NO_KEYS | _OWN
    names = [name for name in environ if name.startswith("ORLOP_") and name not in left_out]
    if names:
        from orlop.config.keys import keys

        variables = {key.variable: key.name for key in keys().values()}
        for name in names:
            if name in variables and environ[name]:
                key = variables[name]
                found[key] = _value(key, environ[name], name, kind="variable")
    return found


# Variables that are often set: for them alone the table of keys need not be made.
_NO_KEYS = {_LIMITS, "ORLOP_CONFIG", "ORLOP_UNSHARED"}
_OWN = {
    f"ORLOP_{name}"
    for name in (
        *("ROOT", "RUN", "HOST", "TLS_CERT", "TLS_KEY", "TLS_CA", "PROGRESS", "COLOR"),
        *("DRIVER", "DURABLE", "INSECURE_REGISTRIES"),
    )
}


def _split(text: str, source: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise InvalidArgument(f"read {source}", f"not NAME=VALUE: {text[:100]!r}")
    return name, value.strip()


def _kind(source: str) -> Kind:
    return "option" if source.startswith("-") else "variable"


def _value(name: str, value: object, source: str, *, kind: Kind = "file", line: int = 0) -> Given:
    from orlop.config.keys import keys

    attempted = f"read {source}"
    key = keys().get(name)
    if key is None:
        raise InvalidArgument(
            attempted,
            f"there is no setting {name[:100]!r}",
            hint=meant(name, keys()),
            details={"key": name},
        )
    if key.secret and not isinstance(value, str):  # the usual words would show it
        raise InvalidArgument(attempted, f"{name} takes a text", details={"key": name})
    if isinstance(value, str) and kind != "file":
        value = of_text(value, key.kind)
    return Given(value=convert(value, key.kind, name, attempted), source=source, kind=kind, line=line)


def meant(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: those that were perhaps meant."""
    from difflib import get_close_matches

    names = sorted(known)
    last = {other.rpartition(".")[2]: other for other in names}
    found = get_close_matches(name, names, n=1, cutoff=0.7)
    found = found or [
        last[other] for other in get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.7)
    ]
    return f"did you mean {found[0]}?" if found else "`orlop config keys` lists them all"
