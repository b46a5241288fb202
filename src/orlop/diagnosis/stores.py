"""A store as it lies there: its form, its database, who holds its locks, what a crash has left.

Read without opening it, so that nothing is made, migrated or swept: the database is opened read-only.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from orlop.diagnosis.findings import Finding, Subject, note, ok, problem
from orlop.errors import Error
from orlop.images.layout import Layout, check_format
from orlop.metadata.db import SCHEMA_VERSION, script

__all__ = ["check_store"]

_SECONDS = 10.0  # that the check of a database may take
_STEPS = 10_000  # SQLite's steps between looks at the clock
_MOST = 1_000  # names that are counted in a folder


def check_store(subject: Subject) -> Iterable[Finding]:
    """All of it.  Says nothing of a store that is not there."""
    layout = Layout(root=Path(subject.root), run=Path(subject.run or "/nonexistent"))
    form = layout.root / "format.json"
    try:
        text = form.read_bytes()
    except FileNotFoundError:
        try:
            held = [name for name in os.listdir(layout.root) if name != "lost+found"]
        except OSError:
            return  # `folders` tells
        if held:
            text_ = f"{layout.root} is not empty and not a store: it holds {min(held)!r}"
            yield problem("store.format", text_, "choose an empty folder, or one that does not exist")
        return
    except OSError as exc:
        yield problem("store.format", f"{form} cannot be read: {exc.strerror}", "is it your store?")
        return
    try:
        check_format(text, "")
        yield ok("store.format", "its files have the form of this orlop")
    except Error as exc:
        yield problem("store.format", exc.reason, exc.hint or "put format.json back from a backup")
    yield from _database(layout, subject)
    yield from _locks(layout)
    yield from _leftovers(layout)


def _database(layout: Layout, subject: Subject) -> Iterator[Finding]:
    check, path = "store.database", layout.database
    if not path.exists():
        left = [one.name for one in (layout.layers, layout.prepared) if one.is_dir() and any(one.iterdir())]
        if left:
            advice = "put it back from a backup (`orlop restore`), or move the folder away and start anew"
            yield problem(check, f"{path} is gone, but there is something in {left[0]}", advice)
        return
    advice = "put it back from a backup: docs/backup.md; `orlop check` says what else is damaged"
    way = "mode=ro"
    if not os.access(layout.root, os.W_OK):  # SQLite looks at a log only where it may make its index
        if _has_log(path):
            text = f"{path} has a log, and cannot be looked at without writing beside it"
            yield note(check, text, "look again as its owner, where its disk is mounted for writing")
            return
        way = "immutable=1"
    try:
        uri = f"file:{quote(os.fspath(path))}?{way}"
        with closing(sqlite3.connect(uri, uri=True, timeout=2.0, isolation_level=None)) as connection:
            yield from _ask(connection, subject, advice)
    except sqlite3.Error as exc:
        busy = getattr(exc, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
        if busy:
            yield note(check, f"{path} is busy: {exc}", "look again in a moment")
        else:
            yield problem(check, f"{path} cannot be used: {exc}", advice)


def _has_log(path: Path) -> bool:
    try:
        return os.path.getsize(f"{path}-wal") > 0
    except OSError:
        return False


def _ask(connection: sqlite3.Connection, subject: Subject, advice: str) -> Iterator[Finding]:
    check = "store.database"
    end = time.monotonic() + _SECONDS
    late = False

    def look() -> int:
        nonlocal late
        late = time.monotonic() > end
        return int(late)

    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        text = f"its metadata have version {version}, this orlop knows {SCHEMA_VERSION}"
        yield problem(check, text, "use the newer orlop that wrote it")
        return
    if version == 0:
        yield ok(check, "the database is empty: the next use makes it")
        return
    connection.set_progress_handler(look, _STEPS)
    try:
        said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        if not late:
            raise
        yield note(
            check, f"it is too large to be checked in {_SECONDS:.0f} s", "`orlop check` takes its time"
        )
        said = "ok"
    connection.set_progress_handler(None, 0)
    if said != "ok":
        yield problem(check, f"the database is damaged: {said}", advice)
        return
    lacking = _tables_of(version) - _tables(connection)
    if lacking:
        text = f"the database lacks what its version {version} has: {', '.join(sorted(lacking))}"
        advice = "move the folder away and start anew, or put meta.db back from a backup"
        yield problem(check, text, advice)
        return
    if version < SCHEMA_VERSION:
        text = (
            f"its metadata have version {version}: the next use makes it {SCHEMA_VERSION}, and keeps a copy"
        )
        yield note(check, text)
    counts = [
        connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - our own words
        for table in ("images", "layers", "prepared")
    ]
    yield ok(check, "the database is whole: {} images, {} layers, {} prepared roots".format(*counts))
    names = [row[0] for row in connection.execute("SELECT DISTINCT name FROM images LIMIT 10000")]
    subject.cache["names"] = names
    if version >= SCHEMA_VERSION:
        lost = connection.execute("SELECT boot FROM unsynced WHERE boot <> ?", (_boot(),)).fetchall()
        if lost:
            text = "a part was written without syncing, and the machine has been started anew since"
            yield problem("store.unsynced", text, "orlop check --full --repair")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _tables_of(version: int) -> set[str]:
    """The tables that a database of a version has."""
    with closing(sqlite3.connect(":memory:")) as ours:
        for number in range(1, version + 1):
            ours.executescript(script(number))
        return _tables(ours)


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _locks(layout: Layout) -> Iterator[Finding]:
    """Who holds locks of the store, as the kernel lists them."""
    inodes: dict[tuple[int, int], str] = {}
    try:
        with os.scandir(layout.locks) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                inodes[about.st_dev, about.st_ino] = entry.name
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    holders: dict[int, list[str]] = {}
    for line in lines:
        words = line.split()
        if len(words) < 6 or words[1] == "->" or words[5].count(":") != 2:
            continue
        major, minor, inode = words[5].split(":")
        name = inodes.get((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
        if name is not None and words[4].lstrip("-").isdigit() and int(words[4]) > 0:
            holders.setdefault(int(words[4]), []).append(name)
    for pid, names in sorted(holders.items()):
        held = ", ".join(sorted(set(names))[:3])
        text = f"process {pid} ({_name(pid)}) is at work in the store: it holds {held}"
        yield ok("store.locks", text)


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "gone"


def _leftovers(layout: Layout) -> Iterator[Finding]:
    """What a crash, or a download that was broken off, has left; a collection takes or resumes it."""
    found = []
    for what, folder in (("deleted things", layout.trash), ("downloads", layout.content / "ingest")):
        try:
            many = sum(1 for _ in zip(range(_MOST), os.scandir(folder), strict=False))
        except OSError:
            continue
        if many:
            found.append(f"{many}{'+' if many == _MOST else ''} {what}")
    if found:
        text = f"{' and '.join(found)} are unfinished, of a crash or of who works here now"
        yield note("store.leftovers", text, "`orlop gc --dry-run` tells, `orlop gc` takes what nobody needs")
    else:
        yield ok("store.leftovers", "nothing is unfinished")
