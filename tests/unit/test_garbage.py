"""What nothing needs: the rule against a plain mark and sweep, and what a small end costs."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.metadata import contents, garbage, images, pins, roots
from orlop.metadata.db import SCHEMA_VERSION, Transaction
from orlop.metadata.garbage import Suspects
from orlop.metadata.needs import Without
from orlop.spec.digest import Digest

LONG_AGO, FAR_AHEAD = 1.0, 4e9


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def memory() -> Iterator[Transaction]:
    """A store's metadata without a disk."""
    tx = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for number in range(1, SCHEMA_VERSION + 1):
            tx.executescript(
                resources.files("orlop.metadata").joinpath(f"schema/{number:04}.sql").read_text()
            )
        tx.execute("PRAGMA foreign_keys=ON")
        tx.row_factory = sqlite3.Row
        yield tx
    finally:
        tx.close()


# ------------------------------------------------------------------ random small stores


def add_layer(tx: Transaction, layer: str, *, on_disk: bool = True, blob: bool = False) -> None:
    if on_disk:
        tx.execute(
            "INSERT OR IGNORE INTO layers (diff_id, size, data_size, index_size, entries, created_at) "
            "VALUES (?, 100, 10, 1, 1, 0)",
            (layer,),
        )
    gz = digest(f"gz {layer}")
    tx.execute("INSERT OR IGNORE INTO layer_blobs VALUES (?, ?, 5, 'm', NULL)", (layer, gz))
    tx.execute("INSERT OR IGNORE INTO blob_sources VALUES (?, 'r', 'x', 0)", (gz,))
    if blob:
        tx.execute("INSERT OR IGNORE INTO blobs VALUES (?, 5, 0)", (gz,))


def add_config(tx: Transaction, config: str, layers: list[str], *, manifests: int) -> None:
    tx.executemany(
        "INSERT INTO config_layers VALUES (?, ?, ?)", [(config, n, layer) for n, layer in enumerate(layers)]
    )
    tx.execute("INSERT OR IGNORE INTO blobs VALUES (?, 1, 0)", (config,))
    for number in range(manifests):
        manifest = digest(f"manifest {number} {config}")
        tx.execute("INSERT INTO image_manifests VALUES (?, ?, 'm', 1)", (config, manifest))
        tx.execute("INSERT OR IGNORE INTO blobs VALUES (?, 1, 0)", (manifest,))


def chain_of(layers: list[str]) -> str:
    return hashlib.sha256(" ".join(layers).encode()).hexdigest() if layers else "empty"


def add_chain(tx: Transaction, layers: list[str], below: int = 0) -> str:
    """The chain of some layers, lying on that of the ``below`` lowest."""
    chain = chain_of(layers)
    if tx.execute("SELECT 1 FROM chains WHERE chain_id = ?", (chain,)).fetchone():
        return chain
    parent = add_chain(tx, layers[:below], below - 1) if below > 0 else None
    depth = 1
    if parent:
        depth += tx.execute("SELECT depth FROM chains WHERE chain_id = ?", (parent,)).fetchone()[0]
    tx.execute("INSERT INTO chains VALUES (?, ?, ?, 1, 7, x'00', '', 0)", (chain, parent, depth))
    tx.executemany(
        "INSERT INTO chain_layers VALUES (?, ?, ?)", [(chain, n, layer) for n, layer in enumerate(layers)]
    )
    return chain


def add_folder(tx: Transaction, folder: str, layers: list[str]) -> None:
    tx.execute("INSERT INTO folders VALUES (?, 'tree', ?, 'real', 3, 1, 'boot', 0)", (folder, folder))
    tx.executemany("INSERT OR IGNORE INTO folder_layers VALUES (?, ?)", [(folder, one) for one in layers])


def name_image(tx: Transaction, name: str, config: str, index: str | None = None) -> None:
    tx.execute(
        "INSERT INTO images "
        "(namespace, name, config_digest, manifest_digest, index_digest, created_at, updated_at, used_at) "
        "VALUES ('default', ?, ?, (SELECT digest FROM image_manifests WHERE config_digest = ?), ?, 0, 0, 0)",
        (name, config, config, index),
    )


def add_index(tx: Transaction, index: str, parts: list[str]) -> None:
    """An index and what it needs beyond its images."""
    for part in (index, *parts):
        tx.execute("INSERT OR IGNORE INTO blobs VALUES (?, 1, 0)", (part,))
        tx.execute("INSERT OR IGNORE INTO index_blobs VALUES (?, ?, 'm', 1)", (index, part))


def hold_platform(tx: Transaction, name: str, config: str) -> None:
    """An image that a name holds of its index."""
    tx.execute(
        "INSERT OR IGNORE INTO image_platforms VALUES ('default', ?, ?, ?, 'p', '')",
        (name, digest(f"manifest 0 {config}"), config),
    )


def add_root(tx: Transaction, root: str, config: str, chain: str, folders: list[str]) -> None:
    tx.execute(
        "INSERT INTO prepared (id, namespace, path, image, config_digest, chain_id, driver, kind, "
        "self_contained, mounted, made_target, created_at) "
        "VALUES (?, 'default', ?, 'x', ?, ?, 'erofs', 'active', 0, 0, 0, 0)",
        (root, f"/{root}", config, chain),
    )
    tx.executemany(
        "INSERT INTO root_folders VALUES (?, ?, ?)", [(root, n, folder) for n, folder in enumerate(folders)]
    )


@st.composite
def stores(draw: st.DrawFn) -> Callable[[Transaction], None]:
    """A way to fill a store, and to end some of what is in it."""
    count = draw(st.integers(1, 5))
    layers = [digest(f"layer {n}") for n in range(count)]
    some = st.lists(st.sampled_from(layers), max_size=4)
    configs = [(digest(f"config {n}"), draw(some), draw(st.integers(0, 2))) for n in range(3)]
    blobs = draw(st.sets(st.sampled_from(layers)))
    lost = draw(st.sets(st.sampled_from(layers), max_size=1))
    chained = [
        (own, draw(st.integers(0, max(0, len(own) - 1)))) for _, own, _ in configs if draw(st.booleans())
    ]
    loose = draw(st.lists(some, max_size=2))
    foldered = draw(st.lists(some, max_size=2))
    named = draw(st.lists(st.sampled_from(configs), max_size=3))
    parts = [digest("part 0"), digest("part 1"), digest(f"gz {layers[0]}")]
    indexes = {digest(f"index {n}"): draw(st.lists(st.sampled_from(parts), unique=True)) for n in range(2)}
    meant = [draw(st.sampled_from([None, *indexes])) for _ in named]
    holds = [draw(st.lists(st.sampled_from(configs), max_size=2)) if index else [] for index in meant]
    rooted = draw(st.lists(st.sampled_from(configs), max_size=2))
    mounted = [draw(st.sampled_from([None, *configs])) for _ in rooted]
    pointed = [draw(st.sampled_from([None, *configs])) for _ in rooted]
    things = [("layer", layer) for layer in layers] + [("config", config) for config, _, _ in configs]
    things += [("blob", config) for config, _, _ in configs] + [("blob", digest(f"gz {layers[0]}"))]
    things += [("chain", chain_of(own)) for own, _ in chained]
    things += [("blob", index) for index in indexes] + [("blob", parts[0])]
    leased = draw(st.lists(st.lists(st.sampled_from(things), max_size=3), max_size=2))
    pinned = draw(
        st.lists(st.tuples(st.sampled_from(things), st.sampled_from([None, LONG_AGO, FAR_AHEAD])), max_size=2)
    )

    written = draw(st.lists(st.sampled_from([ref for kind, ref in things if kind == "blob"]), max_size=2))

    def fill(tx: Transaction) -> None:
        for layer in layers:
            add_layer(tx, layer, on_disk=layer not in lost, blob=layer in blobs)
        for config, own, manifests in configs:
            add_config(tx, config, own, manifests=manifests)
        for own, below in chained:
            add_chain(tx, own, below)
        for own in loose:
            add_chain(tx, own)
        for number, own in enumerate(foldered):
            add_folder(tx, f"f{number}", own)
        for index, own in indexes.items():
            add_index(tx, index, own)
        for number, (config, _, _) in enumerate(named):
            name_image(tx, f"n{number}", config, meant[number])
            for other, _, _ in holds[number]:
                hold_platform(tx, f"n{number}", other)
        for number, (config, own, _) in enumerate(rooted):
            add_folder(tx, f"r{number}", own)
            add_root(tx, f"root{number}", config, add_chain(tx, own), [f"r{number}"])
            extra = mounted[number]
            if extra is not None:
                tx.execute(
                    "INSERT INTO root_mounts VALUES (?, 0, 'image', 's', 't', '', ?, ?)",
                    (f"root{number}", extra[0], add_chain(tx, extra[1])),
                )
            point = pointed[number]
            if point is not None:
                tx.execute("INSERT INTO checkpoints VALUES (?, 'p', ?, 0)", (f"root{number}", point[0]))
        for number, refs in enumerate(leased):
            for kind, ref in refs:
                garbage.lease_add(tx, f"lease{number}", kind, ref)
        for number, ref in enumerate(written):
            tx.execute("INSERT INTO contents VALUES (?, ?, 1, '{}', 0, 0)", (f"namespace{number}", ref))
        for number, ((kind, ref), expires) in enumerate(pinned):
            pins.put_pin(tx, "default", f"pin{number}", kind=kind, ref=ref, expires=expires)

    return fill


# ------------------------------------------------------------------ the oracle

KEYS = {
    "layers": "diff_id",
    "layer_blobs": "diff_id",
    "blobs": "digest",
    "blob_sources": "digest",
    "config_layers": "config_digest",
    "image_manifests": "config_digest",
    "index_blobs": "index_digest",
    "image_platforms": "config_digest",
    "chains": "chain_id",
    "chain_layers": "chain_id",
    "folders": "id",
    "folder_layers": "folder",
}


def column(tx: Transaction, query: str) -> set[str]:
    return {row[0] for row in tx.execute(query) if row[0] is not None}


def rows(tx: Transaction) -> dict[str, set[str]]:
    return {table: column(tx, f"SELECT {key} FROM {table}") for table, key in KEYS.items()}


def live(tx: Transaction) -> dict[str, set[str]]:
    """Mark and sweep, as plainly as it can be said: the rows that stay."""

    def kept(kind: str) -> set[str]:
        leases = column(tx, f"SELECT ref FROM lease_refs WHERE kind = '{kind}'")
        return leases | column(
            tx,
            f"SELECT ref FROM pins WHERE kind = '{kind}' AND (expires_at IS NULL OR expires_at > 1000)",
        )

    def members(table: str, of: str, what: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in tx.execute(f"SELECT {of}, {what} FROM {table}"):
            found.setdefault(row[0], set()).add(row[1])
        return found

    configs = kept("config")
    for table in ("images", "image_platforms", "prepared", "root_mounts", "checkpoints"):
        configs |= column(tx, f"SELECT config_digest FROM {table}")
    held = kept("chain")
    for table in ("prepared", "root_mounts"):
        held |= column(tx, f"SELECT chain_id FROM {table}")
    parents = {row[0]: row[1] for row in tx.execute("SELECT chain_id, parent FROM chains")}
    for chain in list(held):
        below: str | None = chain
        while below:
            held.add(below)
            below = parents.get(below)
    standing = column(tx, "SELECT folder FROM root_folders")
    layers = kept("layer")
    in_config = members("config_layers", "config_digest", "diff_id")
    in_chain = members("chain_layers", "chain_id", "diff_id")
    in_folder = members("folder_layers", "folder", "diff_id")
    for owners, owned in ((configs, in_config), (held, in_chain), (standing, in_folder)):
        for owner in owners:
            layers |= owned.get(owner, set())
    blobs = kept("blob") | configs | column(tx, "SELECT manifest_digest FROM images")
    blobs |= column(tx, "SELECT digest FROM contents")
    for index in column(tx, "SELECT index_digest FROM images"):
        blobs |= members("index_blobs", "index_digest", "digest").get(index, set())
    for config in configs:
        blobs |= members("image_manifests", "config_digest", "digest").get(config, set())
    for layer in layers:
        blobs |= members("layer_blobs", "diff_id", "digest").get(layer, set())

    def stays(chain: str | None) -> bool:
        if chain is None or chain in held:
            return True
        return in_chain.get(chain, set()) <= layers and stays(parents[chain])

    chains = {chain for chain in parents if stays(chain)}
    folders = {one for one in column(tx, "SELECT id FROM folders") if in_folder.get(one, set()) <= layers}
    marked = {
        "layers": layers,
        "layer_blobs": layers,
        "blobs": blobs,
        "blob_sources": blobs,
        "config_layers": configs,
        "image_manifests": configs,
        "index_blobs": blobs,
        "image_platforms": configs,
        "chains": chains,
        "chain_layers": chains,
        "folders": folders,
        "folder_layers": folders,
    }
    return {table: found & marked[table] for table, found in rows(tx).items()}


def unheld_parts(tx: Transaction) -> set[str]:
    """Parts of indexes that are not in the store any more."""
    return column(tx, "SELECT digest FROM index_blobs") - column(tx, "SELECT digest FROM blobs")


def collect(tx: Transaction) -> list[garbage.Forgotten]:
    found: list[garbage.Forgotten] = []
    for part in garbage.everything(tx).chunks(3):
        found += garbage.forget(tx, part)
    return found


@settings(max_examples=60, deadline=None)
@given(fill=stores())
def test_a_collection_takes_what_a_mark_and_sweep_takes(fill: Callable[[Transaction], None]) -> None:
    with memory() as tx:
        fill(tx)
        expected = live(tx)
        would = garbage.find(tx, garbage.everything(tx))
        found = collect(tx)
        assert rows(tx) == expected
        assert sorted(item.path for item in found) == sorted(item.path for item in would)
        assert garbage.trash_list(tx) == sorted({item.path for item in found})
        assert not garbage.everything(tx)
        assert not unheld_parts(tx)
        assert tx.execute("PRAGMA foreign_key_check").fetchall() == []


ENDS = {
    "images": "SELECT name FROM images",
    "roots": "SELECT id FROM prepared",
    "leases": "SELECT id FROM leases",
    "pins": "SELECT name FROM pins",
}


def end(tx: Transaction, kind: str, name: str) -> Suspects:
    """End one thing; what it leaves to look at."""
    if kind == "images":
        found = garbage.suspects_of_image(tx, "default", name)
        assert found.configs
        images.delete_image(tx, "default", name)
        return found
    if kind == "roots":
        found = garbage.suspects_of_root(tx, name)
        roots.delete_root(tx, name)
        return found
    if kind == "leases":
        return garbage.lease_end(tx, name)
    return pins.take_pin(tx, "default", name) or Suspects()


@settings(max_examples=40, deadline=None)
@given(fill=stores(), order=st.randoms(use_true_random=False))
def test_every_end_takes_at_once_all_that_it_alone_kept(fill: Callable[[Transaction], None], order) -> None:
    with memory() as tx:
        fill(tx)
        pins.expire_pins(tx, now=1000)
        collect(tx)
        left = [(kind, name) for kind, query in ENDS.items() for name in sorted(column(tx, query))]
        order.shuffle(left)
        for kind, name in left:
            without = Without(**{kind: frozenset({name})})
            suspects = garbage.everything(tx, without=without)
            told = garbage.find(tx, suspects, without=without)
            ended = end(tx, kind, name)
            expected = live(tx)
            found = garbage.forget(tx, ended)
            assert rows(tx) == expected, (kind, name)
            assert not unheld_parts(tx)
            assert sorted(item.path for item in found) == sorted(item.path for item in told), (kind, name)
        for ref in sorted(column(tx, "SELECT digest FROM contents")):  # as the content API deletes
            contents.delete_content(tx, None, Digest(ref))
            garbage.forget(tx, Suspects(blobs={ref}))
            assert rows(tx) == live(tx), ref
        assert not any(found - {"empty"} for table, found in rows(tx).items() if "folder" not in table)


def test_an_expired_pin_keeps_nothing_and_its_row_goes() -> None:
    with memory() as tx:
        add_layer(tx, digest("a"))
        pins.put_pin(tx, "default", "mine", kind="layer", ref=digest("a"), expires=LONG_AGO)
        assert [item.kind for item in garbage.find(tx, garbage.everything(tx))] == ["layer"]
        assert pins.some_expired(tx, now=1000)
        assert pins.expire_pins(tx, now=1000).layers == {digest("a")}
        assert not pins.some_expired(tx, now=1000)
        assert pins.get_pin(tx, "default", "mine") is None


# ------------------------------------------------------------------ what it costs


def big(tx: Transaction, count: int) -> tuple[str, list[str]]:
    """A store with many images, and one of 60 layers of which it shares ten with all others."""
    shared = [digest(f"shared {n}") for n in range(10)]
    for layer in shared:
        add_layer(tx, layer)
    for number in range(count):
        own = [*shared, *(digest(f"layer {number} {n}") for n in range(5))]
        for layer in own[10:]:
            add_layer(tx, layer)
        config = digest(f"config {number}")
        add_config(tx, config, own, manifests=1)
        name_image(tx, f"n{number}", config)
        add_root(tx, f"r{number}", config, add_chain(tx, own), [])
    config = digest("the one")
    own = [*shared, *(digest(f"own {n}") for n in range(50))]
    for layer in own[10:]:
        add_layer(tx, layer)
    add_config(tx, config, own, manifests=1)
    add_chain(tx, own)
    name_image(tx, "the one", config)
    return config, own


@pytest.mark.parametrize("kind", ["images", "roots", "leases", "pins"])
def test_an_end_never_scans_a_table(kind: str) -> None:
    statements: list[str] = []
    with memory() as tx:
        config, own = big(tx, 20)
        if kind != "images":
            tx.execute("DELETE FROM images WHERE name = 'the one'")
        if kind == "roots":
            add_root(tx, "the one", config, add_chain(tx, own), [])
        elif kind == "leases":
            garbage.lease_add(tx, "the one", "config", config)
        elif kind == "pins":
            pins.put_pin(tx, "default", "the one", kind="config", ref=config, expires=None)
        tx.set_trace_callback(statements.append)
        assert len(garbage.forget(tx, end(tx, kind, "the one"))) == 53
        tx.set_trace_callback(None)
        assert len(statements) > 100
        for statement in {one for one in statements if not one.startswith(("BEGIN", "COMMIT", "--"))}:
            for row in tx.execute(f"EXPLAIN QUERY PLAN {statement}"):
                assert not row["detail"].startswith("SCAN ") or "CONSTANT ROW" in row["detail"], (
                    statement,
                    row["detail"],
                )


def test_a_removal_costs_what_goes_not_what_the_store_holds() -> None:
    def steps(count: int) -> int:
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        with memory() as tx:
            config, _ = big(tx, count)
            images.delete_image(tx, "default", "the one")
            tx.set_progress_handler(step, 100)
            assert len(garbage.forget(tx, Suspects(configs={config}))) == 53
            tx.set_progress_handler(None, 0)
        return taken

    assert steps(400) < 1.5 * steps(4)


def test_telling_what_many_removals_would_take_costs_no_more_for_each_of_them() -> None:
    def steps(count: int) -> float:
        taken = 0

        def step() -> int:
            nonlocal taken
            taken += 1
            return 0

        with memory() as tx:
            for number in range(count):
                config, layer = digest(f"config {number}"), digest(f"layer {number}")
                add_layer(tx, layer)
                add_config(tx, config, [layer], manifests=1)
                name_image(tx, f"n{number}", config)
            without = Without(images=frozenset(f"n{number}" for number in range(count)))
            tx.set_progress_handler(step, 100)
            found = garbage.find(tx, garbage.everything(tx, without=without), without=without)
            tx.set_progress_handler(None, 0)
        assert len(found) == 3 * count
        return taken / count

    assert steps(400) < 2 * steps(40)
