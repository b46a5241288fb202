"""Work on the pieces of a stream, in threads, the results in order.

The libraries that compress and hash let go of the interpreter, so threads are enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["Pool", "mapped"]

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Pool(ThreadPoolExecutor):
    """Threads that several streams share.  Of one, ``ahead`` pieces are under way: that bounds the memory."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="pack")
        self.ahead = threads + 2


def mapped(work: Callable[[_In], _Out], pieces: Iterable[_In], pool: Pool | None) -> Iterator[_Out]:
    """``work`` on each piece, in order, at most ``pool.ahead`` at a time; without a pool, here.

    A caller who stops early leaves nothing behind that still waits for a thread.
    """
    if pool is None:
        yield from map(work, pieces)
        return
    waiting: deque[Future[_Out]] = deque()
    try:
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) >= pool.ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
