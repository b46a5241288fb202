"""Threads for calls, in pools that cannot starve one another, and in which no client starves another.

A synchronous gRPC server gives each running call a thread.  With one pool for all, a few slow pulls
would leave none for a list.  So there are four kinds of calls, each with threads and queues of its own:

- *quick*: answered from metadata.  Also the server's default pool, for health checks.
- *roots*: they make, change or delete something, and may have to pull first.
- *transfers*: long by nature.
- *contents*: containerd reads and writes blobs in them, one thread to a stream, which waits for it most of
  the time.  It is the machine's own: neither its streams nor its rate are counted.

and threads for *idle* streams (reflection, who watches health), which may be held open without any work.

Within a kind each client has a queue of its own.  A thread that becomes free goes to the client with the
fewest calls running; when all are taken, a client that has none running gets one of a few spare threads.
So whatever one client holds open, the next one's call runs.

Invariants: a call that is refused is refused at once, by threads kept for that, whether its request comes
or not; a call whose request does not come is cancelled; `CallPool.submit` never
raises while the pool is open, because an exception there ends gRPC's own thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from orlop.config.service import ServiceLimits
from orlop.errors import Error, ResourceExhausted, over_limit
from orlop.service.clients import Client, Ledger, ServiceCounts, call_among
from orlop.service.deadlines import Deadlines

__all__ = ["DEFAULT_LIMITS", "CallPool", "Pools", "ServiceLimits", "arrived", "counts_of", "refusal"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_REFUSERS = 2  # threads; a refusal takes a fraction of a millisecond


DEFAULT_LIMITS = ServiceLimits()
_NOTHING = object()
_refused = threading.local()
_awaited = threading.local()


def counts_of(limits: ServiceLimits) -> ServiceCounts:
    """What each client is counted by."""
    return ServiceCounts(
        client_calls=limits.client_calls,
        client_streams=limits.client_streams,
        rate=limits.rate,
        burst=limits.burst,
    )


def arrived() -> None:
    """The request of the call that this thread runs has come: its behaviour begins."""
    watched: tuple[Deadlines, int] | None = getattr(_awaited, "watch", None)
    if watched is not None:
        watched[0].end(watched[1])


def refusal() -> Error | None:
    """Why the call that this thread runs is refused, where it is."""
    error: Error | None = getattr(_refused, "error", None)
    return error


class _Job:
    """A call that has been let in.  No dataclass: one is made for each call."""

    __slots__ = ("args", "call", "client", "future", "stream", "work")

    def __init__(
        self,
        work: Callable[..., Any],
        args: tuple[Any, ...],
        client: Client,
        stream: bool,
        call: Any,  # noqa: ANN401 - gRPC's own
    ) -> None:
        self.future: Future[Any] = Future()
        self.work = work
        self.args = args
        self.client = client
        self.stream = stream
        self.call = call

    def run(self) -> None:
        try:
            self.future.set_result(self.work(*self.args))
        except BaseException as exc:  # noqa: BLE001 - the future carries it, as an executor's does
            self.future.set_exception(exc)


class CallPool(ThreadPoolExecutor):
    """A thread pool that is fair to clients, and knows how many calls wait and run.  Thread-safe.

    ``waiting`` is how many calls of one client may wait; None for no bound but the ledger's.  ``patience``
    is how many seconds a thread waits for a request once its call has begun, by ``deadlines``; 0: no bound.
    In a pool for ``owners`` neither their streams nor their rate are limited.

    An executor by its class alone, for gRPC takes no other: it has threads of its own, which go from call to
    call without the base's queue, locks and second future (docs/adr/0020).  What still runs when a program
    ends is cut off, as a kill would.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        spare: int,
        waiting: int | None,
        ledger: Ledger,
        deadlines: Deadlines | None = None,
        patience: float = 0.0,
        owners: bool = False,
    ) -> None:
        super().__init__(max_workers=1)  # never used
        self.name = name
        self._size = threads
        self._extra = spare
        self._queue_size = waiting
        self._ledger = ledger
        self._deadlines = deadlines
        self._patience = patience
        self._owners = owners
        self._refuser = ThreadPoolExecutor(_REFUSERS, thread_name_prefix=f"orlop-{name}-refuse")
        self._ready: SimpleQueue[_Job | None] = SimpleQueue()  # jobs that have a thread
        self._guard = threading.Lock()  # guards all below
        self._all_left = threading.Condition(self._guard)
        self._calls = 0
        self._busy = 0  # threads that run a call, or are about to
        self._workers: list[threading.Thread] = []
        self._running: dict[str, int] = {}
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self._ended = False
        self.streams = _Streams(self)

    @property
    def calls(self) -> int:
        """Calls that run or wait."""
        return self._calls

    @property
    def waiting(self) -> int:
        """Those among them that wait."""
        with self._guard:
            return sum(map(len, self._queues.values()))

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """As the base's, when the client's turn comes; the call counts until it has ended."""
        return self.enter(partial(fn, **kwargs) if kwargs else fn, args, stream=False)

    def enter(self, work: Callable[..., _T], args: tuple[Any, ...], *, stream: bool) -> Future[_T]:
        """Let a call in, or have it refused; ``args`` are what gRPC gave with it."""
        client = self._ledger.caller(args)
        own = self._owners and client.owner
        stream = stream and not own
        error = self._ledger.begin(client, stream=stream, rated=not own)
        if error is not None:
            return self._refuse(partial(work, *_without_request(args)), error)
        job = _Job(work, args, client, stream, call_among(args) if self._patience else None)
        with self._guard:
            if self._ended:
                queue = None
            elif self._may_run(client.key):
                try:
                    self._start(job)
                    return job.future
                except RuntimeError as exc:  # the system gives no more threads
                    error = ResourceExhausted(f"call as {client}", str(exc))
            else:
                queue = self._queues.setdefault(client.key, deque())
                if self._queue_size is None or len(queue) < self._queue_size:
                    self._calls += 1
                    queue.append(job)
                    return job.future
        self._ledger.end(client, stream=stream)
        if error is not None:
            return self._refuse(partial(work, *_without_request(args)), error)
        if queue is None:
            job.future.set_exception(RuntimeError("the pool has been shut down"))
            return job.future
        most = len(queue)
        error = over_limit("waiting", most + 1, most, attempted=f"call as {client}", table="daemon")
        return self._refuse(partial(work, *_without_request(args)), error)

    def replace(self, *, waiting: int | None, patience: float) -> None:
        """Let other numbers count from the next call on."""
        self._queue_size, self._patience = waiting, patience

    def wait_idle(self, seconds: float) -> int:
        """Wait until no call is left; the number that is left all the same."""
        until = time.monotonic() + seconds
        with self._guard:
            while self._calls and (left := until - time.monotonic()) > 0:
                self._all_left.wait(left)
            return self._calls

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the base's; calls that wait are given up, as gRPC has cancelled them by now."""
        with self._guard:
            queued = [job for queue in self._queues.values() for job in queue]
            self._queues.clear()
            self._calls -= len(queued)
            self._ended = True
            self._all_left.notify_all()
            for _ in self._workers:
                self._ready.put(None)
            threads, self._workers = self._workers, []
        for job in queued:
            self._ledger.end(job.client, stream=job.stream)
            job.future.cancel()
        self._refuser.shutdown(wait=wait)
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        for thread in threads if wait else ():
            thread.join()

    # ------------------------------------------------------------------ needs the guard

    def _may_run(self, key: str) -> bool:
        running = self._busy
        return running < self._size or (key not in self._running and running < self._size + self._extra)

    def _start(self, job: _Job) -> None:
        """Give a job to a thread that has nothing to do, or to a new one, if one can be begun."""
        if self._busy == len(self._workers):
            name = f"orlop-{self.name}_{len(self._workers)}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            thread.start()  # first: where it raises, nothing has been counted
            self._workers.append(thread)
        self._calls += 1
        self._count(job.client.key)
        self._ready.put(job)

    def _count(self, key: str) -> None:
        self._busy += 1
        self._running[key] = self._running.get(key, 0) + 1

    def _leave(self, key: str) -> _Job | None:
        """A call has ended; which one its thread is to run next, if any waits."""
        self._calls -= 1
        self._busy -= 1
        left = self._running[key] - 1
        if left:
            self._running[key] = left
        else:
            del self._running[key]
        if not self._calls:
            self._all_left.notify_all()
        return self._next() if self._queues else None

    def _next(self) -> _Job | None:
        """A call of who has the fewest threads; of equals, of who has waited longest for one."""
        key = min(self._queues, key=lambda waiting: self._running.get(waiting, 0))
        if not self._may_run(key):
            return None
        queue = self._queues.pop(key)
        job = queue.popleft()
        if queue:
            self._queues[key] = queue
        self._count(key)
        return job

    # ------------------------------------------------------------------ the threads

    def _serve(self) -> None:
        while (job := self._ready.get()) is not None:
            following: _Job | None = job
            while following is not None:
                following = self._run(following)
            del job  # what it was called with is not to be kept until the next

    def _run(self, job: _Job) -> _Job | None:
        try:
            if job.future.set_running_or_notify_cancel():
                if job.call is None or self._deadlines is None:
                    job.run()
                else:
                    self._run_within_patience(job, self._deadlines)
        finally:
            self._ledger.end(job.client, stream=job.stream)
            with self._guard:
                following = self._leave(job.client.key)
        return following

    def _run_within_patience(self, job: _Job, deadlines: Deadlines) -> None:
        """Cancel the call if its request has not come in time (`arrived`): gRPC's wait has no end."""
        watch = deadlines.begin(job.call, self._patience)
        _awaited.watch = deadlines, watch
        try:
            job.run()
        finally:
            _awaited.watch = None
            deadlines.end(watch)

    def _refuse(self, work: Callable[[], Any], error: Error) -> Future[Any]:
        def run() -> Any:  # noqa: ANN401 - what the call's own future would have
            _refused.error = error
            try:
                return work()
            finally:
                _refused.error = None

        try:
            return self._refuser.submit(run)
        except RuntimeError as exc:  # shut down meanwhile
            future: Future[Any] = Future()
            future.set_exception(exc)
            return future


def _without_request(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What gRPC gave with a call, with nothing in the place of what waits for the request.

    A client that sends none would hold a thread by a call that is refused.  Where gRPC has another name
    for it the refusal waits.
    """
    return tuple(_no_request if getattr(arg, "__name__", "") == "unary_request" else arg for arg in args)


def _no_request() -> object:
    return _NOTHING


class _Streams(ThreadPoolExecutor):
    """The same pool, for calls that are streams: gRPC takes threads only from an executor of this class."""

    def __init__(self, pool: CallPool) -> None:
        super().__init__(max_workers=1)  # never used
        self._pool = pool

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        return self._pool.enter(partial(fn, **kwargs), args, stream=True)


class Pools:
    """The pools of one server."""

    def __init__(
        self, limits: ServiceLimits, ledger: Ledger | None = None, deadlines: Deadlines | None = None
    ) -> None:
        self.ledger = ledger or Ledger(counts_of(limits))

        def pool(name: str, threads: int, *, owners: bool = False) -> CallPool:
            waiting = None if name == "quick" else limits.waiting  # the ledger bounds them all
            return CallPool(
                name,
                threads=threads,
                spare=limits.spare,
                waiting=waiting,
                ledger=self.ledger,
                deadlines=deadlines,
                patience=limits.quick_deadline,
                owners=owners,
            )

        self.quick = pool("quick", limits.quick)
        self.roots = pool("roots", limits.roots)
        self.transfers = pool("transfers", limits.transfers)
        self.contents = pool("contents", limits.contents, owners=True)
        self.idle = pool("idle", limits.idle)

    def replace(self, limits: ServiceLimits) -> None:
        """Go by other numbers from the next call on, but for those of threads, which are for good."""
        self.ledger.replace(counts_of(limits))
        for pool in self.each():
            waiting = None if pool is self.quick else limits.waiting
            pool.replace(waiting=waiting, patience=limits.quick_deadline)

    def each(self) -> tuple[CallPool, ...]:
        """All of them."""
        return self.quick, self.roots, self.transfers, self.contents, self.idle

    @property
    def busy(self) -> int:
        """How many calls do or wait to do something; idle streams do not count."""
        return sum(pool.calls for pool in (self.quick, self.roots, self.transfers, self.contents))

    def shutdown(self, seconds: float) -> int:
        """Take no more calls and wait for those under way; the number that did not end in time."""
        pools = (self.quick, self.roots, self.transfers, self.contents, self.idle)
        for pool in pools:
            pool.shutdown(wait=False)
        until = time.monotonic() + seconds
        return sum(pool.wait_idle(max(0.0, until - time.monotonic())) for pool in pools)
