"""A store with very much in it beside one with nothing: what takes longer, and what does not.

The big store is not made by pulling 10,000 images.  Its rows are written by the functions that pull, commit
and prepare use; its files are small stand-ins at the right places, which nobody opens here: of each layer a
tar and an index of a few bytes, of each image a config and a manifest, of each root an upper and a work
folder.  Nothing of it is synced.  An eighth of the roots stand on the chain of the one real image, as where
one image serves everybody.

What is measured is done with real, small images, in turn in both stores, several times; the median counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orlop
from orlop.images.core import NAMESPACE
from orlop.images.store import LocalStore
from orlop.metadata import images, layers, roots
from orlop.metadata.images import ManifestRow
from orlop.metadata.layers import LayerBlob, LayerRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.spec.digest import DiffID, Digest
from orlop.testing.layers import Layer, write_layout

IMAGES, LAYERS_EACH, ROOTS = 10_000, 5, 10_000
SHARED_EVERY = 8  # roots on the real image's chain: one in so many
REAL = "localhost/real:1"


@dataclass(slots=True, kw_only=True)
class Step:
    """One thing that is measured: seconds in both stores, and how much the big one had to show or do."""

    name: str
    things: int = 0
    empty: list[float] = field(default_factory=list)
    big: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One store, and the layouts that are imported there."""

    root: Path
    run: Path
    work: Path
    layouts: Path

    def open(self) -> orlop.Store:
        return orlop.open(self.root, self.run)


def compare(disk: Path, rounds: int, say: Callable[[str], None]) -> list[Step]:
    layouts = disk / "layouts"
    _write_layouts(layouts, rounds)
    places = []
    for name in ("empty", "big"):
        place = Place(root=disk / name, run=disk / f"{name}-run", work=disk / f"{name}-work", layouts=layouts)
        place.work.mkdir()
        with place.open() as store:
            store.load(layouts / "real", name=REAL)
            store.prepare(REAL, place.work / "first").cleanup()  # its chain is there from now on
        places.append(place)
    start = time.perf_counter()
    _fill(places[1], say)
    subprocess.run(["sync", "-f", disk], check=True)  # not the whole machine
    say(f"filled in {time.perf_counter() - start:.0f} s")
    steps: dict[str, Step] = {}
    for number in range(rounds):
        for place, kind in zip(places, ("empty", "big"), strict=True):
            _round(place, number, kind, steps)
        say(
            f"round {number + 1}: " + ", ".join(f"{s.name} {s.big[-1] * 1000:.1f} ms" for s in steps.values())
        )
    return list(steps.values())


def _write_layouts(folder: Path, rounds: int) -> None:
    base = Layer().folder("etc").file("etc/motd", b"hello\n" * 100)
    folder.mkdir()
    write_layout(folder / "real", [base.tar(), Layer().file("a", b"a").tar()])
    for number in range(rounds):  # removed again in each round, so each round has its own
        write_layout(folder / str(number), [base.tar(), Layer().file("n", str(number).encode()).tar()])


# ------------------------------------------------------------------ making the big store


def _fill(place: Place, say: Callable[[str], None]) -> None:
    with place.open() as opened:
        assert isinstance(opened.verbs, LocalStore)
        core = opened.verbs._core
        row = core.db.read(lambda tx: images.get_image(tx, NAMESPACE, REAL))
        assert row is not None
        shared, diff_ids = _real_chain(core)
        for start in range(0, IMAGES, 1000):
            numbers = range(start, start + 1000)
            core.db.write(lambda tx, numbers=numbers: _rows(tx, numbers, row.config, shared, diff_ids[0]))
            for number in numbers:
                _files(place.root, number)
        say(f"{IMAGES} images, {IMAGES * LAYERS_EACH} layers, {ROOTS} roots")


def _real_chain(core) -> tuple[str, tuple[DiffID, ...]]:
    row = core.db.read(lambda tx: images.get_image(tx, NAMESPACE, REAL))
    diff_ids = core.db.read(lambda tx: images.config_layers(tx, row.config))
    query = "SELECT chain_id FROM chain_layers WHERE diff_id = ? ORDER BY position DESC LIMIT 1"
    chain = core.db.read(lambda tx: tx.execute(query, (diff_ids[-1],)).fetchone()[0])
    return chain, diff_ids


def _documents(number: int) -> tuple[bytes, bytes, list[DiffID]]:
    """A config and a manifest, which no two images share, and the layers they list."""
    diff_ids = [DiffID(Digest.of(f"layer {number} {k}".encode())) for k in range(LAYERS_EACH)]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    data = json.dumps(config).encode()
    manifest = {"schemaVersion": 2, "config": {"digest": Digest.of(data), "size": len(data)}, "layers": []}
    return data, json.dumps(manifest).encode(), diff_ids


def _rows(tx, numbers: range, real: Digest, chain: str, base: DiffID) -> None:
    for number in numbers:
        config, manifest, diff_ids = _documents(number)
        for k, diff_id in enumerate(diff_ids):
            row = LayerRow(diff_id=diff_id, size=8, data_size=0, index_size=8, entries=10)
            layers.add_layer(tx, row)
            blob = Digest.of(f"blob {number} {k}".encode())
            layers.add_layer_blob(tx, LayerBlob(diff_id=diff_id, digest=blob, size=8, media_type="x"))
            layers.add_source(tx, blob, "registry.example", f"app-{number % 100}")
        for data in (config, manifest):
            layers.add_blob(tx, Digest.of(data), len(data))
        digest = Digest.of(config)
        images.add_config(tx, digest, [base, *diff_ids])
        images.add_manifest(
            tx, digest, ManifestRow(digest=Digest.of(manifest), media_type="m", size=len(manifest))
        )
        images.put_image(
            tx,
            NAMESPACE,
            f"registry.example/app-{number % 100}:{number}",
            config=digest,
            manifest=Digest.of(manifest),
            platform="linux/amd64",
            created="2024-01-01T00:00:00Z",
        )
        shared = number % SHARED_EVERY == 0
        if not shared:
            own = f"chain-{number}"
            about = ChainRow(id=own, parent=None, depth=1, entries=50, size=8, uuid=b"u" * 16, devices=())
            roots.add_chain(tx, about, [base, *diff_ids])
        root = RootRow(
            id=f"{number:016x}",
            path=f"/srv/roots/{number}",
            image=REAL if shared else f"registry.example/app-{number % 100}:{number}",
            config=real if shared else digest,
            chain=chain if shared else own,
            driver="erofs",
            kind="active",
            self_contained=False,
            mounted=False,
            made_target=False,
            created=1.7e9,
        )
        roots.add_root(tx, NAMESPACE, root, {"job": str(number)})


def _files(root: Path, number: int) -> None:
    config, manifest, diff_ids = _documents(number)
    for diff_id in diff_ids:
        folder = root / "layers" / diff_id.hex
        folder.mkdir()
        for name in ("layer.tar", "layer.index"):
            (folder / name).write_bytes(b"stand-in")
    for data in (config, manifest):
        (root / "content/blobs/sha256" / Digest.of(data).hex).write_bytes(data)
    if number % SHARED_EVERY:
        (root / "chains" / f"chain-{number}.erofs").write_bytes(b"stand-in")
    folder = root / "prepared" / f"{number:016x}"
    for place in (folder, folder / "upper", folder / "work"):
        place.mkdir()


# ------------------------------------------------------------------ measuring


def _round(place: Place, number: int, kind: str, steps: dict[str, Step]) -> None:
    big = kind == "big"

    def take(name: str, run: Callable[[], object], things: int = 0) -> object:
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
        step = steps.setdefault(name, Step(name=name))
        getattr(step, kind).append(seconds)
        if big:
            step.things = things
        return found

    everything = IMAGES * (LAYERS_EACH + 1) + 2 * IMAGES + ROOTS  # layers, images, documents, roots
    for _ in range(5):
        take("open, in this process", lambda: place.open().close())
    take("orlop inspect, a new process", lambda: _command(place, "inspect", REAL))
    path = place.work / "root"
    with place.open() as store:
        store.info()  # the probes of a process's first call are not at issue
        take("images()", store.images, IMAGES)
        take("prepared()", store.prepared, ROOTS)
        for _ in range(5):
            take("info", store.info)
            take("inspect", lambda: store.inspect(REAL))
            take("tag", lambda: store.tag(REAL, "localhost/tag:1"))
            take("rmi of a further name", lambda: store.remove("localhost/tag:1"))
            made: list[orlop.Prepared] = []
            take("prepare", lambda made=made: made.append(store.prepare(REAL, path)))
            take("mounts", lambda made=made: store.verbs.mounts(str(path)))
            take("cleanup", made[0].cleanup)
        take("prepare, mounted", lambda: store.prepare(REAL, path, mount=True))
        take("prepared(), one mounted", store.prepared, ROOTS)
        (path / "new").write_text("new")
        take("commit", lambda: store.get(path).commit("localhost/committed:1"))
        take("cleanup, mounted", lambda: store.get(path).cleanup())
        store.remove("localhost/committed:1")
        take("import", lambda: store.load(place.layouts / str(number), name="localhost/n:1"))
        take("rmi of an image with a layer of its own", lambda: store.remove("localhost/n:1"))
        take("gc --dry-run", lambda: store.collect(dry_run=True), everything)
        take("gc", store.collect, everything)


def _command(place: Place, *words: str) -> None:
    command = [sys.executable, "-m", "orlop", "--root", place.root, "--run", place.run, *words]
    subprocess.run([*map(os.fspath, command)], stdout=subprocess.DEVNULL, check=True)


def table(steps: list[Step]) -> str:
    lines = [
        f"{IMAGES:,} images, {IMAGES * LAYERS_EACH:,} layers, {ROOTS:,} prepared roots,",
        "beside a store with one image:",
        "",
        "| what | empty ms | big ms | big/empty | µs a thing |",
        "| --- | --- | --- | --- | --- |",
    ]
    for step in steps:
        empty, big = statistics.median(step.empty), statistics.median(step.big)
        each = f"{(big - empty) / step.things * 1e6:.1f}" if step.things else ""
        lines.append(f"| {step.name} | {empty * 1000:.1f} | {big * 1000:.1f} | {big / empty:.2f} | {each} |")
    return "\n".join(lines) + "\n"
