"""Who needs what: sums over all images, reasons for one thing and the rule of collections say the same."""

from __future__ import annotations

import functools
import os
import random
import sqlite3
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.errors import Cancelled, InvalidArgument, NotFound
from orlop.images.account.accounting import divide, path_of
from orlop.images.account.explain import _Reader
from orlop.images.account.holders import Holders
from orlop.images.account.measure import kind_of, measure, measure_some, piece_of
from orlop.images.account.things import find_thing
from orlop.linux.files import remove_tree
from orlop.metadata import costs, garbage
from orlop.metadata.garbage import Suspects
from orlop.metadata.needs import Needs, Without
from orlop.observe import Call, CancelToken
from orlop.spec.digest import Digest

NOW = 1_000.0
LATER, BEFORE = NOW + 10**10, NOW - 1


def digest(text: str) -> str:
    return Digest.of(text.encode())


@functools.cache
def schema() -> bytes:
    tx = sqlite3.connect(":memory:", isolation_level=None)
    scripts = sorted(
        entry.name
        for entry in resources.files("orlop.metadata").joinpath("schema").iterdir()
        if entry.name.endswith(".sql")
    )
    for name in scripts:
        tx.executescript(resources.files("orlop.metadata").joinpath(f"schema/{name}").read_text())
    return tx.serialize()


def empty_store() -> sqlite3.Connection:
    tx = sqlite3.connect(":memory:", isolation_level=None)
    tx.deserialize(schema())
    tx.row_factory = sqlite3.Row
    return tx


class Store:
    """Rows at will; ``things`` are those that have a place on disk."""

    def __init__(self) -> None:
        self.tx = empty_store()
        self.things: list[tuple[str, str]] = []
        self.dead: set[str] = set()

    def insert(self, table: str, **values: object) -> None:
        columns, marks = ", ".join(values), ", ".join("?" * len(values))
        self.tx.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", tuple(values.values()))

    def thing(self, kind: str, name: str) -> None:
        if (kind, name) not in self.things:
            self.things.append((kind, name))

    def layer(self, diff_id: str) -> None:
        self.insert("layers", diff_id=diff_id, size=1, data_size=0, index_size=1, entries=1, created_at=0.0)
        self.thing("layer", diff_id)

    def blob(self, name: str) -> None:
        self.insert("blobs", digest=name, size=1, created_at=0.0)
        self.thing("blob", name)

    def config(self, config: str, layers: list[str], *, manifest: str | None = None) -> None:
        self.blob(config)
        for position, diff_id in enumerate(layers):
            self.insert("config_layers", config_digest=config, position=position, diff_id=diff_id)
        if manifest:
            self.blob(manifest)
            self.insert("image_manifests", config_digest=config, digest=manifest, media_type="", size=1)

    def name(self, name: str, config: str, manifest: str | None = None) -> None:
        self.insert(
            "images",
            namespace="default",
            name=name,
            config_digest=config,
            manifest_digest=manifest,
            created_at=0.0,
            updated_at=0.0,
        )

    def chain(self, name: str, layers: list[str]) -> None:
        self.insert("chains", chain_id=name, depth=1, entries=1, size=1, uuid=b"", devices="", created_at=0.0)
        for position, diff_id in enumerate(layers):
            self.insert("chain_layers", chain_id=name, position=position, diff_id=diff_id)
        self.thing("chain", name)

    def folder(self, name: str, layers: list[str]) -> None:
        self.insert(
            "folders", id=name, kind="tree", of=name, form="real", size=1, entries=1, boot="", created_at=0.0
        )
        for diff_id in layers:
            self.insert("folder_layers", folder=name, diff_id=diff_id)
        self.thing("folder", name)

    def root(self, number: int, config: str, chain: str, folder: str | None = None) -> None:
        self.insert(
            "prepared",
            id=f"root{number}",
            namespace="default",
            path=f"/srv/{number}",
            image="a",
            config_digest=config,
            chain_id=chain,
            driver="erofs",
            kind="active",
            self_contained=0,
            mounted=0,
            made_target=0,
            created_at=0.0,
        )
        if folder:
            self.insert("root_folders", root=f"root{number}", position=0, folder=folder)

    def lease(self, number: int, refs: list[tuple[str, str]], *, alive: bool) -> None:
        name = f"{number:016x}"
        for kind, ref in refs:
            garbage.lease_add(self.tx, name, kind, ref, what="pull it", pid=7)
        if not alive:
            self.dead.add(name)

    def pin(self, number: int, kind: str, ref: str, expires: float | None) -> None:
        self.insert(
            "pins",
            namespace="default",
            name=f"pin{number}",
            kind=kind,
            ref=ref,
            created_at=0.0,
            expires_at=expires,
        )


def random_store(draw: random.Random) -> Store:
    store = Store()
    layers = [digest(f"layer {number}") for number in range(draw.randint(1, 6))]
    for diff_id in layers:
        store.layer(diff_id)
        for number in range(draw.choice([0, 0, 1])):
            blob = digest(f"blob {diff_id} {number}")
            store.insert("layer_blobs", diff_id=diff_id, digest=blob, size=1, media_type="")
            if draw.random() < 0.5:
                store.blob(blob)
    configs: dict[str, list[str]] = {}
    for number in range(draw.randint(1, 5)):
        config, manifest = digest(f"config {number}"), digest(f"manifest {number}")
        configs[config] = draw.sample(layers, draw.randint(0, len(layers)))
        kept = manifest if draw.random() < 0.6 else None
        store.config(config, configs[config], manifest=kept)
        for other in range(draw.choice([0, 1, 1, 2])):
            store.name(f"localhost/{number}:{other}", config, kept)
    chains: dict[str, list[str]] = {}
    for number in range(draw.randint(0, 4)):
        config = draw.choice(list(configs))
        below = configs[config][: draw.randint(0, len(configs[config]))]
        chains[f"{number:064x}"] = draw.choice([below, draw.sample(layers, draw.randint(1, len(layers)))])
        store.chain(f"{number:064x}", chains[f"{number:064x}"])
    for number in range(draw.randint(0, 3)):
        store.folder(f"{number:010x}", draw.sample(layers, draw.randint(1, len(layers))))
    for number in range(draw.randint(0, 2)):
        config = draw.choice(list(configs))
        fitting = [name for name, made_of in chains.items() if set(made_of) <= set(configs[config])]
        folder = f"{draw.randint(0, 2):010x}"
        made_of = costs.layers_of_folder(store.tx, folder)
        on = folder if made_of and set(made_of) <= set(configs[config]) else None
        store.root(number, config, draw.choice(fitting) if fitting else "none", on)
    things = [("config", config) for config in configs] + [("layer", diff_id) for diff_id in layers]
    things += [("chain", chain) for chain in chains] + [t for t in store.things if t[0] == "blob"]
    for number in range(draw.randint(0, 3)):
        store.lease(number, draw.sample(things, draw.randint(1, 2)), alive=draw.random() < 0.6)
    for number in range(draw.randint(0, 2)):
        kind, ref = draw.choice(things)
        if kind == "blob":
            times = {"created_at": 0, "updated_at": 0}
            store.insert("contents", namespace=f"n{number}", digest=ref, size=1, labels="{}", **times)
    for number in range(draw.randint(0, 2)):
        kind, ref = draw.choice(things)
        store.pin(number, kind, ref, draw.choice([None, BEFORE, LATER]))
    return store


SEEDS = st.integers(0, 2**32)


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_what_is_unique_to_an_image_is_what_a_collection_would_take_without_its_names(seed: int) -> None:
    store = random_store(random.Random(seed))
    dead = frozenset(store.dead)
    sizes = {path_of(thing): 1 << number for number, thing in enumerate(store.things)}
    named = costs.read_named(store.tx, dead=dead, now=NOW)
    account = divide(named, sizes)
    for image in account.images:
        suspects = Suspects(configs={image.id})
        without = Without(leases=dead, images=frozenset(image.names))
        then = {item.path for item in garbage.find(store.tx, suspects, without=without)}
        now = {item.path for item in garbage.find(store.tx, suspects, without=Without(leases=dead))}
        assert image.unique == sum(sizes[path] for path in then - now)
        assert image.unique & image.shared == 0
    everything = 0
    for image in account.images:
        everything |= image.unique | image.shared
    assert account.together == everything


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_there_is_a_reason_exactly_for_what_is_needed(seed: int) -> None:
    store = random_store(random.Random(seed))
    dead = frozenset(store.dead)
    needs = Needs(store.tx, now=NOW, without=Without(leases=dead))
    holders = Holders(store.tx, dead=dead, now=NOW)
    for kind, name in store.things:
        if kind == "layer":
            assert bool(holders.layer(name)) == needs.layer(name)
        elif kind == "blob":
            assert bool(holders.blob(name)) == needs.blob(name)
        elif kind == "chain":
            query = "SELECT diff_id FROM chain_layers WHERE chain_id = ?"
            made_of = [row[0] for row in store.tx.execute(query, (name,))]
            assert bool(holders.chain(name)) == all(map(needs.layer, made_of))
        else:
            made_of = costs.layers_of_folder(store.tx, name)
            assert bool(holders.folder(name, made_of)) == all(map(needs.layer, made_of))


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_what_nothing_keeps_frees_something_and_what_others_keep_frees_nothing(seed: int) -> None:
    store = random_store(random.Random(seed))
    reader = _Reader(store.tx, frozenset(store.dead))
    for kind, name in store.things:
        draft = reader.draft(find_thing(store.tx, "default", f"{kind} {name}", "explain"))
        assert (draft.kind, draft.name) == (kind, name)
        assert bool(draft.goes) == (not draft.kept_by)
        assert not draft.goes or draft.own in draft.goes


def test_of_very_many_users_the_number_is_told() -> None:
    many = 100
    store, layer = Store(), digest("base")
    store.layer(layer)
    for number in range(many):
        store.config(digest(f"{number}"), [layer])
        store.name(f"localhost/{number}:1", digest(f"{number}"))
    reasons = Holders(store.tx, dead=(), now=NOW).layer(layer)
    assert len(reasons) == costs.LAYER_USERS + 1
    assert reasons[-1].name == f"and {many - costs.LAYER_USERS} more"
    store.tx.execute("DELETE FROM images")
    assert Holders(store.tx, dead=(), now=NOW).layer(layer) == []


# ------------------------------------------------------------------ what a text means


@pytest.fixture
def known() -> Store:
    store = Store()
    layers = [digest("one"), digest("two")]
    for diff_id in layers:
        store.layer(diff_id)
    store.config(digest("config"), layers, manifest=digest("manifest"))
    store.name("docker.io/library/alpine:latest", digest("config"), digest("manifest"))
    store.chain("ab" * 32, layers)
    store.root(1, digest("config"), "ab" * 32)
    store.lease(1, [("layer", layers[0])], alive=True)
    store.pin(1, "layer", layers[1], None)
    return store


def meant(store: Store, text: str) -> str:
    return str(find_thing(store.tx, "default", text, f"explain {text}"))


def test_things_are_found_by_name_digest_prefix_and_path(known: Store) -> None:
    image = f"image {digest('config')}"
    for text in ("alpine", "docker.io/library/alpine:latest", digest("config"), digest("config")[7:19]):
        assert meant(known, text) == image
    for text in (
        digest("manifest"),
        f"image {digest('manifest')}",
        f"alpine@{digest('manifest')}",
        f"image {digest('config')[7:20]}",
    ):
        assert meant(known, text) == image
    layer = f"layer {digest('one')}"
    for text in (digest("one"), digest("one")[7:], digest("one")[:19], layer, layer[:25]):
        assert meant(known, text) == layer
    assert meant(known, f"blob {digest('config')}") == f"blob {digest('config')}"
    assert meant(known, "ab" * 32) == meant(known, "chain " + "ab" * 8) == "chain " + "ab" * 32
    assert meant(known, "/srv/1") == meant(known, "root /srv/1") == "root /srv/1"
    assert meant(known, "pin1") == meant(known, "pin pin1") == "pin pin1"
    assert meant(known, "lease 0000000000000001") == meant(known, "0000000000000001")


def test_what_could_be_several_things_is_refused_with_all_of_them(known: Store) -> None:
    known.blob(digest("one"))  # a layer that came without compression, and is kept
    with pytest.raises(InvalidArgument) as refused:
        meant(known, digest("one"))
    assert f"'layer {digest('one')}', 'blob {digest('one')}'" in refused.value.hint
    assert meant(known, f"blob {digest('one')}") == f"blob {digest('one')}"
    known.config(digest("config")[:20] + "0" * 51, [])
    with pytest.raises(InvalidArgument):
        meant(known, digest("config")[:20])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nothing", NotFound),
        (digest("nothing"), NotFound),
        ("/srv/none", NotFound),
        ("pin none", NotFound),
        ("lease none", NotFound),
        ("layer short", NotFound),
        (f"blob {digest('nothing')}", NotFound),
        ("", InvalidArgument),
        ("no such!", InvalidArgument),
        ("layer ", InvalidArgument),
    ],
)
def test_what_is_not_there_is_said_with_a_hint(known: Store, text: str, error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        meant(known, text)
    assert refused.value.hint  # type: ignore[attr-defined]  # one of ours


# ------------------------------------------------------------------ sizes of disk


def du(path: Path) -> int:
    done = subprocess.run(["du", "-sx", "-B1", os.fspath(path)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - 1)
        file.write(b"x")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    for folder in ("layers", "content/blobs/sha256", "content/ingest", "prepared", "trash", "locks"):
        (root / folder).mkdir(parents=True)
    for name in ("aa", "bb"):
        (root / "layers" / name).mkdir()
        (root / "layers" / name / "layer.tar").write_bytes(b"x" * 10_000)
    (root / "meta.db-wal").write_bytes(b"x" * 5_000)
    (root / "stranger").write_bytes(b"x")
    yield root
    remove_tree(root)  # deeper than Python's own goes


def test_all_pieces_and_kinds_add_up_to_du(tree: Path) -> None:
    upper = tree / "prepared/r/upper"
    upper.mkdir(parents=True)
    sparse(upper / "sparse", 50 << 20)
    (upper / "link").symlink_to("/")
    os.link(upper / "sparse", upper / "again")
    os.link(upper / "sparse", tree / "trash/moved")
    os.mkfifo(upper / "fifo")
    (upper / os.fsdecode(b"\xff\n")).write_bytes(b"x")
    found = measure(tree, call=Call())
    assert found.total == sum(found.sizes.values()) == du(tree)
    assert found.counts["layers"] == 2
    assert found.counts["roots"] == found.counts["metadata"] == found.counts["trash"] == 1
    assert found.pieces["layers/aa"] == du(tree / "layers/aa")
    assert found.sizes["roots"] + found.sizes["trash"] < 1 << 20
    assert measure_some(tree, ["layers/aa", "layers/none", "none/x"], call=Call()) == {
        "layers/aa": found.pieces["layers/aa"]
    }


def test_no_depth_is_too_much(tree: Path) -> None:
    here = os.open(tree / "prepared", os.O_RDONLY)
    for _ in range(150):
        for name in ("a" * 30, "b", "c"):
            os.mkdir(name, dir_fd=here)
        below = os.open("a" * 30, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert measure(tree, call=Call()).total == du(tree)


def test_measuring_can_be_cancelled(tree: Path) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(Cancelled):
        measure(tree, call=Call(cancel=cancel))


def test_paths_belong_to_pieces() -> None:
    assert piece_of("layers/aa/layer.tar") == "layers/aa"
    assert piece_of("content/blobs/sha256/aa") == "content/blobs/sha256/aa"
    assert piece_of("content/blobs/odd") == "content/blobs/odd"
    assert piece_of("layers") is None
    assert piece_of(".") is None
    assert [kind_of(path) for path in ("layers/aa", "meta.db", "locks", "content/blobs/odd")] == [
        *("layers", "metadata", "other", "blobs")
    ]
