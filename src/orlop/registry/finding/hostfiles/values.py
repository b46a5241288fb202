"""What the two TOML files have in common: a table whose values are of the kinds they should be.

Keys that are not known are passed over, as the programs do that these files were made for.  No I/O.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

from orlop.errors import InvalidArgument
from orlop.values import dataclass

__all__ = ["Table", "parse_toml"]

_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a file; errors name the file (``source``) and the place in it (``where``)."""

    values: Mapping[str, Any]
    source: str
    where: str = ""

    def text(self, key: str) -> str:
        """A text, empty where there is none.  Raises `InvalidArgument`, as all here."""
        value = self.values.get(key, "")
        if not isinstance(value, str) or "\0" in value:
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str) -> bool:
        """True or false; false where it is not said."""
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; a single text counts as one."""
        value = self.values.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(one, str) and "\0" not in one for one in value):
            raise self.wrong(key, "a text, or a list of texts")
        return tuple(value)

    def table(self, key: str) -> Table:
        """A table; empty where there is none."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return Table(values=value, source=self.source, where=self.path(key))

    def tables(self, key: str) -> tuple[Table, ...]:
        """A list of tables."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.wrong(key, f"tables: write [[{self.path(key)}]]")
        return tuple(Table(values=one, source=self.source, where=self.path(key)) for one in value)

    def path(self, key: str) -> str:
        """A key's name in errors."""
        key = key.rpartition("@")[2][:_SHOWN]  # a URL's user and password are not repeated
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, wanted: str) -> InvalidArgument:
        """The error for a value of the wrong kind; the value, which may be a secret, is not repeated."""
        return self.refused(f"{self.path(key)} must be {wanted}")

    def refused(self, reason: str) -> InvalidArgument:
        """The error for what the file says."""
        return InvalidArgument(f"read {self.source}", reason)


def parse_toml(data: bytes, source: str) -> Table:
    """A file's top table.  Raises `InvalidArgument` for what is not TOML."""
    try:
        values = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise InvalidArgument(f"read {source}", f"not TOML: {exc}"[:300]) from exc
    return Table(values=values, source=source)
