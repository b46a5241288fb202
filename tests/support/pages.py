"""Pages of the documentation, run: each line of an indented block that begins with ``$`` is a command.

What follows a command in its block is what it prints, all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_INDENT = "    "


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command, where it stands, and what it is said to print."""

    line: int
    command: str
    output: str


def steps_of(page: Path) -> list[Step]:
    """The commands of a page, in order."""
    found: list[Step] = []
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if not line.startswith(f"{_INDENT}$ "):
            continue
        said = []
        for other in lines[number + 1 :]:
            if not other.startswith(_INDENT) or other.startswith(f"{_INDENT}$ "):
                break
            said.append(other.removeprefix(_INDENT) + "\n")
        found.append(Step(line=number + 1, command=line.removeprefix(f"{_INDENT}$ "), output="".join(said)))
    return found
