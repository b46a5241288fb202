"""Sizes, times and labels as people type them.  Texts in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from orlop.errors import InvalidArgument

__all__ = ["duration_of", "labels_of", "size_of"]

_SIZE = re.compile(r"([0-9]{1,19})([KMGTkmgt]?)")
_POWERS = ("", "K", "M", "G", "T")
_MAX_SIZE = 2**63 - 1  # what SQLite and protobuf hold
_DURATION = re.compile(r"(?:[0-9]{1,9}[smhdw])+")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def size_of(text: str, *, least: int = 1) -> int:
    """Bytes out of ``512M``: K, M, G and T are powers of 1024.

    >>> size_of("1k"), size_of("3G")
    (1024, 3221225472)
    """
    match = _SIZE.fullmatch(text)
    size = int(match[1]) << (10 * _POWERS.index(match[2].upper())) if match else -1
    if not least <= size <= _MAX_SIZE:
        raise InvalidArgument(
            f"use size {text!r}", "not a size", hint="write bytes, or with K, M, G or T, as in 512M"
        )
    return size


def duration_of(text: str) -> float:
    """Seconds out of ``1h30m``: s, m, h, d and w.

    >>> duration_of("90s"), duration_of("1d12h")
    (90.0, 129600.0)
    """
    if _DURATION.fullmatch(text) is None:
        raise InvalidArgument(
            f"use duration {text!r}", "not a duration", hint="write it with s, m, h, d or w, as in 36h or 2w"
        )
    return float(sum(int(part[:-1]) * _SECONDS[part[-1]] for part in re.findall(r"[0-9]+[smhdw]", text)))


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
