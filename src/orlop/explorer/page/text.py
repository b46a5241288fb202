"""Texts of an image as a page may have them, and numbers as people read them.

Whatever comes from an image goes through `shown` (as HTML) or `plain` (as text that is escaped later).  What
comes out has no markup of the image's own and nothing that cannot be seen: controls, marks that reorder text,
lone surrogates, bytes that are no UTF-8, spaces that are none, and piles of combining marks stand as escapes.
Its length is bounded, escapes counted.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from orlop.quantities import size_text

__all__ = ["count_text", "date_text", "percent_text", "plain", "shown", "size_text"]

PATH = 200  # characters of a path
LINE = 300  # of any other short text
_EACH = 3  # bytes of HTML that a character may become on average, before the text is cut
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # unicode.org/reports/tr44, General_Category
_MARKS = 3  # combining marks upon one another that languages need
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}


def shown(text: str | bytes, limit: int = LINE, *, lines: bool = False) -> str:
    r"""A text as HTML; with ``lines`` newlines and tabs stay.

    >>> shown(b"a<b\xff")
    'a&lt;b<i class=x>\\xff</i>'
    """
    return "".join(
        f"<i class=x>{piece}</i>" if hidden else _MARKUP.get(piece, piece)
        for piece, hidden in _bounded(text, limit, lines=lines, wrap=len("<i class=x></i>"))
    )


def plain(text: str | bytes, limit: int = LINE) -> str:
    r"""A text as one line of text, which is markup still if it is not escaped.

    >>> plain("a\u202eb")
    'a\\u{202e}b'
    """
    return "".join(piece for piece, _ in _bounded(text, limit, lines=False, wrap=0))


def _bounded(text: str | bytes, limit: int, *, lines: bool, wrap: int) -> Iterator[tuple[str, bool]]:
    """The pieces of a text of at most so many characters; of a longer one the beginning and the end.

    Escaped as HTML they have at most `_EACH` bytes for each character of the limit, and an ellipsis.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]}…{text[len(text) - limit // 3 :]}"
    left = limit * _EACH
    for piece, hidden in _pieces(text, lines=lines):
        left -= len(piece) + wrap if hidden else len(_MARKUP.get(piece, piece).encode())
        if left < 0:
            yield "…", False
            return
        yield piece, hidden


def _pieces(text: str, *, lines: bool) -> Iterator[tuple[str, bool]]:
    """The characters of a text, and whether each is an escape of what cannot be seen."""
    marks = 0
    for char in text:
        if " " <= char <= "~" or (lines and char in "\n\t"):
            marks = 0
            yield char, False
            continue
        category = unicodedata.category(char)
        marks = marks + 1 if category in {"Mn", "Me"} else 0
        if category in _HIDDEN or marks > _MARKS:
            yield _escape(char), True
        else:
            yield char, False


def _escape(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no UTF-8 (PEP 383)
        return f"\\x{number - 0xDC00:02x}"
    if char in _SHORT:
        return _SHORT[char]
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{{{number:x}}}"


# ------------------------------------------------------------------ numbers


def count_text(count: int) -> str:
    """A number of things.

    >>> count_text(24821)
    '24,821'
    """
    return f"{count:,}"


def percent_text(part: float, whole: float) -> str:
    """A share; a small one is not said to be none.

    >>> percent_text(1, 3), percent_text(1, 10**6), percent_text(0, 0)
    ('33.3 %', '< 0.1 %', '0 %')
    """
    if not part or not whole:
        return "0 %"
    share = 100 * part / whole
    return "< 0.1 %" if share < 0.1 else f"{share:.1f} %"


def date_text(moment: str) -> str:
    """The day and the minute of a time as images have it (RFC 3339); of anything else what stands there.

    >>> date_text("2024-05-01T12:34:56.789Z")
    '2024-05-01 12:34'
    """
    day, mark, time = moment[:16].partition("T")
    return f"{day} {time}" if mark and len(day) == 10 else moment[:40]
