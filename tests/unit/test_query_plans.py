"""Looking one thing up reads what it needs and not the store: every statement has an index to go by.

SQLite's planner is asked about each statement that a function of `orlop.metadata` really runs.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orlop.metadata import (
    captures,
    contents,
    events,
    folders,
    garbage,
    images,
    layers,
    pins,
    platforms,
    roots,
    snapshots,
    uses,
)
from orlop.metadata.captures import CaptureRow, CheckpointRow
from orlop.metadata.contents import ContentRow
from orlop.metadata.db import Database, Transaction
from orlop.metadata.folders import FolderRow
from orlop.metadata.garbage import Suspects
from orlop.metadata.images import ManifestRow
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.metadata.platforms import IndexBlob, PlatformRow
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.metadata.snapshots import SnapshotRow
from orlop.spec.digest import DiffID, Digest
from orlop.values import replace

NS = "default"
_COMMON = r"(?:namespace|kind|form)=\?"
_WHOLE = re.compile(rf"(?:SCAN|SEARCH(?=.*\({_COMMON}(?: AND {_COMMON})*\))) (\w+)")
BLOB = Digest.of(b"a blob")
LAYER = DiffID(Digest.of(b"a layer"))
CAPTURE = CaptureRow(fingerprint=b"f", diff_id=LAYER)
POINT = CheckpointRow(name="p", config=BLOB, created=0.0)
CHAIN = ChainRow(id="c1", parent=None, depth=1, entries=1, size=1, uuid=b"u" * 16, devices=())
FOLDER = FolderRow(id="f1", kind="layer", of=LAYER, form="real", size=1, entries=1, boot="b")
MOUNT = MountRow(type="image", source="a", target="/x", options=(), config=BLOB, chain="c1")
ROOT = RootRow(
    id="r1",
    path="/srv/a",
    image="a",
    config=BLOB,
    chain="c1",
    driver="erofs",
    kind="active",
    self_contained=False,
    mounted=False,
    made_target=False,
    created=0.0,
    uid_map="0:1:1",
    gid_map="0:1:1",
)
MANIFEST = ManifestRow(digest=BLOB, media_type="m", size=1)
PLATFORM = PlatformRow(config=BLOB, manifest=BLOB, platform="linux/amd64")
CONTENT = ContentRow(namespace=NS, digest=BLOB, size=1, labels={}, created=0, updated=0)
INDEX_BLOB = IndexBlob(digest=BLOB, media_type="m", size=1)
LAYER_ROW = LayerRow(diff_id=LAYER, size=1, data_size=0, index_size=1, entries=1)
LAYER_BLOB = LayerBlob(diff_id=LAYER, digest=BLOB, size=1, media_type="x")

SNAPSHOT = SnapshotRow(
    id="s1", namespace=NS, key="k", kind="committed", created=1, updated=1, chain="c1", labels={"k": "v"}
)

Body = Callable[[Transaction], object]
LOOKUPS: dict[str, Body] = {
    "put an image": lambda tx: images.put_image(tx, NS, "a", config=BLOB, manifest=BLOB),
    "get an image": lambda tx: images.get_image(tx, NS, "a"),
    "find images by their ID": lambda tx: images.images_by_id(tx, NS, "sha256:0123"),
    "find images by their manifest": lambda tx: images.images_by_manifest(tx, NS, BLOB),
    "find images by their index": lambda tx: images.images_by_index(tx, NS, BLOB),
    "find names that hold a config": lambda tx: platforms.names_of_config(tx, NS, "sha256:0123"),
    "find names that hold a manifest": lambda tx: platforms.names_of_manifest(tx, NS, BLOB),
    "list what a name holds": lambda tx: platforms.platforms_of(tx, NS, "a"),
    "put an image of an index": lambda tx: images.put_image(
        tx, NS, "a", config=BLOB, manifest=BLOB, index=BLOB, held=[PLATFORM]
    ),
    "add an index's blobs": lambda tx: platforms.add_index_blobs(tx, BLOB, [INDEX_BLOB]),
    "list an index's blobs": lambda tx: platforms.index_blobs(tx, BLOB),
    "find a blob of an index": lambda tx: platforms.index_blob(tx, BLOB),
    "ask what an image keeps": lambda tx: garbage.suspects_of_image(tx, NS, "a"),
    "give a namespace a blob": lambda tx: contents.add_content(tx, CONTENT),
    "look at a namespace's blob": lambda tx: contents.get_content(tx, NS, BLOB),
    "look at a blob of any namespace": lambda tx: contents.get_content(tx, None, BLOB),
    "change a namespace's blob": lambda tx: contents.update_content(tx, CONTENT),
    "take a blob from a namespace": lambda tx: contents.delete_content(tx, NS, BLOB),
    "take a blob from all namespaces": lambda tx: contents.delete_content(tx, None, BLOB),
    "list a namespace's blobs": lambda tx: contents.list_contents(tx, NS, "", 9),
    "list all namespaces' blobs": lambda tx: contents.list_contents(tx, None, "", 9),
    "look for a blob in some namespaces": lambda tx: contents.is_in_one_of(tx, [NS, "b"], BLOB),
    "ask for a blob's size": lambda tx: contents.blob_size(tx, BLOB),
    "touch an image": lambda tx: images.touch_image(tx, NS, "a"),
    "describe a config": lambda tx: images.describe_config(tx, BLOB, platform="p", created=""),
    "add a config": lambda tx: images.add_config(tx, BLOB, [LAYER]),
    "list a config's layers": lambda tx: images.config_layers(tx, BLOB),
    "sum a config's layers": lambda tx: images.config_size(tx, BLOB),
    "add a manifest": lambda tx: images.add_manifest(tx, BLOB, MANIFEST),
    "get a manifest": lambda tx: images.manifest_of(tx, BLOB),
    "add a layer": lambda tx: layers.add_layer(tx, LAYER_ROW),
    "get a layer": lambda tx: layers.get_layer(tx, LAYER),
    "add a layer's blob": lambda tx: layers.add_layer_blob(tx, LAYER_BLOB),
    "list a layer's blobs": lambda tx: layers.blobs_of_layer(tx, LAYER),
    "find a blob's layer": lambda tx: layers.layer_of_blob(tx, BLOB),
    "add a blob": lambda tx: layers.add_blob(tx, BLOB, 1),
    "find a blob": lambda tx: layers.has_blob(tx, BLOB),
    "measure blobs": lambda tx: layers.blob_sizes(tx, [BLOB]),
    "add a source": lambda tx: layers.add_source(tx, BLOB, "r", "a"),
    "list a blob's sources": lambda tx: layers.sources_of(tx, BLOB),
    "add a chain": lambda tx: roots.add_chain(tx, CHAIN, [LAYER]),
    "get a chain": lambda tx: roots.chain_stack(tx, "c1"),
    "list a chain's layers": lambda tx: roots.chain_layers(tx, "c1"),
    "find a chain's users": lambda tx: roots.chain_users(tx, "c1"),
    "add a root": lambda tx: roots.add_root(tx, NS, ROOT, {"k": "v"}, [MOUNT]),
    "get a root": lambda tx: roots.get_root(tx, "/srv/a"),
    "find a root's image": lambda tx: roots.is_config_of_root(tx, NS, BLOB),
    "find a root": lambda tx: roots.is_root(tx, "r1"),
    "list a root's labels": lambda tx: roots.labels_of(tx, "r1"),
    "list a root's mounts": lambda tx: roots.mounts_of(tx, "r1"),
    "count a mapping's users": lambda tx: roots.mapping_users(tx, "0:1:1", "0:1:1"),
    "mark a root as mounted": lambda tx: roots.set_mounted(tx, "r1", mounted=True, made_target=True),
    "move a root": lambda tx: roots.move_root(tx, "r1", "/srv/moved", {"k": "v"}),
    "remember a capture": lambda tx: captures.set_capture(tx, "r1", CAPTURE),
    "get a capture": lambda tx: captures.get_capture(tx, "r1"),
    "add a checkpoint": lambda tx: captures.add_checkpoint(tx, "r1", [POINT]),
    "list checkpoints": lambda tx: captures.checkpoints_of(tx, "r1"),
    "drop a checkpoint": lambda tx: captures.delete_checkpoint(tx, "r1", "p"),
    "add a folder": lambda tx: folders.add_folder(tx, FOLDER, [LAYER]),
    "get a folder": lambda tx: folders.get_folder(tx, "f1"),
    "find a folder": lambda tx: folders.find_folder(tx, "layer", LAYER, "real"),
    "find a folder by a prefix": lambda tx: folders.find_by_prefix(tx, "layer", "sha256:0", "real"),
    "set a root's folders": lambda tx: folders.set_root_folders(tx, "r1", ["f1"]),
    "list a root's folders": lambda tx: folders.folders_of_root(tx, "r1"),
    "ask what a root keeps": lambda tx: garbage.suspects_of_root(tx, "r1"),
    "ask when an image was used": lambda tx: uses.image_use(tx, NS, "a"),
    "ask whether it is unused": lambda tx: uses.is_unused_since(tx, NS, "a", BLOB, used=0.0, now=1.0),
    "add a snapshot": lambda tx: snapshots.add_snapshot(tx, SNAPSHOT, "add", [LAYER]),
    "find a snapshot": lambda tx: snapshots.require_snapshot(tx, NS, "k", "find"),
    "find a snapshot in all namespaces": lambda tx: snapshots.require_snapshot(tx, None, "k", "find"),
    "find a snapshot's row": lambda tx: snapshots.is_snapshot(tx, "s1"),
    "find a snapshot's children": lambda tx: snapshots.has_children(tx, "s1"),
    "list a snapshot's folders": lambda tx: snapshots.stack_of(tx, "s1"),
    "list a snapshot's layers": lambda tx: snapshots.layers_of(tx, "s1"),
    "find layers that lie on one": lambda tx: snapshots.candidates(tx, [LAYER], most=9),
    "label a snapshot": lambda tx: snapshots.set_labels(tx, "s1", {"k": "v"}, 1),
    "commit a snapshot": lambda tx: snapshots.commit_snapshot(tx, SNAPSHOT, "commit"),
    "forget a snapshot": lambda tx: snapshots.delete_snapshot(tx, "s1"),
    "put a pin": lambda tx: pins.put_pin(tx, NS, "p", kind="layer", ref=LAYER, expires=None),
    "take a pin": lambda tx: pins.take_pin(tx, NS, "p"),
    "add to a lease": lambda tx: garbage.lease_add(tx, "l1", "layer", LAYER),
    "end a lease": lambda tx: garbage.lease_end(tx, "l1"),
    "see to a root's end": lambda tx: roots.ending(tx, ROOT),
    "name a root again": lambda tx: roots.touch_sources(tx, NS, ROOT),
    "forget a root": lambda tx: roots.delete_root(tx, "r1"),
    "forget an image": lambda tx: images.delete_image(tx, NS, "a"),
    "forget what went with them": lambda tx: garbage.forget(
        tx, Suspects(configs={BLOB}, layers={LAYER}, blobs={BLOB}, chains={"c1"})
    ),
    "add an event": lambda tx: events.add(tx, NS, "image.created", "a", {"id": BLOB}),
    "look at the log": events.log_of,
    "read events": lambda tx: events.read_after(tx, 1, 10),
    "drop events": events.Trimmer(1, 0),
    "forget trash": lambda tx: garbage.trash_done(tx, "layers/a"),
}
LISTS: dict[str, Body] = {
    "list images": lambda tx: images.list_with_sizes(tx, NS),
    "list roots": lambda tx: roots.list_roots(tx, NS),
}


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder: Path = tmp_path_factory.mktemp("plans")
    database = Database.open(folder / "meta.db", folder / "write")
    yield database
    database.close()


def statements(tx: sqlite3.Connection, body: Body) -> list[str]:
    """What a body has SQLite run, with its values in it; those of triggers and foreign keys apart."""
    seen: list[str] = []
    tx.set_trace_callback(seen.append)
    try:
        body(tx)
    finally:
        tx.set_trace_callback(None)
    return [text for text in seen if not text.startswith("--")]


def plan(tx: sqlite3.Connection, statement: str) -> list[str]:
    return [row[3] for row in tx.execute(f"EXPLAIN QUERY PLAN {statement}")]


def read_whole(tx: sqlite3.Connection, statement: str) -> list[str]:
    """The tables that a statement reads from end to end, or all but: by what all rows have in common."""
    tables = {row[0] for row in tx.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = [match[1] for step in plan(tx, statement) if (match := _WHOLE.match(step))]
    return [name for name in found if name in tables]


@pytest.mark.parametrize("what", LOOKUPS)
def test_looking_up_one_thing_reads_no_table_whole(db: Database, what: str) -> None:
    def body(tx: Transaction) -> dict[str, list[str]]:
        ran = statements(tx, LOOKUPS[what])
        assert ran
        return {text: tables for text in ran if (tables := read_whole(tx, text))}

    assert db.write(body) == {}


def test_what_the_end_of_a_root_with_id_maps_takes_does_not_grow_with_others_on_its_chain(
    db: Database,
) -> None:
    one = replace(ROOT, id="m0", path="/srv/m0", chain="c2", uid_map="0:1:1", gid_map="0:1:1")

    def steps(tx: Transaction) -> int:
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        tx.set_progress_handler(step, 1)
        try:
            assert roots.ending(tx, one) is not None
        finally:
            tx.set_progress_handler(None, 1)
        return taken

    def body(tx: Transaction) -> tuple[int, int]:
        roots.add_chain(tx, replace(CHAIN, id="c2"), [])
        roots.add_root(tx, NS, one, {})
        before = steps(tx)
        for number in range(1, 200):
            roots.add_root(tx, NS, replace(one, id=f"m{number}", path=f"/srv/m{number}"), {})
        return before, steps(tx)

    before, after = db.write(body)
    assert after < before + 20


@pytest.mark.parametrize("what", LISTS)
def test_a_list_reads_its_rows_in_order_and_looks_the_rest_up(db: Database, what: str) -> None:
    def body(tx: Transaction) -> None:
        for statement in statements(tx, LISTS[what]):
            steps = plan(tx, statement)
            assert sum(step.startswith("SCAN") for step in steps) <= 1, steps
            assert not any("B-TREE" in step for step in steps if "images" in what), steps

    db.read(body)


def test_a_table_that_is_read_whole_is_noticed(db: Database) -> None:
    for condition in ("created_at = 1", "namespace = 'a' AND created_at = 1"):
        query = f"SELECT name FROM images WHERE {condition}"
        assert db.read(lambda tx, query=query: read_whole(tx, query)) == ["images"]
