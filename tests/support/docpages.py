"""What the documentation shows, as steps that can be run: blocks of a Markdown page in order.

A block of ```console has commands, each after ``$ `` (further lines of one after ``> ``), and what they print.
A block of ```python is run on pages that say ``<!-- python runs -->``; a block of ```text right after one is
what it prints.  Around them, in comments that no reader sees:

    <!-- as: user -->        at the top: the page's commands are run by a user without root
    <!-- before: COMMAND --> what must have happened for the page to be true, run there
    <!-- not run: WHY -->    above a block that is not run, with the reason
    <!-- fails: WHY -->      above a block of commands that may end with another code than 0

So may a command that prints ``orlop: error:``.  In what is printed ``…`` stands for
anything in a line, a line of it alone for any lines; sizes, digests, times and the width of columns are not
compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

_COMMENT = re.compile(r"<!-- (before|not run|fails|as|python runs)(?:: ?(.*?))? ?-->$")
_FENCE = re.compile(r"(`{3,})(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command or piece of Python, the line it stands on, and what it prints; None: not compared."""

    kind: Literal["shell", "python"]
    line: int
    code: str
    prints: str | None
    fails: bool = False


@dataclass(slots=True)
class Page:
    """A page's steps, and who runs them; ``left_out`` are the lines of blocks with a reason not to run."""

    path: Path
    user: bool = False
    steps: list[Step] = field(default_factory=list)
    left_out: list[tuple[int, str]] = field(default_factory=list)


def read(path: Path) -> Page:
    """A page's steps; raises ValueError where its blocks are not as they should be."""
    page = Page(path=path)
    reason: str | None = None
    fails = False
    python = False
    last_python = -1  # the step that a block of text may belong to
    for line, kind, text in _parts(path.read_text()):
        if kind == "comment":
            word, value = text.split(":", 1) if ":" in text else (text, "")
            if word == "not run":
                reason = value
            elif word == "fails":
                fails = True
            elif word == "before":
                page.steps.append(Step(kind="shell", line=line, code=value, prints=None))
            elif word == "as":
                page.user = True
            else:
                python = True
            continue
        if kind == "prose":
            reason, fails, last_python = None, False, -1
            continue
        if reason is not None and kind in ("console", "python"):
            page.left_out.append((line, reason))
        elif kind == "console":
            page.steps += _commands(text, line, path, fails=fails)
        elif kind == "python" and python:
            page.steps.append(Step(kind="python", line=line, code=text, prints=""))
            last_python = len(page.steps) - 1
            reason = None
            continue
        elif kind == "text" and last_python >= 0:
            done = page.steps[last_python]
            page.steps[last_python] = Step(kind="python", line=done.line, code=done.code, prints=text)
        reason, fails, last_python = None, False, -1
    return page


def _parts(text: str) -> Iterator[tuple[int, str, str]]:
    """Comments, lines of prose and blocks by their language, with their lines."""
    fence, language, begin, held = "", "", 0, []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if fence:
            if stripped == fence:
                yield begin, language, "\n".join(held)
                fence = ""
            else:
                held.append(line)
        elif found := _FENCE.match(stripped):
            fence, language, begin, held = found[1], found[2].strip() or "plain", number + 1, []
        elif found := _COMMENT.match(stripped):
            yield number, "comment", found[1] if found[2] is None else f"{found[1]}:{found[2].strip()}"
        elif stripped:
            yield number, "prose", stripped
    if fence:
        raise ValueError(f"a block that begins before line {begin} has no end")


def _commands(text: str, first: int, path: Path, *, fails: bool) -> Iterator[Step]:
    def step() -> Step:
        prints = "\n".join(shown)
        failing = fails or "orlop: error: " in prints
        return Step(kind="shell", line=begin, code="\n".join(code), prints=prints, fails=failing)

    code: list[str] = []
    shown: list[str] = []
    begin = first
    for number, line in enumerate(text.split("\n"), first):
        if line.startswith("$ "):
            if code:
                yield step()
            code, shown, begin = [line[2:]], [], number
        elif not code:
            raise ValueError(f"{path.name}:{number}: a block of console begins with a command: '$ …'")
        elif not shown and (line.startswith("> ") or line == ">"):
            code.append(line[2:])
        else:
            shown.append(line)
    if code:
        yield step()


# ------------------------------------------------------------------ what was printed beside what is shown

_WILD = (
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b"), "<digest>"),
    (re.compile(r"\b\d+(\.\d+)? ?([kMGT]i?B|bytes|B)\b"), "<size>"),
    (re.compile(r"\b(\d+ (second|minute|hour|day|week|month|year)s?|[Aa] moment|now)( ago)?\b"), "<time>"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s)\b"), "<time>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\s+"), " "),
)


def _plain(line: str) -> str:
    for pattern, word in _WILD:
        line = pattern.sub(word, line)
    return line.strip()


def agrees(shown: str, printed: str) -> bool:
    """Whether what a page shows is what was printed."""
    return _agree([_plain(line) for line in _lines(shown)], [_plain(line) for line in _lines(printed)])


def _lines(text: str) -> Sequence[str]:
    return [line for line in text.splitlines() if line.strip()]


def _agree(shown: list[str], printed: list[str]) -> bool:
    """By columns of a table, one for each line shown: after how many printed lines all so far may fit."""
    reached = {0}
    for line in shown:
        if line == "…":
            reached = set(range(min(reached), len(printed) + 1)) if reached else reached
            continue
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        reached = {at + 1 for at in reached if at < len(printed) and pattern.fullmatch(printed[at])}
    return len(printed) in reached
