"""A process that is `orlop`'s alone: it is mostly start and end, so it begins and ends in haste.

Nothing here changes what a command does.  A program that calls `orlop.cli.main` with arguments has a process
of its own, and keeps it as it is.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

from orlop.cli.late import put_off
from orlop.hints import stand_in

__all__ = ["begin", "end", "stay"]


def begin() -> None:
    """Before anything else is imported.

    What a command imports is some 60,000 objects and no garbage: to look through the youngest of them once
    took 10 ms, where an empty Python takes 17.
    """
    gc.set_threshold(100_000, 50, 100)
    stand_in()
    put_off()
    # The first to be registered is the last to be called.  Where another was faster (coverage.py's start in a
    # subprocess, a debugger), it would be cut off, and the process ends as any other.
    if not atexit._ncallbacks():
        atexit.register(_leave)


def stay() -> None:
    """This one is to last: a daemon's garbage is to go sooner."""
    gc.set_threshold(*_USUAL)


_USUAL = gc.get_threshold()
_UNWRITTEN = 120  # as the interpreter has it
_code: int | None = None


def end(code: int) -> None:
    """The process is about to end with this code."""
    global _code  # noqa: PLW0603 - a process has one end
    _code = code


def _leave() -> None:
    """Spare the interpreter to take itself apart (7 ms); all threads and other exit functions are through."""
    if _code is None or hasattr(sys, "last_type"):  # not by the door: the interpreter knows the code
        return
    code = _code
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # what a command prints is through: this was another's
            code = _UNWRITTEN
    os._exit(code)
