"""Sizes, times and labels as people type them.  Texts in, values out."""

from __future__ import annotations

from collections.abc import Iterable

from orlop.config.values import duration_of, size_of
from orlop.errors import InvalidArgument

__all__ = ["duration_of", "labels_of", "size_of"]


def labels_of(changes: Iterable[str]) -> dict[str, str | None]:
    """Changes of labels: ``KEY=VALUE`` or ``KEY`` sets one, ``KEY-`` takes it away.

    >>> labels_of(["team=ml", "keep", "old-"])
    {'team': 'ml', 'keep': '', 'old': None}
    """
    found: dict[str, str | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals and key.endswith("-"):
            key = key[:-1]
            found[key] = None
        else:
            found[key] = value
        if not key:
            raise InvalidArgument(
                f"label with {change!r}", "the key is missing", hint="write KEY=VALUE, KEY, or KEY- to remove"
            )
    return found
