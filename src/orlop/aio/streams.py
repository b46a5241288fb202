"""Results that come one by one, as asynchronous iterators.

A thread reads ahead up to `AHEAD` bytes, and holds no place in the pool while nobody asks for more: the job
that reads ends when enough is there, and the next is begun when it is taken.  What is found is given at once,
however long the next takes.

Invariants: one generator is only ever used by one thread at a time, in one context.  It is closed, and its
call cancelled and ended, when the stream is closed, when the task that waits for its next item is cancelled,
when it raises or ends, when the store is closed, and when nobody has the stream any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar, runtime_checkable

from orlop.aio.calls import Calls
from orlop.errors import Cancelled, Internal
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.archives.chunks import Chunks
    from orlop.images.events import Event, EventStream

__all__ = ["AHEAD", "AsyncChunks", "AsyncEvents", "AsyncStream", "Source"]

AHEAD = 4 << 20  # bytes that are read before anybody asks for them
_WEIGHT = 4 << 10  # what an item counts that is not bytes: 1024 of them are read ahead

_T = TypeVar("_T")


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> object: ...


class Source(Generic[_T]):
    """The inner side of a stream: the iterator, what was read of it, and who waits for more."""

    def __init__(
        self, calls: Calls, make: Callable[[Call], Iterator[_T]], call: Call | None, *, own_thread: bool
    ) -> None:
        self._calls = calls
        self._make = make
        self._call = calls.begin(call)
        self._own_thread = own_thread
        self._context: contextvars.Context | None = None
        self._lock = threading.Lock()  # guards the next five
        self._ready: deque[_T] = deque()
        self._weight = 0  # of what is in _ready
        self._reading = False
        self._over = False
        self._error: BaseException | None = None
        self._news = asyncio.Event()  # set from a thread, through the loop: something of these has changed
        self.iterator: Iterator[_T] | None = None
        self._closed = False

    # ------------------------------------------------------------------ the loop's side

    async def begin(self) -> None:
        """Make the iterator, whose arguments are looked at then.  Idempotent."""
        if self._context is not None:
            return
        self._context = contextvars.copy_context()
        self._calls.sources.add(self)

        def make(_: Call) -> None:
            self._call.check("use store")
            self.iterator = self._make(self._call)

        try:
            await self._calls.run(make)
        except BaseException:
            self._call.cancel.cancel()
            await self.close()
            raise

    async def take(self) -> deque[_T] | None:
        """All that is ready, waiting for at least one item; None at the end."""
        await self.begin()
        try:
            while True:
                with self._lock:
                    taken, self._ready = self._ready, deque()
                    self._weight = 0
                    over, error = self._over, self._error
                    self._news.clear()
                    start = not self._reading and not over and not self._closed
                    self._reading = self._reading or start
                if start:
                    try:
                        self._start()
                    except BaseException:  # there are no more threads
                        self._reading = False
                        raise
                if self._closed and not self._calls.closed:
                    return None
                if taken:
                    return taken
                if error is not None:
                    raise error
                if over:
                    return None
                if self._closed:  # with the store, and that was not all there is
                    raise Cancelled("read on", "the store was closed")
                await self._news.wait()
        except BaseException:
            await self.close()
            raise

    def _start(self) -> None:
        if self._own_thread:
            # Whoever waits for events may wait for days: that takes no place from others, and no program
            # waits for it at its end
            threading.Thread(target=self._read, name="orlop-aio-events", daemon=True).start()
        else:
            self._calls.submit(self._read)

    async def close(self) -> None:
        """Cancel the call, wait for the end of what reads, and close the iterator.  Idempotent."""
        self._call.cancel.cancel()
        self._closed = True
        cancelled: asyncio.CancelledError | None = None
        while self.is_reading():
            try:
                await self._news.wait()
                self._news.clear()
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
        if self in self._calls.sources:
            self._calls.sources.discard(self)
            context = self._context
            assert context is not None
            await self._calls.run(lambda _: context.run(self._end), steady=True)
        if cancelled is not None:
            raise cancelled

    def is_reading(self) -> bool:
        """Whether a thread is in the iterator."""
        with self._lock:
            return self._reading

    def abandon(self) -> None:
        """Nobody has the stream any more: close it when the loop comes to it."""
        self._call.cancel.cancel()
        if self._context is not None:
            with suppress(RuntimeError):  # the loop is closed, and the program about to end
                self._calls.loop.call_soon_threadsafe(self._close_later)

    def _close_later(self) -> None:
        if self in self._calls.sources:
            task = self._calls.loop.create_task(self.close())
            _closing.add(task)
            task.add_done_callback(_closing.discard)

    # ------------------------------------------------------------------ the threads' side

    def _read(self) -> None:
        assert self._context is not None
        try:
            self._context.run(self._read_ahead)
        except BaseException as exc:  # noqa: BLE001 - raised again where the items are taken
            with self._lock:
                self._error, self._over = exc, True
        finally:
            with self._lock:
                self._reading = False
            self._tell()

    def _read_ahead(self) -> None:
        assert self.iterator is not None
        for item in self.iterator:
            with self._lock:
                was_empty = not self._ready
                self._ready.append(item)
                self._weight += len(item) if isinstance(item, bytes) else _WEIGHT
                full = self._weight >= AHEAD
            if was_empty:
                self._tell()
            if full or self._closed:
                return
        with self._lock:
            self._over = True

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._calls.loop.call_soon_threadsafe(self._news.set)

    def _end(self) -> None:
        if isinstance(self.iterator, _Closable):
            with suppress(Cancelled):  # which we did
                self.iterator.close()


_closing: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly


class AsyncStream(AsyncIterator[_T], Generic[_T]):
    """An asynchronous iterator over what a call finds, and an asynchronous context manager.

    ::

        async with store.ls("alpine", "/etc") as files:
            async for file in files:
                ...

    The block's end closes it, also after a ``break``.  Without a block it is closed at its end, or by
    `aclose`.  A task that is cancelled while it waits for the next item has closed the stream.
    """

    def __init__(
        self,
        calls: Calls,
        make: Callable[[Call], Iterator[_T]],
        call: Call | None = None,
        *,
        own_thread: bool = False,
    ) -> None:
        self._source = Source(calls, make, call, own_thread=own_thread)
        self._taken: deque[_T] = deque()
        weakref.finalize(self, self._source.abandon).atexit = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        if not self._taken:
            taken = await self._source.take()
            if taken is None:
                await self._finish()
                raise StopAsyncIteration
            self._taken = taken
        return self._taken.popleft()

    async def _finish(self) -> None:
        await self._source.close()

    async def aclose(self) -> None:
        """End the call, if it goes on still; it has ended on return.  Idempotent."""
        self._taken.clear()
        await self._source.close()

    async def __aenter__(self) -> Self:
        await self._source.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncEvents(AsyncIterator["Event"]):
    """A store's events as they come, and the place that was reached.

    Entered as a context manager it begins there and then: from that moment on nothing is missed.  ``cursor``
    is where another can go on after the last event that was given.
    """

    def __init__(
        self, calls: Calls, make: Callable[[Call], EventStream], call: Call | None = None, *, follow: bool
    ) -> None:
        made: list[EventStream] = []
        starts: list[str] = []

        def steps(inner: Call) -> Iterator[tuple[Event, str]]:
            stream = make(inner)
            made.append(stream)
            starts.append(stream.cursor)
            return _Placed(stream)

        self._made, self._starts = made, starts  # by themselves: what reads must not hold what is read
        self._given = ""
        self._inner = AsyncStream(calls, steps, call, own_thread=follow)

    @property
    def cursor(self) -> str:
        """Where to go on; empty before it began."""
        return self._given or next(iter(self._starts), "")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        try:
            event, self._given = await anext(self._inner)
        except StopAsyncIteration:
            if self._made:
                self._given = self._made[0].cursor  # past events of other kinds, too
            raise
        return event

    async def aclose(self) -> None:
        """End it.  Idempotent."""
        await self._inner.aclose()

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._inner.aclose()


class _Placed(Iterator[tuple["Event", str]]):
    """Events, each with the place after it."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    def __next__(self) -> tuple[Event, str]:
        event = next(self._stream)
        return event, self._stream.cursor

    def close(self) -> None:
        """End the stream."""
        self._stream.close()


class AsyncChunks(AsyncStream[bytes], Generic[_T]):
    """The bytes of an export; ``result`` says what it was, after the last chunk."""

    def __init__(self, calls: Calls, make: Callable[[Call], Chunks[_T]], call: Call | None = None) -> None:
        result: list[_T] = []

        def chunks(inner: Call) -> Iterator[bytes]:
            stream = make(inner)
            try:
                yield from stream
                result.append(stream.result)
            finally:
                stream.close()

        self._result = result
        super().__init__(calls, chunks, call)

    @property
    def result(self) -> _T:
        """What the export was, once all of it was read."""
        if not self._result:
            raise Internal("read an export's result", "it has not ended")
        return self._result[0]
