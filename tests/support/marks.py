"""Marks of tests, read from the files' syntax: which test says what of itself with ``@pytest.mark.NAME(...)``.

A mark stands on a test, its class or its module (``pytestmark``), or on one of a test's cases.  Nothing is
imported and nothing runs; a mark that stands where this does not look is an error, not a test less.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

HERE = Path(__file__).resolve().parents[2]

T = TypeVar("T", int, str)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Shown:
    """A test that carries a mark; ``file`` is relative to the project."""

    file: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks(Generic[T]):
    """The marks of one name.  ``kind`` is the type of their arguments, ``what`` its name for people."""

    name: str
    kind: type[T]
    what: str

    def find_tests(self, folder: Path = HERE / "tests") -> dict[T, list[Shown]]:
        """The tests that name each argument, in the order of files and tests."""
        found: dict[T, list[Shown]] = {}
        for path in sorted(folder.rglob("test_*.py")):
            name = os.fspath(path.relative_to(folder.parent))
            for test, arguments in self.marks_of(path.read_text(), name):
                for argument in arguments:
                    found.setdefault(argument, []).append(Shown(file=name, test=test))
        return found

    def marks_of(self, source: str, name: str) -> list[tuple[str, list[T]]]:
        """The marked tests of one file, and their arguments.  Raises `ValueError` for a mark that fits no test."""
        if f".{self.name}" not in source:
            return []
        module = ast.parse(source, name)
        seen: set[ast.Call] = set()
        found: list[tuple[str, list[T]]] = []
        self._collect(module.body, [*self._pytestmark(module.body)], "", seen, found, name)
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and self._is_mark(node) and node not in seen:
                raise ValueError(f"{name}:{node.lineno}: a {self.name} mark that belongs to no test")
        return found

    def _collect(
        self,
        body: Iterable[ast.stmt],
        inherited: list[ast.Call],
        prefix: str,
        seen: set[ast.Call],
        found: list[tuple[str, list[T]]],
        name: str,
    ) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                own = [*inherited, *self._marks_in(node.decorator_list), *self._pytestmark(node.body)]
                self._collect(node.body, own, f"{node.name}.", seen, found, name)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
                marks = [*inherited, *self._marks_in(node.decorator_list)]
                seen.update(marks)
                if arguments := sorted({one for mark in marks for one in self._arguments(mark, name)}):
                    found.append((prefix + node.name, arguments))

    def _pytestmark(self, body: Iterable[ast.stmt]) -> Iterator[ast.Call]:
        for node in body:
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets
            ):
                yield from self._marks_in([node.value])

    def _marks_in(self, expressions: Iterable[ast.expr]) -> Iterator[ast.Call]:
        for expression in expressions:
            for node in ast.walk(expression):
                if isinstance(node, ast.Call) and self._is_mark(node):
                    yield node

    def _is_mark(self, call: ast.Call) -> bool:
        func = call.func
        return (
            isinstance(func, ast.Attribute)
            and func.attr == self.name
            and ast.unparse(func.value).endswith("mark")
        )

    def _arguments(self, mark: ast.Call, name: str) -> list[T]:
        kind = self.kind
        values = [node.value for node in mark.args if isinstance(node, ast.Constant)]
        arguments = [value for value in values if type(value) is kind]
        if mark.keywords or not arguments or len(arguments) != len(mark.args):
            raise ValueError(f"{name}:{mark.lineno}: a {self.name} mark names its {self.what}")
        return arguments


def tests_by_file(shown: Iterable[Shown]) -> Iterator[str]:
    """The lines of a page that name tests, a list of files with their tests as the properties they are."""
    by_file: dict[str, list[str]] = {}
    for one in shown:
        by_file.setdefault(one.file, []).append(one.test)
    for file, names in by_file.items():
        yield f"- [{file}](../{file})"
        yield from (f"  - {_words(name)}" for name in names)


def _words(test: str) -> str:
    head, dot, name = test.rpartition(".")
    return head + dot + name.removeprefix("test_").replace("_", " ")
