"""The table of hostile inputs against the tests that show each: docs/hostile.md, made and checked.

A test says which rows it shows with ``@pytest.mark.hostile(ROW, ...)``, on itself, its class or its module
(``pytestmark``), or on one of its cases.  The marks are read from the files' syntax, so nothing is imported
and nothing runs; a mark that stands where this does not look is an error, not a test less.
"""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
ROWS = HERE / "tests" / "data" / "hostile.toml"
PAGE = HERE / "docs" / "hostile.md"
COMMAND = "tools/hostile-table"

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


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shown:
    """A test that shows a row; ``file`` is relative to the project."""

    file: str
    test: str


def read_rows(path: Path = ROWS) -> list[Row]:
    """All rows, in order."""
    rows = [Row(**row) for row in tomllib.loads(path.read_text())["row"]]
    if [row.number for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError(f"{path.name}: the rows are not numbered one after another")
    return rows


def find_tests(folder: Path = HERE / "tests") -> dict[int, list[Shown]]:
    """The tests that show each row, by the row's number, in the order of files and tests."""
    found: dict[int, list[Shown]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        name = os.fspath(path.relative_to(folder.parent))
        for test, numbers in marks_of(path.read_text(), name):
            for number in numbers:
                found.setdefault(number, []).append(Shown(file=name, test=test))
    return found


def marks_of(source: str, name: str) -> list[tuple[str, list[int]]]:
    """The tests of one file that show rows, and which.  Raises `ValueError` for a mark that fits no test."""
    if "hostile" not in source:
        return []
    module = ast.parse(source, name)
    seen: set[ast.Call] = set()
    found: list[tuple[str, list[int]]] = []
    _collect(module.body, [*_pytestmark(module.body)], "", seen, found, name)
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and _is_mark(node) and node not in seen:
            raise ValueError(f"{name}:{node.lineno}: a hostile mark that belongs to no test")
    return found


def _collect(
    body: Iterable[ast.stmt],
    inherited: list[ast.Call],
    prefix: str,
    seen: set[ast.Call],
    found: list[tuple[str, list[int]]],
    name: str,
) -> None:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            own = [*inherited, *_marks_in(node.decorator_list), *_pytestmark(node.body)]
            _collect(node.body, own, f"{node.name}.", seen, found, name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            marks = [*inherited, *_marks_in(node.decorator_list)]
            seen.update(marks)
            if numbers := sorted({number for mark in marks for number in _numbers(mark, name)}):
                found.append((prefix + node.name, numbers))


def _pytestmark(body: Iterable[ast.stmt]) -> Iterator[ast.Call]:
    for node in body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
        ):
            yield from _marks_in([node.value])


def _marks_in(expressions: Iterable[ast.expr]) -> Iterator[ast.Call]:
    for expression in expressions:
        for node in ast.walk(expression):
            if isinstance(node, ast.Call) and _is_mark(node):
                yield node


def _is_mark(call: ast.Call) -> bool:
    func = call.func
    return (
        isinstance(func, ast.Attribute)
        and func.attr == "hostile"
        and ast.unparse(func.value).endswith("mark")
    )


def _numbers(mark: ast.Call, name: str) -> list[int]:
    numbers = [node.value for node in mark.args if isinstance(node, ast.Constant) and type(node.value) is int]
    if mark.keywords or not numbers or len(numbers) != len(mark.args):
        raise ValueError(f"{name}:{mark.lineno}: a hostile mark names its rows by plain numbers")
    return numbers


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
        by_file: dict[str, list[str]] = {}
        for one in shown.get(row.number, ()):
            by_file.setdefault(one.file, []).append(one.test)
        for file, names in by_file.items():
            lines.append(f"- [{file}](../{file})")
            lines += [f"  - {_words(name)}" for name in names]
    return "\n".join(lines) + "\n"


def _words(test: str) -> str:
    """A test's name as the property that it is."""
    head, dot, name = test.rpartition(".")
    return head + dot + name.removeprefix("test_").replace("_", " ")


def main() -> int:
    """Write docs/hostile.md; the exit code."""
    rows, shown = read_rows(), find_tests()
    PAGE.write_text(page(rows, shown))
    tests = {one for found in shown.values() for one in found}
    sys.stdout.write(f"{PAGE.relative_to(HERE)}: {len(rows)} rows, {len(tests)} tests\n")
    if without := missing(rows, shown):
        sys.stdout.write(f"no test shows: {', '.join(map(str, without))}\n")
        return 1
    return 0
