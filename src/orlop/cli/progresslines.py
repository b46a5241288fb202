"""How a line of progress reads: words, bars and widths.  No I/O, no state.

What comes from outside is made harmless first, and its width is counted in cells, as terminals do: of East
Asian wide characters each takes two.  Paint goes on last, so that no width counts it.
"""

from __future__ import annotations

import re
import unicodedata

from orlop.cli.board import FINAL, Item, Sum, is_digest
from orlop.cli.exits import one_line
from orlop.cli.output import size_text
from orlop.values import dataclass

__all__ = ["Look", "cells", "clipped", "label", "pair", "plain_busy", "plain_item", "plain_sum", "span"]

_NAME = 12  # cells for an item: as many digits as docker shows
_PHASE = 9
_PERCENT, _SIZES, _RATE, _LEFT = 4, 17, 10, 12
_BARS = (6, 28)  # cells of a bar, at least and at most
_LONG = 100 * 3600.0  # seconds left that are not worth telling
_ODD = re.compile("[^\0-\x7f━╌…]")  # characters that may take another number of cells than one
_SGR = {"bold": "1", "dim": "2", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """What stands in the columns of a line; ``share`` is how full its bar is, or None."""

    name: str
    phase: str
    share: float | None = None
    sizes: str = ""
    rate: str = ""
    left: str = ""
    more: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a terminal can show: cells in a line, characters for bars, and whether there is colour."""

    columns: int
    bar: str = "━╌"  # full and empty
    ellipsis: str = "…"
    colour: bool = False

    def paint(self, text: str, style: str) -> str:
        """The text in a style, where there is colour."""
        return f"\x1b[{_SGR[style]}m{text}\x1b[0m" if text and style and self.colour else text

    def item(self, item: Item, now: float) -> str:
        """The line of one that is under way."""
        return self._line(_cells_of(item, now), "dim" if item.waits else "", item.note)

    def sum(self, whole: Sum) -> str:
        """The line of all together."""
        return self._line(_cells_of_sum(whole), "bold", "")

    def finished(self, item: Item, more: str = "") -> str:
        """The last line of one that is finished."""
        size = item.done or item.total
        text = more or (size_text(size) if size else "")
        head = f"{_to(label(item.name), _NAME)} {item.phase:<{_PHASE}}"
        line = self.clip(f"{head} {text}".rstrip())
        shown = f" {item.phase}"
        return line.replace(shown, self.paint(shown, "green" if item.phase == "done" else "dim"), 1)

    def clip(self, text: str) -> str:
        """As much of a text as there is room for."""
        return clipped(text, self.columns, self.ellipsis)

    def _line(self, cell: _Cells, style: str, note: str) -> str:
        """Columns as far as there is room; what says least goes first.  They are the same in all lines."""
        name = clipped(cell.name, max(_NAME, self.columns - _PHASE - 1), self.ellipsis)
        head = f"{_to(name, _NAME)} {_to(cell.phase, _PHASE)}"
        room = self.columns - cells(head)
        if room < 0 or note:
            text = f"{head} {one_line(note)}".rstrip()
            return self.paint(self.clip(text), "yellow" if note else style)
        percent = "" if cell.share is None else f"{cell.share:.0%}" if cell.share < 1 else "100%"
        parts = [(_PERCENT, f"{percent:>{_PERCENT}}"), (_SIZES, f"{cell.sizes:>{_SIZES}}")]
        parts += [(_RATE, f"{cell.rate:>{_RATE}}"), (_LEFT, f"{cell.left:>{_LEFT}}")]
        tail = ""
        for width, text in parts:
            if room <= width:
                break
            tail += f" {text}"
            room -= width + 1
        bar = ""
        if len(tail) == sum(width + 1 for width, _ in parts) and room > _BARS[0]:
            width = min(room - 1, _BARS[1])
            bar = " " + self._bar(cell.share, width)
            room -= width + 1
        more = f"  {cell.more}" if cell.more and len(cell.more) + 2 <= room else ""
        text = f"{self.paint(head, style)}{bar}{tail}"
        return f"{text}{self.paint(more, 'dim')}" if more else text.rstrip()

    def _bar(self, share: float | None, width: int) -> str:
        if share is None:
            return " " * width
        full = int(share * width)
        return self.paint(self.bar[0] * full, "cyan") + self.paint(self.bar[1] * (width - full), "dim")


def _cells_of(item: Item, now: float) -> _Cells:
    name = label(item.name)
    if item.waits:
        return _Cells(name=name, phase=item.phase, sizes=size_text(item.total) if item.total else "")
    speed = item.rate(now)
    rate = f"{size_text(speed)}/s" if speed > 0 else ""
    if item.phase == "indexing":
        return _Cells(name=name, phase=item.phase, sizes=size_text(item.made), rate=rate)
    if not item.total:
        return _Cells(name=name, phase=item.phase, sizes=size_text(item.done) if item.done else "", rate=rate)
    return _Cells(
        name=name,
        phase=item.phase,
        share=min(1.0, item.done / item.total),
        sizes=pair(item.done, item.total),
        rate=rate,
        left=_left(item.total - item.done, speed),
        more=f"{size_text(item.made)} indexed" if item.made else "",
    )


def _cells_of_sum(whole: Sum) -> _Cells:
    return _Cells(
        name="total",
        phase=f"{whole.finished} of {whole.number}",
        share=min(1.0, whole.done / whole.total) if whole.total else None,
        sizes=pair(whole.done, whole.total) if whole.total else size_text(whole.done),
        rate=f"{size_text(whole.rate)}/s" if whole.rate > 0 else "",
        left=_left(whole.total - whole.done, whole.rate) if whole.total else "",
    )


def plain_item(item: Item, more: str = "") -> str:
    """A line of a log about one item, when it begins and when it is over."""
    size = size_text(item.done or item.total) if item.done or item.total else ""
    if item.phase not in FINAL and item.total:
        size = size_text(item.total) if not item.done else pair(item.done, item.total)
    words = (label(item.name), item.phase, one_line(item.note), more or size)
    return "  ".join(word for word in words if word)


def plain_busy(item: Item, now: float) -> str:
    """How one item is doing, in a few words."""
    cell = _cells_of(item, now)
    percent = "" if cell.share is None else f"{cell.share:.0%}"
    return "  ".join(
        word for word in (cell.name, cell.phase, percent, cell.sizes, cell.rate, cell.left) if word
    )


def plain_sum(whole: Sum) -> str:
    """How all together are doing."""
    cell = _cells_of_sum(whole)
    percent = "" if cell.share is None else f"{cell.share:.0%}"
    done = f"{cell.phase} done"
    return "  ".join(word for word in (cell.name, percent, cell.sizes, cell.rate, cell.left, done) if word)


def label(name: str) -> str:
    """An item as people read it: twelve digits of a digest; a name without what terminals act upon."""
    if is_digest(name):
        return name.partition(":")[2][:_NAME]
    # A byte that is no UTF-8 may be a control character of the terminal's.
    return "".join(
        f"\\x{ord(char) & 0xFF:02x}" if "\udc80" <= char <= "\udcff" else char for char in one_line(name)
    )


def pair(done: int, total: int) -> str:
    """Bytes of bytes, in the unit of all of them.

    >>> pair(8_700_000, 20_300_000), pair(5, 100), pair(2_000, 3_000_000_000)
    ('8.7 of 20.3 MB', '5 of 100 B', '0.0 of 3.0 GB')
    """
    if total < 1000:
        return f"{done} of {total} B"
    text = size_text(total)
    unit = text.rpartition(" ")[2]
    return f"{done / 1000 ** (' kMGT'.index(unit[0])):.1f} of {text}"


def span(seconds: float) -> str:
    """A length of time: minutes and seconds, with hours where there are some.

    >>> span(4.2), span(64), span(7384)
    ('0:05', '1:04', '2:03:04')
    """
    whole = -int(-seconds // 1)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _left(count: int, rate: float) -> str:
    """How long some bytes will take; nothing where nobody knows, or nobody would believe it."""
    seconds = count / rate if count > 0 and rate > 0 else 0.0
    return f"{span(seconds)} left" if 0 < seconds < _LONG else ""


def cells(text: str) -> int:
    """How many cells of a line a text takes.

    >>> cells("abc"), cells("漢字")
    (3, 4)
    """
    return len(text) if text.isascii() else len(text) + sum(_width(char) - 1 for char in _ODD.findall(text))


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clipped(text: str, columns: int, ellipsis: str = "…") -> str:
    """As much of a text as fits into so many cells."""
    if cells(text) <= columns:
        return text
    room, kept = columns - len(ellipsis), 0
    for char in text:
        room -= _width(char)
        if room < 0:
            break
        kept += 1
    return (text[:kept] + ellipsis)[: max(columns, 0)]


def _to(text: str, width: int) -> str:
    return text + " " * (width - cells(text))
