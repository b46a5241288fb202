"""Threads for calls, in pools that cannot starve one another.

A synchronous gRPC server gives each running call a thread.  With one pool for all, a few slow pulls
would leave none for a list.  So there are three kinds of calls, each with threads and a queue of its own:

- *quick*: answered from metadata.  Also the server's default pool, for health checks.
- *roots*: they make, change or delete something, and may have to pull first.
- *transfers*: long by nature.

and a few threads for *idle* streams (reflection), which a client may hold open without any work.

Invariants: all queues together stay below the server's limit of concurrent calls, so quick calls are
always accepted; a call that finds its queue full is refused at once, by a quick thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

__all__ = ["DEFAULT_LIMITS", "CallPool", "Pools", "ServiceLimits"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What clients may ask for at a time.  Counts of calls, and bytes."""

    quick: int = 16  # threads
    roots: int = 24
    transfers: int = 8  # each has a second thread, which does the work
    idle: int = 2
    waiting: int = 128  # calls that may queue for each pool, quick ones apart
    reserve: int = 128  # quick calls accepted on top of all the others
    request_size: int = 1 << 20  # bytes of a request; the largest are options with labels

    @property
    def calls(self) -> int:
        """Calls accepted at a time, running or waiting; more are RESOURCE_EXHAUSTED."""
        threads = self.quick + self.roots + self.transfers + self.idle
        return threads + 3 * self.waiting + self.reserve


DEFAULT_LIMITS = ServiceLimits()


class CallPool(ThreadPoolExecutor):
    """A thread pool that knows how many calls wait and run.  Thread-safe."""

    def __init__(self, name: str, *, threads: int, waiting: int) -> None:
        super().__init__(max_workers=threads, thread_name_prefix=f"orlop-{name}")
        self.name = name
        self._most = threads + waiting
        self._change = threading.Condition()  # guards _calls
        self._calls = 0

    @property
    def calls(self) -> int:
        """Calls that run or wait."""
        return self._calls

    @property
    def full(self) -> bool:
        """Whether a further call should be refused."""
        return self._calls >= self._most

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """As the base's; the call counts until it has ended."""
        with self._change:
            self._calls += 1
        try:
            future = super().submit(fn, *args, **kwargs)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(self._ended)
        return future

    def wait_idle(self, seconds: float) -> int:
        """Wait until no call is left; the number that is left all the same."""
        until = time.monotonic() + seconds
        with self._change:
            while self._calls and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            return self._calls

    def _ended(self, future: object = None) -> None:
        with self._change:
            self._calls -= 1
            self._change.notify_all()


class Pools:
    """The pools of one server."""

    def __init__(self, limits: ServiceLimits) -> None:
        self.quick = CallPool("quick", threads=limits.quick, waiting=limits.calls)
        self.roots = CallPool("roots", threads=limits.roots, waiting=limits.waiting)
        self.transfers = CallPool("transfers", threads=limits.transfers, waiting=limits.waiting)
        self.idle = CallPool("idle", threads=limits.idle, waiting=limits.waiting)

    @property
    def busy(self) -> bool:
        """Whether any call does or waits to do something; idle streams do not count."""
        return any(pool.calls for pool in (self.quick, self.roots, self.transfers))

    def shutdown(self, seconds: float) -> int:
        """Take no more calls and wait for those under way; the number that did not end in time."""
        pools = (self.quick, self.roots, self.transfers, self.idle)
        for pool in pools:
            pool.shutdown(wait=False)
        until = time.monotonic() + seconds
        return sum(pool.wait_idle(max(0.0, until - time.monotonic())) for pool in pools)
