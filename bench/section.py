"""What a part of the benchmark found: rows to compare, goals, lines to plot; and how they are written down.

A part is a module with ``measure(bench) -> Section``; `bench.run` calls it and writes what comes back as
Markdown, JSON and SVG.  A figure is kept once for each round: medians and ratios are taken here, within
the run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["BEST", "Bench", "Goal", "Plot", "Row", "Section", "best", "goals_table", "ratio", "rows_table"]

BEST = "best of the others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One run: its fresh disk, the images asked for (none: the part's choice), how often, if briefly."""

    disk: Path
    images: tuple[str, ...]
    rounds: int
    quick: bool
    say: Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Row:
    """What one tool took to do one thing: for each column, whose name has its unit, a figure a round.

    ``durable`` says whether the result is on the disk when the tool returns: yes, no, or - (there is none).
    """

    what: str
    tool: str
    durable: str = "-"
    figures: dict[str, list[float]] = field(default_factory=dict)
    yardstick: bool = False  # what a disk or a hash takes: stands in the table, and is nobody's base

    def add(self, **figures: float) -> None:
        """One more round.  Column names are given with _ for spaces: ``wall_s``, ``CPU_s``, ``disk_MB``."""
        for name, value in figures.items():
            self.figures.setdefault(name.replace("_", " "), []).append(value)

    def median(self, column: str) -> float:
        return statistics.median(self.figures[column])


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What was asked, and what was seen in this run: at most ``asked``, or at least with ``least``."""

    what: str
    asked: float
    seen: float
    unit: str = "ratio"
    least: bool = False

    @property
    def met(self) -> bool:
        return self.seen >= self.asked if self.least else self.seen <= self.asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Lines of points, one for each label; ``log`` axes grow tenfold.

    With ``groups`` it has bars instead: a point's x is the number of its group.
    """

    name: str
    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    log: bool = False
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part's findings.  ``ratios`` are the columns that get one, to ``base``: a tool's name, or `BEST`.

    ``words`` say what is compared with what, and stand above the table.
    """

    name: str
    title: str
    words: str
    rows: list[Row]
    base: str = ""
    ratios: tuple[str, ...] = ()
    goals: list[Goal] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def is_ours(row: Row) -> bool:
    """Whether a row is orlop's: its tool is ``orlop``, or ``orlop, SOME WAY``."""
    return row.tool.partition(",")[0] == "orlop"


def best(rows: Sequence[Row], what: str, column: str, *, base: str = BEST) -> float | None:
    """The best median of those that did the same: of ``base``, or of all others; None if there is none.

    The best is the least, or in a column per second (``lives/s``) the most.
    """
    found = [
        row.median(column)
        for row in rows
        if row.what == what
        and column in row.figures
        and not row.yardstick
        and (row.tool == base or (base == BEST and not is_ours(row)))
    ]
    return (max if column.endswith("/s") else min)(found, default=None)


def ratio(row: Row, column: str, section: Section) -> float | None:
    """A row's median beside its base's, for the same thing; None where there is none."""
    if row.yardstick:
        return None
    base = best(section.rows, row.what, column, base=section.base)
    return row.median(column) / base if base else None


def rows_table(section: Section) -> str:
    """The rows as a Markdown table; those that share no column with it are in one of their own."""
    tables: list[list[Row]] = []
    for row in section.rows:
        for rows in tables:
            if any(column in other.figures for other in rows for column in row.figures):
                rows.append(row)
                break
        else:
            tables.append([row])
    return "\n".join(_table(section, rows) for rows in tables)


def _table(section: Section, rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.figures))
    head = ["what", "tool", "durable"]
    for column in columns:
        head += [column, "ratio"] if column in section.ratios else [column]
    lines = [_line(head), _line(["---"] * 3 + ["---:"] * (len(head) - 3))]
    for row in rows:
        cells = [row.what, row.tool, row.durable]
        for column in columns:
            there = column in row.figures
            cells.append(_number(row.median(column)) if there else "")
            if column in section.ratios:
                beside = ratio(row, column, section) if there else None
                cells.append("" if beside is None else f"{beside:.2f}")
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def goals_table(goals: Sequence[Goal]) -> str:
    """The goals as a Markdown table."""
    lines = [_line(["goal", "asked", "seen", "met"]), _line(["---", "---:", "---:", "---"])]
    for goal in goals:
        sign, unit = "≥" if goal.least else "≤", "" if goal.unit == "ratio" else f" {goal.unit}"
        cells = [goal.what, f"{sign} {_number(goal.asked)}{unit}", f"{_number(goal.seen)}{unit}"]
        lines.append(_line([*cells, "yes" if goal.met else "no"]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
