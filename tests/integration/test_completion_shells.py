"""Completion in real shells: a line is typed at a terminal, Tab is pressed, and the shell runs what it became."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.cli.completion import SCRIPTS

SOURCES = Path(orlop.__file__).parent.parent
PROMPT = "READY> "
PATIENCE = 240  # seconds: no test is about how long it takes


@pytest.fixture
def environ(store: orlop.Store, store_dirs: StoreDirs, tmp_path: Path) -> dict[str, str]:
    """For a shell: an `orlop` that completes, and says what it was asked to do instead of doing it."""
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "motd").write_text("hello")
    store.load(str(tree), name="localhost/app:1")
    store.tag("localhost/app:1", "docker.io/library/alpine:latest")
    store.prepare("localhost/app:1", str(tmp_path / "prepared-here"))
    home, binaries = tmp_path / "home", tmp_path / "bin"
    home.mkdir()
    binaries.mkdir()
    start = f"exec {sys.executable} -c 'from orlop.cli import main; raise SystemExit(main())' \"$@\" 2>>~/why"
    program = binaries / "orlop"
    program.write_text(f'#!/bin/sh\n[ -z "$_ORLOP_COMPLETE" ] || {start}\necho "RAN:$*:"\n')
    program.chmod(0o755)
    for shell, script in SCRIPTS.items():
        (home / f"orlop.{shell}").write_text(script)
    (home / "bashrc").write_text(f"PS1='{PROMPT}'\nsource ~/orlop.bash\n")
    (home / ".zshrc").write_text(
        f"PS1='{PROMPT}'\nautoload -Uz compinit\ncompinit -u -D\nsource ~/orlop.zsh\n"
    )
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "ORLOP_ROOT": str(store_dirs.root),
        "ORLOP_RUN": str(store_dirs.run),
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PYTHONPATH": str(SOURCES),
        "TERM": "dumb",
        "ZDOTDIR": str(home),
        "_ORLOP_SECONDS": str(PATIENCE),
        "_ORLOP_WHY": "1",
    }


def why(environ: dict[str, str]) -> str:
    """What completions said that had no answer: no shell shows it."""
    said = Path(environ["HOME"], "why")
    return said.read_text() if said.exists() else "nothing"


class Typing:
    """A shell at a terminal of its own."""

    def __init__(self, argv: list[str], environ: dict[str, str], stack: ExitStack) -> None:
        self._master, slave = pty.openpty()
        stack.callback(os.close, self._master)
        self._seen = ""
        self._environ = environ
        # Wide enough that no line is broken, whatever the folder of the test is called.
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 500, 0, 0))
        # The shell gets a session of its own, whose terminal this is.
        self._shell = subprocess.Popen(
            ["setsid", "--ctty", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            cwd=environ["HOME"],
        )
        stack.callback(self._end)
        os.close(slave)

    def _end(self) -> None:
        self._shell.kill()
        with suppress(ProcessLookupError):  # what it has just started to answer a Tab
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str) -> str:
        """Read until a pattern comes; what it matched, and all before it is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self._seen)) is None:
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {self._seen!r}; completions said: {why(self._environ)}"
            try:
                self._seen += os.read(self._master, 65_536).decode(errors="replace")
            except OSError as exc:  # EIO: nobody has the other end any more
                raise AssertionError(f"it ended: {self._seen!r}") from exc
        self._seen = self._seen[found.end() :]
        return found[0]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as held:
        yield held


SHELLS = {
    "bash": ["bash", "--noprofile", "--rcfile", "bashrc", "-i"],
    "zsh": ["zsh", "-o", "NO_GLOBAL_RCS", "-i"],
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_verbs_images_files_and_paths(
    shell: str, environ: dict[str, str], stack: ExitStack, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    typing = Typing(SHELLS[shell], environ, stack)
    for typed, run in (
        ("orlop histo\tlocalhost/app:\tx", "history localhost/app:1 x"),
        ("orlop cat alpi\t /et\tmo\tx", "cat alpine /etc/motd x"),
        ("orlop cp localhost/app:1:/et\tx", "cp localhost/app:1:/etc/x"),
        (f"orlop cleanup {tmp_path}/prep\tx", f"cleanup {tmp_path}/prepared-here x"),
        ("orlop push alpine --compression=zs\tx", "push alpine --compression=zstd x"),
    ):
        typing.until(PROMPT)
        typing.type(f"{typed}\n")
        assert typing.until(r"RAN:[^\r\n]*:\r") == f"RAN:{run}:\r", why(environ)


def test_fish_completes_verbs_images_files_and_paths(environ: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")

    def ask(line: str) -> list[str]:
        done = subprocess.run(
            ["fish", "--no-config", "-c", 'source ~/orlop.fish; complete --do-complete "$argv"', line],
            env=environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        return [row.partition("\t")[0] for row in done.stdout.splitlines()]

    for line, words in (
        ("orlop rmi localhost/app:", ["localhost/app:1"]),
        ("orlop cat localhost/app:1 /etc/", ["/etc/motd"]),
        (f"orlop cleanup {tmp_path}/", [f"{tmp_path}/prepared-here"]),
        ("orlop push alpine --compression=zs", ["--compression=zstd"]),
    ):
        assert ask(line) == words, why(environ)
