"""Texts of an image as a terminal may have them, and numbers as people read them.

No terminal, no textual: texts in, texts out.  What comes out of `shown` and `shown_text` has no character
that a terminal acts upon, that turns the order of its neighbours, or that UTF-8 does not have.
"""

from __future__ import annotations

import re

from rich.cells import cell_len, chop_cells

from orlop.quantities import size_text

__all__ = [
    "bar",
    "command_lines",
    "cut",
    "cut_front",
    "head_lines",
    "moment",
    "shown",
    "shown_text",
    "size_text",
    "title_of",
]

_EIGHTHS = " ▏▎▍▌▋▊▉"
# They make of the character before them one that terminals do not agree how wide it is.
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_SHELL = re.compile(
    r"^(?:RUN )?(?:\|\d+ (?P<args>.*?) )?/bin/(?:ba)?sh (?:-o pipefail )?-e?c ?(?P<nop>#\(nop\) *)?",
    re.DOTALL,
)
_BUILDKIT = "# buildkit"
_LONGEST = 20_000  # characters of a command that are shown
_NOTHING = {"", "/bin/sh", "/bin/bash", "sh", "bash"}
_TAB = 8
_HEX = 16  # bytes in a line


def shown(name: bytes | str) -> str:
    r"""A name on one line: what is no text, or would do something, is escaped as Python writes it.

    >>> shown(b"a\x1b[31mb\xff"), shown("x\u202ey\nz")
    ('a\\x1b[31mb\\xff', 'x\\u202ey\\nz')
    """
    text = name.decode(errors="backslashreplace") if isinstance(name, bytes) else name
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isprintable() and not _SELECTORS.match(char) else _escaped(char) for char in text
    )


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that Python could not read
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape", "surrogatepass").decode()


def shown_text(text: str) -> str:
    """A text of several lines, each as `shown` has it; tabs are spaces."""
    return "\n".join(shown(line.expandtabs(_TAB)) for line in text.replace("\r\n", "\n").split("\n"))


def cut(text: str, width: int) -> str:
    """So much of a text as fits into some cells, with … where something is missing.

    >>> cut("abcdef", 4), cut("abc", 4), cut("漢字漢字", 4)
    ('abc…', 'abc', '漢…')
    """
    if width <= 0:
        return ""
    if len(text) * 2 <= width or cell_len(text) <= width:
        return text
    if width == 1:
        return "…"
    return next(iter(chop_cells(text[: width * 4], width - 1)), "") + "…"


def cut_front(text: str, width: int) -> str:
    """The end of a text, as much of it as fits.

    >>> cut_front("/usr/lib/x", 6)
    '…lib/x'
    """
    if cell_len(text) <= width:
        return text
    kept = text[-max(width - 1, 0) :] if width > 1 else ""
    while cell_len(kept) > width - 1 and kept:
        kept = kept[1:]
    return "…" + kept if width > 0 else ""


def bar(share: float, width: int) -> str:
    """A bar of blocks; what there is of anything is seen.

    >>> bar(0.5, 4), bar(0.0, 2), bar(0.001, 2)
    ('██  ', '  ', '▏ ')
    """
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def title_of(created_by: str, comment: str = "") -> str:
    """A history line's command on one line, without what all of them have."""
    words = _plain(created_by)
    if comment and words in _NOTHING:  # what podman writes where a person worked in a shell
        words = comment
    return shown(" ".join(words.split()))


def moment(created: str) -> str:
    """An RFC 3339 time, to the second; another text as it is.

    >>> moment("2026-11-28T05:21:15.964781806Z")
    '2026-11-28 05:21:15 UTC'
    """
    pattern = r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    found = re.fullmatch(pattern, created, re.ASCII)
    if found is None:
        return shown(created)
    return f"{found[1]} {found[2]} {'UTC' if found[3] in 'Zz' else found[3]}"


def command_lines(created_by: str) -> list[str]:
    """A command for reading: the shell folded away, a line for each step of it."""
    lines: list[str] = []
    for line in _plain(created_by).split("\n"):
        whole = line.expandtabs(_TAB)
        indent = " " * (len(whole) - len(whole.lstrip(" ")))
        for at, part in enumerate(_steps(whole)):
            lines.append(indent + ("    " if at else "") + shown(part))
    return lines


def _plain(created_by: str) -> str:
    text = created_by.strip().removesuffix(_BUILDKIT).rstrip()
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + " …"
    found = _SHELL.match(text)
    if found is None:
        return text
    rest = text[found.end() :].strip()
    return rest if found["nop"] else f"RUN {rest}"


def _steps(line: str) -> list[str]:
    """A shell's line, parted before ``&&`` and ``||`` and behind ``;``, but not within quotes."""
    parts: list[str] = []
    quote, begin, at = "", 0, 0
    while at < len(line):
        char = line[at]
        if char == "\\" and quote != "'":
            at += 1
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif line.startswith((" && ", " || "), at):
            parts.append(line[begin:at].strip())
            begin = at + 1
            at += 3
        elif line.startswith("; ", at):
            parts.append(line[begin : at + 1].strip())
            begin = at + 2
        at += 1
    parts.append(line[begin:].strip())
    return [part for part in parts if part]


def head_lines(data: bytes) -> tuple[str, list[str]]:
    """The first bytes of a file for looking at: what they are, and lines of it, text or a hex dump."""
    if _is_text(data):
        return "text", shown_text(data.decode(errors="replace")).split("\n")
    return "bytes", list(_dump(data))


def _is_text(data: bytes) -> bool:
    if b"\0" in data:
        return False
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        if exc.start < len(data) - 4:  # not just cut off
            return False
    odd = sum(1 for byte in data if byte < 32 and byte not in b"\t\n\r\f\x1b")
    return odd * 50 <= len(data)


def _dump(data: bytes) -> list[str]:
    lines = []
    for at in range(0, len(data), _HEX):
        piece = data[at : at + _HEX]
        pairs = " ".join(f"{byte:02x}" for byte in piece)
        pairs = f"{pairs[:23]} {pairs[23:]}"
        text = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in piece)
        lines.append(f"{at:08x}  {pairs:<49} {text}")
    return lines
