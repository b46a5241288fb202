"""The progress of one call as an asynchronous iterator, beside the observers that all calls may have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from orlop.errors import FailedPrecondition
from orlop.observe import Call, Progress
from orlop.values import replace

__all__ = ["Following", "following"]

_T = TypeVar("_T")


def following(start: Callable[[Call], Coroutine[Any, Any, _T]], *, call: Call | None = None) -> Following[_T]:
    """Make a call, and iterate over its progress while it goes on.

    ::

        async with orlop.aio.following(lambda call: store.pull("alpine", call=call)) as pull:
            async for event in pull:
                print(event.item, event.phase, event.done, event.total)
        print(pull.result.digest)

    ``start`` is given the call to make it with; ``call`` has a deadline or credentials for it, if any.
    """
    return Following(start, call)


class Following(AsyncIterator[Progress], Generic[_T]):
    """A call's progress; ``result`` is what it gave, ``warnings`` the texts of which it warned.

    A reader that is slow misses steps, but never the last of an item's phase; so memory is bounded by the
    items.  The iteration ends with the call, and raises what that raised.  Leaving the block before cancels
    the call, and waits until it has ended.
    """

    def __init__(self, start: Callable[[Call], Coroutine[Any, Any, _T]], call: Call | None) -> None:
        self._start = start
        self._call = replace(call or Call(), observer=self)
        self._task: asyncio.Task[_T] | None = None
        self._events: dict[tuple[str, str], Progress] = {}
        self._news = asyncio.Event()
        self.warnings: list[str] = []

    def progress(self, event: Progress) -> None:
        """The call's observer; in the loop."""
        self._events[event.item, event.phase] = event
        self._news.set()

    def warning(self, text: str) -> None:
        """The call's observer; in the loop."""
        self.warnings.append(text)

    @property
    def result(self) -> _T:
        """What the call gave; raises what it raised, and `FailedPrecondition` while it goes on."""
        if self._task is None or not self._task.done():
            raise FailedPrecondition("take a call's result", "it has not ended")
        return self._task.result()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Progress:
        if self._task is None:
            raise FailedPrecondition("follow a call", "it has not begun", hint="async with … as call: first")
        while not self._events:
            if self._task.done():
                self._task.result()
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.pop(next(iter(self._events)))

    async def __aenter__(self) -> Self:
        self._task = asyncio.get_running_loop().create_task(self._start(self._call))
        self._task.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, cancelled = self._task, None
        assert task is not None
        while not task.done():
            task.cancel()
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as exc:
                cancelled = exc
        if not task.cancelled():
            task.exception()  # it is the iteration's, or `result`'s, to raise
        if cancelled is not None:
            raise cancelled
