"""Standard input as bytes for a verb: read where it ends soon when the user gives up.

The descriptor itself is read, never Python's buffered file: a thread that waits in that one when the program
ends (gRPC reads what is sent to a daemon in its own) makes the interpreter abort.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

from orlop.cli.exits import Misuse
from orlop.observe import Call

__all__ = ["check_piped", "piped"]

_CHUNK = 1 << 20
_LOOK = 100  # milliseconds between looks at whether the call was cancelled


def check_piped(example: str) -> None:
    """Refuse a terminal: nobody types a tar."""
    if sys.stdin is not None and sys.stdin.isatty():
        raise Misuse("standard input is a terminal", f"pipe a tar into it: {example}")


def piped(attempted: str, call: Call) -> Iterator[bytes]:
    """What comes by standard input, to its end.  Raises `Cancelled` soon after the call is cancelled."""
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while True:
        call.check(attempted)
        if not poller.poll(_LOOK):
            continue
        try:
            chunk = os.read(0, _CHUNK)
        except BlockingIOError:  # another reader was faster
            continue
        if not chunk:
            return
        yield chunk
