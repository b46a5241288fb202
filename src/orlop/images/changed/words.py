"""Words of a Dockerfile's instructions: quotes, escapes, and variables of the image's environment.

What the builder does of a line once it is read (docs.docker.com/reference/dockerfile, "Environment
replacement" and "Escape"): words end at white space outside of quotes; a backslash takes the meaning from
what follows it, within double quotes only from ``"``, ``$`` and itself, within single quotes from nothing;
``$NAME``, ``${NAME}``, ``${NAME:-word}`` and ``${NAME:+word}`` are replaced outside of single quotes.
A variable that is not set is empty.

No I/O, no shell, no globs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orlop.errors import InvalidArgument

__all__ = ["expand", "split_words"]

_SPACE = " \t\r\n\v\f"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#]"
_IN_DOUBLE = '"$\\'
_MAX_DEPTH = 50  # of ${A:-${B:-...}}


def split_words(text: str, attempted: str) -> list[str]:
    """The words of a line, with their quotes and escapes still in them.

    >>> split_words("a='b c' d", "split")
    ["a='b c'", 'd']
    """
    words: list[str] = []
    word, quote, at = "", "", 0
    begun = False
    while at < len(text):
        char = text[at]
        if not quote and char in _SPACE:
            if begun:
                words.append(word)
            word, begun = "", False
        else:
            begun = True
            word += char
            if char == "\\" and quote != "'" and at + 1 < len(text):
                at += 1
                word += text[at]
            elif char == quote:
                quote = ""
            elif not quote and char in "'\"":
                quote = char
        at += 1
    if quote:
        raise InvalidArgument(attempted, f"a quotation mark {quote} has no partner")
    if begun:
        words.append(word)
    return words


def expand(text: str, env: Mapping[str, str], attempted: str) -> str:
    r"""A text without its quotes and escapes, variables replaced.

    >>> expand(r'"$A b"\$A', {"A": "1"}, "expand")
    '1 b$A'
    """
    return _Reader(text, env, attempted).text("", 0)


class _Reader:
    """One text, read once from left to right."""

    def __init__(self, text: str, env: Mapping[str, str], attempted: str) -> None:
        self._text = text
        self._env = env
        self._attempted = attempted
        self._at = 0

    def text(self, end: str, depth: int) -> str:
        """All up to ``end`` (which is passed over), or to the end of everything."""
        if depth > _MAX_DEPTH:
            raise InvalidArgument(self._attempted, f"variables stand more than {_MAX_DEPTH} deep")
        out: list[str] = []
        quote = ""
        while self._at < len(self._text):
            char = self._text[self._at]
            self._at += 1
            if quote == "'":
                if char == "'":
                    quote = ""
                else:
                    out.append(char)
            elif char == end and not quote:
                return "".join(out)
            elif char == "\\":
                out.append(self._escaped(quote))
            elif char == quote:
                quote = ""
            elif char in "'\"" and not quote:
                quote = char
            elif char == "$":
                out.append(self._variable(depth))
            else:
                out.append(char)
        if quote:
            raise InvalidArgument(self._attempted, f"a quotation mark {quote} has no partner")
        if end:
            raise InvalidArgument(self._attempted, "a '${' has no '}'")
        return "".join(out)

    def _escaped(self, quote: str) -> str:
        if self._at == len(self._text):
            return "\\"
        char = self._text[self._at]
        self._at += 1
        return "\\" + char if quote and char not in _IN_DOUBLE else char

    def _variable(self, depth: int) -> str:
        if self._text[self._at : self._at + 1] != "{":
            name = self._name()
            return self._env.get(name, "") if name else "$"
        self._at += 1
        name = self._name()
        if not name:
            raise InvalidArgument(self._attempted, "a '${' without a variable's name")
        if self._text[self._at : self._at + 1] == "}":
            self._at += 1
            return self._env.get(name, "")
        kind = re.compile(":?[-+?]").match(self._text, self._at)
        if kind is None or "?" in kind[0]:
            raise InvalidArgument(
                self._attempted, f"${{{name}... is none of ${{{name}}}, ${{{name}:-word}}, ${{{name}:+word}}"
            )
        self._at += len(kind[0])
        word = self.text("}", depth + 1)
        value = self._env.get(name)
        there = bool(value) if ":" in kind[0] else value is not None
        if "+" in kind[0]:
            return word if there else ""
        return value or "" if there else word

    def _name(self) -> str:
        found = re.compile(_NAME).match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]
