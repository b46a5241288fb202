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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

from orlop.errors import Error, InvalidArgument, over_limit
from orlop.service.clients import Client, Ledger, ServiceCounts, call_among
from orlop.service.deadlines import Deadlines
from orlop.values import dataclass, fields

__all__ = ["DEFAULT_LIMITS", "CallPool", "Pools", "ServiceLimits", "arrived", "refusal"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_REFUSERS = 2  # threads; a refusal takes a fraction of a millisecond


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What clients may ask for at a time, and who they may be.  Counts, bytes, seconds and names.

    A client is a user (uid), or the name of a TLS certificate.  Raises `InvalidArgument` for a number below
    1; of a duration and a rate, 0 stands for no limit.
    """

    quick: int = 16  # threads for calls that metadata answer
    roots: int = 24  # threads for calls that make, change or delete
    transfers: int = 8  # threads for pulls and the like; each has a second one, which does the work
    contents: int = 128  # threads for containerd's streams of blobs; each is one that it reads or writes
    idle: int = 64  # threads for streams that a client may hold open without work: who watches health
    spare: int = 16  # threads more of each kind, for clients that have no call of it running
    waiting: int = 128  # calls of one client that may queue for each kind, quick ones apart
    calls: int = 2048  # of all clients, running or waiting
    client_calls: int = 512  # of one client, running or waiting
    client_streams: int = 64  # of one client, among its calls: those that report while they run
    rate: float = 2_000.0  # calls a second of one client, once it has made a burst of them
    burst: int = 20_000  # calls that a client may make before its rate counts
    connections: int = 200  # of all clients
    client_connections: int = 100  # of one client
    handshake: float = 20.0  # seconds in which a connection has to become HTTP/2
    idle_connection: float = 1_800.0  # seconds after which one without calls is closed
    keepalive: float = 300.0  # seconds between looks whether a silent client is still there
    quick_deadline: float = 60.0  # seconds that a call may take at most, whatever its client allows
    roots_deadline: float = 3_600.0  # likewise, of calls that make, change or delete
    transfers_deadline: float = 86_400.0  # likewise, of pulls and the like
    grace: float = 10.0  # seconds that running calls have to end once the daemon is to stop; 0: none
    request_size: int = 1 << 20  # bytes of a request; the largest are options with labels
    users: tuple[str, ...] = ()  # names or numbers; who may do everything, besides root and the group
    groups: tuple[str, ...] = ()  # likewise
    read_only_users: tuple[str, ...] = ()  # who may look and change nothing
    read_only_groups: tuple[str, ...] = ()  # likewise
    tls_names: tuple[str, ...] = ()  # of client certificates; "*" is any that the authority has signed
    tls_read_only_names: tuple[str, ...] = ()  # of those that may look and change nothing

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if isinstance(item.default, float) else 1
            if not isinstance(value, tuple) and not value >= least:
                raise InvalidArgument("use limits", f"daemon.{item.name} is {value!r}, and at least {least}")

    @property
    def counts(self) -> ServiceCounts:
        """What each client is counted by."""
        return ServiceCounts(
            client_calls=self.client_calls,
            client_streams=self.client_streams,
            rate=self.rate,
            burst=self.burst,
        )

    @property
    def opens_to_all(self) -> bool:
        """Whether users are named whom the socket's owner and group leave out."""
        return bool(self.users or self.groups or self.read_only_users or self.read_only_groups)


DEFAULT_LIMITS = ServiceLimits()
_NOTHING = object()
_refused = threading.local()
_awaited = threading.local()


def arrived() -> None:
    """The request has come of the call that this thread runs."""
    forget: Callable[[], None] | None = getattr(_awaited, "forget", None)
    if forget is not None:
        forget()


def refusal() -> Error | None:
    """Why the call that this thread runs is refused, where it is."""
    error: Error | None = getattr(_refused, "error", None)
    return error


@dataclass(frozen=True, slots=True)
class _Job:
    """A call that has been let in."""

    future: Future[Any]
    work: Callable[[], Any]
    client: Client
    stream: bool
    call: Any = None  # gRPC's own

    def run(self) -> None:
        try:
            self.future.set_result(self.work())
        except BaseException as exc:  # noqa: BLE001 - the future carries it, as an executor's does
            self.future.set_exception(exc)


class CallPool(ThreadPoolExecutor):
    """A thread pool that is fair to clients, and knows how many calls wait and run.  Thread-safe.

    ``waiting`` is how many calls of one client may wait; None for no bound but the ledger's.  ``patience``
    is how many seconds a thread waits for a request once its call has begun, by ``deadlines``; 0: no bound.
    In a pool for ``owners`` neither their streams nor their rate are limited.
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
        super().__init__(max_workers=threads + spare, thread_name_prefix=f"orlop-{name}")
        self.name = name
        self._size = threads
        self._extra = spare
        self._queue_size = waiting
        self._ledger = ledger
        self._deadlines = deadlines
        self._patience = patience
        self._owners = owners
        self._refuser = ThreadPoolExecutor(_REFUSERS, thread_name_prefix=f"orlop-{name}-refuse")
        self._change = threading.Condition()  # guards all below
        self._calls = 0
        self._running: dict[str, int] = {}
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()
        self.streams = _Streams(self)

    @property
    def calls(self) -> int:
        """Calls that run or wait."""
        return self._calls

    @property
    def waiting(self) -> int:
        """Those among them that wait."""
        with self._change:
            return sum(map(len, self._queues.values()))

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """As the base's, when the client's turn comes; the call counts until it has ended."""
        return self.enter(partial(fn, **kwargs), args, stream=False)

    def enter(self, work: Callable[..., _T], args: tuple[Any, ...], *, stream: bool) -> Future[_T]:
        """Let a call in, or have it refused; ``args`` are what gRPC gave with it."""
        client = self._ledger.caller(args)
        own = self._owners and client.owner
        stream = stream and not own
        error = self._ledger.begin(client, stream=stream, rated=not own)
        if error is not None:
            return self._refuse(partial(work, *_without_request(args)), error)
        job = _Job(Future(), partial(work, *args), client, stream, call_among(args))
        with self._change:
            self._calls += 1
            if self._may_run(client.key):
                self._start(job)
                return job.future
            queue = self._queues.setdefault(client.key, deque())
            if self._queue_size is None or len(queue) < self._queue_size:
                queue.append(job)
                return job.future
            self._calls -= 1
        self._ledger.end(client, stream=stream)
        most = len(queue)
        error = over_limit("waiting", most + 1, most, attempted=f"call as {client}", table="daemon")
        return self._refuse(partial(work, *_without_request(args)), error)

    def replace(self, *, waiting: int | None, patience: float) -> None:
        """Let other numbers count from the next call on."""
        self._queue_size, self._patience = waiting, patience

    def wait_idle(self, seconds: float) -> int:
        """Wait until no call is left; the number that is left all the same."""
        until = time.monotonic() + seconds
        with self._change:
            while self._calls and (left := until - time.monotonic()) > 0:
                self._change.wait(left)
            return self._calls

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the base's; calls that wait are given up, as gRPC has cancelled them by now."""
        with self._change:
            queued = [job for queue in self._queues.values() for job in queue]
            self._queues.clear()
            self._calls -= len(queued)
            self._change.notify_all()
        for job in queued:
            self._ledger.end(job.client, stream=job.stream)
            job.future.cancel()
        self._refuser.shutdown(wait=wait)
        super().shutdown(wait=wait, cancel_futures=cancel_futures)

    def _may_run(self, key: str) -> bool:
        running = sum(self._running.values())
        return running < self._size or (key not in self._running and running < self._size + self._extra)

    def _start(self, job: _Job) -> None:
        key = job.client.key
        self._running[key] = self._running.get(key, 0) + 1
        try:
            super().submit(self._run, job)
        except RuntimeError as exc:  # shut down meanwhile
            self._leave(job)
            job.future.set_exception(exc)

    def _run(self, job: _Job) -> None:
        try:
            if job.future.set_running_or_notify_cancel():
                with self._awaiting(job):
                    job.run()
        finally:
            self._ledger.end(job.client, stream=job.stream)
            with self._change:
                self._leave(job)
                self._start_next()

    @contextmanager
    def _awaiting(self, job: _Job) -> Iterator[None]:
        """Cancel the call if its request has not come in time (`arrived`): gRPC's wait has no end."""
        if self._deadlines is None or job.call is None or not self._patience:
            yield
            return
        with self._deadlines.watch(job.call, self._patience) as forget:
            _awaited.forget = forget
            try:
                yield
            finally:
                _awaited.forget = None

    def _leave(self, job: _Job) -> None:
        self._calls -= 1
        key = job.client.key
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        self._change.notify_all()

    def _start_next(self) -> None:
        """Give free threads to those that have the fewest; of equals, to who has waited longest for one."""
        while self._queues:
            key = min(self._queues, key=lambda waiting: self._running.get(waiting, 0))
            if not self._may_run(key):
                return
            queue = self._queues.pop(key)
            job = queue.popleft()
            if queue:
                self._queues[key] = queue
            self._start(job)

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
        self.ledger = ledger or Ledger(limits.counts)

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
        self.ledger.replace(limits.counts)
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
