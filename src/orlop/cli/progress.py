"""Progress on standard error: four observers, for a terminal, for pipes, for programs, for silence.

They draw when events come and have no thread of their own: a process that works on layers forks its
workers, and what is threaded is not forked.  (That is also why rich, whose live display is a thread, is
not used.)  Calls come from several threads; a lock keeps the lines whole.  An observer never raises: once
standard error fails, it is silent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal, TextIO

from orlop.cli.exits import one_line
from orlop.cli.output import size_text
from orlop.observe import Progress

__all__ = ["JsonLines", "Lines", "Live", "ProgressMode", "Silent", "choose"]

ProgressMode = Literal["auto", "plain", "json", "none"]

_FINAL = ("done", "exists", "mounted")
_REDRAW = 0.08  # seconds between two drawings
_EVERY = 5.0  # seconds between two lines of one item in one phase, on a pipe
_BAR = 16


class Silent:
    """Shows warnings alone, and is what the others build on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()  # guards the stream and the state of what is shown
        self._broken = False

    def progress(self, event: Progress) -> None:
        """Drop the event."""

    def warning(self, text: str) -> None:
        """Show a warning on a line of its own."""
        with self._lock:
            self._put(f"orlop: warning: {one_line(text)}\n")

    def interrupted(self) -> None:
        """A signal handler is about to write; takes no lock."""

    def close(self) -> None:
        """Leave the cursor below what was drawn."""

    def _put(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads standard error, or it was closed: work goes on
            self._broken = True


class JsonLines(Silent):
    """One JSON object a line: ``item``, ``phase``, ``done``, ``total`` (bytes), ``rate`` (bytes/s).

    A warning is ``{"warning": text}``.
    """

    def progress(self, event: Progress) -> None:
        """Write the event as it is."""
        fields = {
            "item": event.item,
            "phase": event.phase,
            "done": event.done,
            "total": event.total,
            "rate": round(event.rate),
        }
        with self._lock:
            self._put(json.dumps(fields) + "\n")

    def warning(self, text: str) -> None:
        """Write the warning as an object."""
        with self._lock:
            self._put(json.dumps({"warning": text}) + "\n")


class Lines(Silent):
    """For pipes and logs: a line when an item changes its phase, and one every few seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._shown: dict[str, tuple[str, float]] = {}  # item -> phase and time of its last line

    def progress(self, event: Progress) -> None:
        """Write a line where one is due."""
        now = self._clock()
        with self._lock:
            phase, last = self._shown.get(event.item, ("", 0.0))
            if phase != event.phase or (now - last >= _EVERY and event.phase not in _FINAL):
                self._shown[event.item] = (event.phase, now)
                self._put(f"orlop: {_words(event)}\n")


def _terminal_size() -> os.terminal_size:
    import shutil  # late: it brings much with it, and most commands show no progress

    return shutil.get_terminal_size()


class Live(Silent):
    """For a terminal: one line per item in flight, redrawn in place; what is done scrolls up and stays."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[], os.terminal_size] | None = None,
    ) -> None:
        super().__init__(stream)
        self._clock, self._size = clock, size or _terminal_size
        self._active: dict[str, Progress] = {}
        self._finished: list[str] = []  # lines that scroll up with the next drawing
        self._drawn = 0  # lines of the last drawing, above the cursor
        self._last = float("-inf")

    def progress(self, event: Progress) -> None:
        """Take the event in and draw, at most every few hundredths of a second."""
        with self._lock:
            if event.phase in _FINAL:
                self._active.pop(event.item, None)
                self._finished.append(_words(event))
            else:
                self._active[event.item] = event
            now = self._clock()
            if now - self._last >= _REDRAW:
                self._last = now
                self._draw()

    def warning(self, text: str) -> None:
        """Show the warning above what is in flight."""
        with self._lock:
            self._finished.append(f"warning: {one_line(text)}")
            self._draw()

    def interrupted(self) -> None:
        """Draw below what the signal handler writes, not over it."""
        self._drawn = 0

    def close(self) -> None:
        """Draw a last time what is done, and take away what is not."""
        with self._lock:
            self._active.clear()
            if self._finished or self._drawn:
                self._draw()

    def _draw(self) -> None:
        columns, rows = self._size()
        lines = [line[: columns - 1] for line in self._live_lines(max(1, rows - 2))]
        # CSI A: up; CSI J: erase to the end of the screen (ECMA-48 8.3.22, 8.3.39).
        start = (f"\x1b[{self._drawn}A" if self._drawn else "") + "\r\x1b[J"
        self._put(start + "".join(f"{line}\n" for line in [*self._finished, *lines]))
        self._finished.clear()
        self._drawn = len(lines)

    def _live_lines(self, room: int) -> list[str]:
        busy = [event for event in self._active.values() if event.phase != "waiting"]
        waiting = len(self._active) - len(busy)
        over = len(busy) + bool(waiting) > room
        shown = busy[: max(0, room - 1)] if over else busy
        lines = [_words(event, bar=True) for event in shown]
        rest = [f"{len(busy) - len(shown)} more"] if len(busy) > len(shown) else []
        rest += [f"{waiting} waiting"] if waiting else []
        return [*lines, *(["… " + ", ".join(rest)] if rest else [])]


def choose(mode: ProgressMode, stream: TextIO, environ: Mapping[str, str]) -> Silent:
    """The observer for a mode; ``auto`` looks whether ``stream`` is a terminal that can move its cursor."""
    if mode == "json":
        return JsonLines(stream)
    if mode == "none":
        return Silent(stream)
    if mode == "auto" and stream.isatty() and environ.get("TERM", "dumb") != "dumb":
        return Live(stream)
    return Lines(stream)


def default_observer(mode: ProgressMode, *, quiet: bool) -> Silent:
    """The observer of this process's standard error."""
    return choose("none" if quiet else mode, sys.stderr, os.environ)


def _words(event: Progress, *, bar: bool = False) -> str:
    algorithm, colon, digits = event.item.partition(":")
    item = digits[:12] if colon and algorithm == "sha256" else one_line(event.item)
    parts = [f"{item:<12}", f"{event.phase:<9}"]
    if event.total > 0 and event.phase not in _FINAL:
        share = min(1.0, event.done / event.total)
        if bar:
            full = int(share * _BAR)
            parts.append("█" * full + "░" * (_BAR - full))
        parts.append(f"{share:4.0%}")
        parts.append(f"{size_text(event.done)} of {size_text(event.total)}")
    elif event.done or event.total:
        parts.append(size_text(event.done or event.total))
    if event.rate > 0 and event.phase not in _FINAL:
        parts.append(f"{size_text(event.rate)}/s")
        if event.total > event.done:
            parts.append(f"{_span((event.total - event.done) / event.rate)} left")
    return "  ".join(parts).rstrip()


def _span(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
