"""Progress on standard error: four observers, for a terminal, for pipes, for programs, for silence.

What is under way is `orlop.cli.board`'s to know, how it reads `orlop.cli.progresslines`'s.

They draw when events come and have no thread of their own: a process that works on layers forks its
workers, and what is threaded is not forked.  (That is also why rich, whose live display is a thread, is
not used.)  Calls come from several threads; a lock keeps the lines whole.  An observer never raises: once
standard error fails, it is silent.  The cursor is never hidden, so nothing has to bring it back.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping

from orlop.cli.board import FINAL, Board, Item, is_digest, is_whole
from orlop.cli.exits import one_line
from orlop.cli.output import size_text
from orlop.cli.progresslines import Look, cells, plain_busy, plain_item, plain_sum, span
from orlop.hints import Literal, TextIO
from orlop.observe import Progress

__all__ = ["JsonLines", "Lines", "Live", "ProgressMode", "Silent", "choose", "default_observer"]

ProgressMode = Literal["auto", "plain", "json", "none"]

_REDRAW = 0.125  # seconds between two drawings
_PATIENCE = 0.2  # seconds that an interrupted drawing has to end
_EVERY = 5.0  # seconds between two lines about how far all is, on a pipe
_PAINT = re.compile(r"\x1b\[[0-9;]*m")
_BUSY = 2  # items that such a line names


class Silent:
    """Shows warnings alone, and is what the others build on; ``board`` is kept by all of them."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()  # guards the stream and the state of what is shown
        self._broken = False
        self.board = Board()

    def progress(self, event: Progress) -> None:
        """Take the event in; what it says is asked for when the call is interrupted."""
        with self._lock:
            self.board.take(event, self._clock())

    def warning(self, text: str) -> None:
        """Show a warning on a line of its own."""
        with self._lock:
            self._put(f"orlop: warning: {one_line(text)}\n")

    def interrupted(self) -> bool:
        """A signal handler is about to write; whether a new line was begun for it.  It does not wait long."""
        return False

    def make_room(self) -> None:
        """Something else is about to be written, perhaps to the same terminal."""

    def close(self) -> None:
        """Leave the cursor below what was drawn."""

    def _put(self, text: str) -> None:
        if self._broken:
            return
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:  # a locale that has not these characters
                kind = self._stream.encoding or "ascii"
                self._stream.write(text.encode(kind, "backslashreplace").decode(kind))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads standard error, or it was closed: work goes on
            self._broken = True

    def _whole(self, item: Item, now: float) -> str:
        """What is said of a whole that is there: bytes, time, and what was there before."""
        board = self.board
        seconds = now - board.began if board.began is not None else 0.0
        size = item.done or board.moved
        words = [size_text(size)] if size else []
        if size and seconds >= 1:
            words.append(f"in {span(seconds)}")
        if board.there:
            words.append(
                f"{'(' if words else ''}{board.there} of {board.number} were there{')' if words else ''}"
            )
        return " ".join(words)


class JsonLines(Silent):
    """One JSON object a line: ``item``, ``phase``, ``done``, ``total`` (bytes), ``rate`` (bytes/s).

    Where there is a ``note``, it says why the item waits.  A warning is ``{"warning": text}``.
    """

    def progress(self, event: Progress) -> None:
        """Write the event as it is."""
        fields: dict[str, object] = {
            "item": event.item,
            "phase": event.phase,
            "done": event.done,
            "total": event.total,
            "rate": round(event.rate),
        }
        if event.note:
            fields["note"] = event.note
        with self._lock:
            self.board.take(event, self._clock())
            self._put(json.dumps(fields) + "\n")

    def warning(self, text: str) -> None:
        """Write the warning as an object."""
        with self._lock:
            self._put(json.dumps({"warning": text}) + "\n")


class Lines(Silent):
    """For pipes and logs: a line when an item begins and when it is over, and one every few seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock=clock)
        self._said: dict[str, str] = {}  # item -> what its last line was about
        self._last = self._clock()

    def progress(self, event: Progress) -> None:
        """Write a line where one is due."""
        now = self._clock()
        with self._lock:
            board = self.board
            if board.began is None:
                self._last = now
            item = board.take(event, now)
            if event.phase in FINAL:
                self._over(item, now)
            elif event.phase == "retrying":
                self._say(item, event.note or event.phase)
            elif event.phase != "waiting":
                # Of a digest the phases overlap, so its first line is for all of them.
                self._say(item, "" if is_digest(item.name) else event.phase)
            if now - self._last >= _EVERY and board.items:
                self._last = now
                self._tell(now)

    def _say(self, item: Item, about: str) -> None:
        if self._said.get(item.name) != about:
            self._said[item.name] = about
            self._put(f"orlop: {plain_item(item)}\n")

    def _over(self, item: Item, now: float) -> None:
        whole = is_whole(item.name)
        if self._said.get(item.name) != item.phase:
            self._said[item.name] = item.phase
            self._put(f"orlop: {plain_item(item, self._whole(item, now) if whole else '')}\n")
        if whole:
            self.board.settle()

    def _tell(self, now: float) -> None:
        """All together, and the slowest of them."""
        whole = self.board.sum(now)
        busy = [item for item in self.board.shown() if not item.waits]
        busy.sort(key=lambda item: item.done - item.total)
        words = [plain_sum(whole)] if whole is not None else []
        words += [plain_busy(item, now) for item in busy[: _BUSY if whole is not None else None]]
        if words:
            self._put(f"orlop: {'; '.join(words)}\n")


def _terminal_size(stream: TextIO) -> os.terminal_size:
    """The size of the terminal that a stream goes to: standard output may go elsewhere."""
    columns, rows = 0, 0
    with contextlib.suppress(OSError, ValueError):  # no terminal, or closed
        columns, rows = os.get_terminal_size(stream.fileno())
    return os.terminal_size((columns or 80, rows or 24))  # one that was never told its size says 0


class Live(Silent):
    """For a terminal: one line per item in flight, redrawn in place; what is done scrolls up and stays.

    ``look`` is what the terminal can show; its width is asked for at every drawing.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        size: Callable[[], os.terminal_size] | None = None,
        ascii_only: bool = False,
        colour: bool = False,
    ) -> None:
        super().__init__(stream, clock=clock)
        self._size = size or functools.partial(_terminal_size, stream)
        self._ascii, self._colour = ascii_only, colour
        self._finished: list[Callable[[Look], str]] = []  # lines that scroll up with the next drawing
        self._drawn: list[int] = []  # cells of the lines of the last drawing, above the cursor
        self._last = float("-inf")
        self._stopped = False

    def progress(self, event: Progress) -> None:
        """Take the event in and draw, at most every few hundredths of a second."""
        now = self._clock()
        with self._lock:
            item = self.board.take(event, now)
            if event.phase in FINAL:
                self._over(item, now)
            if now - self._last >= _REDRAW:
                self._last = now
                self._draw(now)

    def warning(self, text: str) -> None:
        """Show the warning above what is in flight."""
        line = f"warning: {one_line(text)}"
        with self._lock:
            self._finished.append(lambda look: look.paint(line, "yellow"))
            self._draw(self._clock())

    def interrupted(self) -> bool:
        """Take away what is in flight: it goes no further.  Where it is drawn just now, let that end.

        Not where the very frame draws that the signal interrupted: it does not go on before we are through.
        """
        self._stopped = True
        if not self._lock.acquire(timeout=_PATIENCE):
            self._drawn = []  # what the handler writes is not drawn over
            return False
        try:
            # Past the stream, whose own lock may be held by the very frame that the signal interrupted.
            text = _up(self._rows_drawn(self._size().columns)) + "\r\x1b[J"
            self._drawn = []
            os.write(self._stream.fileno(), text.encode())
        except (OSError, ValueError):
            return False
        finally:
            self._lock.release()
        return True

    def make_room(self) -> None:
        """Draw what is done, and take away what is in flight until it is drawn again, further down."""
        with self._lock:
            if self._finished or self._drawn:
                self._draw(self._clock(), live=False)

    def close(self) -> None:
        """Draw a last time what is done, and take away what is not."""
        with self._lock:
            self._stopped = True
            if self._finished or self._drawn:
                self._draw(self._clock())

    def _over(self, item: Item, now: float) -> None:
        if not is_whole(item.name):
            self._finished.append(lambda look: look.finished(item))
            return
        text = self._whole(item, now)
        self._finished.append(lambda look: look.finished(item, text))
        self.board.settle()

    def _draw(self, now: float, *, live: bool = True) -> None:
        columns, rows = self._size()
        look = Look(
            columns=max(columns - 1, 1),  # a full line would wrap on some terminals
            bar="#." if self._ascii else "━╌",
            ellipsis="..." if self._ascii else "…",
            colour=self._colour,
        )
        done = [line(look) for line in self._finished]
        lines = [] if self._stopped or not live else self._live_lines(look, max(1, rows - 2), now)
        # CSI A: up; K: erase to the end of the line; J: of the screen (ECMA-48 8.3.22, 8.3.41, 8.3.39).
        start = _up(self._rows_drawn(columns)) + "\r"
        self._finished.clear()
        self._drawn = [cells(_PAINT.sub("", line)) for line in lines]
        self._put(start + "".join(f"{line}\x1b[K\n" for line in [*done, *lines]) + "\x1b[J")

    def _rows_drawn(self, columns: int) -> int:
        """How many rows the last drawing takes; more than lines where the terminal has become narrower."""
        return sum(max(1, -(-width // max(columns, 1))) for width in self._drawn)

    def _live_lines(self, look: Look, room: int, now: float) -> list[str]:
        whole, shown = self.board.sum(now), self.board.shown()
        last = [look.sum(whole)] if whole is not None else []
        if self.board.note:
            last.insert(0, look.paint(look.clip(one_line(self.board.note)), "yellow"))
        room = max(1, room - len(last))
        busy = [item for item in shown if not item.waits]
        waiting = len(shown) - len(busy)
        rest: list[str] = []
        if len(shown) > room:
            shown = busy if len(busy) + bool(waiting) <= room else busy[: room - 1]
            rest += [f"{len(busy) - len(shown)} more"] if len(busy) > len(shown) else []
            rest += [f"{waiting} waiting"] if waiting else []
        lines = [look.item(item, now) for item in shown]
        if rest:
            lines.append(look.clip(f"{look.ellipsis} {', '.join(rest)}"))
        return [*lines, *last]


def _up(rows: int) -> str:
    return f"\x1b[{rows}A" if rows else ""


def choose(mode: ProgressMode, stream: TextIO, environ: Mapping[str, str]) -> Silent:
    """The observer for a mode; ``auto`` looks whether ``stream`` is a terminal that can move its cursor."""
    if mode == "json":
        return JsonLines(stream)
    if mode == "none":
        return Silent(stream)
    if mode == "auto" and stream.isatty() and environ.get("TERM", "dumb") != "dumb":
        from orlop.cli.colours import wanted

        return Live(stream, ascii_only=not _is_utf8(stream, environ), colour=wanted(stream))
    return Lines(stream)


def _is_utf8(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the terminal takes what is not ASCII, as far as the stream and the locale say."""
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := environ.get(name))), "")
    kind = (stream.encoding or "utf-8").lower().replace("-", "").replace("_", "")
    return kind == "utf8" and "utf" in locale.lower()


def default_observer(mode: ProgressMode, *, quiet: bool) -> Silent:
    """The observer of this process's standard error."""
    return choose("none" if quiet else mode, sys.stderr, os.environ)
