"""The table of hostile inputs against the tests that show each: docs/hostile.md, made and checked.

A test says which rows it shows with ``@pytest.mark.hostile(ROW, ...)``; `support.marks` reads that.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from support.marks import HERE, Marks, Shown, tests_by_file

ROWS = HERE / "tests" / "data" / "hostile.toml"
PAGE = HERE / "docs" / "hostile.md"
COMMAND = "tools/hostile-table"
MARKS = Marks(name="hostile", kind=int, what="rows by plain numbers")

_HEAD = f"""# Hostile inputs

Each row is an input that broke a system of this kind. For every one there are tests that build it and bring it in
the way a user would: nothing outside the target is touched, nothing already stored is lost, nothing grows without
bound, and the error says what was wrong. † marks a precedent that was not read again.

This page is made by `{COMMAND}` from the tests' own marks (`@pytest.mark.hostile(ROW, ...)`); `make unit` fails when
a row has no test or the page is older than the tests. A test counts once, however many cases it has.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One hostile input."""

    number: int
    input: str
    precedent: str


def read_rows(path: Path = ROWS) -> list[Row]:
    """All rows, in order."""
    rows = [Row(**row) for row in tomllib.loads(path.read_text())["row"]]
    if [row.number for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{path.name}: the rows are not numbered one after another")
    return rows


def missing(rows: Iterable[Row], shown: dict[int, list[Shown]]) -> list[int]:
    """The numbers of the rows that no test shows."""
    return [row.number for row in rows if not shown.get(row.number)]


def unknown(rows: Iterable[Row], shown: dict[int, list[Shown]]) -> list[int]:
    """The numbers that tests name and that no row has."""
    return sorted(shown.keys() - {row.number for row in rows})


def page(rows: list[Row], shown: dict[int, list[Shown]]) -> str:
    """The text of docs/hostile.md."""
    tests = {one for found in shown.values() for one in found}
    lines = [
        _HEAD,
        f"{len(rows)} rows, {len(tests)} tests.\n",
        "| # | input | precedent | tests |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        count = len(shown.get(row.number, ()))
        where = f"[{count}](#row-{row.number})" if count else "**none**"
        lines.append(f"| {row.number} | {row.input} | {row.precedent} | {where} |")
    for row in rows:
        lines += ["", f"## Row {row.number}", "", f"{row.input[:1].upper()}{row.input[1:]}", ""]
        lines += tests_by_file(shown.get(row.number, ()))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write docs/hostile.md; the exit code."""
    rows, shown = read_rows(), MARKS.find_tests()
    PAGE.write_text(page(rows, shown))
    tests = {one for found in shown.values() for one in found}
    sys.stdout.write(f"{PAGE.relative_to(HERE)}: {len(rows)} rows, {len(tests)} tests\n")
    if without := missing(rows, shown):
        sys.stdout.write(f"no test shows: {', '.join(map(str, without))}\n")
        return 1
    return 0
