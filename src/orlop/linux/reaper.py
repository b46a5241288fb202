"""Being the parent of orphans below us: who runs a container waits for it himself.

A runtime's ``create`` exits and leaves the container's first process behind.  With the subreaper bit
that orphan becomes our child, so that waitpid(2) tells how it ended.  Not a child watcher: it reaps
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orlop.linux._syscall import call

__all__ = ["subreaper"]

# include/uapi/linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


@contextmanager
def subreaper() -> Iterator[None]:
    """While inside, descendants that lose their parent become this process's children.

    The bit belongs to the process, not to the thread, and is not inherited.  It is put back as it was.
    """
    before = bytearray(4)
    call("prctl", _PR_GET_CHILD_SUBREAPER, before, 0, 0, 0)
    call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        call("prctl", _PR_SET_CHILD_SUBREAPER, int(any(before)), 0, 0, 0)
