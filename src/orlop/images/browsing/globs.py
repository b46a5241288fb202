"""Glob patterns on names and paths inside things, as bytes.

``*`` and ``?`` match within one name, ``[a-z]`` and ``[!a-z]`` one byte, ``**`` as a whole part any number
of folders, none included; a backslash takes away a byte's meaning.  A pattern without a slash is about
names, wherever they are; one with a slash is about whole paths, from the root.

Patterns may come from strangers: a star gives back nothing of what it found for the text behind it, so that
the time to match grows with the product of both lengths and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from orlop.errors import InvalidArgument

__all__ = ["Glob"]

_MAX = 4096  # bytes of a pattern: PATH_MAX
_MAGIC = frozenset(b"*?[\\")


class Glob:
    """A pattern.  Raises `InvalidArgument` for what is none.

    ``on_path`` says whether it is about whole paths; ``base`` is the folder that all it can match lies in or
    below, as far as the pattern says so.
    """

    def __init__(self, pattern: bytes) -> None:
        what = f"use pattern {pattern[:100]!r}"
        if not pattern or len(pattern) > _MAX or b"\0" in pattern:
            raise InvalidArgument(what, f"a pattern has 1 to {_MAX} bytes, and no NUL")
        self.on_path = b"/" in pattern
        parts = [part for part in pattern.split(b"/") if part]
        if not parts or {b".", b".."} & set(parts):
            raise InvalidArgument(what, "no name and no clean path fits it")
        literal: list[bytes] = []
        for part in parts[:-1]:
            if _MAGIC & set(part):
                break
            literal.append(part)
        self.base = b"/".join(literal) if self.on_path else b""
        self._name = re.compile(_part(parts[-1]), re.DOTALL) if parts[-1] != b"**" else None
        self._path = re.compile(_whole(parts), re.DOTALL) if self.on_path else None

    def fits_name(self, name: bytes) -> bool:
        """Whether a path that ends with this name can match."""
        return self._name is None or self._name.fullmatch(name) is not None

    def fits_path(self, path: bytes) -> bool:
        """Whether a path, whose name fits, matches; it has no slash before it."""
        return self._path is None or self._path.fullmatch(path) is not None


def _whole(parts: list[bytes]) -> bytes:
    """An expression for whole paths: runs of parts with ``**`` between them."""
    runs: list[list[bytes]] = [[]]
    for part in parts:
        if part == b"**":
            runs.append([])
        else:
            runs[-1].append(part)
    texts = [b"/".join(_part(part) for part in run) for run in runs]
    if len(texts) == 1:
        return texts[0]
    first, *middle, last = texts
    whole = first + b"/" if first else b""
    for text in middle:
        if text:
            whole += rb"(?>(?:[^/]+/)*?" + text + rb"/)"
    if not last:  # ends with **: whatever is below
        return whole + rb".+"
    return whole + rb"(?:[^/]+/)*" + last


def _part(part: bytes) -> bytes:
    """An expression for one name."""
    chunks: list[bytes] = [b""]
    for token in _tokens(part):
        if token is None:
            chunks.append(b"")
        else:
            chunks[-1] += token
    if len(chunks) == 1:
        return chunks[0]
    first, *middle, last = chunks
    whole = first
    for chunk in middle:
        if chunk:
            whole += rb"(?>[^/]*?" + chunk + rb")"
    return whole + rb"[^/]*" + last


def _tokens(part: bytes) -> Iterator[bytes | None]:
    """What each place of a part matches; None for a star."""
    at = 0
    while at < len(part):
        byte = part[at : at + 1]
        at += 1
        if byte == b"*":
            yield None
        elif byte == b"?":
            yield rb"[^/]"
        elif byte == b"\\" and at < len(part):
            yield re.escape(part[at : at + 1])
            at += 1
        elif byte == b"[" and (end := part.find(b"]", at + (2 if part[at : at + 1] in b"!^" else 1))) > 0:
            yield _set(part[at:end])
            at = end + 1
        else:
            yield re.escape(byte)


def _set(text: bytes) -> bytes:
    """One byte among some; never a slash."""
    negated = text[:1] in {b"!", b"^"}
    text = text[1:] if negated else text
    found: set[int] = set()
    at = 0
    while at < len(text):
        if at + 2 < len(text) and text[at + 1 : at + 2] == b"-":
            found.update(range(text[at], text[at + 2] + 1))
            at += 3
        else:
            found.add(text[at])
            at += 1
    if negated:
        found = set(range(1, 256)) - found
    found.discard(ord("/"))
    if not found:
        return rb"(?!)"
    return b"[" + b"".join(b"\\x%02x" % byte for byte in sorted(found)) + b"]"
