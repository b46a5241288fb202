"""Processes for tests with many of them: a daemon, and a crew that cannot hang.

Nobody inherits pytest's own output: each writes to a file of its own.  A crew that is not done in time is
asked for its stacks (SIGABRT, which `faulthandler` answers), killed with all its children, and shown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orlop

_SHOWN = 6_000  # bytes of each process's output in a failure


class Crew:
    """Processes that belong to one test; a context manager that leaves none of them, nor their children."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(exist_ok=True)

    def start(self, name: str, command: Sequence[str | os.PathLike[str]]) -> subprocess.Popen[bytes]:
        """Start a process under a name, in a session of its own."""
        with (self._folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(
                [*map(os.fspath, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )
        self._members[name] = process
        return process

    def member(self, name: str) -> subprocess.Popen[bytes]:
        """The process of a name."""
        return self._members[name]

    def said(self, name: str) -> str:
        """The end of what a process wrote; where Python itself crashed, from there on."""
        wrote = (self._folder / f"{name}.out").read_bytes()
        crash = wrote.find(b"Fatal Python error")
        return (wrote[-_SHOWN:] if crash < 0 else wrote[crash:][:_SHOWN]).decode(errors="replace")

    def wait(self, names: Sequence[str], seconds: float) -> None:
        """Wait for processes to end well; fails with what they said, or with the stacks of all if some hang."""
        deadline = time.monotonic() + seconds
        late, failed = [], []
        for name in names:
            try:
                code = self._members[name].wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(name)
            else:
                if code:
                    failed.append(f"--- {name} exits with {code}:\n{self.said(name)}")
        if late:
            failed.append(f"not done after {seconds:g} s: {', '.join(late)}")
            failed += [f"--- {name}:\n{text}" for name, text in self._stacks().items()]
        if failed:
            others = [name for name in self._members if name not in names]  # whom they may have talked to
            failed += [f"--- {name} ({self._members[name].poll()}):\n{self.said(name)}" for name in others]
        assert not failed, "\n".join(failed)

    def _stacks(self) -> dict[str, str]:
        """Where all that still run are, in all their threads; they end with that."""
        running = [name for name, process in self._members.items() if process.poll() is None]
        for name in running:
            self._signal(name, signal.SIGABRT)
        for name in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._members[name].wait(5)
        return {name: self.said(name) for name in running}

    def _signal(self, name: str, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._members[name].pid, signum)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        for name, process in self._members.items():
            self._signal(name, signal.SIGKILL)  # also what a dead one has left running
            process.wait()


@contextmanager
def daemon(
    crew: Crew,
    root: Path,
    run: Path,
    *,
    socket: Path,
    registry: str = "",
    options: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Iterator[str]:
    """A daemon for a store, answering calls; yields its address.  ``options`` are global ones, ``words`` its own."""
    address = f"unix://{socket}"
    options = [*options, *(["--insecure-registry", registry] if registry else [])]
    process = crew.start(
        "daemon",
        [
            *(sys.executable, "-m", "orlop", "--root", root, "--run", run, *options),
            *("daemon", "--listen", address, *words),
        ],
    )
    _wait_for(address, crew, process)
    try:
        yield address
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)


def _wait_for(address: str, crew: Crew, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with orlop.connect(address) as store:
                store.info()
        except orlop.Unavailable:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(crew.said("daemon")) from None
            time.sleep(0.05)
        else:
            return
