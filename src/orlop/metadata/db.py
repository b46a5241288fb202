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

from orlop.errors import DataLoss, Error, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from orlop.linux.flock import FileLock
from orlop.observe import Call

__all__ = ["SCHEMA_VERSION", "Database", "Transaction"]

SCHEMA_VERSION = 1
WAL_LIMIT = 4 << 20  # the log keeps this size, so a commit need not grow it
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
    """One store's metadata.  Thread-safe; each thread reads through a connection of its own."""

    def __init__(self, path: Path, lock: Path) -> None:
        self._path = path
        self._lock_path = lock
        self._local = threading.local()
        self._turn = _FairLock()
        self._guard = threading.Lock()  # guards _connections and _closed
        self._connections: list[sqlite3.Connection] = []
        self._closed = False

    @classmethod
    def open(cls, path: Path, lock: Path) -> Database:
        """Open meta.db, making or migrating it.

        ``lock`` is the file that writers of all processes queue at.  Raises `FailedPrecondition` for
        a schema that is newer than this orlop.
        """
        database = cls(path, lock)
        version = database._connection().execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            database.close()
            raise FailedPrecondition(
                f"open store {path.parent}",
                f"its metadata have version {version}, this orlop knows {SCHEMA_VERSION}",
                hint="use the newer orlop that wrote it",
            )
        if version < SCHEMA_VERSION:
            database._migrate()
        return database

    def _migrate(self) -> None:
        """Run the numbered scripts that are missing, each in a transaction of its own."""
        with self._exclusive(Call()):
            connection = self._connection()
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            for number in range(version + 1, SCHEMA_VERSION + 1):
                script = resources.files("orlop.metadata").joinpath(f"schema/{number:04}.sql").read_text()
                connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._local.pid != os.getpid():  # SQLite forbids use across a fork
            if self._closed:
                raise FailedPrecondition("use store", "the store is closed")
            try:
                connection = sqlite3.connect(
                    self._path,
                    isolation_level=None,
                    timeout=30,
                    check_same_thread=False,
                    cached_statements=256,
                )
                connection.executescript(
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;"
                    f"PRAGMA journal_size_limit={WAL_LIMIT}; PRAGMA cache_size=-4096;"
                )
            except sqlite3.Error as exc:
                raise _mapped("open meta.db", exc) from exc
            connection.row_factory = sqlite3.Row
            with self._guard:
                self._connections.append(connection)
            self._local.connection, self._local.pid = connection, os.getpid()
        return connection

    def read(self, body: Callable[[Transaction], _T]) -> _T:
        """Run a body that only reads, seeing one moment of the store."""
        connection = self._connection()
        try:
            connection.execute("BEGIN")
            try:
                return body(connection)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.Error as exc:
            raise _mapped("read metadata", exc) from exc

    def write(self, body: Callable[[Transaction], _T], *, call: Call | None = None) -> _T:
        """Run a body in a transaction; durable on return, undone if the body raises."""
        with self._exclusive(call or Call()):
            connection = self._connection()
            try:
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
            lock.acquire(call=call, attempted="write metadata")
            try:
                yield
            finally:
                lock.release()
        finally:
            self._turn.release()

    def close(self) -> None:
        """Close every thread's connection.  Idempotent."""
        with self._guard:
            self._closed = True
            connections, self._connections = self._connections, []
        for connection in connections:
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
