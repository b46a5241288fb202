"""All keys of a configuration file: what each is called, takes, does, and how else it can be said.

Made of the dataclasses' fields: a setting that is added there is a key here, has a variable and an option,
and stands in the reference (docs/configuration.md) and in `example`.

The variable of ``limits.layer_size`` is ``ORLOP_LIMITS_LAYER_SIZE``, and so for all.  Some keys have an
option of their own; the rest go by ``--set KEY=VALUE``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from orlop.config.client import ClientOptions
from orlop.config.limits import Limits, limits_by_name
from orlop.config.service import DaemonOptions, ServiceLimits
from orlop.config.settings import ProxySettings, Settings
from orlop.config.values import kinds_of
from orlop.values import dataclass, fields

__all__ = ["OWN_OPTIONS", "TABLES", "Key", "example", "keys", "shown", "toml_of", "variable_of"]

TABLES: Mapping[str, tuple[type[Any], ...]] = {
    "": (ClientOptions, Settings),
    "proxy": (ProxySettings,),
    "limits": (Limits,),
    "daemon": (DaemonOptions, ServiceLimits),
}
"""The tables of a file, and the dataclasses whose fields are their keys."""

OWN_OPTIONS: Mapping[str, str] = {
    "root": "--root",
    "run": "--run",
    "host": "--host",
    "tls_cert": "--tls-cert",
    "tls_key": "--tls-key",
    "tls_ca": "--tls-ca",
    "progress": "--progress",
    "color": "--color",
    "driver": "--driver",
    "durable": "--durable",
    "insecure_registries": "--insecure-registry",
}
"""Keys that have an option of their own; it is the only one that they have."""

# Options of `orlop daemon` that are called otherwise than their keys.
_DAEMONS = {
    "users": "--user",
    "groups": "--allow-group",
    "read_only_users": "--read-only-user",
    "read_only_groups": "--read-only-group",
    "tls_names": "--tls-name",
    "tls_read_only_names": "--tls-read-only-name",
}
_WIDTH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key.  ``name`` is dotted; ``takes`` says in words what it takes, ``kind`` is the type of that.

    ``option`` is what says it on the command line, ``most`` how much it may be, in words, where that is
    bounded; ``usual`` where the command line takes the value from when nobody gives one.
    """

    name: str
    kind: Any
    takes: str
    default: Any
    about: str
    variable: str
    option: str
    secret: bool = False
    most: str = ""
    unit: str = ""
    usual: str = ""

    @property
    def table(self) -> str:
        """The table it stands in; empty for the top."""
        return self.name.rpartition(".")[0]

    @property
    def last(self) -> str:
        """Its name within the table."""
        return self.name.rpartition(".")[2]


def variable_of(name: str) -> str:
    """The environment's name of a key.

    >>> variable_of("limits.layer_size")
    'ORLOP_LIMITS_LAYER_SIZE'
    """
    return "ORLOP_" + name.replace(".", "_").upper()


@cache
def keys() -> Mapping[str, Key]:
    """All keys by name, in the order of the reference."""
    return {key.name: key for key in _keys()}


def _keys() -> Iterator[Key]:
    for table, classes in TABLES.items():
        for cls in classes:
            kinds = kinds_of(cls)
            for item in fields(cls):
                if item.name in TABLES:
                    continue  # a table of its own
                name = f"{table}.{item.name}" if table else item.name
                limit = limits_by_name().get(item.name) if cls is Limits else None
                yield Key(
                    name=name,
                    kind=kinds[item.name],
                    takes=_takes(kinds[item.name], item.name),
                    default=item.default,
                    about=limit.guards if limit else item.metadata["about"],
                    variable=variable_of(name),
                    option=_option(name),
                    secret=bool(item.metadata.get("secret")),
                    most=f"{limit.most:,}: {limit.because}" if limit and limit.because else "",
                    usual=item.metadata.get("usual", ""),
                    unit=limit.unit if limit else "bytes" if item.name in _SIZES else "",
                )


_SIZES = {"upload_chunk", "request_size"}


def _option(name: str) -> str:
    table, _, last = name.rpartition(".")
    if name in OWN_OPTIONS:
        return OWN_OPTIONS[name]
    if table == "daemon" and last in _DAEMONS:
        return f"orlop daemon {_DAEMONS[last]}"
    if table == "daemon" and last in {item.name for item in fields(DaemonOptions)}:
        return f"orlop daemon --{last.replace('_', '-')}"
    return f"--set {name}="


def _takes(kind: Any, name: str) -> str:  # noqa: ANN401 - a type
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(_takes(part, name) for part in get_args(kind) if part is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if origin is tuple:
        return "list of texts"
    words = {bool: "flag", int: "number", str: "text"}
    return words.get(kind, "number" if name == "rate" else "duration")


def example() -> str:
    """A file with every key as it is by default, commented out, each with what it does."""
    lines = [
        "# A configuration of orlop with every key, as it is when nobody says otherwise.",
        "# Take the # away from a key to set it.  The reference: docs/configuration.md.",
    ]
    table = ""
    for key in keys().values():
        if key.table != table:
            table = key.table
            lines += ["", f"[{table}]"]
        about = f"{key.about} ({key.takes})".replace("`", "")
        if key.usual:
            about += f"; where it is not set: {key.usual}"
        lines += ["", *_comment(about), f"#{key.last} = {toml_of(key.default)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> Iterator[str]:
    line = "#"
    for word in text.split():
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def shown(value: object, unit: str = "") -> str:
    """A value as a reader likes it: ``4 MiB``, ``5,000,000``, ``a, b``; empty for none.

    >>> shown(4 << 20, "bytes"), shown(30.0), shown(("a", "b")), shown(True)
    ('4 MiB', '30', 'a, b', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and unit == "bytes" and value:
        for size, name in _UNITS:
            if value % size == 0:
                return f"{value // size} {name}"
    if isinstance(value, int | float):
        return f"{value:,.15g} {unit}".strip() if isinstance(value, float) else f"{value:,} {unit}".strip()
    return str(value)


def toml_of(value: object) -> str:
    """A value as a file has it.

    >>> toml_of(("a", "b")), toml_of(True), toml_of(1.0)
    ('["a", "b"]', 'true', '1')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value)
