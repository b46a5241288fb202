"""Calls of the library, made in threads and waited for in a loop.

A store's calls go through one `Calls`: a pool of threads of its own, so that no other work of the program
waits for a long pull, and the other way round.

Invariants: whoever awaits a call goes on only when its work has ended, however it ends.  A task that is
cancelled cancels its call, and `asyncio.CancelledError` is raised when the work has stopped.  What a call
made for a task that is not there to take it is undone, where that can be (``undo``).  The context's variables
are those of the awaiting task.  Observers are called in the loop.  Used in one loop only.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from orlop.errors import FailedPrecondition
from orlop.observe import NULL_OBSERVER, Call, CancelToken, Observer, Progress
from orlop.values import replace

if TYPE_CHECKING:
    from orlop.aio.streams import Source

__all__ = ["THREADS", "Calls", "Pending", "finished"]

THREADS = 32  # of one store, unless told otherwise: calls wait for disks, networks and locks, not for the CPU
_LOOK = 0.05  # seconds between a thread's looks at its cancel token while the loop gives it nothing

_T = TypeVar("_T")


class Calls:
    """The calls of one store: where they run, and how all of them are stopped."""

    def __init__(self, threads: int = THREADS) -> None:
        self.loop = asyncio.get_running_loop()
        self.cancel = CancelToken()  # of all calls, when the store is closed
        self.sources: set[Source[Any]] = set()  # the streams that have begun and not ended
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="orlop-aio")
        self._running: set[asyncio.Future[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._ended = False  # the threads are, too

    def begin(self, call: Call | None) -> Call:
        """The circumstances of a call in a thread: cancelled with the store, observed in the loop."""
        if call is None:
            return Call(cancel=self.cancel.child())
        observer = call.observer
        if observer is not NULL_OBSERVER:
            observer = _InLoop(observer, self.loop)
        return replace(call, cancel=_Either(call.cancel, self.cancel), observer=observer)

    async def run(
        self,
        work: Callable[[Call], _T],
        call: Call | None = None,
        *,
        undo: Callable[[_T], object] | None = None,
        steady: bool = False,
        fed: bool = False,
    ) -> _T:
        """What ``work`` returns, called in a thread with a call that the awaiting task's end cancels.

        ``steady`` work is not cancelled, neither by the task nor by the store's end.  ``fed`` work waits for
        what the loop gives it, which may come from a call of this store: it has a thread beside the others',
        or enough of it would take them all, and wait for ever.
        """
        if self._ended or (self.closed and not steady):
            raise FailedPrecondition("use store", "the store is closed")
        inner = Call() if steady else self.begin(call)

        def attempt() -> _T:
            inner.check("use store")  # it may have waited for a thread
            return work(inner)

        pool = ThreadPoolExecutor(1, thread_name_prefix="orlop-aio-fed") if fed else self._pool
        job: Future[_T] = pool.submit(contextvars.copy_context().run, attempt)
        if fed:
            pool.shutdown(wait=False)  # its thread ends with the work
        future = asyncio.wrap_future(job, loop=self.loop)
        self._running.add(future)
        cancelled: asyncio.CancelledError | None = None
        try:
            while not future.done():
                try:
                    await asyncio.wait([future])
                except asyncio.CancelledError as exc:
                    cancelled = cancelled or exc
                    if not steady:
                        inner.cancel.cancel()
                        job.cancel()  # if it has not begun
        finally:
            self._running.discard(future)
        if cancelled is None:
            return future.result()
        if future.cancelled() or (why := future.exception()) is not None:
            raise cancelled from (None if future.cancelled() else why)
        if undo is not None:
            made = future.result()
            await self.run(lambda _: undo(made), steady=True)
        raise cancelled

    def submit(self, work: Callable[[], object]) -> None:
        """Have a thread do something that tells of its end itself."""
        self._pool.submit(work)

    def feed(self, data: AsyncIterable[bytes], call: Call) -> Iterator[bytes]:
        """Bytes for a call that runs in a thread, each asked for in the loop."""
        chunks = aiter(data)

        async def following() -> bytes | None:
            return await anext(chunks, None)

        while True:
            chunk = _awaited(asyncio.run_coroutine_threadsafe(following(), self.loop), call)
            if chunk is None:
                return
            yield chunk

    async def close(self, work: Callable[[], object]) -> None:
        """Stop all calls and streams, wait for their end, do ``work`` and end the threads.  Idempotent.

        All that is done, and then `asyncio.CancelledError` raised, if the task is cancelled meanwhile.
        """
        if self._ended:
            return
        self.cancel.cancel()
        if self._closing is None:
            self._closing = self.loop.create_task(self._close(work))
        await finished(self._closing)

    async def _close(self, work: Callable[[], object]) -> None:
        while self.sources or self._running:
            for source in list(self.sources):
                await source.close()
            if self._running:
                await asyncio.wait(list(self._running))
        try:
            await self.run(lambda _: work(), steady=True)
        finally:
            self._ended = True
            self._pool.shutdown(wait=False)  # nothing runs in it any more

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.cancel.cancelled


async def finished(task: asyncio.Task[_T]) -> _T:
    """The result of a task that goes on whatever happens to the one that waits for it."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = cancelled or exc
    if cancelled is not None:
        raise cancelled
    return task.result()


def _awaited(future: Future[_T], call: Call) -> _T:
    """What the loop makes of something, unless the call is cancelled meanwhile."""
    while True:
        with suppress(TimeoutError):
            future.exception(_LOOK)
        if future.done():
            return future.result()
        try:
            call.check("read what is given")
        except BaseException:
            future.cancel()
            raise


class _Either(CancelToken):
    """Cancelled by itself, by the token of the caller's call, or with the store."""

    __slots__ = ("_others",)

    def __init__(self, *others: CancelToken) -> None:
        super().__init__()
        self._others = others

    @property
    def cancelled(self) -> bool:
        return self._set or any(other.cancelled for other in self._others)


class _InLoop:
    """An observer whose calls are passed on to the loop, in their order."""

    def __init__(self, observer: Observer, loop: asyncio.AbstractEventLoop) -> None:
        self._observer = observer
        self._loop = loop

    def progress(self, event: Progress) -> None:
        with suppress(RuntimeError):  # the loop is closed: there is nobody to tell
            self._loop.call_soon_threadsafe(self._observer.progress, event)

    def warning(self, text: str) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._observer.warning, text)


class _Managed(Protocol):
    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> object: ...


_M = TypeVar("_M", bound=_Managed)


class Pending(Coroutine[Any, Any, _M], Generic[_M]):
    """A coroutine that may be awaited, given to a task, or entered: ``async with store.prepare(…) as root``.

    Entered, it is awaited, and what it gives is entered.
    """

    __slots__ = ("_coroutine", "_made")

    def __init__(self, coroutine: Coroutine[Any, Any, _M]) -> None:
        self._coroutine = coroutine
        self._made: _M | None = None

    def __await__(self) -> Generator[Any, Any, _M]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:  # noqa: ANN401 - as coroutines have it
        """Go on, as the loop has it."""
        return self._coroutine.send(value)

    def throw(self, *args: Any) -> Any:  # noqa: ANN401 - as coroutines have it
        """Go on with an exception."""
        return self._coroutine.throw(*args)

    def close(self) -> None:
        """End without having begun."""
        self._coroutine.close()

    async def __aenter__(self) -> _M:
        self._made = await self._coroutine
        await self._made.__aenter__()
        return self._made

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._made is not None
        await self._made.__aexit__(kind, value, traceback)
