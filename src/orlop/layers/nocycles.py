"""Work that makes very many values and no cycles, without the collector that looks for cycles among them.

Python's cyclic collector goes through all young values again and again while their number grows: of an index
of 95,000 entries it took half of the time to validate, and half of that to merge (0.18 s instead of 0.34,
0.17 instead of 0.37).  It is the whole process's, so it rests only as long as somebody is at such work, and
only where it was on before.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

__all__ = ["no_cycles"]

_LOCK = threading.Lock()  # guards what follows
_at_work = 0
_was_on = False


@contextlib.contextmanager
def no_cycles() -> Iterator[None]:
    """Within, no cycles are looked for.  Threads may overlap."""
    global _at_work, _was_on  # noqa: PLW0603 - the collector is the process's, too
    with _LOCK:
        if not _at_work:
            _was_on = gc.isenabled()
            gc.disable()
        _at_work += 1
    try:
        yield
    finally:
        with _LOCK:
            _at_work -= 1
            if not _at_work and _was_on:
                gc.enable()


def _in_child() -> None:
    """Whoever was at work stayed behind in the parent, perhaps with the lock."""
    global _LOCK, _at_work  # noqa: PLW0603
    _LOCK = threading.Lock()
    if _at_work and _was_on:
        gc.enable()
    _at_work = 0


os.register_at_fork(after_in_child=_in_child)
