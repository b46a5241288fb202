"""What the sections of a report are made of: tables, and the cells in them.

HTML in, HTML out: what comes from an image has been through `orlop.explorer.page.text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orlop.explorer.page.charts import colour_of
from orlop.explorer.page.text import PATH, count_text, shown, size_text
from orlop.values import dataclass

__all__ = [
    "EMPTY",
    "NONE",
    "Cell",
    "Column",
    "Section",
    "count_cell",
    "cut_off",
    "layer_cell",
    "path_cell",
    "section",
    "size_cell",
    "table",
]

NONE = "\u2013"
_ROWS = 12  # of a list, before one asks for all


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page, and what leads to it; both are the page's own words, and no image's."""

    id: str
    link: str
    html: str


def section(name: str, heading: str, about: str, *parts: str) -> Section:
    """A section under its heading, and what it is about."""
    html = f"<section id={name}>\n<h2>{heading}</h2>\n<p>{about}</p>\n{''.join(parts)}</section>\n"
    return Section(id=name, link=name.capitalize(), html=html)


EMPTY = Section(id="", link="", html="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table; ``css`` of its cells; ``label`` stands before them where rows are stacked."""

    head: str
    css: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """Some HTML, and the number that it is sorted by."""

    html: str
    value: int | None = None


def table(
    name: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    files: bool = True,
    short: int = _ROWS,
) -> str:
    """A table; of a long one the first rows, until somebody asks for all (without the script, all)."""
    lines: list[str] = []
    for number, row in enumerate(rows):
        cells = "".join(_td(column, cell) for column, cell in zip(columns, row, strict=True))
        lines.append(f"<tr{' class=more' if number >= short else ''}>{cells}</tr>\n")
    if not lines:
        return ""
    kinds = f"stack sorts{' files' if files else ''}{' short' if len(lines) > short else ''}"
    heads = "".join(f"<th scope=col{_head_class(column)}>{column.head}</th>" for column in columns)
    html = f'<table id={name} class="{kinds}">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n'
    html += f"{''.join(lines)}</tbody>\n</table>\n"
    if len(lines) > short:
        html += f"<button type=button class=all data-for={name}>Show all {count_text(len(lines))}</button>\n"
    return html


def _head_class(column: Column) -> str:
    if column.css == "b":
        return " class=fixed"
    return " class=r" if column.css == "r" else ""


def _td(column: Column, cell: Cell) -> str:
    css = f"{column.css} nil" if cell.value == 0 and column.label else column.css
    return (
        "<td"
        + (f' class="{css}"' if css else "")
        + (f" data-v={cell.value}" if cell.value is not None else "")
        + (f' data-l="{column.label}"' if column.label else "")
        + f">{cell.html}</td>"
    )


def size_cell(size: int) -> Cell:
    """A number of bytes."""
    return Cell(size_text(size), size)


def count_cell(count: int, css: str = "") -> Cell:
    """A number of things; none is a dash, which a stacked row leaves out."""
    if not count:
        return Cell(f"<span class=none>{NONE}</span>", 0)
    text = count_text(count)
    return Cell(f"<span class={css}>{text}</span>" if css else text, count)


def path_cell(path: bytes, *, folder: bool = False) -> Cell:
    """A path of an image."""
    return Cell(f"<span class=m>/{shown(path, PATH)}{'/' if folder and path else ''}</span>")


def layer_cell(number: int, *, name: str = "here") -> Cell:
    """A layer's number and colour; ``name`` stands for a root's changes."""
    return Cell(f'<i class="sw {colour_of(number)}"></i>{number or name}', number)


def cut_off(count: int, most: int, what: str) -> str:
    """What says that a list is longer than what stands here."""
    if count <= most:
        return ""
    return f"<p class=soft>{count_text(count - most)} more {what} are left out here.</p>\n"
