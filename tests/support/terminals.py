"""A command at a terminal of its own, and what it shows.

    with terminal([sys.executable, "-m", "orlop", "pull", name], columns=100, rows=24) as term:
        term.until(lambda: "fetching" in term.text)
        term.type(b"\\x03")                                  # Ctrl-C
        code = term.wait()

It is a session of its own with a controlling terminal, as a person's shell gives; it is killed when the block
ends.  `recording` draws what was shown as a picture that moves.
"""

from __future__ import annotations

import errno
import fcntl
import html
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from support.screens import Screen

__all__ = ["Frame", "Terminal", "recording", "terminal"]

LONG = 60.0  # seconds after which a command that does nothing is given up
_DRAWN = b"\x1b[J"  # the end of each drawing of orlop's progress
_ENVIRON = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
_UNSET = ("NO_COLOR", "ORLOP_PROGRESS", "ORLOP_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES")

Run = tuple[str, str, bool]  # a text, its colour, whether it is bold
Frame = tuple[tuple[Run, ...], ...]


class Terminal:
    """See `terminal`."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, columns: int, rows: int) -> None:
        self.process = process
        self._master = master
        self.screen = Screen(columns=columns, rows=rows)
        self.written = b""
        self.frames: list[tuple[float, Frame]] = []  # seconds since the start, and what was shown then
        self._start = time.monotonic()
        self._rest = b""

    @property
    def text(self) -> str:
        """What is on it now."""
        return "\n".join(self.screen.shown())

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def resize(self, columns: int, rows: int) -> None:
        """Give it another size, as one who draws at a window's corner does."""
        _set_size(self._master, columns, rows)
        self.screen.screen.resize(rows, columns)

    def read(self) -> bool:
        """Take what comes within a moment; False once nobody writes any more."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError as exc:
            if exc.errno != errno.EIO:  # what Linux says when the last writer has gone
                raise
            data = b""
        if not data:
            return False
        self.written += data
        data = self._rest + data
        whole = data.decode("utf-8", "ignore").encode() == data
        cut = len(data) if whole else max(data.rfind(b"\n"), data.rfind(b"\x1b"), 0)
        data, self._rest = data[:cut], data[cut:]
        # pyte knows no faint text; nothing of ours is in italics.
        self.screen.feed(data.decode("utf-8", "replace").replace("\x1b[2m", "\x1b[3m"), raw=True)
        if self.written.endswith(_DRAWN):  # else half of a drawing may be on the screen
            self._keep_frame()
        return True

    def _keep_frame(self) -> None:
        frame = _frame(self.screen)
        if not self.frames or self.frames[-1][1] != frame:
            self.frames.append((time.monotonic() - self._start, frame))

    def until(self, condition: Callable[[], bool]) -> None:
        """Read on until something is so."""
        deadline = time.monotonic() + LONG
        while not condition():
            assert self.read(), f"it ended: {self.screen.lines()}"
            assert time.monotonic() < deadline, self.screen.lines()

    def wait(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + LONG
        while self.read():
            assert time.monotonic() < deadline, self.screen.lines()
        self._keep_frame()
        return self.process.wait(LONG)


@contextmanager
def terminal(
    argv: Sequence[str | os.PathLike[str]],
    *,
    columns: int = 100,
    rows: int = 24,
    env: Mapping[str, str] | None = None,
) -> Iterator[Terminal]:
    """Start a command at a terminal of a size."""
    master, slave = pty.openpty()
    try:
        _set_size(slave, columns, rows)
        kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *map(os.fspath, argv)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**kept, **_ENVIRON, **(env or {})},
        )
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    try:
        yield Terminal(process, master, columns, rows)
    finally:
        process.kill()
        with suppress(ProcessLookupError):  # all of its session, of which it leads the one group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(master)


def _set_size(fd: int, columns: int, rows: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


# -- pictures ----------------------------------------------------------------------------------------

_CELL, _ROW, _PAD, _BAR = 8.4, 19, 16, 34  # pixels
_COLOURS = {
    "default": "#d7dae0",
    "dim": "#6b7280",
    "cyan": "#4fc1d8",
    "green": "#7fc98a",
    "brown": "#e0b063",
    "red": "#e06c75",
}


def _frame(screen: Screen) -> Frame:
    """What is on a terminal, as runs of one look, without empty rows at the end."""
    rows: list[tuple[Run, ...]] = []
    buffer = screen.screen.buffer
    for at in range(screen.screen.lines):
        runs: list[list[object]] = []
        for column in range(screen.screen.columns):
            cell = buffer[at][column]
            colour = "dim" if cell.italics else cell.fg
            if runs and runs[-1][1:] == [colour, cell.bold]:
                runs[-1][0] = str(runs[-1][0]) + cell.data
            else:
                runs.append([cell.data, colour, cell.bold])
        text = "".join(str(run[0]) for run in runs)
        if not text.strip():
            runs = []
        rows.append(tuple((str(text), str(colour), bool(bold)) for text, colour, bold in runs))
    while rows and not rows[-1]:
        rows.pop()
    return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shot:
    at: float
    frame: Frame


def recording(
    frames: Sequence[tuple[float, Frame]],
    *,
    command: str,
    columns: int,
    most: int = 14,
    hold: float = 2.5,
    replaced: Mapping[str, str] | None = None,
) -> str:
    """An SVG that shows frames one after the other, over and over; ``hold`` seconds for the last.

    Times are spread evenly, so that it is nearly the same on a slow machine; ``replaced`` takes names out that
    are the machine's own.
    """
    step = max(1, -(-(len(frames) - 1) // (most - 1)))
    chosen = [frame for _, frame in [*frames[:-1:step], frames[-1]]]
    height = max(len(frame) for frame in chosen) + 1
    width = columns * _CELL + 2 * _PAD
    tall = _BAR + height * _ROW + 2 * _PAD - 6
    each = 0.55
    whole = each * (len(chosen) - 1) + hold
    style = [
        "text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}",
        ".b{font-weight:bold}",
        ".f{visibility:hidden}",
    ]
    body = []
    for number, frame in enumerate(chosen):
        start = 100 * number * each / whole
        end = 100.0 if number == len(chosen) - 1 else 100 * (number + 1) * each / whole
        name = f"k{number}"
        keys = f"0%{{visibility:{'visible' if not number else 'hidden'}}}{start:.2f}%{{visibility:visible}}"
        keys += f"{end:.2f}%{{visibility:hidden}}" if end < 100 else "100%{visibility:visible}"
        style.append(
            f"@keyframes {name}{{{keys}}}#{name}{{animation:{name} {whole:.2f}s steps(1,end) infinite}}"
        )
        last = number == len(chosen) - 1
        # Where nothing moves (print, or who wants it so), the last is shown.
        body.append(f'<g id="{name}" class="f{" last" if last else ""}">{_rows(frame, replaced or {})}</g>')
    style.append(
        "@media (prefers-reduced-motion:reduce){.f{animation:none!important}.last{visibility:visible}}"
    )
    dots = "".join(
        f'<circle cx="{20 + 18 * at}" cy="17" r="5.5" fill="{colour}"/>'
        for at, colour in enumerate(("#e0675f", "#e0b04f", "#62b556"))
    )
    prompt = f'<text x="{_PAD}" y="{_BAR + _PAD + 8}"><tspan fill="{_COLOURS["green"]}">$</tspan>'
    prompt += f'<tspan fill="#ffffff"> {html.escape(command)}</tspan></text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {tall:.0f}" width="{width:.0f}" '
        f'height="{tall:.0f}" role="img" aria-label="{html.escape(command)}">\n'
        f"<style>{''.join(style)}</style>\n"
        f'<rect width="{width:.0f}" height="{tall:.0f}" rx="9" fill="#1b1e25"/>{dots}\n{prompt}\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _rows(frame: Frame, replaced: Mapping[str, str]) -> str:
    found = []
    for at, runs in enumerate(frame):
        spans, column = [], 0
        for text, colour, bold in runs:
            shown = text
            for old, new in replaced.items():
                shown = shown.replace(old, new)
            for part in re.finditer(r"\S+(?: \S+)*", shown):
                fill = _COLOURS.get(colour, _COLOURS["default"])
                x = _PAD + (column + part.start()) * _CELL
                about = f'x="{x:.1f}" fill="{fill}"' + (' class="b"' if bold else "")
                about += f' textLength="{len(part[0]) * _CELL:.1f}"'
                spans.append(f"<tspan {about}>{html.escape(part[0])}</tspan>")
            column += len(text)
        if spans:
            found.append(f'<text y="{_BAR + _PAD + 8 + (at + 1) * _ROW}">{"".join(spans)}</text>')
    return "".join(found)
