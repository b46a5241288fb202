"""Who writes when, and with whom: the queue of one process's writers.

The first in the queue leads: it takes the store's turn (`orlop.linux.flock.TurnLock`, where processes stand
in the order of asking), has the bodies of all who wait run in one transaction, and hands the lead to the
first of those who came meanwhile.  So N threads need far fewer commits, and fsyncs, than N, and no process
writes twice while another waits.  No thread of its own: a body runs in the thread of whoever leads.

Invariants: bodies run in the order of asking; one that raises is undone alone, and its error goes to its own
caller; `Writers.write` returns after the commit.  While a call waits it ends with its deadline or cancel and
leaves nothing behind; once its body is taken, it waits for the end, which is near.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence

from orlop.errors import from_oserror
from orlop.hints import Generic, TypeVar
from orlop.linux.flock import TurnLock
from orlop.observe import Call

__all__ = ["ATTEMPTED", "Job", "Writers", "run_together"]

ATTEMPTED = "write metadata"
MOST_TOGETHER = 64  # bodies in one transaction: other processes wait meanwhile
_LOOK = 0.1  # seconds between looks at a call's cancel and deadline
_T = TypeVar("_T")


class Job(Generic[_T]):
    """A body, and when it is ``done`` what became of it.

    Guarded by the queue's lock while it waits; its leader's while it is ``taken``.
    """

    __slots__ = ("_result", "body", "call", "done", "error", "leads", "taken", "woken")

    def __init__(self, body: Callable[[sqlite3.Connection], _T], call: Call) -> None:
        self.body = body
        self.call = call
        self.woken: threading.Event | None = None  # set when it is to lead, or is done; who leads needs none
        self.leads = False
        self.taken = False
        self.done = False
        self.error: Exception | None = None
        self._result: list[_T] = []

    def run(self, connection: sqlite3.Connection) -> None:
        """Call the body; what came of an earlier run is forgotten."""
        self.error = None
        self._result = [self.body(connection)]

    def outcome(self) -> _T:
        """The body's result; raises its error."""
        if self.error is not None:
            raise self.error
        return self._result[0]


class Writers:
    """The queue.  Thread-safe.

    ``run`` gets the jobs of one turn and the call of who leads, and leaves all of them done; or it raises,
    and those that are not done are for another turn.
    """

    def __init__(self, turn: TurnLock, run: Callable[[Sequence[Job[object]], Call], None]) -> None:
        self._turn = turn  # the leader's; kept when one gives up, so that the next has its place
        self._run = run
        self._guard = threading.Lock()  # guards the fields below, and jobs that wait
        self._waiting: deque[Job[object]] = deque()
        self._leader: Job[object] | None = None
        self._inside = 0  # the thread that runs bodies; only that thread can find its own number here

    def write(self, body: Callable[[sqlite3.Connection], _T], call: Call) -> _T:
        """Have a body run in a transaction; returns when that is committed."""
        if self._inside == threading.get_ident():
            raise RuntimeError("a transaction's body may not begin another: it would wait for itself")
        job: Job[_T] = Job(body, call)
        try:
            self._enter(job)
            while not job.done:
                if job.leads:
                    self._lead(job)
                elif not _woken(job):
                    self._check(job)
        finally:
            self._leave(job)
        return job.outcome()

    def close(self) -> None:
        """Let go of what the turn keeps open, unless somebody is at it; it goes on working."""
        with self._guard:
            if self._leader is None:
                self._turn.close()

    def after_fork(self) -> None:
        """In a forked child, which has none of the parent's threads: begin anew."""
        self._turn.abandon()
        self._guard = threading.Lock()
        self._waiting.clear()
        self._leader = None
        self._inside = 0

    def _enter(self, job: Job[_T]) -> None:
        with self._guard:
            self._waiting.append(job)  # type: ignore[arg-type]  # results are handed on unseen
            if self._leader is None:
                self._appoint(job)
            else:
                job.woken = threading.Event()

    def _appoint(self, job: Job[_T] | None) -> None:
        self._leader = job  # type: ignore[assignment]  # as above
        if job is not None:
            job.leads = True
            _wake(job)

    def _check(self, job: Job[_T]) -> None:
        """Raise if the call should stop and nobody has taken the body; nor will anybody then."""
        with self._guard:
            if not (job.leads or job.taken or job.done):
                try:
                    job.call.check(ATTEMPTED)
                except BaseException:
                    self._waiting.remove(job)  # type: ignore[arg-type]  # as above
                    raise

    def _lead(self, job: Job[_T]) -> None:
        try:
            self._turn.acquire(call=job.call, attempted=ATTEMPTED)
        except OSError as exc:
            raise from_oserror(ATTEMPTED, exc) from exc
        taken: list[Job[object]] = []
        try:
            with self._guard:
                while self._waiting and len(taken) < MOST_TOGETHER:
                    taken.append(self._waiting.popleft())
                    taken[-1].taken = True
            self._inside = threading.get_ident()
            self._run(taken, job.call)
        finally:
            self._inside = 0
            with self._guard:
                for one in reversed(taken):
                    one.taken = False
                    if one.done:
                        _wake(one)
                    elif one is not job:
                        self._waiting.appendleft(one)

    def _leave(self, job: Job[_T]) -> None:
        """Give back what a job holds: its place among those who wait, the lead, the turn.

        After an interrupt its body may be running in another thread, on what the caller is about to let go.
        """
        while True:
            with self._guard:
                if job.leads or not job.taken:
                    self._withdraw(job)
                    return
            _woken(job)

    def _withdraw(self, job: Job[_T]) -> None:
        """Needs the guard."""
        if job in self._waiting:
            self._waiting.remove(job)  # type: ignore[arg-type]  # as above
        if self._leader is not job:
            return
        job.leads = False
        if self._turn.held or not self._waiting:
            self._turn.release()
        self._appoint(self._waiting[0] if self._waiting else None)  # from here the turn is theirs


def _wake(job: Job[_T]) -> None:
    if job.woken is not None:
        job.woken.set()


def _woken(job: Job[_T]) -> bool:
    """Whether a job is woken within a moment."""
    assert job.woken is not None  # what does not lead waits
    return job.woken.wait(_LOOK)


def run_together(
    connection: sqlite3.Connection,
    jobs: Sequence[Job[object]],
    *,
    commit: Callable[[sqlite3.Connection], None],
) -> None:
    """Run jobs in the transaction that has been begun, and commit it; raises if it is undone as a whole.

    A single job's error undoes all there is; one of several is undone alone.  For that all are run again,
    each in a savepoint: most do not fail, and two more statements for each are a quarter of what they take.
    """
    try:
        try:
            for job in jobs:
                job.run(connection)
        except Exception:
            if len(jobs) == 1 or not connection.in_transaction:
                raise
            connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")  # the turn is ours; a stranger's time is a failure of all
            for job in jobs:
                _run_within(connection, job)
        commit(connection)
    except BaseException as exc:
        if connection.in_transaction:  # some of SQLite's errors have ended it already
            connection.execute("ROLLBACK")
            raise
        if isinstance(exc, Exception):
            raise
        _finish(jobs)  # an interrupt that came right after the commit
        raise
    _finish(jobs)


def _run_within(connection: sqlite3.Connection, job: Job[object]) -> None:
    connection.execute("SAVEPOINT job")
    try:
        job.run(connection)
    except Exception as exc:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO job")
        job.error = exc
    connection.execute("RELEASE job")


def _finish(jobs: Sequence[Job[object]]) -> None:
    for job in jobs:
        job.done = True
