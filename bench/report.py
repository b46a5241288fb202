"""What is written of a part: PART.json, from which PART.md and README.md, the index of all parts, are made.

README.md lists every part that the folder has a result of, also from an earlier run, with what each run was
like: ratios and goals are of one run each, so they may stand side by side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.parts import PARTS
from bench.section import Goal, Plot, Row, Section, goals_table, rows_table

__all__ = ["Result", "read", "results", "write", "write_index"]

INDEX = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A part's findings, or why there are none; and the run it was."""

    name: str
    about: Mapping[str, Any]
    section: Section | None = None
    failure: str = ""

    def plot_file(self, plot: Plot) -> str:
        """Below the folder of the results."""
        return f"{self.name}-{plot.name.removeprefix(f'{self.name}-')}.svg"


def write(out: Path, result: Result) -> None:
    """PART.json and PART.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{result.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    (out / f"{result.name}.md").write_text(page(out, result))


def read(path: Path) -> Result:
    """What `write` wrote."""
    value = json.loads(path.read_text())
    section = value.pop("section")
    if section is not None:
        section["rows"] = [Row(**row) for row in section["rows"]]
        section["goals"] = [Goal(**goal) for goal in section["goals"]]
        section["plots"] = [_plot(plot) for plot in section["plots"]]
        section["ratios"] = tuple(section["ratios"])
        section = Section(**section)
    return Result(section=section, **value)


def _plot(value: dict[str, Any]) -> Plot:
    lines = {label: [(x, y) for x, y in points] for label, points in value.pop("lines").items()}
    return Plot(lines=lines, groups=tuple(value.pop("groups", ())), **value)


def page(out: Path, result: Result) -> str:
    """A part as Markdown."""
    section = result.section
    if section is None:
        return f"# {result.name}\n\nFailed:\n\n```\n{result.failure}\n```\n\n{_about(result.about)}"
    text = f"# {section.title}\n\n{section.words.strip()}\n\n"
    if section.ratios:
        text += f"Ratios are to {section.base}, of the same run.\n\n"
    text += rows_table(section)
    if section.goals:
        text += f"\n{goals_table(section.goals)}"
    for plot in section.plots:
        if (out / result.plot_file(plot)).exists():
            text += f"\n![{plot.title}]({result.plot_file(plot)})\n"
    return f"{text}\n{_about(result.about)}"


def write_index(out: Path) -> None:
    """README.md, and each page anew: its plots may be there only now."""
    found = list(results(out))
    for result in found:
        (out / f"{result.name}.md").write_text(page(out, result))
    (out / INDEX).write_text(index(found))


def index(results: list[Result]) -> str:
    """All parts and all goals as Markdown."""
    text = "# Benchmark\n\nAbsolute times mean nothing outside their run: read the ratios.\n\n"
    text += "| part | goals met | took s | run |\n| --- | --- | ---: | --- |\n"
    for result in results:
        took = f"{result.about.get('took_s', 0):.0f}"
        if result.section is None:
            said = (
                f"FAILED: {result.failure.strip().splitlines()[-1]}" if result.failure.strip() else "FAILED"
            )
            title = PARTS[result.name].what
        else:
            goals = result.section.goals
            said = f"{sum(goal.met for goal in goals)} of {len(goals)}" if goals else "-"
            title = result.section.title
        run = f"{result.about.get('at', '')}{', QUICK' if result.about.get('quick') else ''}"
        text += f"| [{title}]({result.name}.md) | {said.replace('|', '/')} | {took} | {run} |\n"
    sections = [result.section for result in results if result.section is not None and result.section.goals]
    if sections:
        goals = [goal for section in sections for goal in section.goals]
        text += f"\n## Goals\n\n{sum(goal.met for goal in goals)} of {len(goals)} are met.\n"
    for section in sections:
        text += f"\n### {section.title}\n\n{goals_table(section.goals)}"
    text += "\n## The runs\n\n"
    for about in _runs(results):
        text += f"{_about(about.common)}\n{about.table()}\n"
    return text


@dataclass(slots=True)
class _Run:
    """What the parts of one run have in common, and what each has of its own."""

    common: dict[str, Any]
    parts: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def table(self) -> str:
        text = "| part | noise before, after ms | disk before, after MB/s | load before, after |\n"
        text += "| --- | --- | --- | --- |\n"
        for name, about in self.parts:
            cells = (", ".join(f"{x:g}" for x in about.get(key, ())) for key in OF_A_PART)
            text += f"| {name} | {' | '.join(cells)} |\n"
        return text


OF_A_PART = ("noise_ms", "disk_MB_s", "load")
_LEFT_OUT = (*OF_A_PART, "took_s")


def _runs(results: list[Result]) -> list[_Run]:
    runs: list[_Run] = []
    for result in results:
        common = {key: value for key, value in result.about.items() if key not in _LEFT_OUT}
        run = next((run for run in runs if run.common == common), None)
        if run is None:
            run = _Run(common)
            runs.append(run)
        run.parts.append((result.name, result.about))
    return runs


def results(out: Path) -> Iterator[Result]:
    for name in PARTS:
        path = out / f"{name}.json"
        if path.exists() and "section" in json.loads(path.read_text()):  # else an older benchmark wrote it
            yield read(path)


def _about(about: Mapping[str, Any]) -> str:
    lines = []
    for key, value in about.items():
        if isinstance(value, Mapping):
            lines += [f"- {name}: {each}" for name, each in value.items()]
        else:
            said = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"- {key.replace('_', ' ')}: {said}")
    return "\n".join(lines) + "\n"
