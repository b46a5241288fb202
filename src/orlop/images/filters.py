"""The filters of containerd's lists: which things a list shows.

A filter is a text of selectors with commas between, all of which must hold; of several filters one must, and
none at all lets everything through::

    name==base,labels."org.example/stage"~=^(test|prod)$

    selector  = fieldpath [operator value]       without an operator: the field is there
    fieldpath = field *("." field)               the fields of a label's key mean it joined by dots
    field     = "quoted" or letters, digits, "-" and "_"
    operator  = "==" | "!=" | "~="               "~=": the pattern (`orlop.images.patterns`) is found in it
    value     = quoted, or anything up to a comma or white space; a pattern also between / / and | |

What is not there compares as an empty text, except that ``==`` then never holds.  Which fields a thing has is
for who lists it to say.  Source: containerd 1.6, ``filters``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orlop.errors import InvalidArgument
from orlop.images.patterns import Pattern
from orlop.values import dataclass

__all__ = ["Fields", "Filter", "label_field", "parse_filters"]

MAX_FILTERS = 256
MAX_FILTER = 8_192  # characters: a label has 4,096 bytes at most
MAX_PATTERNS = 64  # in all filters: each may have a machine of thousands of states

Fields = Callable[[Sequence[str]], str | None]
"""What a thing says of a field path; None where it has no such field."""

_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_CODES = {"x": (16, 2), "u": (16, 4), "U": (16, 8)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selector:
    path: tuple[str, ...]
    operator: str = ""
    value: str = ""
    pattern: Pattern | None = None

    def holds(self, fields: Fields) -> bool:
        found = fields(self.path)
        if self.pattern is not None:
            return self.pattern.search(found or "")
        if self.operator == "!=":
            return (found or "") != self.value
        return found is not None and (not self.operator or found == self.value)


class Filter:
    """Several filters, of which one must hold.  Immutable.

    >>> names = parse_filters(["name~=/^b/", "name==a"], "list")
    >>> [name for name in ("a", "b1", "c") if names.matches(lambda path: name if path == ("name",) else None)]
    ['a', 'b1']
    """

    __slots__ = ("_any",)

    def __init__(self, any_of: Sequence[Sequence[_Selector]]) -> None:
        self._any = any_of

    @property
    def everything(self) -> bool:
        """Whether it lets everything through."""
        return not self._any or not all(self._any)

    def matches(self, fields: Fields) -> bool:
        """Whether a thing with these fields is let through."""
        return not self._any or any(all(one.holds(fields) for one in every) for every in self._any)


def parse_filters(texts: Sequence[str], attempted: str) -> Filter:
    """Parse filters.  Raises `InvalidArgument`, which shows the place."""
    if len(texts) > MAX_FILTERS:
        raise InvalidArgument(attempted, f"there are {len(texts)} filters, and may be {MAX_FILTERS}")
    found: list[list[_Selector]] = []
    patterns = 0
    for text in texts:
        parser = _Parser(text, attempted, patterns)
        found.append(parser.parse())
        patterns = parser.patterns
    return Filter(found)


def label_field(labels: Mapping[str, str], path: Sequence[str]) -> str | None:
    """The label that the rest of a field path, behind ``labels``, means."""
    return labels.get(".".join(path))


class _Parser:
    """One filter's text."""

    def __init__(self, text: str, attempted: str, patterns: int) -> None:
        """``patterns`` is how many there were before."""
        self._text = text
        self._at = 0
        self._attempted = attempted
        self.patterns = patterns

    def parse(self) -> list[_Selector]:
        if len(self._text) > MAX_FILTER:
            raise self._wrong(f"it has {len(self._text)} characters, and may have {MAX_FILTER}")
        if not self._text:
            return []
        found = [self._selector()]
        while self._at < len(self._text):
            if self._peek() != ",":
                raise self._wrong("a comma is expected")
            self._at += 1
            found.append(self._selector())
        return found

    def _wrong(self, problem: str) -> InvalidArgument:
        before, rest = self._text[max(0, self._at - 40) : self._at], self._text[self._at : self._at + 40]
        return InvalidArgument(self._attempted, f"not a filter: {before!r} >here< {rest!r}: {problem}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        while self._peek().isspace():
            self._at += 1

    def _selector(self) -> _Selector:
        path = [self._field()]
        while self._peek() == ".":
            self._at += 1
            path.append(self._field())
        if self._peek() in ("", ","):
            return _Selector(path=tuple(path))
        self._skip_space()
        start = self._at
        while self._peek() and self._peek() in "=!~":
            self._at += 1
        operator = self._text[start : self._at]
        if operator not in ("==", "!=", "~="):
            self._at = start
            raise self._wrong("an operator (==, != or ~=) is expected")
        value = self._value(alternatives=operator == "~=")
        pattern = None
        if operator == "~=":
            self.patterns += 1
            if self.patterns > MAX_PATTERNS:
                raise self._wrong(f"there are more than {MAX_PATTERNS} patterns")
            pattern = Pattern(value, self._attempted)
        return _Selector(path=tuple(path), operator=operator, value=value, pattern=pattern)

    def _field(self) -> str:
        self._skip_space()
        if self._peek() == '"':
            return self._quoted()
        start = self._at
        while (char := self._peek()) and char.isascii() and (char.isalnum() or char in "-_"):
            self._at += 1
        if self._at == start:
            raise self._wrong("a field is expected")
        return self._text[start : self._at]

    def _value(self, *, alternatives: bool) -> str:
        self._skip_space()
        quote = self._peek()
        if quote == '"' or (alternatives and quote in ("/", "|")):
            return self._quoted()
        if quote in ("", ",", ".", "/", "|"):
            raise self._wrong("a value is expected")
        start = self._at
        while (char := self._peek()) and char != "," and not char.isspace():
            self._at += 1
        return self._text[start : self._at]

    def _quoted(self) -> str:
        quote = self._peek()
        self._at += 1
        found: list[str] = []
        while (char := self._peek()) != quote:
            if char in ("", "\n"):
                raise self._wrong("a quote that does not end")
            self._at += 1
            found.append(self._escape(quote) if char == "\\" else char)
        self._at += 1
        return "".join(found)

    def _escape(self, quote: str) -> str:
        """What Go's strings write behind a backslash; in a pattern's own quotes others are the pattern's."""
        char = self._peek()
        self._at += 1
        if char == quote:
            return quote
        if char in _SIMPLE:
            return _SIMPLE[char]
        if char not in _CODES and char not in "01234567" and quote != '"':
            return "\\" + char
        base, size = _CODES.get(char, (8, 3))
        if char not in _CODES:
            self._at -= 1
        digits = self._text[self._at : self._at + size]
        try:
            if not digits.isalnum() or len(digits) != size:
                raise ValueError
            code = chr(int(digits, base))
            code.encode()
        except (ValueError, OverflowError) as exc:
            raise self._wrong("no such escape") from exc
        self._at += size
        return code
