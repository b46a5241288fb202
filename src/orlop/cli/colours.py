"""Colours, for people at a terminal and for nobody else.

``--color`` and ORLOP_COLOR say ``always`` or ``never``; with ``auto`` they are where the stream is a terminal
that is not dumb, unless NO_COLOR is set (no-color.org); CLICOLOR_FORCE brings them to pipes, too
(bixense.com/clicolors).  What is painted is our own text: what comes from outside is made harmless before
(`orlop.cli.exits.one_line`).

Imports nothing but what every Python has imported when it starts.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` is more than a page of help takes
if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["MODES", "choose", "paint", "wanted"]

MODES = ("auto", "always", "never")

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "error": "1;31"}
_mode = ""  # what `choose` was told; before that the environment has the word


def choose(mode: str) -> None:
    """From here on ``always``, ``never`` or ``auto``; with an empty word as ORLOP_COLOR says."""
    global _mode  # noqa: PLW0603 - a process has one terminal
    _mode = mode


def wanted(stream: TextIO | None) -> bool:
    """Whether what goes to a stream may be painted."""
    mode = _mode or os.environ.get("ORLOP_COLOR", "auto")
    if mode in {"always", "never"}:
        return mode == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in {"", "0"}:
        return True
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """The text in a style (bold, dim, red, green, yellow, error), where its stream wants that."""
    return f"\033[{_STYLES[style]}m{text}\033[0m" if text and wanted(stream) else text
