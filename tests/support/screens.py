"""What a terminal shows: pyte in the place of a person.

seen = Screen(columns=80, rows=24)
seen.feed(text)
seen.lines()        # what is on it, and what has scrolled off, without empty lines at the end
"""

from __future__ import annotations

import pyte

__all__ = ["Screen", "screen"]


class Screen:
    """A terminal of a size, which remembers what scrolls off."""

    def __init__(self, *, columns: int = 100, rows: int = 24) -> None:
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)

    def feed(self, text: str, *, raw: bool = False) -> None:
        """Show a text; a line feed goes to a line's start, as a tty's driver makes it, unless it is ``raw``."""
        self._stream.feed(text if raw else text.replace("\n", "\r\n"))

    def shown(self) -> list[str]:
        """The rows that are on it."""
        return [line.rstrip() for line in self.screen.display]

    def lines(self) -> list[str]:
        """All lines, those that have scrolled off first."""
        columns = self.screen.columns
        gone = ["".join(row[at].data for at in range(columns)).rstrip() for row in self.screen.history.top]
        lines = [*gone, *self.shown()]
        while lines and not lines[-1]:
            lines.pop()
        return lines


def screen(text: str, *, columns: int = 100, rows: int = 24) -> list[str]:
    """The lines of a terminal that has got a text."""
    seen = Screen(columns=columns, rows=rows)
    seen.feed(text)
    return seen.lines()
