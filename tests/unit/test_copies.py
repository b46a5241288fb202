"""Copies of meta.db: one moment of it, what a backup needs of that, and what is not believed."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.errors import Cancelled, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from orlop.metadata import copies, garbage, images, labels, layers, pins, platforms
from orlop.metadata.db import Database, Transaction, script
from orlop.metadata.images import ManifestRow
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.metadata.platforms import IndexBlob, PlatformRow
from orlop.observe import Call, CancelToken
from orlop.spec.digest import DiffID, Digest

LEASE = "l" * 16


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(tmp_path / "meta.db", tmp_path / "write")
    yield database
    database.close()


def digest(text: str) -> Digest:
    return Digest.of(text.encode())


def add(tx: Transaction, name: str) -> None:
    """An image of one layer, with a manifest and a kept blob, all named after it."""
    diff_id = DiffID(digest(f"{name} layer"))
    layers.add_layer(tx, LayerRow(diff_id=diff_id, size=7, data_size=0, index_size=1, entries=1))
    blob = digest(f"{name} blob")
    layers.add_layer_blob(tx, LayerBlob(diff_id=diff_id, digest=blob, size=3, media_type="", recipe="isal-2"))
    layers.add_source(tx, blob, "registry.example.com", name)
    for one in (digest(name), digest(f"{name} manifest"), blob):
        layers.add_blob(tx, one, 3)
    images.add_config(tx, digest(name), [diff_id])
    images.add_manifest(
        tx, digest(name), ManifestRow(digest=digest(f"{name} manifest"), media_type="", size=3)
    )
    images.put_image(tx, "default", f"localhost/{name}:1", config=digest(name), manifest=None)


def keep(tx: Transaction, kind: str, ref: str) -> None:
    garbage.lease_add(tx, LEASE, kind, ref)


def held(tx: Transaction) -> set[str]:
    return {row[0] for row in tx.execute("SELECT ref FROM lease_refs WHERE lease = ?", (LEASE,))}


def edit(db: Database, path: Path) -> tuple[copies.Saved, copies.Wanted]:
    return copies.edit_copy(path, db, "default", LEASE, keep, call=Call())


def test_what_comes_and_goes_between_the_lease_and_the_copy_is_held_or_not_in_it(
    db: Database, tmp_path: Path
) -> None:
    def begin(tx: Transaction) -> None:
        for name in ("stays", "goes-early"):
            add(tx, name)
        copies.hold(tx, "default", keep)

    def between(tx: Transaction) -> None:
        images.delete_image(tx, "default", "localhost/goes-early:1")
        for name in ("comes", "goes-late"):
            add(tx, name)
        pins.put_pin(tx, "default", "pin", kind="config", ref=digest("goes-early"), expires=None)
        pins.put_pin(tx, "default", "late", kind="blob", ref=digest("comes blob"), expires=None)

    def after(tx: Transaction) -> None:
        images.delete_image(tx, "default", "localhost/goes-late:1")
        images.delete_image(tx, "default", "localhost/stays:1")  # held: it is in the copy all the same
        pins.take_pin(tx, "default", "late")
        add(tx, "too-late")

    db.write(begin)
    db.write(between)
    copies.copy_database(tmp_path / "meta.db", tmp_path / "copy")
    db.write(after)
    saved, wanted = edit(db, tmp_path / "copy")
    assert [image.name for image in saved.images] == ["localhost/comes:1", "localhost/stays:1"]
    assert [pin.name for pin in saved.pins] == ["pin"]
    kept = {"stays", "comes", "goes-early"}
    assert wanted.layers == {digest(f"{name} layer") for name in kept}
    assert wanted.documents == {digest(name) for name in kept} | {digest(f"{name} manifest") for name in kept}
    assert wanted.blobs == {digest(f"{name} blob") for name in kept}
    assert db.read(held) == {digest(name) for name in kept}
    with contextlib.closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT COUNT(*) FROM leases").fetchone()[0] == 0


def add_index(tx: Transaction, name: str, *configs: str) -> None:
    """Make a name mean an index, all of whose images it holds, and which has a part that is no image."""
    index, part = digest(f"{name} index"), digest(f"{name} part")
    for config in configs:
        add(tx, config)
    for one in (index, part):
        layers.add_blob(tx, one, 5)
    parts = [IndexBlob(digest=one, media_type="m", size=5) for one in (index, part)]
    platforms.add_index_blobs(tx, index, parts)
    rows = [
        PlatformRow(config=digest(config), manifest=digest(f"{config} manifest"), platform=config)
        for config in configs
    ]
    images.put_image(
        tx,
        "default",
        f"localhost/{name}:1",
        config=rows[0].config,
        manifest=rows[0].manifest,
        index=index,
        held=rows,
    )


def test_an_index_that_goes_between_the_lease_and_the_copy_is_not_in_it(db: Database, tmp_path: Path) -> None:
    def begin(tx: Transaction) -> None:
        add_index(tx, "stays", "a", "b")
        copies.hold(tx, "default", keep)

    def between(tx: Transaction) -> None:
        add_index(tx, "comes", "c", "d")
        add_index(tx, "goes", "c", "e")

    def after(tx: Transaction) -> None:
        for name in ("stays", "goes"):  # the first is held already
            images.delete_image(tx, "default", f"localhost/{name}:1")
        for one in "abcde":
            images.delete_image(tx, "default", f"localhost/{one}:1")

    db.write(begin)
    db.write(between)
    copies.copy_database(tmp_path / "meta.db", tmp_path / "copy")
    db.write(after)
    saved, wanted = edit(db, tmp_path / "copy")
    found = {
        image.name.removeprefix("localhost/").removesuffix(":1"): (
            image.index,
            {one.config for one in image.platforms},
        )
        for image in saved.images
    }
    # A name whose image is kept by another stays, as one of an image alone.
    assert found == {
        "a": (None, set()),
        "b": (None, set()),
        "c": (None, set()),
        "d": (None, set()),
        "comes": (digest("comes index"), {digest("c"), digest("d")}),
        "goes": (None, set()),
        "stays": (digest("stays index"), {digest("a"), digest("b")}),
    }
    parts = {digest(f"{name} {what}") for name in ("stays", "comes") for what in ("index", "part")}
    documents = {digest(f"{one}{what}") for one in "abcd" for what in ("", " manifest")}
    assert wanted.documents == documents | parts
    assert wanted.layers == {digest(f"{one} layer") for one in "abcd"}


def test_a_copy_made_while_others_write_shows_one_moment(db: Database, tmp_path: Path) -> None:
    """Two rows that are always equal."""
    done = threading.Event()

    def write(number: int) -> None:
        db.write(
            lambda tx: labels.change_image_labels(tx, "default", "a", {"a": str(number), "b": str(number)})
        )

    def run() -> None:
        number = 0
        while not done.is_set():
            number += 1
            write(number)

    write(0)
    writer = threading.Thread(target=run)
    writer.start()
    try:
        for _ in range(20):
            copies.copy_database(tmp_path / "meta.db", tmp_path / "copy")
            with contextlib.closing(sqlite3.connect(tmp_path / "copy")) as copy:
                found = {row[0] for row in copy.execute("SELECT value FROM labels")}
                assert len(found) == 1
                assert copy.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    finally:
        done.set()
        writer.join()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_a_copy_that_fails_leaves_what_was_there(db: Database, tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("old")
    with pytest.raises(sqlite3.OperationalError):
        copies.copy_database(tmp_path / "nothing.db", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_what_cannot_be_copied_is_an_error_of_ours(db: Database, tmp_path: Path) -> None:
    (tmp_path / "spoilt").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    for source, error in (("spoilt", DataLoss), ("nothing", FailedPrecondition)):
        with pytest.raises(error):
            copies.copy_live(tmp_path / source, tmp_path / "copy")
    with pytest.raises(NotFound):
        copies.copy_live(tmp_path / "meta.db", tmp_path / "no/copy")


def test_a_trigger_is_refused_though_its_name_is_of_those_that_only_sqlite_gives(tmp_path: Path) -> None:
    """Of an old version: bringing it up to ours writes to its tables."""
    path = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
        for number in (1, 2):
            copy.executescript(script(number))
        copy.execute("PRAGMA user_version = 2")
        copy.execute("CREATE TRIGGER evil AFTER UPDATE ON images BEGIN DELETE FROM images; END")
        copy.execute("PRAGMA writable_schema = ON")
        copy.execute(
            "UPDATE sqlite_schema SET name = 'sqlite_x', sql = replace(sql, 'evil', 'sqlite_x') "
            "WHERE name = 'evil'"
        )
    with pytest.raises(InvalidArgument):
        copies.read_copy(path, "default", call=Call())


def test_what_is_written_is_read_back(db: Database, tmp_path: Path) -> None:
    def body(tx: Transaction) -> None:
        add(tx, "a")
        labels.change_image_labels(tx, "default", "localhost/a:1", {"key": "value"})
        pins.put_pin(tx, "default", "old", kind="layer", ref=digest("a layer"), expires=1.0)
        pins.put_pin(tx, "default", "chain", kind="chain", ref="c" * 64, expires=None)
        copies.hold(tx, "default", keep)

    db.write(body)
    copies.copy_database(tmp_path / "meta.db", tmp_path / "copy")
    ours, _ = edit(db, tmp_path / "copy")
    theirs = copies.read_copy(tmp_path / "copy", "default", call=Call())
    assert ours == theirs
    assert dict(ours.images[0].labels) == {"key": "value"}
    assert (ours.pins, ours.roots) == ((), 0)  # an expired one, and one of what is made again
    assert [(one.digest, one.recipe) for one in ours.made] == [(digest("a blob"), "isal-2")]
    assert ours.sources == ((digest("a blob"), "registry.example.com", "a"),)


@pytest.mark.parametrize(
    "data", [b"", b"no database", b"SQLite format 3\0" + bytes(200), b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_what_is_no_database_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "copy").write_bytes(data)
    with pytest.raises((DataLoss, InvalidArgument)):
        copies.read_copy(tmp_path / "copy", "default", call=Call())


def test_every_page_that_is_spoilt_is_refused_or_read(db: Database, tmp_path: Path) -> None:
    """Whatever the bytes are, the answer is one of ours."""
    db.write(lambda tx: [add(tx, f"image-{number}") for number in range(20)])
    copies.copy_database(tmp_path / "meta.db", tmp_path / "copy")
    whole = (tmp_path / "copy").read_bytes()
    refused = 0
    for start in range(0, len(whole), 4096):
        places = (start + 3, start + 100, start + 2000, start + 4090)
        for at in places[start // 4096 % 2 :: 2]:  # by turns
            spoilt = bytearray(whole)
            spoilt[at] ^= 0xFF
            (tmp_path / "spoilt").write_bytes(spoilt)
            try:
                copies.read_copy(tmp_path / "spoilt", "default", call=Call())
            except (DataLoss, InvalidArgument):
                refused += 1
    assert refused > 20


def test_reading_ends_with_the_call(db: Database, tmp_path: Path) -> None:
    db.write(lambda tx: [add(tx, f"image-{number}") for number in range(2000)])
    copies.copy_database(tmp_path / "meta.db", tmp_path / "copy")
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        copies.read_copy(tmp_path / "copy", "default", call=Call(cancel=token))
