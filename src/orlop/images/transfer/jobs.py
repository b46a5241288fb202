"""Jobs of one call, done side by side by a few threads: where one fails, the others stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from orlop.errors import Cancelled
from orlop.observe import Call

__all__ = ["Jobs"]

_T = TypeVar("_T")

LOOK = 0.1  # seconds after which a wait looks up


class Jobs:
    """Has work done by at most ``threads`` threads.  ``call`` is cancelled where a part fails.

    Used by one thread.
    """

    def __init__(self, threads: int, call: Call, *, name: str) -> None:
        self._call = call
        self._lock = threading.Lock()  # guards what follows
        self._failure: BaseException | None = None  # the first, of all jobs, that is no cancellation
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        """Have work done; where it fails, nothing that waits behind it begins."""

        def guarded() -> _T:
            try:
                return work()
            except BaseException as exc:
                with self._lock:
                    if self._failure is None and not isinstance(exc, Cancelled):
                        self._failure = exc
                self._call.cancel.cancel()
                raise

        return self._pool.submit(guarded)

    def settle(self, futures: Sequence[Future[_T]]) -> list[_T]:
        """The results, in order.  The first failure stops the others, which have ended when it is raised.

        It may be another job's than those: for its sake these were cancelled.
        """
        try:
            # Not once for all: what a signal wakes is not the wait, see `orlop.observe.result_of`
            while not any(map(_has_failed, futures)) and not all(future.done() for future in futures):
                wait(futures, timeout=LOOK, return_when=FIRST_EXCEPTION)
        except BaseException:  # of a signal handler
            self.stop()
            raise
        if any(not future.done() or future.exception() is not None for future in futures):
            self.stop()
        ended = [future.exception() for future in futures if not future.cancelled()]
        failures = [failure for failure in ended if failure is not None]
        if failures:
            raise self._failure or failures[0]
        return [future.result() for future in futures]

    def stop(self) -> None:
        """Cancel what runs, and what waits never begins; on return all of it has ended."""
        self._call.cancel.cancel()
        self.close()

    def close(self) -> None:
        """Let go of the threads, once they are through."""
        self._pool.shutdown(cancel_futures=True)


def _has_failed(future: Future[_T]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
