"""meta.db: transactions, connections that threads and processes share, errors."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest

from orlop.errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from orlop.linux.flock import TurnLock
from orlop.metadata import folders, garbage, images, layers, roots
from orlop.metadata.db import GROWN, Database, Transaction, _mapped
from orlop.metadata.images import ManifestRow
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call, CancelToken, watch_points
from orlop.spec.digest import DiffID, Digest


def opened(folder: Path) -> Database:
    return Database.open(folder / "meta.db", folder / "write")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path)
    yield database
    database.close()


def digest(text: str) -> Digest:
    return Digest.of(text.encode())


def diff_id(text: str) -> DiffID:
    return DiffID(digest(text))


def add_blob(name: str):
    return lambda tx: layers.add_blob(tx, digest(name), 1)


def has_blob(name: str):
    return lambda tx: layers.has_blob(tx, digest(name))


# ------------------------------------------------------------------ transactions


def test_a_body_that_raises_changes_nothing(db: Database) -> None:
    def body(tx: Transaction) -> None:
        layers.add_blob(tx, digest("a"), 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.write(body)
    assert not db.read(has_blob("a"))
    db.write(add_blob("a"))
    assert db.read(has_blob("a"))


def test_a_reader_sees_one_moment_whatever_others_write(db: Database) -> None:
    def body(tx: Transaction) -> tuple[bool, bool]:
        before = layers.has_blob(tx, digest("a"))
        writer = threading.Thread(target=db.write, args=(add_blob("a"),))
        writer.start()
        writer.join()
        return before, layers.has_blob(tx, digest("a"))

    assert db.read(body) == (False, False)
    assert db.read(has_blob("a"))


def test_writers_of_many_threads_all_succeed(db: Database) -> None:
    def count(tx: Transaction) -> None:
        value = tx.execute("SELECT COUNT(*) FROM blobs").fetchone()[0]
        layers.add_blob(tx, digest(f"b{value}"), 1)

    threads = [threading.Thread(target=lambda: [db.write(count) for _ in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.read(lambda tx: tx.execute("SELECT COUNT(*) FROM blobs").fetchone()[0]) == 80


def test_threads_that_come_and_go_leave_no_descriptors(db: Database) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    db.write(add_blob("first"))
    before = open_files()
    for number in range(50):
        thread = threading.Thread(target=db.write, args=(add_blob(str(number)),))
        thread.start()
        thread.join()
    assert open_files() <= before + 3


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: Call(deadline=time.monotonic() + 0.05), DeadlineExceeded),
        (lambda: Call(cancel=_cancelled()), Cancelled),
    ],
    ids=["deadline", "cancel"],
)
def test_waiting_for_the_writer_ends_with_the_call(db: Database, call, expected) -> None:
    inside, leave = threading.Event(), threading.Event()

    def body(tx: Transaction) -> None:
        inside.set()
        leave.wait(30)

    holder = threading.Thread(target=db.write, args=(body,))
    holder.start()
    inside.wait(30)
    try:
        with pytest.raises(expected):
            db.write(add_blob("a"), call=call())
    finally:
        leave.set()
        holder.join()
    db.write(add_blob("a"))  # the one that gave up holds nothing


def test_waiting_for_a_process_that_stopped_in_its_turn_ends_without_a_call_too(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orlop.metadata.db.PATIENCE", 0.05)
    other = TurnLock(tmp_path / "write")
    other.acquire(call=Call(), attempted="stop in the turn")
    try:
        with pytest.raises(Unavailable, match=r"has held the store's turn to write for 0.05 s"):
            db.write(add_blob("a"))
    finally:
        other.release()
    db.write(add_blob("a"))


def _cancelled() -> CancelToken:
    token = CancelToken()
    token.cancel()
    return token


# ------------------------------------------------------------------ many writers


class Crowd:
    """Threads that all wait to write, behind a turn that the test holds."""

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._turn = TurnLock(folder / "write")
        self._turn.acquire(call=Call(), attempted="hold everybody up")
        self._threads: list[threading.Thread] = []
        self.errors: dict[str, BaseException] = {}
        self.commits = 0

    def add(self, name: str, body=None, *, call: Call | None = None) -> None:
        """One more, in the queue when this returns."""
        waiting = len(self._db._writers._waiting)
        thread = threading.Thread(target=self._write, args=(name, body or add_blob(name), call))
        thread.start()
        self._threads.append(thread)
        while len(self._db._writers._waiting) == waiting and thread.is_alive():
            thread.join(0.001)

    def _write(self, name: str, body, call: Call | None) -> None:
        try:
            self._db.write(body, call=call)
        except BaseException as exc:  # noqa: BLE001 - a KeyboardInterrupt among them
            self.errors[name] = exc

    def join(self, number: int) -> None:
        self._threads[number].join(60)
        assert not self._threads[number].is_alive()

    def go(self) -> None:
        """Let them write, to the end."""

        def count(point: str) -> None:
            self.commits += point == "db.committed"

        with watch_points(count):
            self._turn.release()
            for number in range(len(self._threads)):
                self.join(number)


def there(db: Database, names: str) -> str:
    return "".join(name for name in names if db.read(has_blob(name)))


def test_writers_that_wait_share_a_commit(db: Database, tmp_path: Path) -> None:
    crowd = Crowd(db, tmp_path)
    for name in "abcdefgh":
        crowd.add(name)
    assert there(db, "abcdefgh") == ""  # and readers do not wait
    crowd.go()
    assert crowd.errors == {}
    assert there(db, "abcdefgh") == "abcdefgh"
    assert crowd.commits == 1


def test_an_error_is_its_callers_own(db: Database, tmp_path: Path) -> None:
    def fails(tx: Transaction) -> None:
        layers.add_blob(tx, digest("x"), 1)
        raise ZeroDivisionError

    def breaks_a_rule(tx: Transaction) -> None:
        layers.add_blob(tx, digest("y"), 1)
        tx.execute("INSERT INTO blobs VALUES (?, 1, 1)", (digest("y"),))

    crowd = Crowd(db, tmp_path)
    for name, body in (("a", None), ("x", fails), ("b", None), ("y", breaks_a_rule), ("c", None)):
        crowd.add(name, body)
    crowd.go()
    assert {name: type(error) for name, error in crowd.errors.items()} == {
        "x": ZeroDivisionError,
        "y": Internal,
    }
    assert there(db, "axbyc") == "abc"
    assert crowd.commits == 1


def test_bodies_see_what_those_before_them_wrote(db: Database, tmp_path: Path) -> None:
    seen: list[int] = []

    def body(tx: Transaction) -> None:
        seen.append(tx.execute("SELECT COUNT(*) FROM blobs").fetchone()[0])
        layers.add_blob(tx, digest(str(seen)), 1)

    crowd = Crowd(db, tmp_path)
    for name in "abc":
        crowd.add(name, body)
    crowd.go()
    assert seen == [0, 1, 2]


def test_where_sqlite_undoes_a_whole_transaction_each_body_has_one_of_its_own(
    db: Database, tmp_path: Path
) -> None:
    def as_on_a_full_disk(tx: Transaction) -> None:
        tx.execute("ROLLBACK")
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorname = "SQLITE_FULL"
        raise error

    crowd = Crowd(db, tmp_path)
    for name, body in (("a", None), ("x", as_on_a_full_disk), ("b", None)):
        crowd.add(name, body)
    crowd.go()
    assert [type(error) for error in crowd.errors.values()] == [ResourceExhausted]
    assert there(db, "axb") == "ab"
    assert crowd.commits == 2


def test_an_interrupt_of_one_writer_is_no_other_ones(db: Database, tmp_path: Path) -> None:
    interrupted: list[bool] = []

    def body(tx: Transaction) -> None:
        layers.add_blob(tx, digest("x"), 1)
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    crowd = Crowd(db, tmp_path)
    crowd.add("a")
    crowd.add("x", body)  # it is run by a, where the interrupt comes
    crowd.add("b")
    crowd.go()
    assert {name: type(error) for name, error in crowd.errors.items()} == {"a": KeyboardInterrupt}
    assert there(db, "axb") == "xb"
    db.write(add_blob("c"))


@pytest.mark.parametrize("number", [0, 1], ids=["leads", "follows"])
@pytest.mark.parametrize("why", ["cancel", "deadline"])
def test_whoever_gives_up_waiting_leaves_nothing_and_holds_nobody_up(
    db: Database, tmp_path: Path, number: int, why: str
) -> None:
    token = CancelToken()
    call = Call(cancel=token) if why == "cancel" else Call(deadline=time.monotonic() + 0.3)
    crowd = Crowd(db, tmp_path)
    for position, name in enumerate("abc"):
        crowd.add(name, call=call if position == number else None)
    token.cancel()
    crowd.join(number)
    assert db._writers._turn.queued  # who leads now has the place of who led
    crowd.go()
    gone = "abc"[number]
    assert [*crowd.errors] == [gone]
    assert type(crowd.errors[gone]) is (Cancelled if why == "cancel" else DeadlineExceeded)
    assert there(db, "abc") == "abc".replace(gone, "")
    assert not db._writers._turn.queued


class Ajar:
    """A lock; whoever leaves it with an error waits until another thread has gone on."""

    def __init__(self, go: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._go = go

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._lock.release()
        if kind is not None:
            self._go()


def test_whoever_gives_up_has_left_the_queue_before_anybody_can_take_its_body(
    db: Database, tmp_path: Path
) -> None:
    crowd = Crowd(db, tmp_path)
    token = CancelToken()
    crowd.add("a")
    crowd.add("b", call=Call(cancel=token))

    def others_write() -> None:
        crowd._turn.release()
        crowd.join(0)

    db._writers._guard = Ajar(others_write)
    token.cancel()
    crowd.join(1)
    crowd.go()
    assert [type(error) for error in crowd.errors.values()] == [Cancelled]
    assert there(db, "ab") == "a"


def test_an_interrupt_while_another_thread_runs_the_body_waits_for_its_end(
    db: Database, tmp_path: Path
) -> None:
    inside, leave = threading.Event(), threading.Event()

    def body(tx: Transaction) -> None:
        inside.set()
        leave.wait(30)
        layers.add_blob(tx, digest("b"), 1)

    crowd = Crowd(db, tmp_path)
    crowd.add("a")
    crowd.add("b", body)
    job = db._writers._waiting[1]
    waited = job.woken.wait
    ended: list[bool] = []

    def interrupted(seconds: float) -> bool:
        if not inside.is_set():
            return waited(seconds)
        if not ended:
            ended.append(True)
            raise KeyboardInterrupt
        leave.set()
        return waited(seconds)

    job.woken.wait = interrupted
    crowd.go()
    assert {name: type(error) for name, error in crowd.errors.items()} == {"b": KeyboardInterrupt}
    assert leave.is_set()  # the interrupt was raised after the body's end
    assert there(db, "ab") == "ab"


class Careful(TurnLock):
    """A turn that notices when two threads use it at once: whoever gives it back takes a moment for that."""

    used = 0
    overlaps = 0

    def acquire(self, *, call: Call, attempted: str) -> None:
        with self.alone():
            super().acquire(call=call, attempted=attempted)

    def release(self) -> None:
        with self.alone():
            threading.Event().wait(0.02)
            super().release()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        self.used += 1
        self.overlaps += self.used > 1
        yield
        self.used -= 1


def test_who_leads_next_takes_the_turn_after_it_was_given_back(db: Database, tmp_path: Path) -> None:
    db._writers._turn = turn = Careful(tmp_path / "write")
    inside, leave = threading.Event(), threading.Event()

    def body(tx: Transaction) -> None:
        inside.set()
        leave.wait(30)

    first = threading.Thread(target=db.write, args=(body,))
    first.start()
    inside.wait(30)
    second = threading.Thread(target=db.write, args=(add_blob("a"),))
    second.start()
    while not db._writers._waiting:
        second.join(0.001)
    leave.set()
    first.join(30)
    second.join(30)
    assert there(db, "a") == "a"
    assert turn.overlaps == 0


def test_a_writer_in_another_process_that_is_killed_leaves_nothing(db: Database, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from orlop.metadata.db import Database\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "def body(tx):\n"
        "    tx.execute('INSERT INTO trash VALUES (1)'); print('inside', flush=True); sys.stdin.read()\n"
        "Database.open(folder / 'meta.db', folder / 'write').write(body)\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"inside\n"
        with pytest.raises(DeadlineExceeded):
            db.write(add_blob("a"), call=Call(deadline=time.monotonic() + 0.05))
        assert not db.read(has_blob("a"))
        child.kill()
    db.write(add_blob("a"), call=Call(deadline=time.monotonic() + 60))
    assert db.read(garbage.trash_list) == []


def test_a_body_that_writes_is_told_so_instead_of_waiting_for_itself(db: Database) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"):
        db.write(lambda tx: db.write(add_blob("a")))
    db.write(lambda tx: db.read(has_blob("a")))
    db.write(add_blob("b"))
    assert there(db, "ab") == "b"


def test_waiting_for_a_strangers_lock_ends_with_the_call(db: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "meta.db", isolation_level=None)) as stranger:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(DeadlineExceeded):
            db.write(add_blob("a"), call=Call(deadline=time.monotonic() + 0.05))
        writer = threading.Thread(target=db.write, args=(add_blob("b"),))
        writer.start()
        stranger.execute("ROLLBACK")
        writer.join(60)
    assert there(db, "ab") == "b"


HASTY = """if True:
    import pathlib, random, sys, threading, time
    from orlop.errors import Cancelled, DeadlineExceeded
    from orlop.metadata.db import Database
    from orlop.observe import Call
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    db = Database.open(folder / "meta.db", folder / "write")

    def work(number):
        dice = random.Random(f"{name} {number}")
        for turn in range(20):
            key = f"{name}-{number}-{turn}"
            patience = dice.choice([0.001, 0.01, 60])
            try:
                call = Call(deadline=time.monotonic() + patience)
                db.write(lambda tx: tx.execute("INSERT INTO trash VALUES (?)", (key,)), call=call)
            except DeadlineExceeded:
                said.append(f"gave up {key}")
            else:
                said.append(f"wrote {key}")

    said = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    db.close()
    print(*said, sep="\\n")
"""


def test_what_was_answered_is_there_and_what_was_given_up_is_not(db: Database, tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([sys.executable, "-c", HASTY, tmp_path, name], stdout=pipe, stderr=pipe, text=True)
        for name in "abcd"
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * 4, outputs
    lines = [line for out, _ in outputs for line in out.splitlines()]
    assert len(lines) == 4 * 4 * 20
    wrote = sorted(line.removeprefix("wrote ") for line in lines if line.startswith("wrote "))
    assert db.read(garbage.trash_list) == wrote


FORK = """if True:
    import os, pathlib, sys, threading
    from orlop.errors import FailedPrecondition
    from orlop.linux.flock import TurnLock
    from orlop.metadata.db import Database
    from orlop.observe import Call
    folder, busy = pathlib.Path(sys.argv[1]), sys.argv[2] == "busy"
    db = Database.open(folder / "meta.db", folder / "write")
    turn, leave = TurnLock(folder / "write"), threading.Event()
    if not busy:
        turn.acquire(call=Call(), attempted="hold the others up")
    inside = threading.Event()

    def add(name):
        def body(tx):
            inside.set()
            leave.wait(60)
            tx.execute("INSERT INTO trash VALUES (?)", (name,))
        db.write(body)

    threads = [threading.Thread(target=add, args=(name,)) for name in ("one", "two")]
    threads[0].start()
    if busy:
        inside.wait(60)
    threads[1].start()
    while len(db._writers._waiting) != 2 - busy:
        threads[1].join(0.001)
    child = os.fork()
    leave.set()
    if child == 0:
        try:
            if busy:
                for use in (lambda: add("child"), lambda: Database.open(folder / "meta.db", folder / "write")):
                    try:
                        use()
                    except FailedPrecondition as exc:
                        assert "forked" in str(exc)
                    else:
                        os._exit(2)
            else:
                add("child")
                db.close()
            os._exit(0)
        finally:
            os._exit(1)
    turn.release()
    for thread in threads:
        thread.join(60)
    assert os.waitpid(child, 0)[1] == 0
    add("three")
    db.close()
"""


@pytest.mark.parametrize("how", ["busy", "waiting"])
def test_a_forked_child_has_writers_of_its_own_or_is_refused(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, tmp_path, how]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    db = opened(tmp_path)
    expected = ["one", "three", "two"] if how == "busy" else ["child", "one", "three", "two"]
    assert db.read(garbage.trash_list) == expected
    db.close()


FORK_AT_THE_END = """if True:
    import os, pathlib, sys, threading
    from orlop.metadata import db as module
    module.FORK_PATIENCE = 60
    folder = pathlib.Path(sys.argv[1])
    db = module.Database.open(folder / "meta.db", folder / "write")
    inside, leave = threading.Event(), threading.Event()

    def body(tx):
        inside.set()
        leave.wait(60)

    thread = threading.Thread(target=db.read, args=(body,))
    thread.start()
    inside.wait(60)
    os.register_at_fork(before=leave.set)
    child = os.fork()
    if child == 0:
        try:
            db.write(lambda tx: tx.execute("INSERT INTO trash VALUES ('child')"))
            db.close()
            os._exit(0)
        finally:
            os._exit(1)
    thread.join(60)
    assert os.waitpid(child, 0)[1] == 0
    db.close()
"""


def test_a_fork_waits_for_a_body_that_is_about_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK_AT_THE_END, tmp_path]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    db = opened(tmp_path)
    assert db.read(garbage.trash_list) == ["child"]
    db.close()


# ------------------------------------------------------------------ opening and closing


def test_a_closed_database_says_so_in_every_thread(db: Database) -> None:
    db.read(has_blob("a"))
    db.close()
    db.close()
    for verb in (db.read, db.write):
        with pytest.raises(FailedPrecondition, match="closed"):
            verb(has_blob("a"))


def test_a_reader_that_is_under_way_ends_well_when_another_thread_closes(tmp_path: Path) -> None:
    db = opened(tmp_path)
    db.write(add_blob("a"))

    def body(tx: Transaction) -> bool:
        closer = threading.Thread(target=db.close)
        closer.start()
        closer.join()
        return layers.has_blob(tx, digest("a"))

    assert db.read(body)
    with pytest.raises(FailedPrecondition):
        db.read(has_blob("a"))


def test_many_processes_may_make_one_database_at_once(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from orlop.metadata.db import Database\n"
        "folder = pathlib.Path(sys.argv[1]); print('ready', flush=True); sys.stdin.read()\n"
        "db = Database.open(folder / 'meta.db', folder / 'write')\n"
        "db.write(lambda tx: tx.execute('INSERT INTO trash VALUES (?)', (sys.argv[2],)))\n"
    )
    gate, opens_gate = os.pipe()
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, tmp_path, str(n)], stdin=gate, stdout=pipe, stderr=pipe
        )
        for n in range(8)
    ]
    os.close(gate)
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    os.close(opens_gate)
    outputs = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 8, outputs
    db = opened(tmp_path)
    assert len(db.read(garbage.trash_list)) == 8
    db.close()


def test_a_store_of_the_first_schema_keeps_its_roots(tmp_path: Path) -> None:
    first = resources.files("orlop.metadata").joinpath("schema/0001.sql").read_text()
    with contextlib.closing(sqlite3.connect(tmp_path / "meta.db")) as raw:
        raw.executescript(first)
        row = (
            "id1",
            "default",
            "/srv/a",
            "localhost/a:1",
            f"sha256:{'0' * 64}",
            "c1",
            "erofs",
            "active",
            0,
            1,
            0,
            7.5,
        )
        raw.execute(f"INSERT INTO prepared VALUES ({', '.join('?' * 12)})", row)
        raw.execute("PRAGMA user_version = 1")
        raw.commit()
    database = Database.open(tmp_path / "meta.db", tmp_path / "lock")
    try:
        root = database.read(lambda tx: roots.get_root(tx, "/srv/a"))
        assert root is not None
        assert (root.id, root.driver, root.kind, root.mounted, root.created) == (
            "id1",
            "erofs",
            "active",
            True,
            7.5,
        )
        assert (root.form, root.quota, root.uid_map, root.gid_map) == ("real", None, "", "")
        assert database.read(lambda tx: folders.get_folder(tx, "x")) is None
        database.write(collect)
        database.write(lambda tx: roots.delete_root(tx, "id1"))
    finally:
        database.close()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / "meta.db") as raw:
        raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(FailedPrecondition, match="version 99"):
        opened(tmp_path)


@pytest.mark.parametrize("damage", ["text", "header", "schema page"])
def test_a_file_that_is_no_sound_database_is_data_loss(tmp_path: Path, damage: str) -> None:
    opened(tmp_path).close()
    path = tmp_path / "meta.db"
    data = bytearray(path.read_bytes())
    if damage == "text":
        data = bytearray(b"this is no database at all\n" * 400)
    elif damage == "header":
        data[:16] = bytes(16)
    else:
        data[100:4096] = b"\xff" * 3996
    path.write_bytes(data)
    with pytest.raises(DataLoss):
        opened(tmp_path).read(has_blob("a"))


def test_a_folder_that_is_gone_is_one_of_our_errors(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        opened(tmp_path / "missing")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SQLITE_FULL", ResourceExhausted),
        ("SQLITE_IOERR_SHMSIZE", ResourceExhausted),
        ("SQLITE_IOERR_WRITE", DataLoss),
        ("SQLITE_IOERR_READ", DataLoss),
        ("SQLITE_CORRUPT", DataLoss),
        ("SQLITE_BUSY", Unavailable),
        ("SQLITE_READONLY_DBMOVED", FailedPrecondition),
        ("SQLITE_CANTOPEN", FailedPrecondition),
        ("SQLITE_ERROR", Internal),
    ],
)
def test_an_error_of_sqlite_has_its_class(name: str, expected: type[Exception]) -> None:
    error = sqlite3.OperationalError("why")
    error.sqlite_errorname = name
    assert type(_mapped("write", error)) is expected


# ------------------------------------------------------------------ what is collected


def add_image(tx: Transaction, name: str, *layer_names: str) -> None:
    config, manifest = digest(f"config {name}"), digest(f"manifest {name}")
    for layer in layer_names:
        layers.add_layer(tx, LayerRow(diff_id=diff_id(layer), size=10, data_size=0, index_size=1, entries=1))
        layers.add_layer_blob(
            tx,
            LayerBlob(diff_id=diff_id(layer), digest=digest(f"gz {layer}"), size=5, media_type="x"),
        )
    images.add_config(tx, config, [diff_id(layer) for layer in layer_names])
    images.add_manifest(tx, config, ManifestRow(digest=manifest, media_type="m", size=1))
    layers.add_blob(tx, config, 1)
    layers.add_blob(tx, manifest, 1)
    images.put_image(tx, "default", name, config=config, manifest=manifest)


def add_chain(tx: Transaction, name: str, parent: str | None, *layer_names: str) -> None:
    row = ChainRow(id=name, parent=parent, depth=1, entries=1, size=1, uuid=b"u" * 16, devices=())
    roots.add_chain(tx, row, [diff_id(layer) for layer in layer_names])


def add_root(tx: Transaction, path: str, image: str, chain: str) -> None:
    root = RootRow(
        id=path.strip("/"),
        path=path,
        image=image,
        config=digest(f"config {image}"),
        chain=chain,
        driver="erofs",
        kind="active",
        self_contained=False,
        mounted=False,
        made_target=False,
        created=0.0,
    )
    roots.add_root(tx, "default", root, {"k": "v"})


def collect(tx: Transaction, *dead: str) -> list[garbage.Forgotten]:
    for lease in dead:
        garbage.lease_end(tx, lease)
    return garbage.forget(tx, garbage.everything(tx))


def forgotten(db: Database, *dead: str) -> set[tuple[str, str]]:
    return {(item.kind, item.name) for item in db.write(lambda tx: collect(tx, *dead))}


def test_what_images_share_stays_while_one_of_them_does(db: Database) -> None:
    def body(tx: Transaction) -> None:
        add_image(tx, "one", "base", "top")
        add_image(tx, "two", "base")
        add_chain(tx, "low", None, "base")
        add_chain(tx, "high", "low", "base", "top")

    db.write(body)
    assert forgotten(db) == set()
    db.write(lambda tx: images.delete_image(tx, "default", "one"))
    assert forgotten(db) == {
        ("layer", str(diff_id("top"))),
        ("chain", "high"),
        ("blob", str(digest("config one"))),
        ("blob", str(digest("manifest one"))),
    }
    db.write(lambda tx: images.delete_image(tx, "default", "two"))
    assert ("layer", str(diff_id("base"))) in forgotten(db)
    assert forgotten(db) == set()
    for table in ("layers", "layer_blobs", "blobs", "config_layers", "image_manifests", "chain_layers"):
        assert db.read(lambda tx, t=table: tx.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0]) == 0, table


def test_a_prepared_root_keeps_all_that_it_stands_on(db: Database) -> None:
    def body(tx: Transaction) -> None:
        add_image(tx, "one", "base", "top")
        add_chain(tx, "low", None, "base")
        add_chain(tx, "high", "low", "base", "top")
        add_root(tx, "/a", "one", "high")
        images.delete_image(tx, "default", "one")

    db.write(body)
    assert forgotten(db) == set()
    db.write(lambda tx: roots.delete_root(tx, "a"))
    assert {kind for kind, _ in forgotten(db)} == {"layer", "chain", "blob"}
    assert db.read(lambda tx: tx.execute("SELECT COUNT(*) FROM labels").fetchone()[0]) == 0


@pytest.mark.parametrize("kind", ["layer", "blob", "config", "chain"])
def test_a_lease_keeps_a_thing_until_its_owner_is_dead(db: Database, kind: str) -> None:
    refs = {"layer": diff_id("base"), "blob": digest("config one"), "config": digest("config one")}

    def body(tx: Transaction) -> None:
        add_image(tx, "one", "base")
        add_chain(tx, "low", None, "base")
        images.delete_image(tx, "default", "one")
        garbage.lease_add(tx, "mine", kind, refs.get(kind, "low"))

    db.write(body)
    kept = refs.get(kind, "low")
    assert str(kept) not in {name for _, name in forgotten(db)}
    assert db.read(garbage.lease_ids) == ["mine"]
    assert str(kept) in {name for _, name in forgotten(db, "mine")}
    assert db.read(garbage.lease_ids) == []


def test_what_is_forgotten_is_listed_as_trash_until_it_is_gone(db: Database) -> None:
    db.write(lambda tx: add_image(tx, "one", "base"))
    db.write(lambda tx: images.delete_image(tx, "default", "one"))
    forgotten(db)
    trash = db.read(garbage.trash_list)
    assert f"layers/{diff_id('base').hex}" in trash
    assert f"content/blobs/sha256/{digest('config one').hex}" in trash
    for path in trash:
        db.write(lambda tx, path=path: garbage.trash_done(tx, path))
    assert db.read(garbage.trash_list) == []


def test_seeing_what_would_be_forgotten_forgets_nothing(db: Database) -> None:
    db.write(lambda tx: add_image(tx, "one", "base"))
    db.write(lambda tx: images.delete_image(tx, "default", "one"))

    for _ in range(2):
        assert len(db.read(lambda tx: garbage.find(tx, garbage.everything(tx)))) == 3
    assert len(forgotten(db)) == 3


def test_a_digest_prefix_finds_the_images_that_begin_with_it(db: Database) -> None:
    db.write(lambda tx: add_image(tx, "one", "base"))
    config = digest("config one")
    find = images.images_by_id
    for prefix, count in ((config[:19], 1), (config, 1), (config[:19] + "g", 0), ("sha256:" + "f" * 64, 0)):
        assert len(db.read(lambda tx, p=prefix: find(tx, "default", p))) == count


# ------------------------------------------------------------------ the log


def after_a_cut(db: Database, folder: Path, *, log: bool = True) -> Database:
    """The database as another machine finds it: with its log, or without, and never with the shared memory."""
    folder.mkdir()
    for name in ("meta.db", "meta.db-wal") if log else ("meta.db",):
        shutil.copy(db._path.with_name(name), folder / name)
    return opened(folder)


def test_a_log_that_is_written_beforehand_holds_what_is_written_and_nothing_else(
    db: Database, tmp_path: Path
) -> None:
    log = tmp_path / "meta.db-wal"
    db.grow_log()  # there is none yet, or a short one
    for number in range(60):
        db.write(add_blob(str(number)))
        if number == 30:
            db.grow_log()
            assert log.stat().st_size == GROWN
            assert not any(log.read_bytes()[-1000:])
    assert log.stat().st_size == GROWN
    found = after_a_cut(db, tmp_path / "copy")
    try:
        assert all(found.read(has_blob(str(number))) for number in range(60))
        assert found.read(lambda tx: tx.execute("PRAGMA integrity_check").fetchone()[0]) == "ok"
    finally:
        found.close()


def test_zeros_are_never_written_over_what_others_write_meanwhile(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = opened(tmp_path)
    try:
        db.write(add_blob("first"))
        done = threading.Event()

        def write() -> None:
            number = 0
            while not done.is_set() or number < 50:
                other.write(add_blob(f"other {number}"))
                number += 1
            written.append(number)

        written: list[int] = []
        thread = threading.Thread(target=write)
        thread.start()
        for number in range(1, 21):
            monkeypatch.setattr("orlop.metadata.db.GROWN", number << 19)
            db.grow_log()
            db.shorten_log()
        done.set()
        thread.join(60)
        found = after_a_cut(db, tmp_path / "copy")
        try:
            assert all(found.read(has_blob(f"other {number}")) for number in range(written[0]))
        finally:
            found.close()
    finally:
        other.close()


def test_a_log_that_was_shortened_has_all_of_it_in_its_place(db: Database, tmp_path: Path) -> None:
    for number in range(40):
        db.write(add_blob(str(number)))
    db.shorten_log()
    found = after_a_cut(db, tmp_path / "copy", log=False)
    try:
        assert all(found.read(has_blob(str(number))) for number in range(40))
    finally:
        found.close()


def test_what_somebody_is_reading_is_left_in_the_log(db: Database) -> None:
    def body(tx: Transaction) -> bool:
        before = layers.has_blob(tx, digest("39"))
        for number in range(40):
            db.write(add_blob(str(number)))
        db.shorten_log()
        return before or layers.has_blob(tx, digest("39"))

    assert not db.read(body)
    assert db.read(has_blob("39"))


def test_where_there_is_no_room_for_the_log_nothing_stays_of_what_was_written_beforehand(
    db: Database, tmp_path: Path
) -> None:
    db.write(add_blob("a"))
    log = tmp_path / "meta.db-wal"
    before = log.stat().st_size
    bounds = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + (1 << 20), bounds[1]))
    try:
        db.grow_log()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
    assert log.stat().st_size == before
    db.write(add_blob("b"))
    assert db.read(has_blob("a"))
    assert db.read(has_blob("b"))


def test_who_works_on_the_log_waits_for_nobody_long_and_lends_nothing_meanwhile(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        db.write(add_blob(str(number)))
    with contextlib.closing(sqlite3.connect(tmp_path / "meta.db", isolation_level=None)) as stranger:
        stranger.execute("BEGIN")
        stranger.execute("SELECT * FROM blobs").fetchone()
        db.write(add_blob("later"))  # which the stranger does not see: so it cannot be copied yet
        turn, probe = TurnLock(tmp_path / "write"), TurnLock(tmp_path / "write")
        turn.acquire(call=Call(), attempted="test")
        try:
            monkeypatch.setattr("orlop.metadata.db._LOG_PATIENCE", 0.05)
            db.grow_log()  # gives up
            monkeypatch.setattr("orlop.metadata.db._LOG_PATIENCE", 60)
            thread = threading.Thread(target=db.shorten_log)
            thread.start()
            until = time.monotonic() + 60
            while probe._is_empty() and time.monotonic() < until:
                time.sleep(0.001)
            assert not probe._is_empty()
            assert (
                not db._in_use
            )  # a fork waits for what is in use, and spoils the child where it is too long
        finally:
            turn.release()
            probe.close()
        thread.join(60)
        assert not thread.is_alive()
