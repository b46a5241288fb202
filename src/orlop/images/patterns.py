"""Regular expressions of strangers, matched in time linear in the text.

The syntax is that of Go's ``regexp`` (RE2), which containerd's clients write; Python's own engine is not used
for them, because it tracks back: a short pattern could hold a thread, and the interpreter, for hours.
A pattern becomes a machine of states, and a text is read once, with the set of the states it may be in.

Not here: groups' contents (a match is yes or no), Unicode's classes, single bytes.
Invariant: a machine has at most `MAX_STATES` states, so a text costs that many steps a character at most.
"""

from __future__ import annotations

from collections.abc import Callable

from orlop.errors import InvalidArgument
from orlop.values import dataclass, field

__all__ = ["Pattern"]

MAX_PATTERN = 1_024  # characters
MAX_STATES = 2_000
MAX_REPEAT = 1_000  # of one part, as in RE2
_MAX_DEPTH = 50  # of parentheses

_DIGITS = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = ((9, 10), (12, 13), (32, 32))
_PERL = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_POSIX = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": _DIGITS,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": _WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
_LAST = 0x10FFFF
_CONTROLS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}

_Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chars:
    """A set of characters; ``fold`` takes both cases of a letter for one."""

    ranges: _Ranges
    fold: bool = False

    def has(self, char: str) -> bool:
        forms = (char, char.lower(), char.upper()) if self.fold else (char,)
        for form in forms:
            code = ord(form) if len(form) == 1 else -1
            for first, last in self.ranges:
                if first <= code <= last:
                    return True
        return False


@dataclass(slots=True, kw_only=True)
class _State:
    """One state: it takes a character, or stands where something holds, or goes on for nothing."""

    chars: _Chars | None = None
    where: str = ""
    out: list[int] = field(default_factory=list)


class Pattern:
    """One pattern.  Thread-safe.

    >>> Pattern("^sha256:(00|ff)", "list").search("sha256:ff12")
    True
    >>> Pattern("(a+)+$", "list").search("a" * 5000 + "b")
    False
    """

    __slots__ = ("_start", "_states")

    def __init__(self, text: str, attempted: str) -> None:
        """Raises `InvalidArgument` for what is no pattern of that syntax, or makes too large a machine."""
        self._states: list[_State] = []
        tree = _Parser(text, attempted).parse()
        accept = self._add(_State(), attempted)
        self._start = tree(lambda state: self._add(state, attempted), accept)

    def _add(self, state: _State, attempted: str) -> int:
        if len(self._states) >= MAX_STATES:
            raise InvalidArgument(attempted, f"the pattern is too large: more than {MAX_STATES} states")
        self._states.append(state)
        return len(self._states) - 1

    def search(self, text: str) -> bool:
        """Whether the pattern is found anywhere in a text."""
        live: set[int] = set()
        for at in range(len(text) + 1):
            live.add(self._start)
            reached = self._closure(live, text, at)
            if 0 in reached:
                return True
            if at == len(text):
                return False
            char = text[at]
            live = set()
            for number in reached:
                state = self._states[number]
                if state.chars is not None and state.chars.has(char):
                    live.update(state.out)
        return False

    def _closure(self, live: set[int], text: str, at: int) -> set[int]:
        """All that is reached without a character; state 0 accepts."""
        found = set(live)
        waiting = list(live)
        while waiting:
            state = self._states[waiting.pop()]
            if state.chars is None and (not state.where or _holds(state.where, text, at)):
                new = [number for number in state.out if number not in found]
                found.update(new)
                waiting += new
        return found


def _holds(where: str, text: str, at: int) -> bool:
    if where == "begin":
        return at == 0
    if where == "end":
        return at == len(text)
    if where == "line begin":
        return at == 0 or text[at - 1] == "\n"
    if where == "line end":
        return at == len(text) or text[at] == "\n"
    before = at > 0 and _is_word(text[at - 1])
    behind = at < len(text) and _is_word(text[at])
    return (before != behind) is (where == "word edge")


def _is_word(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _WORD)


# A part of a pattern builds its states in front of the one that follows it, and says which is its first.
_Add = Callable[[_State], int]
_Part = Callable[[_Add, int], int]


def _single(state: Callable[[], _State]) -> _Part:
    def build(add: _Add, following: int) -> int:
        new = state()
        new.out = [following]
        return add(new)

    return build


def _sequence(parts: list[_Part]) -> _Part:
    def build(add: _Add, following: int) -> int:
        for part in reversed(parts):
            following = part(add, following)
        return following

    return build


def _either(parts: list[_Part]) -> _Part:
    if len(parts) == 1:
        return parts[0]
    return lambda add, following: add(_State(out=[part(add, following) for part in parts]))


def _repeated(part: _Part, least: int, most: int | None) -> _Part:
    def build(add: _Add, following: int) -> int:
        if most is None:
            loop = _State()
            number = add(loop)
            loop.out = [part(add, number), following]
            first = number
        else:
            first = following
            for _ in range(most - least):
                first = add(_State(out=[part(add, first), following]))
        for _ in range(least):
            before, first = first, part(add, first)
            if first == before:  # of nothing: nested counts of it would never end, and no state bounds them
                break
        return first

    return build


@dataclass(slots=True, kw_only=True)
class _Flags:
    fold: bool = False
    lines: bool = False
    dot_all: bool = False


class _Parser:
    def __init__(self, text: str, attempted: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._attempted = attempted
        self._flags = _Flags()

    def parse(self) -> _Part:
        if len(self._text) > MAX_PATTERN:
            raise self._wrong(f"it has {len(self._text)} characters, and may have {MAX_PATTERN}")
        part = self._alternatives()
        if self._at < len(self._text):
            raise self._wrong("an unexpected )")
        return part

    def _wrong(self, problem: str) -> InvalidArgument:
        return InvalidArgument(self._attempted, f"not a pattern: {self._text[:80]!r}: {problem}")

    def _peek(self, size: int = 1) -> str:
        return self._text[self._at : self._at + size]

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise self._wrong("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _took(self, expected: str) -> bool:
        if self._text.startswith(expected, self._at):
            self._at += len(expected)
            return True
        return False

    def _alternatives(self) -> _Part:
        parts = [self._concatenation()]
        while self._took("|"):
            parts.append(self._concatenation())
        return _either(parts)

    def _concatenation(self) -> _Part:
        parts: list[_Part] = []
        while self._at < len(self._text) and self._peek() not in ("|", ")"):
            if self._took("\\Q"):
                end = self._text.find("\\E", self._at)
                end = len(self._text) if end < 0 else end
                quoted = [self._literal(ord(char)) for char in self._text[self._at : end]]
                self._at = min(end + 2, len(self._text))
                parts += quoted[:-1]
                if not quoted:
                    continue
                part = quoted[-1]
            else:
                part = self._atom()
            parts.append(self._repeats(part))
        return _sequence(parts)

    def _repeats(self, part: _Part) -> _Part:
        bounds = self._bounds()
        if bounds is None:
            return part
        self._took("?")  # as little as will do, or as much: of no interest for yes or no
        if self._bounds() is not None:
            raise self._wrong("a repetition is repeated")
        return _repeated(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for mark, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._took(mark):
                return bounds
        if self._peek() != "{":
            return None
        end = self._text.find("}", self._at)
        least, comma, most = self._text[self._at + 1 : max(end, self._at + 1)].partition(",")
        if end < 0 or not _is_number(least) or (most and not _is_number(most)):
            return None  # it means itself
        self._at = end + 1
        low, high = int(least), int(most) if most else (None if comma else int(least))
        if low > MAX_REPEAT or (high is not None and not low <= high <= MAX_REPEAT):
            raise self._wrong("a repetition count that cannot be")
        return low, high

    def _atom(self) -> _Part:
        char = self._take()
        flags = self._flags
        if char == "(":
            return self._group()
        if char == "[":
            return self._chars(self._brackets())
        if char == ".":
            return self._chars(((0, _LAST),) if flags.dot_all else ((0, 9), (11, _LAST)))
        if char == "^":
            return self._place("line begin" if flags.lines else "begin")
        if char == "$":
            return self._place("line end" if flags.lines else "end")
        if char in "*+?":
            raise self._wrong("a repetition of nothing")
        if char != "\\":
            return self._literal(ord(char))
        places = {"A": "begin", "z": "end", "b": "word edge", "B": "no word edge"}
        if self._peek() in places:
            return self._place(places[self._take()])
        ranges = self._perl_class()
        return self._chars(ranges) if ranges is not None else self._literal(self._escaped())

    def _place(self, where: str) -> _Part:
        return _single(lambda: _State(where=where))

    def _literal(self, code: int) -> _Part:
        return self._chars(((code, code),))

    def _chars(self, ranges: _Ranges) -> _Part:
        chars = _Chars(ranges=ranges, fold=self._flags.fold)
        return _single(lambda: _State(chars=chars))

    def _group(self) -> _Part:
        before = self._flags
        if self._took("?"):
            if self._took("P<") or self._took("<"):
                name, closed, _ = self._text[self._at :].partition(">")
                if not closed or not name.isidentifier():
                    raise self._wrong("a group's name that is none")
                self._at += len(name) + 1
            elif not self._flagged():
                return _sequence([])  # for the rest of the group around it
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._wrong(f"groups are nested deeper than {_MAX_DEPTH}")
        part = self._alternatives()
        if not self._took(")"):
            raise self._wrong("a missing )")
        self._depth -= 1
        self._flags = before
        return part

    def _flagged(self) -> bool:
        """Flags behind ``(?``; whether a group follows."""
        flags = _Flags(fold=self._flags.fold, lines=self._flags.lines, dot_all=self._flags.dot_all)
        on = True
        while (char := self._take()) not in ":)":
            if char == "-" and on:
                on = False
            elif char == "i":
                flags.fold = on
            elif char == "m":
                flags.lines = on
            elif char == "s":
                flags.dot_all = on
            elif char != "U":
                raise self._wrong(f"no flag: {char!r}")
        self._flags = flags
        return char == ":"

    def _perl_class(self) -> _Ranges | None:
        letter = self._peek()
        if letter and letter.lower() in _PERL:
            self._at += 1
            ranges = _PERL[letter.lower()]
            return ranges if letter.islower() else _inverted(ranges)
        return None

    def _escaped(self) -> int:
        char = self._take()
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "x":
            if self._took("{"):
                digits, closed, _ = self._text[self._at :].partition("}")
                self._at += len(digits) + len(closed)
            else:
                digits, closed = self._peek(2), "}" if len(self._peek(2)) == 2 else ""
                self._at += len(digits)
            if not closed or not digits or not all(one in "0123456789abcdefABCDEF" for one in digits):
                raise self._wrong("a \\x without its digits")
            code = int(digits, 16)
            if code > _LAST:
                raise self._wrong("a \\x beyond all characters")
            return code
        octal = "01234567"
        if char == "0" or (char in octal and self._peek() and self._peek() in octal):
            digits = char
            while len(digits) < 3 and self._peek() and self._peek() in octal:
                digits += self._take()
            return int(digits, 8)
        if char.isascii() and not char.isalnum():
            return ord(char)
        raise self._wrong(f"no escape: \\{char}")

    def _brackets(self) -> _Ranges:
        negated = self._took("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not self._took("]"):
            first = False
            if self._took("[:"):
                name, closed, _ = self._text[self._at :].partition(":]")
                wanted = name.removeprefix("^")
                if not closed or wanted not in _POSIX:
                    raise self._wrong("no class of characters")
                self._at += len(name) + 2
                ranges += _inverted(_POSIX[wanted]) if name.startswith("^") else _POSIX[wanted]
                continue
            char = self._take()
            if char == "\\" and (perl := self._perl_class()) is not None:
                ranges += perl
                continue
            low = high = self._escaped() if char == "\\" else ord(char)
            if self._peek() == "-" and self._peek(2)[1:] not in ("", "]"):
                self._at += 1
                char = self._take()
                high = self._escaped() if char == "\\" else ord(char)
                if high < low:
                    raise self._wrong("a range that ends before it begins")
            ranges.append((low, high))
        return _inverted(tuple(ranges)) if negated else tuple(ranges)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 9


def _inverted(ranges: _Ranges) -> _Ranges:
    found = []
    at = 0
    for first, last in sorted(ranges):
        if at < first:
            found.append((at, first - 1))
        at = max(at, last + 1)
    if at <= _LAST:
        found.append((at, _LAST))
    return tuple(found)
