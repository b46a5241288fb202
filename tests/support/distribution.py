"""The points of the distribution specification against the tests that cover each: docs/distribution.md.

A test says which points it covers with ``@pytest.mark.distribution(ID, ...)``; `support.marks` reads that.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.marks import HERE, Marks, Shown, tests_by_file

POINTS = HERE / "tests" / "data" / "distribution.toml"
PAGE = HERE / "docs" / "distribution.md"
COMMAND = "tools/distribution-table"
MARKS = Marks(name="distribution", kind=str, what="points by plain strings")
LEVELS = ("MUST", "SHOULD", "MAY")

_HEAD = f"""# The distribution specification, point by point

What [OCI distribution-spec 1.1](https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md) asks of a
client, in our words, and the tests that cover each point: against Debian's `docker-registry`, an nginx, or a registry
in memory that can be told to do what real ones rarely do. MUST, SHOULD and MAY are the specification's, also where it
says so of the registry and a client has to rely on it. † marks what was added after 1.1.

This page is made by `{COMMAND}` from the tests' own marks (`@pytest.mark.distribution(ID, ...)`); `make unit` fails
when a point has neither a test nor a reason, or the page is older than the tests. A test counts once, however many
cases it has.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point.  ``section`` is the specification's heading; ``reason`` says why there is no test."""

    id: str
    section: str
    level: str
    text: str
    reason: str = ""
    later: bool = False


def read_points(path: Path = POINTS) -> list[Point]:
    """All points, in order.  Raises `ValueError` for two of one id, and for a level that is none."""
    points = [Point(**point) for point in tomllib.loads(path.read_text())["point"]]
    ids = [point.id for point in points]
    if twice := sorted({one for one in ids if ids.count(one) > 1}):
        raise ValueError(f"{path.name}: more than once: {', '.join(twice)}")
    if odd := [point.id for point in points if point.level not in LEVELS]:
        raise ValueError(f"{path.name}: not MUST, SHOULD or MAY: {', '.join(odd)}")
    return points


def missing(points: Iterable[Point], shown: Mapping[str, list[Shown]]) -> list[str]:
    """The points that have neither a test nor a reason."""
    return [point.id for point in points if not point.reason and not shown.get(point.id)]


def excused(points: Iterable[Point], shown: Mapping[str, list[Shown]]) -> list[str]:
    """The points that have a reason and a test, so that the reason is out of date."""
    return [point.id for point in points if point.reason and shown.get(point.id)]


def unknown(points: Iterable[Point], shown: Mapping[str, list[Shown]]) -> list[str]:
    """The ids that tests name and that no point has."""
    return sorted(shown.keys() - {point.id for point in points})


def page(points: list[Point], shown: Mapping[str, list[Shown]]) -> str:
    """The text of docs/distribution.md."""
    tests = {one for found in shown.values() for one in found}
    covered = sum(1 for point in points if shown.get(point.id))
    lines = [_HEAD, f"{len(points)} points, {covered} of them covered by {len(tests)} tests."]
    section = ""
    for point in points:
        if point.section != section:
            section = point.section
            lines += ["", f"**{section}**", "", "| point | level | what | tests |"]
            lines.append("| --- | --- | --- | --- |")
        count = len(shown.get(point.id, ()))
        where = f"[{count}](#{_anchor(point.id)})" if count else point.reason or "**none**"
        later = "†" if point.later else ""
        lines.append(f"| `{point.id}`{later} | {point.level} | {point.text} | {where} |")
    for point in points:
        if found := shown.get(point.id):
            lines += ["", f"## {point.id}", "", f"{point.text[:1].upper()}{point.text[1:]}", ""]
            lines += tests_by_file(found)
    return "\n".join(lines) + "\n"


def _anchor(point: str) -> str:
    """The anchor of a heading: GitHub drops dots."""
    return point.replace(".", "")


def main() -> int:
    """Write docs/distribution.md; the exit code."""
    points, shown = read_points(), MARKS.find_tests()
    PAGE.write_text(page(points, shown))
    sys.stdout.write(f"{PAGE.relative_to(HERE)}: {len(points)} points, {len(shown)} with tests\n")
    if odd := unknown(points, shown):
        sys.stdout.write(f"tests name points that are none: {', '.join(odd)}\n")
    if without := missing(points, shown):
        sys.stdout.write(f"neither a test nor a reason: {', '.join(without)}\n")
    return 1 if odd or without else 0
