"""Tables as text: aligned, and on a terminal as wide as that.

Where it is narrow, columns that can be spared are left out, and then the least important cells shortened.
Cells are harmless already (`orlop.cli.exits.one_line`).  Where nobody looks at a terminal, a table is whole:
programs read it.  The first column is what a line is about, so it is the last to be shortened; a last
column of sentences takes further lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["fitted", "laid_out", "shortened", "text_width"]

GAP = "  "
_LEAST = 8  # columns that a cell keeps, if it has them: less says nothing
_ALONE = 24  # that the first column keeps for as long as another can give

_SENTENCES = {"WHAT IT DOES", "FOR", "REASON"}
_WHOLE = {"ID", "DIFF ID", "DIGEST", "SIZE"}  # a part of these says little
_SPARED = ("LAYERS", "PLATFORM", "ENTRIES")  # left out, in this order, before names and times are shortened

Paint = Callable[[str, str], str]

# What the words of a state mean for whoever reads them, by the column's title.
_STATES: dict[str, dict[str, str]] = {
    "STATE": {"ready": "green", "unmounted": "yellow", "unfinished": "yellow", "missing": "red"},
    "MOUNTED": {"yes": "green", "no, path gone": "red"},
    "WORKS": {"yes": "green", "no": "yellow"},
    "KIND": {"damage": "red", "leftover": "yellow", "warning": "yellow"},
}


def laid_out(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    paint: Paint | None = None,
) -> str:
    """The table.  ``width`` is the terminal's, None for what it takes; ``paint`` takes text and style."""
    if width is not None:
        titles, rows = _spared(titles, rows, width)
    lines = [list(titles), *map(list, rows)]
    wide = [max(text_width(line[place]) for line in lines) for place in range(len(titles))]
    filled = False
    if width is not None:
        whole = [place for place, title in enumerate(titles) if title in _WHOLE]
        filled = titles[-1] in _SENTENCES
        if filled:  # it has what the others leave, and a third at least
            wide = fitted(wide[:-1], width - min(wide[-1], width // 3) - len(GAP), whole)
            wide.append(max(_LEAST, width - sum(wide) - len(GAP) * len(wide)))
        else:
            wide = fitted(wide, width, whole)
    out = []
    for number, line in enumerate(lines):
        more: list[str] = []
        if filled:
            line[-1], *more = _lines(line[-1], wide[-1])
        cells = [shortened(cell, most) for cell, most in zip(line, wide, strict=True)]
        pads = [" " * (most - text_width(cell)) for cell, most in zip(cells, wide, strict=True)]
        while pads and not cells[-1]:  # no white space at the end of a line
            cells.pop()
            pads.pop()
        if pads:
            pads[-1] = ""
        if paint is not None:
            cells = [
                paint(cell, "bold") if number == 0 else _state(cell, title, paint)
                for cell, title in zip(cells, titles, strict=False)
            ]
        out.append(GAP.join(cell + pad for cell, pad in zip(cells, pads, strict=True)).rstrip() + "\n")
        out += [" " * (sum(wide[:-1]) + len(GAP) * (len(wide) - 1)) + text + "\n" for text in more]
    return "".join(out)


def _spared(
    titles: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The table without columns that it can do without, where all of them do not fit."""
    for title in _SPARED:
        wide = [
            max(map(text_width, (name, *(row[place] for row in rows)))) for place, name in enumerate(titles)
        ]
        if title not in titles or sum(wide) + len(GAP) * (len(wide) - 1) <= width:
            continue
        left_out = titles.index(title)
        titles = [*titles[:left_out], *titles[left_out + 1 :]]
        rows = [[*row[:left_out], *row[left_out + 1 :]] for row in rows]
    return titles, rows


def _lines(text: str, most: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, most) or [""]


def _state(cell: str, title: str, paint: Paint) -> str:
    style = _STATES.get(title, {}).get(cell)
    return paint(cell, style) if style else cell


def fitted(wide: Sequence[int], width: int, whole: Sequence[int] = ()) -> list[int]:
    """The columns' widths, so that a line fits where it can.

    The widest gives first, those at the places ``whole`` when the others cannot; the first column gives only
    what is more than a name takes, until no other can give.

    >>> fitted([20, 12, 60], 60)
    [20, 12, 24]
    """
    found = [min(each, width) for each in wide]  # what is longer by a million is no more work
    least = [min(each, _LEAST) for each in wide]
    name = [min(each, max(_ALONE, width // 2)) for each in wide[:1]]
    kept = [each if place in whole else least[place] for place, each in enumerate(wide)]
    floors = ([*wide[:1], *kept[1:]], [*name, *kept[1:]], [*name, *least[1:]], least)
    room = width - len(GAP) * (len(wide) - 1)
    for floor in floors:
        while sum(found) > room:
            place = max(range(len(found)), key=lambda at: (found[at] > floor[at], found[at]))
            if found[place] <= floor[place]:
                break
            found[place] -= 1
    return found


def shortened(text: str, most: int) -> str:
    """A text in so many columns, its end an ellipsis where there was more."""
    if text_width(text) <= most:
        return text
    kept, used = [], 0
    for char in text:
        used += text_width(char)
        if used > most - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"


def text_width(text: str) -> int:
    """How many columns of a terminal a text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 1 + (east_asian_width(char) in "WF") for char in text)
