"""meta.db: connections, transactions, migrations.

SQLite in WAL mode with ``synchronous=FULL``: when a write returns, a power cut does not undo it.
Readers never wait.  Writers of one process queue at a fair lock, those of several processes at a flock,
because SQLite's own busy wait is unfair.

Invariant: a transaction's body is short, does no I/O of its own and can run twice.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TypeVar

from orlop.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
    from_oserror,
)
from orlop.linux.flock import FileLock
from orlop.observe import Call

__all__ = ["SCHEMA_VERSION", "Database", "Transaction"]

SCHEMA_VERSION = 2
WAL_LIMIT = 4 << 20  # the log keeps this size, so a commit need not grow it
MAX_IDLE = 8  # connections kept for the next body; each costs three descriptors
_T = TypeVar("_T")

Transaction = sqlite3.Connection


class _FairLock:
    """A mutex that is handed on in the order of asking.  Guards the one writer of this process."""

    def __init__(self) -> None:
        self._inner = threading.Lock()  # guards the two fields below
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    def acquire(self, call: Call, attempted: str) -> None:
        with self._inner:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        try:
            while not turn.wait(0.1):
                call.check(attempted)
        except BaseException:
            with self._inner:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    raise
            self.release()  # our turn came at the same moment
            raise

    def release(self) -> None:
        with self._inner:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False


class Database:
    """One store's metadata.  Thread-safe.

    Connections are lent to one body at a time and kept for the next, so there are as many as there
    are bodies running at once, whatever the number of threads that come and go.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self._path = path
        self._lock_path = lock
        self._turn = _FairLock()
        self._guard = threading.Lock()  # guards the fields below
        self._idle: list[sqlite3.Connection] = []
        self._inherited: list[sqlite3.Connection] = []
        self._pid = os.getpid()
        self._closed = False

    @classmethod
    def open(cls, path: Path, lock: Path) -> Database:
        """Open meta.db, making or migrating it.

        ``lock`` is the file that writers of all processes queue at.  Raises `FailedPrecondition` for
        a schema that is newer than this orlop, `DataLoss` for what is no database.
        """
        database = cls(path, lock)
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
        """Run the numbered scripts that are missing, each in a transaction of its own."""
        with self._exclusive(Call()):
            version = self._version()  # another process may have been first
            try:
                with self._lent() as connection:
                    # Under the lock, for SQLite does not wait for others when it changes the mode.
                    connection.execute("PRAGMA journal_mode=WAL")
                    for number in range(version + 1, SCHEMA_VERSION + 1):
                        script = resources.files("orlop.metadata").joinpath(f"schema/{number:04}.sql")
                        connection.executescript(
                            f"BEGIN IMMEDIATE; {script.read_text()} PRAGMA user_version = {number}; COMMIT;"
                        )
            except sqlite3.Error as exc:
                raise _mapped(f"migrate {self._path}", exc) from exc

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, isolation_level=None, timeout=30, check_same_thread=False, cached_statements=256
        )
        try:
            connection.executescript(
                "PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY;"
                f"PRAGMA journal_size_limit={WAL_LIMIT}; PRAGMA cache_size=-4096;"
            )
        except BaseException:
            connection.close()
            raise
        connection.row_factory = sqlite3.Row
        return connection

    @contextlib.contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else has for the length of a ``with`` block."""
        with self._guard:
            if self._closed:
                raise FailedPrecondition("use store", "the store is closed")
            if self._pid != os.getpid():
                # SQLite forbids to use a connection across a fork, and to close it there, too.
                self._inherited += self._idle
                self._idle = []
                self._pid = os.getpid()
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        finally:
            with self._guard:
                keep = not (self._closed or connection.in_transaction) and len(self._idle) < MAX_IDLE
                if keep:
                    self._idle.append(connection)
            if not keep:
                connection.close()

    def read(self, body: Callable[[Transaction], _T]) -> _T:
        """Run a body that only reads, seeing one moment of the store."""
        try:
            with self._lent() as connection:
                connection.execute("BEGIN")
                try:
                    return body(connection)
                finally:
                    if connection.in_transaction:  # some of SQLite's errors have ended it already
                        connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            raise _mapped("read metadata", exc) from exc

    def write(self, body: Callable[[Transaction], _T], *, call: Call | None = None) -> _T:
        """Run a body in a transaction; durable on return, undone if the body raises."""
        with self._exclusive(call or Call()):
            try:
                with self._lent() as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    try:
                        result = body(connection)
                        connection.execute("COMMIT")
                    except BaseException:
                        if connection.in_transaction:
                            connection.execute("ROLLBACK")
                        raise
            except sqlite3.Error as exc:
                raise _mapped("write metadata", exc) from exc
            return result

    @contextlib.contextmanager
    def _exclusive(self, call: Call) -> Iterator[None]:
        self._turn.acquire(call, "write metadata")
        try:
            lock = FileLock(self._lock_path)
            try:
                lock.acquire(call=call, attempted="write metadata")
            except OSError as exc:
                raise from_oserror("write metadata", exc) from exc
            try:
                yield
            finally:
                lock.release()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close all connections; those in use are closed when their bodies end.  Idempotent."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        if self._pid == os.getpid():
            for connection in idle:
                connection.close()


def _mapped(attempted: str, exc: sqlite3.Error) -> Error:
    """The one place that turns SQLite's errors into ours."""
    name = getattr(exc, "sqlite_errorname", "") or ""
    text = str(exc)
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_NOMEM")):
        return ResourceExhausted(attempted, text, hint="the disk that holds the store is full")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR")):
        return DataLoss(attempted, text)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable(attempted, text)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return FailedPrecondition(attempted, text)
    return Internal(attempted, f"{name} {text}")
