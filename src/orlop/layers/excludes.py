"""Exclude patterns: which paths of a root a capture leaves as they were, by the rules of a .dockerignore.

- A pattern is a path from the root, whose leading slash, ``.`` and ``..`` say nothing.  It means what is
  there and all that is below.
- ``*`` is any text without a slash, ``?`` any one character, ``[a-z]`` one of some (``[^a-z]`` of the
  others); a backslash takes the meaning from what follows it; ``**`` between slashes is any folders, also
  none.
- A pattern after ``!`` brings back what patterns before it have excluded: the last one that fits counts.

Paths are bytes, and so is a pattern: ``?`` is a character where the name is UTF-8, else a byte.  A pattern's
time is linear in the path's length, whoever wrote it (no regular expression spans a ``*``).
Docker's rules: docs.docker.com/build/concepts/context, "Filename matching"; of them ``**`` within a name
(``a**b``) crosses no slash here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from orlop.errors import InvalidArgument
from orlop.values import dataclass

__all__ = ["Excludes", "parse_ignore_file"]

_WHAT = "read exclude pattern"
_ANY = b"**"
_CHARACTER = rb"(?>[\x00-\x7f]|[\xc2-\xf4][\x80-\xbf]{1,3}|[\x80-\xff])"
_MAX_SIZE = 4_096  # bytes of a pattern; PATH_MAX, linux/limits.h


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What each name of a path has to fit, `_ANY` for any folders; and whether it brings back."""

    parts: tuple[bytes | re.Pattern[bytes], ...]
    back: bool

    def fits(self, path: Sequence[bytes]) -> bool:
        """Whether it means a path or a folder above it.

        As long as the parts fit one goes on; where they do not the last ``**`` takes one name more.  The
        shortest is enough: what comes after can only fit later.
        """
        parts = self.parts
        at = here = 0
        again: tuple[int, int] | None = None
        while at < len(parts):
            part = parts[at]
            if part == _ANY:
                again = (at, here)
                at += 1
                continue
            if here < len(path) and _fits(part, path[here]):
                at, here = at + 1, here + 1
                continue
            if here >= len(path) or again is None:
                return False
            at, here = again[0] + 1, again[1] + 1
            again = (again[0], here)
        return True


class Excludes:
    """Patterns, in their order."""

    def __init__(self, patterns: Sequence[_Pattern]) -> None:
        self._patterns = tuple(patterns)
        self.all_below = not any(pattern.back for pattern in patterns)
        """Whether what is below an excluded folder is excluded, too, without a look."""

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Excludes | None:
        """Patterns as people write them; None where there are none.

        Raises `InvalidArgument` for one that is none.
        """
        patterns = [_parse(text) for text in texts]
        return cls(patterns) if patterns else None

    def __contains__(self, path: bytes) -> bool:
        """Whether a path without leading slash is excluded; the root never is."""
        if not path:
            return False
        names = path.split(b"/")
        excluded = False
        for pattern in self._patterns:
            if pattern.back is excluded and pattern.fits(names):
                excluded = not excluded
        return excluded


def parse_ignore_file(text: str) -> list[str]:
    r"""The patterns of a .dockerignore: a line each, without empty ones and those that begin with ``#``.

    >>> parse_ignore_file("# none\n\ntmp/*\n!tmp/keep\n")
    ['tmp/*', '!tmp/keep']
    """
    lines = text.removeprefix("\ufeff").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _fits(part: bytes | re.Pattern[bytes], name: bytes) -> bool:
    return part == name if isinstance(part, bytes) else part.fullmatch(name) is not None


def _parse(text: str) -> _Pattern:
    what = f"{_WHAT} {text[:100]!r}"
    pattern = os.fsencode(text.strip())
    back = pattern.startswith(b"!")
    if back:
        pattern = pattern[1:].strip()
    if len(pattern) > _MAX_SIZE or b"\0" in pattern:
        raise InvalidArgument(what, f"it is longer than {_MAX_SIZE} bytes, or has a NUL in it")
    names: list[bytes] = []
    for name in pattern.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b".") and not (name == _ANY and names[-1:] == [_ANY]):
            names.append(name)
    if not names:
        raise InvalidArgument(what, "it means nothing", hint="'*' means everything")
    if names[-1] == _ANY:
        names[-1] = b"*"  # all below a folder, not the folder itself; and after "**/": everything
    return _Pattern(tuple(_part(name, what) for name in names), back)


def _part(name: bytes, what: str) -> bytes | re.Pattern[bytes]:
    """What one name has to fit: itself, or an expression."""
    if name == _ANY:
        return name
    if not re.search(rb"[*?\[\\]", name):
        return name
    return _compiled(name, what)


@lru_cache(maxsize=1_024)
def _compiled(name: bytes, what: str) -> re.Pattern[bytes]:
    pieces: list[bytes] = [b""]  # between stars
    at = 0
    while at < len(name):
        char = name[at : at + 1]
        at += 1
        if char == b"*":
            pieces.append(b"")
        elif char == b"?":
            pieces[-1] += _CHARACTER
        elif char == b"[":
            found, at = _class(name, at, what)
            pieces[-1] += found
        else:
            if char == b"\\":
                if at == len(name):
                    raise InvalidArgument(what, "nothing follows its last backslash")
                char = name[at : at + 1]
                at += 1
            pieces[-1] += re.escape(char)
    if len(pieces) == 1:
        return re.compile(pieces[0], re.DOTALL)
    # Where a piece fits first it may stay: an atomic group each, so that nothing is tried twice.
    middle = b"".join(b"(?>.*?" + piece + b")" for piece in pieces[1:-1])
    return re.compile(pieces[0] + middle + b".*" + pieces[-1], re.DOTALL)


def _class(name: bytes, at: int, what: str) -> tuple[bytes, int]:
    """A class after its ``[``: an expression, and where it ends."""
    negated = name[at : at + 1] in (b"^", b"!")
    at += negated
    ranges: list[bytes] = []
    while True:
        first, at = _member(name, at, what, may_end=bool(ranges))
        if not first:
            break
        last = first
        if name[at : at + 1] == b"-" and name[at + 1 : at + 2] != b"]":
            last, at = _member(name, at + 1, what, may_end=False)
        if first > last:
            raise InvalidArgument(what, "a range that ends before it begins")
        ranges.append(re.escape(first) + b"-" + re.escape(last))
    inside = b"[" + b"".join(ranges) + b"]"
    return b"(?!" + inside + b")" + _CHARACTER if negated else inside, at


def _member(name: bytes, at: int, what: str, *, may_end: bool) -> tuple[bytes, int]:
    char = name[at : at + 1]
    if may_end and char == b"]":
        return b"", at + 1
    if char == b"\\":
        at += 1
        char = name[at : at + 1]
    if not char:
        raise InvalidArgument(what, "a '[' has no ']'")
    if char >= b"\x80":
        raise InvalidArgument(what, "characters beyond ASCII cannot stand in [...]")
    return char, at + 1
