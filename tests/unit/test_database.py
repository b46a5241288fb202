"""meta.db: transactions, connections that threads and processes share, errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
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
from orlop.metadata import folders, garbage, images, layers, roots
from orlop.metadata.db import Database, Transaction, _mapped
from orlop.metadata.images import ManifestRow
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.observe import Call, CancelToken
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


def _cancelled() -> CancelToken:
    token = CancelToken()
    token.cancel()
    return token


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
        database.write(garbage.forget)
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
        ("SQLITE_IOERR_WRITE", ResourceExhausted),
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


def forgotten(db: Database, *dead: str) -> set[tuple[str, str]]:
    return {(item.kind, item.name) for item in db.write(lambda tx: garbage.forget(tx, dead))}


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

    def body(tx: Transaction) -> None:
        assert garbage.forget(tx)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            db.write(body)
    assert len(forgotten(db)) == 3


def test_a_digest_prefix_finds_the_images_that_begin_with_it(db: Database) -> None:
    db.write(lambda tx: add_image(tx, "one", "base"))
    config = digest("config one")
    find = images.images_by_id
    for prefix, count in ((config[:19], 1), (config, 1), (config[:19] + "g", 0), ("sha256:" + "f" * 64, 0)):
        assert len(db.read(lambda tx, p=prefix: find(tx, "default", p))) == count
