"""meta.db: connections, transactions, migrations.

SQLite in WAL mode with ``synchronous=FULL``: when a write returns, a power cut does not undo it.  Without
``durable`` it is NORMAL, which may undo the last writes, but leaves a database: OFF might not, and the names
in it are nowhere else.
Readers never wait.  Writers do, in the order of asking, among threads (`orlop.metadata.writers`) and among
processes (`orlop.linux.flock.TurnLock`): SQLite's own busy wait is unfair.  Those that wait in one process
share a transaction.

Invariant: a transaction's body is short, does no I/O of its own, and can run twice and in any thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from orlop.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
    from_oserror,
)
from orlop.hints import TypeVar
from orlop.linux.flock import TurnLock
from orlop.metadata import SCHEMA_VERSION
from orlop.metadata.forks import check_not_spoilt, spoil, watch_forks
from orlop.metadata.writers import ATTEMPTED, Job, Writers, run_together
from orlop.observe import Call, reached

__all__ = ["SCHEMA_VERSION", "Database", "Transaction", "script"]

BUSY_SECONDS = 30  # how long strangers may hold SQLite's own lock
WAL_LIMIT = 8 << 20  # the log keeps this size, so a commit need not grow it
LOG_PAGES = 2_000  # in the log when a commit itself copies them to their places, and the log begins anew
GROWN = 4 << 20  # what is written of the log beforehand (`Database.grow_log`)
PATIENCE = 60.0  # seconds that a write without a call waits: one stopped in its turn must not hold up all
FORK_PATIENCE = 1.0  # seconds that a fork waits for bodies that run in other threads
MAX_IDLE = 8  # connections kept for the next body; each costs three descriptors
_ZEROS = bytes(1 << 16)
_LOG_PATIENCE = 1.0  # seconds that work on the log waits for its turn: it is a comfort
_MANY_COMMITS = 32  # after which the log may be long
_LOG_ROOM = 32  # times its size must be free for the log to be written beforehand
_T = TypeVar("_T")

Transaction = sqlite3.Connection


class Database:
    """One store's metadata.  Thread-safe.

    Connections are lent to one body at a time and kept for the next, so there are as many as there
    are bodies running at once, whatever the number of threads that come and go.
    """

    def __init__(
        self,
        path: Path,
        lock: Path,
        *,
        durable: bool = True,
        relief: Callable[[], bool] | None = None,
        last: Callable[[Transaction], None] | None = None,
    ) -> None:
        self._path = path
        self._relief = relief
        self._last = last
        self._synchronous = "FULL" if durable else "NORMAL"
        self._turn_path = lock
        self._writers = Writers(TurnLock(lock, keep_open=True), self._run)
        self._guard = threading.Lock()  # guards the fields below
        self._given_back = threading.Condition(self._guard)
        self._idle: list[sqlite3.Connection] = []
        self._writing: sqlite3.Connection | None = None  # for the next transaction that writes, likewise
        self._in_use = 0
        self._commits = 0  # since the log was shortened, here
        self._closed = False
        self._looker: sqlite3.Connection | None = None  # that `version` asks
        self._lookers = 0
        watch_forks(self)

    @classmethod
    def open(
        cls,
        path: Path,
        lock: Path,
        *,
        durable: bool = True,
        relief: Callable[[], bool] | None = None,
        last: Callable[[Transaction], None] | None = None,
    ) -> Database:
        """Open meta.db, making or migrating it.

        ``lock`` is the file that writers of all processes queue at; ``relief`` makes room on a full disk,
        and says whether it did; ``last`` is a further body, run at the end of every transaction that writes.
        Raises `FailedPrecondition` for a schema that is newer than this orlop, `DataLoss` for what is no
        database.
        """
        database = cls(path, lock, durable=durable, relief=relief, last=last)
        try:
            version = database._version()
            if version > SCHEMA_VERSION:
                raise FailedPrecondition(
                    f"open store {path.parent}",
                    f"its metadata have version {version}, this orlop knows {SCHEMA_VERSION}",
                    hint="use the newer orlop that wrote it",
                )
            if version < SCHEMA_VERSION:
                database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    def _version(self) -> int:
        try:
            with self._lent() as connection:
                return int(connection.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error as exc:
            raise _mapped(f"open {self._path}", exc) from exc

    def _migrate(self) -> None:
        """Run the numbered scripts that are missing, in one transaction: all of them, or none.

        What was there is kept beside it first, for a way back: ``meta.db.before-<version>``.
        """
        with self._turn():
            version = self._version()  # another process may have been first
            if version >= SCHEMA_VERSION:
                return
            try:
                with self._lent() as connection:
                    if version:
                        from orlop.metadata.copies import copy_database  # late: a new store has none

                        copy_database(self._path, self._path.with_name(f"{self._path.name}.before-{version}"))
                    # Under the lock, for SQLite does not wait for others when it changes the mode.
                    connection.execute("PRAGMA journal_mode=WAL")
                    reached("db.made")
                    scripts = "".join(script(number) for number in range(version + 1, SCHEMA_VERSION + 1))
                    connection.executescript(
                        f"BEGIN IMMEDIATE; {scripts} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                    )
                    reached("db.migrated")
            except sqlite3.Error as exc:
                raise _mapped(f"migrate {self._path}", exc) from exc
            except OSError as exc:
                raise from_oserror(f"migrate {self._path}", exc) from exc

    def _connect(self, *, waits: bool = True) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path,
            isolation_level=None,
            timeout=BUSY_SECONDS,  # also to open it: its last user may be closing it
            check_same_thread=False,
            cached_statements=256,
        )
        try:
            connection.executescript(
                f"PRAGMA synchronous={self._synchronous}; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY;"
                f"PRAGMA journal_size_limit={WAL_LIMIT}; PRAGMA cache_size=-4096;"
                f"PRAGMA wal_autocheckpoint={LOG_PAGES};"
            )
            if not waits:
                connection.execute("PRAGMA busy_timeout = 0")
        except BaseException:
            connection.close()
            raise
        connection.row_factory = sqlite3.Row
        return connection

    @contextlib.contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else has for the length of a ``with`` block."""
        connection = self._borrow()
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _borrow(self, *, writing: bool = False) -> sqlite3.Connection:
        """A connection that nobody else has until it is given back; one for ``writing`` waits for nobody."""
        with self._guard:
            if self._closed:
                raise FailedPrecondition("use store", "the store is closed")
            check_not_spoilt(self._path)
            found: sqlite3.Connection | None
            if writing:
                found, self._writing = self._writing, None
            else:
                found = self._idle.pop() if self._idle else None
            self._in_use += 1
        if found is not None:
            return found
        try:
            return self._connect(waits=not writing)
        except BaseException:
            with self._guard:
                self._in_use -= 1
                self._given_back.notify_all()
            raise

    def _give_back(self, connection: sqlite3.Connection, *, writing: bool = False) -> None:
        with self._guard:
            self._in_use -= 1
            self._given_back.notify_all()
            if not (self._closed or connection.in_transaction):
                if writing and self._writing is None:
                    self._writing = connection
                    return
                if not writing and len(self._idle) < MAX_IDLE:
                    self._idle.append(connection)
                    return
            connection.close()

    def read(self, body: Callable[[Transaction], _T]) -> _T:
        """Run a body that only reads, seeing one moment of the store."""
        try:
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                try:
                    return body(connection)
                finally:
                    if connection.in_transaction:  # some of SQLite's errors have ended it already
                        connection.execute("ROLLBACK")
            finally:
                self._give_back(connection)
        except sqlite3.Error as exc:
            raise _mapped("read metadata", exc) from exc

    def version(self) -> object:
        """What differs from an earlier answer once any process has written; asking costs microseconds.

        A read that begins after the answer sees at least what it stands for.
        """
        try:
            with self._guard:
                if self._closed:
                    raise FailedPrecondition("use store", "the store is closed")
                check_not_spoilt(self._path)
                if self._looker is None:
                    self._looker = self._connect()
                    self._lookers += 1  # the numbers of two connections do not compare
                return self._lookers, self._looker.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as exc:
            raise _mapped("read metadata", exc) from exc

    def write(self, body: Callable[[Transaction], _T], *, call: Call | None = None) -> _T:
        """Run a body in a transaction; durable on return, undone if the body raises.

        ``call`` ends the waiting, which is over when the body runs.  Without one it ends, too: raises
        `Unavailable` where another process holds the turn for longer than `PATIENCE`.
        """
        if call is None:
            try:
                return self._write(body, Call(deadline=time.monotonic() + PATIENCE))
            except DeadlineExceeded as exc:
                reason = f"another process has held the store's turn to write for {PATIENCE:g} s"
                raise Unavailable(ATTEMPTED, reason, hint=f"'fuser {self._turn_path}' shows who") from exc
        return self._write(body, call)

    def grow_log(self) -> None:
        """Write the log's blocks once, for a process that is going to write much.

        A commit that makes the file longer has the file system commit, too, and takes twice as long; so would
        all until the log has its size.  What is written are zeros behind the end, which SQLite takes for no
        frames: it reads a log up to the first whose checksum is wrong.  Nobody else writes there meanwhile,
        for that takes the lock that a transaction has.  On a disk with little room nothing is done, and where
        there proves to be none (a quota, a limit of file sizes) what was written is taken back.
        """
        path = f"{self._path}-wal"

        def body(tx: Transaction) -> None:
            about = os.fstat(fd)
            free = os.fstatvfs(fd)
            if about.st_nlink and about.st_size and free.f_bavail * free.f_frsize > _LOG_ROOM * GROWN:
                try:
                    for offset in range(about.st_size, GROWN, len(_ZEROS)):
                        os.pwrite(fd, _ZEROS[: GROWN - offset], offset)
                except OSError:
                    os.ftruncate(fd, about.st_size)

        with contextlib.suppress(Error, OSError):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_size < GROWN:
                    self.write(body, call=Call(deadline=time.monotonic() + _LOG_PATIENCE))
                    os.fdatasync(fd)
                    reached("db.log-grown")
            finally:
                os.close(fd)

    def shorten_log(self) -> None:
        """Copy what the log holds to its places, if that may be much.

        For those who work behind the calls: else a caller's commit does it, when there are `LOG_PAGES`.  Most
        is copied beside those who write; then, in a turn to write, what they wrote meanwhile: only a log of
        which all is copied begins anew.  Nothing is done about one that somebody is reading.
        """
        if self._commits < _MANY_COMMITS:
            return
        self._commits = 0
        with contextlib.suppress(Error, sqlite3.Error):  # a disk that fails is told to who writes
            if not self._is_copied():
                # No connection is lent while this waits: a fork would wait for it, and spoil the child.
                with self._turn(Call(deadline=time.monotonic() + _LOG_PATIENCE)):
                    self._is_copied()

    def _is_copied(self) -> bool:
        """Copy what the log holds, as far as nobody is in the way; whether that was all."""
        with self._lent() as connection:
            busy, pages, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return not busy and bool(pages == copied)

    def _write(self, body: Callable[[Transaction], _T], call: Call) -> _T:
        try:
            try:
                return self._writers.write(body, call)
            except sqlite3.Error as exc:
                if not (_is_full(exc) and self._relief is not None and self._relief()):
                    raise
            return self._writers.write(body, call)
        except sqlite3.Error as exc:
            raise _mapped(ATTEMPTED, exc) from exc

    def _run(self, jobs: Sequence[Job[object]], call: Call) -> None:
        """Run the bodies of one turn in one transaction, or each in its own if that one is undone."""
        try:
            connection = self._borrow(writing=True)
        except Exception as exc:  # noqa: BLE001 - each caller raises it
            _fail(jobs, exc)
            return
        try:
            try:
                _begin(connection, call)
            except (Cancelled, DeadlineExceeded):
                raise  # the leader's own: the others have another turn
            except Exception as exc:  # noqa: BLE001 - each caller raises it
                _fail(jobs, exc)
                return
            try:
                run_together(connection, jobs, commit=self._commit)
            except Exception as exc:  # noqa: BLE001 - its caller raises it
                if len(jobs) == 1:
                    _fail(jobs, exc)
                    return
            else:
                self._commits += 1
                reached("db.committed")
                return
        finally:
            self._give_back(connection, writing=True)
        for job in jobs:
            self._run([job], call)

    def _commit(self, connection: sqlite3.Connection) -> None:
        if self._last is not None:
            self._last(connection)
        _commit(connection)

    @contextlib.contextmanager
    def _turn(self, call: Call | None = None) -> Iterator[None]:
        """The turn of all processes, for what is not done in one transaction."""
        turn = TurnLock(self._turn_path)
        try:
            turn.acquire(call=call or Call(), attempted=ATTEMPTED)
            yield
        except OSError as exc:
            raise from_oserror(ATTEMPTED, exc) from exc
        finally:
            turn.release()

    def before_fork(self) -> None:
        """See `orlop.metadata.forks`."""
        self._guard.acquire()
        # What works behind the calls of a store is none of the forking program's making.
        self._given_back.wait_for(lambda: not self._in_use, FORK_PATIENCE)
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._writing is not None:
            self._writing.close()
            self._writing = None
        if self._looker is not None:
            self._looker.close()
            self._looker = None

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._guard.release()

    def after_fork_in_child(self) -> None:
        """Begin anew, or never."""
        if self._in_use:
            spoil(self._path)
        self._guard = threading.Lock()
        self._given_back = threading.Condition(self._guard)
        self._writers.after_fork()

    def close(self) -> None:
        """Close all connections; those in use are closed when their bodies end.  Idempotent."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
            if self._writing is not None:
                idle.append(self._writing)
                self._writing = None
            if self._looker is not None:
                idle.append(self._looker)
                self._looker = None
        for connection in idle:
            connection.close()
        self._writers.close()


def _begin(connection: sqlite3.Connection, call: Call) -> None:
    """Begin to write, waiting for strangers (a backup, a shell) as the call allows."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if not _is_busy(exc) or time.monotonic() > until:
                raise
            call.pause(0.02, ATTEMPTED)
        else:
            break
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:  # while we had it open
        raise FailedPrecondition(
            ATTEMPTED,
            f"another orlop has given the metadata version {version}, this one knows {SCHEMA_VERSION}",
            hint="end this process, and use the other orlop",
        )


def _commit(connection: sqlite3.Connection) -> None:
    reached("db.written")
    connection.execute("COMMIT")


def _fail(jobs: Sequence[Job[object]], exc: Exception) -> None:
    for job in jobs:
        job.error, job.done = exc, True


def _is_busy(exc: sqlite3.Error) -> bool:
    name = getattr(exc, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _is_full(exc: sqlite3.Error) -> bool:
    """Whether the disk had no room, for the database, its log or the memory that its users share."""
    name = getattr(exc, "sqlite_errorname", "") or ""
    return name.startswith(("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"))


def script(number: int) -> str:
    """The SQL that makes a version of the schema of the one before."""
    import pkgutil  # for a new or an old store alone; importlib.resources is slower to start with

    found = pkgutil.get_data("orlop.metadata", f"schema/{number:04}.sql")
    assert found is not None  # the package is never without a loader that has data
    return found.decode()


def _mapped(attempted: str, exc: sqlite3.Error) -> Error:
    """The one place that turns SQLite's errors into ours."""
    name = getattr(exc, "sqlite_errorname", "") or ""
    text = str(exc)
    if _is_full(exc):
        hint = "the disk that holds the store is full"
        return ResourceExhausted(attempted, text, hint=hint, details={"errno": "ENOSPC"})
    if name.startswith(("SQLITE_NOMEM", "SQLITE_IOERR_NOMEM")):
        return ResourceExhausted(attempted, text, details={"errno": "ENOMEM"})
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR")):
        return DataLoss(attempted, text)
    if _is_busy(exc):
        return Unavailable(attempted, text)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return FailedPrecondition(attempted, text)
    return Internal(attempted, f"{name} {text}")
