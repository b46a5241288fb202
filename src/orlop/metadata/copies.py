"""Copies of meta.db: made while it is in use, and read though strangers wrote them.

A copy is one file that shows one moment of the store, made by SQLite's own backup in one step: it reads a
snapshot, so writers go on.  It lies under a temporary name until it is synced, then takes its place; what
was there before stays until then.

A copy from outside (`read_copy`) is looked at read-only, with functions in its schema off, before anything
is asked of it: its tables and indexes must be, word for word, those that our own scripts of its version make.
So there is no trigger, view or expression of others'.  Of its rows the types are checked, and the values are
the caller's to doubt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from orlop.errors import DataLoss, Error, FailedPrecondition, InvalidArgument, from_oserror
from orlop.linux.files import fsync_dir
from orlop.metadata import labels
from orlop.metadata.db import SCHEMA_VERSION, Database, Transaction, _mapped, script
from orlop.observe import Call
from orlop.values import dataclass

__all__ = [
    "Saved",
    "SavedBlob",
    "SavedImage",
    "SavedPin",
    "SavedPlatform",
    "Wanted",
    "copy_database",
    "copy_live",
    "edit_copy",
    "hold",
    "read_copy",
]

MAX_CELL = 16 << 20  # bytes of one value; names and digests are far smaller
_WAL_AT, _WAL = 18, b"\2\2"  # "write version" and "read version": sqlite.org/fileformat2.html, 1.3
_STEPS = 100_000  # of SQLite's machine between looks at whether the call goes on
_COMMENT = re.compile(r"--[^\n]*")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPlatform:
    """An image that a name holds of its index."""

    config: str
    manifest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """A name, what it means, and its labels.  Of a copy from outside only the types are known to be right.

    ``index`` is None where the name means one image; else ``platforms`` are what it holds of it.
    """

    name: str
    config: str
    manifest: str | None
    labels: Mapping[str, str]
    index: str | None = None
    platforms: tuple[SavedPlatform, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBlob:
    """A blob that a layer is known to come as, by a recipe of orlop's own where there is one."""

    diff_id: str
    digest: str
    recipe: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPin:
    """A pin that has not expired."""

    name: str
    kind: str
    ref: str
    expires: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a copy says of images, and how much else was there.

    ``manifests`` are pairs of a config and a manifest of it; ``parts`` are indexes with a blob that each
    needs beyond its images, and that blob's media type; ``sources`` blobs with registries and
    repositories that have had them, the latest first; ``annotations`` are configs with a key and a value for
    the manifest that they will get; ``layers`` and ``blobs`` sizes by digest, of what was on disk; ``roots``
    counts prepared roots.
    """

    images: tuple[SavedImage, ...]
    pins: tuple[SavedPin, ...]
    manifests: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str, str], ...]
    made: tuple[SavedBlob, ...]
    sources: tuple[tuple[str, str, str], ...]
    annotations: tuple[tuple[str, str, str], ...]
    layers: dict[str, int]
    blobs: dict[str, int]
    roots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Digests that a copy's images and pins need: of configs and manifests, of layers, and of other blobs."""

    documents: frozenset[str]
    layers: frozenset[str]
    blobs: frozenset[str]


def copy_database(source: Path, target: Path) -> None:
    """Copy meta.db as it is at one moment; durable on return, in place of what was at ``target``.

    Raises OSError and sqlite3.Error; then ``target`` is as it was.
    """
    temporary = target.with_name(f".tmp-{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # who tidies up sees that its maker lives
        with (
            contextlib.closing(_connect(source, "rw")) as live,
            contextlib.closing(_connect(temporary, "rw")) as copy,
        ):
            copy.execute("PRAGMA journal_mode=OFF")  # nothing beside it that somebody might tidy up
            live.backup(copy)
        os.pwrite(fd, _WAL, _WAL_AT)  # as meta.db has it: the copy can take its place
        os.fsync(fd)
        os.rename(temporary, target)
        fsync_dir(target.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def copy_live(source: Path, target: Path) -> None:
    """As `copy_database`, with errors of ours."""
    what = "copy metadata"
    try:
        copy_database(source, target)
    except sqlite3.Error as exc:
        raise _mapped(what, exc) from exc
    except OSError as exc:
        raise from_oserror(what, exc) from exc


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    where = urllib.parse.quote(os.fsencode(path))
    return sqlite3.connect(f"file:{where}?mode={mode}", uri=True, isolation_level=None, timeout=30)


# -- for a backup -------------------------------------------------------------------------------

# What names and pins keep.  A chain is derived: its pin goes with the machine.
_HELD = (
    "SELECT 'config' AS kind, config_digest AS ref FROM images WHERE namespace = :namespace "
    "UNION SELECT 'config', config_digest FROM image_platforms WHERE namespace = :namespace "
    "UNION SELECT 'blob', digest FROM images JOIN index_blobs USING (index_digest) "
    "WHERE namespace = :namespace "
    "UNION SELECT kind, ref FROM pins WHERE namespace = :namespace "
    "AND kind IN ('config', 'layer', 'blob') AND (expires_at IS NULL OR expires_at > :now)"
)


# Names without what has gone: an index that has lost a part is none any more, its images stay.
_INDEXES = "(SELECT index_digest FROM index_blobs WHERE digest = ?)"
_THEIR_NAMES = f"SELECT namespace, name FROM images WHERE index_digest IN {_INDEXES}"
_MEANING_IT = "SELECT namespace, name FROM images WHERE config_digest = ?"
_LOST = {
    "config": (
        f"DELETE FROM image_platforms WHERE (namespace, name) IN ({_MEANING_IT})",
        "DELETE FROM images WHERE config_digest = ?",
        "DELETE FROM image_platforms WHERE config_digest = ?",
    ),
    "blob": (
        f"DELETE FROM image_platforms WHERE (namespace, name) IN ({_THEIR_NAMES})",
        f"UPDATE images SET index_digest = NULL WHERE index_digest IN {_INDEXES}",
    ),
}

Keep = Callable[[Transaction, str, str], None]  # puts a kind and a name on the lease of whoever asks


def hold(tx: Transaction, namespace: str, keep: Keep) -> None:
    """Put all that names and pins keep on a lease."""
    for kind, ref in tx.execute(_HELD, {"namespace": namespace, "now": time.time()}).fetchall():
        keep(tx, kind, ref)


def edit_copy(
    path: Path, database: Database, namespace: str, lease: str, keep: Keep, *, call: Call
) -> tuple[Saved, Wanted]:
    """Make a copy of our own fit for a backup: without leases, and without what is not on ``lease``.

    What got a name or a pin between `hold` and the copy is put on the lease now; what has lost it since is
    dropped from the copy.  Returns what is left, and what that needs.
    """
    values: dict[str, str | float] = {"namespace": namespace, "now": time.time(), "lease": lease}
    try:
        with contextlib.closing(_connect(path, "rw")) as copy:
            query = f"{_HELD} EXCEPT SELECT kind, ref FROM lease_refs WHERE lease = :lease"
            unheld = copy.execute(query, values).fetchall()

            def hold_late(tx: Transaction) -> list[tuple[str, str]]:
                held = {tuple(row) for row in tx.execute(_HELD, values).fetchall()}
                for pair in unheld:
                    if pair in held:
                        keep(tx, *pair)
                return [pair for pair in unheld if pair not in held]

            gone = database.write(hold_late, call=call) if unheld else []
            copy.execute("BEGIN")
            for kind, ref in gone:
                copy.execute("DELETE FROM pins WHERE kind = ? AND ref = ?", (kind, ref))
                for statement in _LOST.get(kind, ()):
                    copy.execute(statement, (ref,))
            copy.execute("DELETE FROM lease_refs")
            copy.execute("DELETE FROM leases")
            copy.execute("DELETE FROM events")  # a backup is of what there is, and its log another one
            copy.execute("UPDATE event_log SET id = lower(hex(randomblob(4)))")
            copy.execute("COMMIT")
            return _read(copy, namespace), _wanted(copy, values)
    except sqlite3.Error as exc:
        raise _mapped("copy metadata", exc) from exc


def _wanted(copy: sqlite3.Connection, values: Mapping[str, str | float]) -> Wanted:
    configs = f"SELECT ref FROM ({_HELD}) WHERE kind = 'config'"
    documents = (
        f"{configs} UNION SELECT manifest_digest FROM images WHERE namespace = :namespace UNION "
        f"SELECT digest FROM image_manifests JOIN blobs USING (digest) WHERE config_digest IN ({configs}) "
        "UNION SELECT digest FROM images JOIN index_blobs USING (index_digest) WHERE namespace = :namespace"
    )
    layers = (
        f"SELECT diff_id FROM config_layers WHERE config_digest IN ({configs}) "
        f"UNION SELECT ref FROM ({_HELD}) WHERE kind = 'layer'"
    )
    blobs = (
        f"SELECT digest FROM blobs JOIN layer_blobs USING (digest) WHERE diff_id IN ({layers}) "
        f"UNION SELECT ref FROM ({_HELD}) WHERE kind = 'blob'"
    )

    def found(query: str) -> frozenset[str]:
        return frozenset(row[0] for row in copy.execute(query, values) if row[0])

    return Wanted(documents=found(documents), layers=found(layers), blobs=found(blobs))


# -- for a restore ------------------------------------------------------------------------------


def read_copy(path: Path, namespace: str, *, call: Call) -> Saved:
    """Read a copy that came from outside, bringing it up to our version; ``path`` is the caller's own file.

    Raises `FailedPrecondition` for one that is newer than this orlop, `DataLoss` for a damaged one,
    `InvalidArgument` for what is not a copy of a store's metadata.
    """
    try:
        with _foreign(path, call) as copy:
            version = _check_schema(copy)
        if version < SCHEMA_VERSION:
            Database.open(path, path.with_name("write")).close()
        with _foreign(path, call) as copy:
            return _read(copy, namespace)
    except (sqlite3.Error, UnicodeDecodeError) as exc:
        call.check("read metadata")  # it may have been stopped for that
        raise DataLoss("read metadata", f"the backup's meta.db is damaged: {exc}") from exc


@contextlib.contextmanager
def _foreign(path: Path, call: Call) -> Iterator[sqlite3.Connection]:
    """A connection that reads, and is stopped with the call."""

    def stop() -> bool:
        try:
            call.check("read metadata")
        except Error:
            return True
        return False

    with contextlib.closing(_connect(path, "ro&immutable=1")) as copy:
        copy.executescript("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON; PRAGMA mmap_size=0;")
        copy.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL)
        copy.set_progress_handler(stop, _STEPS)
        yield copy


def _check_schema(copy: sqlite3.Connection) -> int:
    """The version of a copy whose schema is what our scripts make."""
    what = "read metadata"
    version = int(copy.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise FailedPrecondition(
            what,
            f"the backup's metadata have version {version}, this orlop knows {SCHEMA_VERSION}",
            hint="use the newer orlop that wrote it",
        )
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as ours:
        for number in range(1, version + 1):
            ours.executescript(script(number))
        if version < 1 or _schema(copy) != _schema(ours):
            raise InvalidArgument(what, "the backup's meta.db has other tables than orlop's")
    damage = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise DataLoss(what, f"the backup's meta.db is damaged: {damage}")
    return version


def _schema(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Tables, indexes and whatever else there is, without comments and white space.

    SQLite's own indexes have no text; a name that only SQLite should give shows nothing.
    """
    query = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
    return {
        (str(kind), str(name), "".join(_COMMENT.sub("", str(sql)).split()))
        for kind, name, sql in connection.execute(query)
    }


def _read(copy: sqlite3.Connection, namespace: str) -> Saved:
    names = _rows(
        copy,
        tuple[str, str, str | None, str | None],
        "SELECT name, config_digest, manifest_digest, index_digest FROM images WHERE namespace = ? "
        "ORDER BY name",
        namespace,
    )
    platforms: dict[str, list[SavedPlatform]] = {}
    for name, config, manifest in _rows(
        copy,
        tuple[str, str, str],
        "SELECT name, config_digest, manifest_digest FROM image_platforms WHERE namespace = ? "
        "ORDER BY name, manifest_digest",
        namespace,
    ):
        platforms.setdefault(name, []).append(SavedPlatform(config=config, manifest=manifest))
    notes = _checked(labels.all_image_labels(copy, namespace), dict[str, dict[str, str]])
    made = _rows(
        copy,
        tuple[str, str, str | None],
        "SELECT diff_id, digest, recipe FROM layer_blobs ORDER BY diff_id, digest",
    )
    kept = _rows(
        copy,
        tuple[str, str, str, float | None],
        "SELECT name, kind, ref, expires_at FROM pins WHERE namespace = ? "
        "AND kind IN ('config', 'layer', 'blob') AND (expires_at IS NULL OR expires_at > ?) ORDER BY name",
        namespace,
        time.time(),
    )
    return Saved(
        images=tuple(
            SavedImage(
                name=row[0],
                config=row[1],
                manifest=row[2],
                labels=notes.get(row[0], {}),
                index=row[3],
                platforms=tuple(platforms.get(row[0], ())),
            )
            for row in names
        ),
        pins=tuple(SavedPin(name=row[0], kind=row[1], ref=row[2], expires=row[3]) for row in kept),
        manifests=tuple(
            _rows(
                copy,
                tuple[str, str],
                "SELECT config_digest, digest FROM image_manifests JOIN blobs USING (digest) ORDER BY 1, 2",
            )
        ),
        parts=tuple(
            _rows(
                copy,
                tuple[str, str, str],
                "SELECT index_digest, digest, media_type FROM index_blobs ORDER BY 1, 2",
            )
        ),
        made=tuple(SavedBlob(diff_id=row[0], digest=row[1], recipe=row[2]) for row in made),
        sources=tuple(
            _rows(
                copy,
                tuple[str, str, str],
                "SELECT digest, registry, repository FROM blob_sources ORDER BY seen_at DESC",
            )
        ),
        annotations=tuple(
            _rows(
                copy,
                tuple[str, str, str],
                "SELECT config_digest, key, value FROM image_annotations ORDER BY 1, 2",
            )
        ),
        layers=dict(_rows(copy, tuple[str, int], "SELECT diff_id, size FROM layers ORDER BY diff_id")),
        blobs=dict(_rows(copy, tuple[str, int], "SELECT digest, size FROM blobs ORDER BY digest")),
        roots=int(copy.execute("SELECT COUNT(*) FROM prepared").fetchone()[0]),
    )


def _rows(copy: sqlite3.Connection, shape: type[_T], query: str, *values: str | float) -> list[_T]:
    return [_checked(row, shape) for row in copy.execute(query, values)]


def _checked(value: object, shape: type[_T]) -> _T:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as exc:
        raise InvalidArgument("read metadata", f"a row of the backup's meta.db is malformed: {exc}") from exc
