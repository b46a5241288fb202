"""Crash points: which there are, and how to die at one.

The work names the points between steps whose order matters (`orlop.observe.reached`).  `points` finds them in
the source, so a test can hold that each is tried; `recording` tells which ones a piece of work passes;
`killing` ends the process at one as ``kill -9`` would, with nothing flushed and nobody told.

    hits = []
    with recording(hits):
        store.pull("alpine")
    ...in another process:
    with killing(At("layer.renamed")):
        store.pull("alpine")          # does not return

As a program it runs the command line so:

    python -m orlop.testing.crashes --list
    python -m orlop.testing.crashes --at layer.renamed:2 --root DIR --run DIR pull alpine

A kill takes the process and leaves the machine: that what was written is also on the disk is another test.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from orlop.observe import watch_points
from orlop.values import dataclass

__all__ = ["At", "killing", "main", "points", "recording"]

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class At:
    """The moment when a point is reached for the ``nth`` time, counted from 1."""

    point: str
    nth: int = 1

    @classmethod
    def parse(cls, text: str) -> At:
        """``POINT`` or ``POINT:NTH``.  Raises ValueError."""
        point, colon, nth = text.partition(":")
        found = cls(point, int(nth) if colon else 1)
        if found.nth < 1 or found.point not in points():
            raise ValueError(f"no such point: {text}")
        return found

    def __str__(self) -> str:
        return f"{self.point}:{self.nth}"


def points(package: Path = _PACKAGE) -> dict[str, list[str]]:
    """All points that the modules of a package name, and where: ``path:line``.

    Raises ValueError for a call of `reached` whose point is no literal: nobody could find it.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        if "reached(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name != "reached":
                continue
            where = f"{path.relative_to(package)}:{node.lineno}"
            match node.args:
                case [ast.Constant(value=str(point))]:
                    found.setdefault(point, []).append(where)
                case _:
                    raise ValueError(f"{where}: the point is no literal")
    return found


def recording(hits: list[str]) -> AbstractContextManager[None]:
    """Append every point to a list as it is reached, from whatever thread, for a ``with`` block."""
    return watch_points(hits.append)


@contextlib.contextmanager
def killing(at: At) -> Iterator[None]:
    """Kill this process with SIGKILL when a point is reached so often, in a ``with`` block."""
    counter = itertools.count(1)  # one step of it is atomic

    def watch(point: str) -> None:
        if point == at.point and next(counter) == at.nth:
            os.kill(os.getpid(), signal.SIGKILL)

    with watch_points(watch):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``orlop ARGS`` and die at a point; or list the points."""
    parser = argparse.ArgumentParser(prog="python -m orlop.testing.crashes", description="Die at a point.")
    parser.add_argument("--list", action="store_true", help="print all points and where they are")
    parser.add_argument("--at", type=At.parse, metavar="POINT[:NTH]", help="where to die")
    told, arguments = parser.parse_known_args(argv)
    if told.list:
        for point, places in sorted(points().items()):
            sys.stdout.write(f"{point}\t{' '.join(places)}\n")
        return 0
    from orlop.cli import main as orlop

    with killing(told.at) if told.at is not None else contextlib.nullcontext():
        return orlop(arguments)


if __name__ == "__main__":
    sys.exit(main())
