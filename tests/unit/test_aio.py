"""`orlop.aio` without a store: how calls in threads begin, end and are cancelled, and what the classes say."""

from __future__ import annotations

import ast
import asyncio
import contextvars
import gc
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

import orlop
from orlop.aio.calls import Calls, Pending
from orlop.aio.progress import following
from orlop.aio.streams import AsyncStream
from orlop.observe import Call, Progress
from support import aiofaces

T = TypeVar("T")
LONG = 60  # seconds that no test takes


def run(work: Callable[[Calls], Awaitable[T]], *, threads: int = 4) -> T:
    """What a coroutine makes of fresh calls, which are closed then and have left no thread."""

    async def main() -> T:
        calls = Calls(threads)
        try:
            return await asyncio.wait_for(work(calls), LONG)
        finally:
            await calls.close(lambda: None)
            assert not calls.sources

    return asyncio.run(main())


class Stuck:
    """Work that ends when it is cancelled, and not before."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()

    def __call__(self, call: Call) -> None:
        self.begun.set()
        try:
            while True:
                call.pause(LONG, "wait")
        finally:
            self.ended.set()

    async def begin(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, LONG)


# ------------------------------------------------------------------ calls


def test_a_call_gives_its_result_and_raises_its_error() -> None:
    async def work(calls: Calls) -> None:
        assert await calls.run(lambda _: 7) == 7
        with pytest.raises(orlop.NotFound, match="no such"):
            await calls.run(_missing)

    run(work)


def _missing(_: Call) -> None:
    raise orlop.NotFound("look", "no such thing")


def test_a_cancelled_task_ends_when_its_work_has() -> None:
    async def work(calls: Calls) -> None:
        stuck = Stuck()
        task = asyncio.create_task(calls.run(stuck))
        await stuck.begin()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stuck.ended.is_set()

    run(work)


def test_a_timeout_is_a_timeout_error_and_cancels_the_call() -> None:
    async def work(calls: Calls) -> None:
        stuck = Stuck()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await calls.run(stuck)
        assert stuck.ended.is_set() or not stuck.begun.is_set()

    run(work)


def test_a_deadline_and_a_token_of_the_callers_count() -> None:
    async def work(calls: Calls) -> None:
        with pytest.raises(orlop.DeadlineExceeded):
            await calls.run(Stuck(), Call(deadline=0.0))
        token = orlop.CancelToken()
        stuck = Stuck()
        task = asyncio.create_task(calls.run(stuck, Call(cancel=token)))
        await stuck.begin()
        token.cancel()
        with pytest.raises(orlop.Cancelled):
            await task

    run(work)


def test_what_was_made_for_a_cancelled_task_is_undone() -> None:
    undone: list[str] = []

    async def work(calls: Calls) -> None:
        begun, go = threading.Event(), threading.Event()

        def make(_: Call) -> str:
            begun.set()
            go.wait(LONG)
            return "made"

        task = asyncio.create_task(calls.run(make, undo=undone.append))
        await asyncio.to_thread(begun.wait, LONG)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work)
    assert undone == ["made"]


def test_steady_work_goes_on_to_its_end() -> None:
    async def work(calls: Calls) -> None:
        begun, go, ended = threading.Event(), threading.Event(), threading.Event()

        def clean(call: Call) -> None:
            begun.set()
            go.wait(LONG)
            call.check("clean up")
            ended.set()

        task = asyncio.create_task(calls.run(clean, steady=True))
        await asyncio.to_thread(begun.wait, LONG)
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run(work)


def test_a_call_that_waits_for_a_thread_does_not_begin_once_cancelled() -> None:
    async def work(calls: Calls) -> None:
        first = Stuck()
        one = asyncio.create_task(calls.run(first))
        await first.begin()
        second = Stuck()
        two = asyncio.create_task(calls.run(second))
        await asyncio.sleep(0)
        two.cancel()
        with pytest.raises(asyncio.CancelledError):
            await two
        assert not second.begun.is_set()
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one

    run(work, threads=1)


def test_closing_ends_what_runs_and_then_nothing_begins() -> None:
    async def main() -> None:
        calls = Calls(2)
        stuck = [Stuck() for _ in range(4)]
        tasks = [asyncio.create_task(calls.run(one)) for one in stuck]
        await stuck[0].begin()
        closed: list[bool] = []
        await asyncio.gather(calls.close(lambda: closed.append(True)), calls.close(lambda: None))
        assert closed == [True]
        assert all(
            isinstance(error, orlop.Cancelled)
            for error in await asyncio.gather(*tasks, return_exceptions=True)
        )
        with pytest.raises(orlop.FailedPrecondition, match="closed"):
            await calls.run(lambda _: 1)
        await calls.close(lambda: closed.append(True))
        assert closed == [True]

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_variables_of_the_context_are_those_of_the_task() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def work(calls: Calls) -> None:
        variable.set("the task's")
        assert await calls.run(lambda _: variable.get()) == "the task's"
        items = AsyncStream(calls, lambda _: (variable.get() for _ in range(3)))
        assert [item async for item in items] == ["the task's"] * 3

    run(work)


def test_observers_are_called_in_the_loop_before_the_call_returns() -> None:
    class Told:
        def __init__(self) -> None:
            self.steps: list[int] = []
            self.threads: set[int] = set()

        def progress(self, event: Progress) -> None:
            self.steps.append(event.done)
            self.threads.add(threading.get_ident())

        def warning(self, text: str) -> None:
            self.progress(Progress(item=text, phase="", done=-1))

    def steps(call: Call) -> None:
        for number in range(100):
            call.observer.progress(Progress(item="a", phase="b", done=number))
        call.observer.warning("w")

    async def work(calls: Calls) -> None:
        told = Told()
        await calls.run(steps, Call(observer=told))
        assert told.steps == [*range(100), -1]
        assert told.threads == {threading.get_ident()}

    run(work)


# ------------------------------------------------------------------ streams


class Numbers:
    """A generator that tells of its end."""

    def __init__(self, count: int | None = None) -> None:
        self.count, self.given, self.closed = count, 0, threading.Event()

    def __call__(self, call: Call) -> Iterator[int]:
        try:
            while self.count is None or self.given < self.count:
                call.check("count")
                self.given += 1
                yield self.given
        finally:
            self.closed.set()


def test_all_items_come_in_order() -> None:
    async def work(calls: Calls) -> None:
        numbers = Numbers(10_000)
        assert [number async for number in AsyncStream(calls, numbers)] == list(range(1, 10_001))
        assert numbers.closed.is_set()

    run(work)


def test_a_block_that_is_left_closes_the_generator_and_little_was_read_ahead() -> None:
    async def work(calls: Calls) -> None:
        numbers = Numbers()
        async with AsyncStream(calls, numbers) as stream:
            async for number in stream:
                if number == 5:
                    break
        assert numbers.closed.is_set()
        assert numbers.given <= 4_000
        await stream.aclose()
        assert [item async for item in stream] == []

    run(work)


def test_an_item_is_given_while_the_next_is_awaited_and_cancelling_that_closes_the_stream() -> None:
    async def work(calls: Calls) -> None:
        stuck = Stuck()

        def one_and_no_more(call: Call) -> Iterator[int]:
            yield 1
            stuck(call)

        stream = AsyncStream(calls, one_and_no_more)
        assert await anext(stream) == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        assert stuck.ended.is_set() or not stuck.begun.is_set()
        assert not calls.sources

    run(work)


def test_an_error_comes_after_the_items_before_it() -> None:
    def three_and_an_error(_: Call) -> Iterator[int]:
        yield from (1, 2, 3)
        raise orlop.DataLoss("read", "it is torn")

    async def work(calls: Calls) -> None:
        seen: list[int] = []
        stream = AsyncStream(calls, three_and_an_error)
        with pytest.raises(orlop.DataLoss):
            await _read(stream, seen)
        assert seen == [1, 2, 3]

    run(work)


async def _read(stream: AsyncStream[int], seen: list[int]) -> None:
    async for number in stream:
        seen.append(number)  # noqa: PERF401 - what came before an error counts


def test_a_stream_that_the_stores_end_cuts_short_is_no_whole_one() -> None:
    async def main() -> None:
        calls = Calls(2)
        numbers = Numbers()
        stream = AsyncStream(calls, numbers)
        assert await anext(stream) == 1
        await calls.close(lambda: None)
        assert numbers.closed.is_set()
        with pytest.raises(orlop.Cancelled):
            async for _ in stream:
                pass

    asyncio.run(asyncio.wait_for(main(), LONG))


def test_one_that_nobody_has_any_more_is_closed() -> None:
    async def work(calls: Calls) -> None:
        numbers = Numbers()
        stream = AsyncStream(calls, numbers)
        assert await anext(stream) == 1
        del stream
        gc.collect()
        assert await asyncio.to_thread(numbers.closed.wait, LONG)

    run(work)


def test_streams_that_nobody_reads_take_no_thread_from_others() -> None:
    async def work(calls: Calls) -> None:
        streams = [AsyncStream(calls, Numbers()) for _ in range(5)]
        for stream in streams:
            assert await anext(stream) == 1
        assert await calls.run(lambda _: "done") == "done"
        for stream in streams:
            await stream.aclose()

    run(work, threads=1)


def test_bytes_of_the_loop_reach_a_thread_and_cancelling_reaches_who_gives_them() -> None:
    async def work(calls: Calls) -> None:
        async def given() -> AsyncIterator[bytes]:
            for text in (b"a", b"b"):
                await asyncio.sleep(0)
                yield text

        assert await calls.run(lambda inner: b"".join(calls.feed(given(), inner)), fed=True) == b"ab"
        asked, ended = asyncio.Event(), asyncio.Event()

        async def never() -> AsyncIterator[bytes]:
            asked.set()
            try:
                await asyncio.sleep(LONG * 10)
            finally:
                ended.set()
            yield b""

        task = asyncio.create_task(calls.run(lambda inner: list(calls.feed(never(), inner)), fed=True))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ended.wait()

    run(work)


def test_what_is_fed_from_a_stream_of_the_same_store_waits_for_no_thread() -> None:
    async def work(calls: Calls) -> None:
        def fed(number: int) -> Awaitable[bytes]:
            stream = AsyncStream(calls, lambda _: iter([b"%d" % number] * 3))
            return calls.run(lambda inner: b"".join(calls.feed(stream, inner)), fed=True)

        assert await asyncio.gather(*map(fed, range(3))) == [b"000", b"111", b"222"]

    run(work, threads=1)


# ------------------------------------------------------------------ progress and pending ones


def _work(call: Call) -> str:
    for number in range(1_000):
        call.observer.progress(Progress(item="a", phase=("fetching", "indexing")[number % 2], done=number))
    call.observer.warning("slow")
    return "done"


def test_progress_is_iterated_over_and_the_last_of_each_phase_is_there() -> None:
    async def work(calls: Calls) -> None:
        async with following(lambda call: calls.run(_work, call)) as followed:
            with pytest.raises(orlop.FailedPrecondition):
                _ = followed.result
            events = [event async for event in followed]
        assert {event.phase: event.done for event in events} == {"fetching": 998, "indexing": 999}
        assert (followed.result, followed.warnings) == ("done", ["slow"])

    run(work)


def test_who_leaves_the_block_has_ended_the_call() -> None:
    async def work(calls: Calls) -> None:
        stuck = Stuck()

        def begin(call: Call) -> None:
            call.observer.progress(Progress(item="a", phase="b"))
            stuck(call)

        async with following(lambda call: calls.run(begin, call)) as followed:
            async for _ in followed:
                break
        assert stuck.ended.is_set()

    run(work)


def test_the_iteration_raises_what_the_call_raised() -> None:
    async def work(calls: Calls) -> None:
        async with following(lambda call: calls.run(_missing, call)) as followed:
            with pytest.raises(orlop.NotFound):
                await anext(followed)

    run(work)


def test_a_pending_one_is_awaited_entered_or_given_to_a_task() -> None:
    class Managed:
        left = False

        async def __aenter__(self) -> Managed:
            return self

        async def __aexit__(self, *exc: object) -> None:
            self.left = True

    async def make() -> Managed:
        await asyncio.sleep(0)
        return Managed()

    async def main() -> None:
        assert not (await Pending(make())).left
        async with Pending(make()) as made:
            assert not made.left
        assert made.left
        async with asyncio.TaskGroup() as group:
            task = group.create_task(Pending(make()))
        assert not task.result().left
        assert len(await asyncio.gather(Pending(make()), Pending(make()))) == 2
        with pytest.raises(RuntimeError):
            async with Pending(make()) as made:
                raise RuntimeError
        assert made.left

    asyncio.run(main())


# ------------------------------------------------------------------ what the classes say


@pytest.mark.parametrize("face", aiofaces.FACES, ids=lambda face: face.name)
def test_the_asynchronous_classes_are_in_step_with_the_synchronous_ones(face: aiofaces.Face) -> None:
    there = aiofaces.meaning(aiofaces.path_of(face).read_text())
    assert there == aiofaces.meaning(aiofaces.written(face)), "run tools/aio-faces"


@pytest.mark.parametrize(
    ("sync", "asynchronous"), [(orlop.Store, orlop.aio.AsyncStore), (orlop.Prepared, orlop.aio.AsyncPrepared)]
)
def test_every_public_method_has_the_same_parameters(sync: type, asynchronous: type) -> None:
    names = {name for name in dir(sync) if name[0] != "_"}
    assert names <= {name for name in dir(asynchronous) if name[0] != "_"}
    for name in names:
        mine, theirs = getattr(asynchronous, name), getattr(sync, name)
        if not callable(theirs):
            continue
        assert mine.__doc__, name
        here, there = (
            [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]
            for method in (mine, theirs)
        )
        assert here == there, name


def test_no_signature_says_any() -> None:
    for face in aiofaces.FACES:
        tree = ast.parse(aiofaces.path_of(face).read_text())
        assert "Any" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_importing_orlop_does_not_bring_along_asyncio() -> None:
    script = "import sys, orlop; orlop.open; print('asyncio' in sys.modules); orlop.aio.open; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, rest = done.stdout.splitlines()
    assert first == "False"
    assert "'orlop.images.store'" not in rest
