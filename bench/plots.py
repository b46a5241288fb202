"""Draw what parts found: for each plot in FOLDER/PART.json an SVG beside it.

    python bench/plots.py FOLDER

A program of its own, for a Python that has matplotlib and need not have orlop: what is measured imports
nothing of it.  Orlop is always of one colour, other tools of others, yardsticks are grey.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.report import Result, results
from bench.section import Plot

OURS = ("#0b6e4f", "#3fa37c", "#86cbb0", "#155c8a", "#5b9bc4")  # orlop, and its ways
OTHERS = ("#c1440e", "#e08e45", "#8e3b77", "#c08bb4", "#6b4f3a", "#b39c82", "#a01a3b", "#d97a8f", "#4d4d7a")
GREY = ("#7f7f7f", "#b5b5b5")
MARKERS = "osD^vP*X"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "svg.hashsalt": "orlop",  # the same picture from the same figures
}


def draw(result: Result, plot: Plot, path: Path) -> None:
    """One plot."""
    assert result.section is not None
    yardsticks = {row.tool for row in result.section.rows if row.yardstick}
    colours = _colours(list(plot.lines), yardsticks)
    with plt.rc_context(STYLE):
        wide = max(7.5, 1.2 + 0.14 * len(plot.groups) * (len(plot.lines) + 2)) if plot.groups else 7.5
        figure, axes = plt.subplots(figsize=(wide, 4.8), layout="constrained")
        (_bars if plot.groups else _lines)(axes, plot, colours)
        axes.set_title(plot.title, pad=12)
        axes.set_xlabel(plot.x)
        axes.set_ylabel(plot.y)
        columns = min(len(plot.lines), 4 if wide > 9 else 3)
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _bars(axes: Axes, plot: Plot, colours: dict[str, str]) -> None:
    width = 0.84 / len(plot.lines)
    highest = max((y for points in plot.lines.values() for _, y in points), default=1.0)
    for number, (label, points) in enumerate(plot.lines.items()):
        shift = (number - (len(plot.lines) - 1) / 2) * width
        bars = axes.bar(
            [x + shift for x, _ in points],
            [y for _, y in points],
            width * 0.92,
            color=colours[label],
            label=label,
        )
        axes.bar_label(bars, fmt=_short, fontsize=6.5, rotation=90, padding=2)
    axes.set_xticks(range(len(plot.groups)), plot.groups)
    axes.set_xlim(-0.55, len(plot.groups) - 0.45)
    axes.set_ylim(0, highest * 1.16)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.tick_params(axis="x", length=0)


def _lines(axes: Axes, plot: Plot, colours: dict[str, str]) -> None:
    for number, (label, points) in enumerate(plot.lines.items()):
        ordered = sorted(points)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(*zip(*ordered, strict=True), marker=marker, ms=5, lw=1.8, color=colours[label], label=label)
    if plot.log:
        points = [point for line in plot.lines.values() for point in line]
        axes.set_xscale("log" if min(x for x, _ in points) > 0 else "symlog")
        lowest, highest = min(y for _, y in points), max(y for _, y in points)
        axes.set_yscale("log" if lowest > 0 else "symlog")
        if lowest > 0:  # whole tenfolds, so that what hardly grows looks so
            axes.set_ylim(10 ** math.floor(math.log10(lowest)), 10 ** math.ceil(math.log10(highest * 1.01)))
    else:
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=min(0, *axes.get_xlim()))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_tick))
        axis.set_minor_formatter(NullFormatter())


def _colours(labels: list[str], yardsticks: set[str]) -> dict[str, str]:
    palettes = {"ours": iter(OURS * 9), "others": iter(OTHERS * 9), "grey": iter(GREY * 9)}
    ours = {label for label in labels if label.partition(",")[0] == "orlop"}
    if not ours:  # then all are ways of ours, or nobody's: no need to tell them from others
        ours = set(labels[: len(OURS)]) - yardsticks
    return {
        label: next(palettes["grey" if label in yardsticks else "ours" if label in ours else "others"])
        for label in labels
    }


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _tick(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def main(folder: Path) -> None:
    for result in results(folder):
        if result.section is None:
            continue
        for plot in result.section.plots:
            lines = {label: points for label, points in plot.lines.items() if points}
            if lines:
                draw(result, replace(plot, lines=lines), folder / result.plot_file(plot))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
