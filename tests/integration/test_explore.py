"""`orlop explore` on a real store: what it shows is what the store's other verbs say; and in a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pyte
import pytest

import orlop
from conftest import StoreDirs
from orlop.explorer.tui.app import Explorer
from orlop.explorer.tui.layers import LayerList
from orlop.explorer.tui.model import Forest
from orlop.explorer.tui.source import StoreSource
from support.images import make_image, write_layout
from support.layers import Layer

pytestmark = pytest.mark.root
WAIT = 120.0  # s; for what takes far less on any machine
SIZE = (30, 100)  # lines, columns
_NOT_OURS = ("ORLOP_", "TEXTUAL", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "COLORFGBG")
EVIL = b"\x1b]0;pwned\x07[red]\x1b[41m"

STACK = [
    Layer()
    .folder("etc")
    .file("etc/passwd", b"root\n")
    .folder("usr")
    .file("usr/big", b"x" * 5000)
    .file("usr/old", b"o" * 900),
    Layer()
    .file("etc/passwd", b"root:0\n")
    .whiteout("usr/old")
    .symlink("etc/link", "../usr/big")
    .file(EVIL, b"\x1b[2Jhello"),
    Layer().folder("usr").opaque("usr").file("usr/new", b"new").hardlink("usr/again", "usr/new"),
]


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    layout = write_layout(workdir / "layout", {"latest": make_image([layer.tar() for layer in STACK])})
    return store.load(layout, name="localhost/explored").pop().name


def marked(forest: Forest) -> set[tuple[bytes, str]]:
    """All that a tree says was done."""
    found: set[tuple[bytes, str]] = set()
    stack = [(b"", forest.root)]
    while stack:
        path, node = stack.pop()
        if node.what != "same":
            found.add((path, node.what))
        above = path + b"/" if path else b""
        stack.extend((above + name, child) for name, child in node.children.items())
    return found


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came so"
        await asyncio.sleep(0.005)


def test_each_layer_and_the_changes_of_a_root_are_what_diff_says(
    store: orlop.Store, store_dirs: StoreDirs, image: str
) -> None:
    root = store.prepare(image, store_dirs.work / "root", mount=True)
    top = Path(root.path)
    (top / "etc/passwd").write_text("mine\n")
    (top / "usr/new").unlink()
    (top / "srv").mkdir()
    (top / "srv/app").write_text("print()\n")
    expected = {0: {(one.path, one.what) for one in store.diff(root.path)}}
    for number in (1, 2, 3):
        found = store.diff(f"{image}#{number - 1}", f"{image}#{number}")
        expected[number] = {(one.path, one.what) for one in found}
    assert (b"srv/app", "added") in expected[0]
    assert (b"usr/new", "deleted") in expected[0]

    async def script() -> None:
        app = Explorer(StoreSource(store, root.path), root.path)
        async with app.run_test(size=(120, 36)):
            for number in (0, 3, 2, 1):
                await until(lambda number=number: app.shown_layer == number and app.loader.job is None)
                assert app.forest is not None
                assert marked(app.forest) == expected[number]
                if number == 0:
                    read = await asyncio.to_thread(app.source.head, b"etc/passwd", 0, 100, orlop.Call())
                    assert read == b"mine\n"
                app.query_one(LayerList).cursor -= 1
            read = await asyncio.to_thread(app.source.head, b"etc/passwd", 1, 3, orlop.Call())
            assert read == b"roo"

    asyncio.run(asyncio.wait_for(script(), 2 * WAIT))


# ------------------------------------------------------------------ in a terminal


class Terminal:
    """A program in a terminal of its own, and what is on its screen."""

    def __init__(self, argv: list[str], env: Mapping[str, str]) -> None:
        self.master, slave = os.openpty()
        termios.tcsetwinsize(slave, SIZE)
        self.before = termios.tcgetattr(slave)
        self.screen = pyte.Screen(SIZE[1], SIZE[0])
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._rest = b""  # an escape sequence of which the end has not come yet
        self.slave = slave
        ours = {name: text for name, text in os.environ.items() if not name.startswith(_NOT_OURS)}
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env={**ours, **env}, start_new_session=True
        )

    def until(self, condition: Callable[[], object]) -> None:
        """Draw what comes until something is so; at the end of the program it has to be."""
        end = time.monotonic() + WAIT
        while not condition():
            ended = self.ended()
            if select.select([self.master], [], [], 0 if ended else 0.1)[0]:
                self._draw(os.read(self.master, 65_536))
                continue
            shown = "\n".join([f"returned {self.process.returncode}", *self.screen.display])
            assert not ended or condition(), shown
            assert time.monotonic() < end, shown

    def _draw(self, data: bytes) -> None:
        self.raw += data
        data = self._rest + data
        open_end = re.search(rb"\x1b(\[[?>=<]?[0-9;$]*)?\Z", data)
        at = open_end.start() if open_end else len(data)
        data, self._rest = data[:at], data[at:]
        # pyte knows no modes that are asked for, nor kitty's keys
        self._stream.feed(re.sub(rb"\x1b\[(?:\?[0-9;]*\$[a-z]|[?>=<][0-9;]*[a-zA-Z])", b"", data))

    def shows(self, text: str) -> bool:
        return any(text in line for line in self.screen.display)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def explore(store_dirs: StoreDirs) -> Iterator[Callable[..., Terminal]]:
    """Start ``orlop explore`` in a terminal."""
    with contextlib.ExitStack() as stack:

        def start(thing: str, **env: str) -> Terminal:
            where = ["--root", str(store_dirs.root), "--run", str(store_dirs.run)]
            argv = [sys.executable, "-m", "orlop", *where, "explore", thing]
            terminal = Terminal(argv, {"TERM": "xterm-256color", "COLORTERM": "truecolor", **env})
            stack.callback(terminal.close)
            return terminal

        yield start


@pytest.mark.hostile(6)
def test_in_a_terminal_names_do_nothing_and_it_leaves_it_as_it_was(
    explore: Callable[..., Terminal], image: str
) -> None:
    terminal = explore(image, NO_COLOR="1")
    terminal.until(lambda: terminal.shows("efficient") and terminal.shows("usr/"))
    terminal.press(b"[")  # the layer before
    terminal.until(lambda: terminal.shows("layer 2") and terminal.shows("\\x1b]0;pwned\\x07[red]\\x1b[41m"))
    terminal.press(b"q")
    terminal.until(terminal.ended)
    assert terminal.process.returncode == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert b"\x1b]0;pwned" not in terminal.raw
    assert b"\x1b[41m" not in terminal.raw
    colours = re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)", terminal.raw)
    assert all(red == green == blue for red, green, blue in colours)


def test_what_is_not_there_is_said_before_the_screen_is_taken(
    explore: Callable[..., Terminal], image: str
) -> None:
    terminal = explore("localhost/nothing")
    terminal.until(terminal.ended)
    terminal.until(lambda: terminal.shows("error:"))
    assert terminal.process.returncode == 3
    assert b"\x1b[?1049h" not in terminal.raw  # no other screen
