"""What can befall a store: a table of damages, each with what a check has to say and what a repair has to do.

    bench = Bench.build(folder, registry)      # once
    own = bench.copy(folder)                   # for each damage
    DAMAGES[0].do(own)

Not orlop's code does the damage: files are cut, rows are changed by SQLite's own hand.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import orlop
from orlop.layers.index import LayerIndex
from orlop.testing.registry import MemoryRegistry
from support import images
from support.layers import Layer
from support.trees import Entry, snapshot

APP, KEPT, MINE = "app", "kept", "localhost/mine:latest"
BELOW = "below"  # the chain that app's lies on


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A store that is closed, and what is in it.

    ``app`` came from the registry (its first layer has a ``layer.data``), ``kept`` too, with its blob kept,
    ``mine`` was committed.  Prepared, not mounted: ``active`` and ``stacked`` (overlay driver) from ``app``.
    ``app``'s chain has roots on it, ``kept``'s and ``mine``'s have none.
    """

    root: Path
    run: Path
    work: Path
    host: str
    app: str
    kept: str
    app_layers: tuple[str, ...]
    kept_layer: str
    mine_layer: str
    configs: dict[str, str]
    manifests: dict[str, str]
    chains: dict[str, str]
    active: str
    stacked: str
    folder: str
    glue: str
    trees: dict[str, dict[bytes, Entry]]

    @classmethod
    def build(cls, folder: Path, registry: MemoryRegistry) -> Bench:
        """Make the store, and remember how its images look."""
        work = folder / "work"
        work.mkdir(parents=True)
        app = images.make_image([_base(), _middle(), _top()])
        kept = images.make_image([_kept_layer()])
        for name, image in ((APP, app), (KEPT, kept)):
            for blob in image.blobs.values():
                registry.add_blob(name, blob)
            registry.add_manifest(name, "v1", image.document, image.media_type)
        names = {name: f"{registry.host}/{name}:v1" for name in (APP, KEPT)}
        root, run = folder / "root", folder / "run"
        settings = orlop.Settings(insecure_registries=(registry.host,))
        with orlop.open(root, run, settings=replace(settings, keep_blobs=True)) as store:
            store.pull(names[KEPT])
        with orlop.open(root, run, settings=settings) as store:
            store.pull(names[APP])
            active = store.prepare(names[APP], work / "active")
            active.mount()
            (work / "active" / "written").write_text("by the user\n")
            active.commit(MINE)
            active.unmount()
            store.prepare(names[APP], work / "stacked", driver="overlay")
            trees = {name: look(store, name, work / "look") for name in (names[APP], names[KEPT], MINE)}
            details = {name: store.inspect(name) for name in trees}
        found = cls(
            root=root,
            run=run,
            work=work,
            host=registry.host,
            app=names[APP],
            kept=names[KEPT],
            app_layers=app.diff_ids,
            kept_layer=kept.diff_ids[0],
            mine_layer=details[MINE].layers[-1].diff_id,
            configs={name: about.info.id for name, about in details.items()},
            manifests={name: about.info.digest or "" for name, about in details.items()},
            chains={},
            active=str(work / "active"),
            stacked=str(work / "stacked"),
            folder="",
            glue="",
            trees=trees,
        )
        chains = {
            name: found.ask(
                "SELECT chain_id FROM chain_layers WHERE diff_id = ? ORDER BY "
                "(SELECT COUNT(*) FROM chain_layers other WHERE other.chain_id = chain_layers.chain_id)",
                layer,
            )
            for name, layer in (
                (found.app, app.diff_ids[-1]),
                (found.kept, found.kept_layer),
                (MINE, found.mine_layer),
            )
        }
        chains[BELOW] = found.ask("SELECT parent FROM chains WHERE chain_id = ?", chains[found.app])
        layer_folder = found.ask("SELECT id FROM folders WHERE of = ?", app.diff_ids[0])
        glue = found.ask("SELECT id FROM folders WHERE kind = 'glue' AND entries > 0")
        return replace(found, chains=chains, folder=layer_folder, glue=glue)

    def copy(self, folder: Path) -> Bench:
        """The same store somewhere else."""
        folder.mkdir(exist_ok=True)
        subprocess.run(
            ["cp", "-a", "--sparse=always", "--reflink=auto", self.root, folder / "root"], check=True
        )
        return replace(self, root=folder / "root", run=folder / "run")

    def open(self, **settings: object) -> orlop.Store:
        """Open it as its users do."""
        return orlop.open(
            self.root, self.run, settings=orlop.Settings(insecure_registries=(self.host,), **settings)
        )  # type: ignore[arg-type]

    # -- places ---------------------------------------------------------------------------------

    def layer(self, diff_id: str) -> Path:
        return self.root / "layers" / diff_id.partition(":")[2]

    def tar(self, diff_id: str) -> Path:
        return self.layer(diff_id) / "layer.tar"

    def index(self, diff_id: str) -> Path:
        return self.layer(diff_id) / "layer.index"

    def data(self, diff_id: str) -> Path:
        return self.layer(diff_id) / "layer.data"

    def blob(self, digest: str) -> Path:
        return self.root / "content" / "blobs" / digest.replace(":", "/")

    def chain(self, image: str) -> Path:
        return self.root / "chains" / f"{self.chains[image]}.erofs"

    def prepared(self, path: str) -> Path:
        return self.root / "prepared" / self.ask("SELECT id FROM prepared WHERE path = ?", path)

    # -- rows -----------------------------------------------------------------------------------

    def sql(self, *statements: str, values: tuple[object, ...] = ()) -> None:
        connection = sqlite3.connect(self.root / "meta.db", isolation_level=None)
        try:
            for statement in statements:
                connection.execute(statement, values)
        finally:
            connection.close()

    def ask(self, query: str, *values: object) -> str:
        connection = sqlite3.connect(self.root / "meta.db", isolation_level=None)
        try:
            return str(connection.execute(query, values).fetchone()[0])
        finally:
            connection.close()


def look(store: orlop.Store, name: str, place: Path) -> dict[bytes, Entry]:
    """What a view of an image shows."""
    with store.prepare(name, place, view=True, pull="never") as view:
        view.mount()
        return snapshot(place)


def _base() -> bytes:
    layer = Layer().folder("etc").file("etc/motd", b"hello\n").symlink("etc/link", "motd").folder("usr")
    for number in range(150):
        layer.file(f"usr/file{number}", f"file {number}\n".encode() * (1 + number % 50))
    layer.hardlink("usr/again", to="usr/file1").file("usr/xattr", b"x", xattrs={"user.a": b"1"})
    pieces = [(0, b"s" * 4096), (1 << 19, b"t" * 5000)]
    return layer.sparse("usr/sparse", (1 << 20) + 100, pieces, how="gnu-1.0").tar()


def _kept_layer() -> bytes:
    layer = Layer().folder("opt").file("opt/kept", b"kept\n" * 500)
    for number in range(100):
        layer.file(f"opt/file{number}", b"k" * number)
    return layer.tar()


def _middle() -> bytes:
    return (
        Layer().file("etc/motd", b"hello again\n").whiteout("usr/file2").file("etc/more", b"m" * 3000).tar()
    )


def _top() -> bytes:
    return Layer().folder("srv").file("srv/data", b"d" * 7000, uid=7, gid=8, mode=0o640).tar()


# ---------------------------------------------------------------------- what is done to files


def flip(path: Path, at: int = -1) -> None:
    """One bit of a file, in the middle unless told otherwise; size and times stay."""
    about = path.stat()
    at = at if at >= 0 else about.st_size // 2
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def cut(path: Path, by: int = 1) -> None:
    os.truncate(path, path.stat().st_size - by)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(512))


def zero(path: Path) -> None:
    """As a file system leaves what a power cut caught: the size, and no bytes."""
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def link_away(path: Path) -> None:
    """A symlink in its place, to the very thing."""
    root = next(folder for folder in path.parents if (folder / "meta.db").exists())
    away = root.parent / "away" / path.name
    away.parent.mkdir(exist_ok=True)
    os.rename(path, away)
    path.symlink_to(away)


def tamper(bench: Bench) -> None:
    """An index that is whole by its checksum and points elsewhere in the tar."""
    path = bench.index(bench.app_layers[0])
    index = LayerIndex.decode(path.read_bytes())
    a, b = index.names.index(b"file10"), index.names.index(b"file11")
    index.offset[a], index.offset[b] = index.offset[b], index.offset[a]
    path.write_bytes(index.encode())


def past_a_hole(bench: Bench) -> None:
    """Bytes in layer.data behind the end of a piece, where nothing belongs."""
    path = bench.data(bench.app_layers[0])
    with path.open("r+b") as file:
        file.seek(4096 + 5000)
        file.write(b"!")


def in_folder(bench: Bench, name: str) -> Path:
    return bench.root / "folders" / bench.folder / name


# ---------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One way to damage a store.

    ``thing`` is what a check calls it; ``quick`` whether a quick check finds it.  ``action`` is what a repair
    does, "" for what is none of its business.  ``image`` is what must look as before in the end.
    """

    name: str
    do: Callable[[Bench], object]
    problem: str
    thing: Callable[[Bench], str]
    action: str
    quick: bool = True
    kind: str = "damage"
    image: Callable[[Bench], str] = lambda bench: bench.app
    live: bool = False


def _app(number: int) -> Callable[[Bench], str]:
    return lambda bench: f"layer {bench.app_layers[number]}"


def _mine(bench: Bench) -> str:
    return f"layer {bench.mine_layer}"


def _kept(bench: Bench) -> str:
    return bench.kept


def _blob_of(what: str, which: Callable[[Bench], str] = lambda bench: bench.app) -> Callable[[Bench], str]:
    return lambda bench: f"blob {getattr(bench, what)[which(bench)]}"


def _kept_blob(bench: Bench) -> str:
    return bench.ask("SELECT digest FROM layer_blobs WHERE diff_id = ?", bench.kept_layer)


def _chain(which: Callable[[Bench], str]) -> Callable[[Bench], str]:
    return lambda bench: f"chain {bench.chains[which(bench)]}"


def _root(which: str) -> Callable[[Bench], str]:
    return lambda bench: f"root {getattr(bench, which)}"


def _store(_: Bench) -> str:
    return "store"


def _folder(bench: Bench) -> str:
    return f"folder {bench.folder}"


def _app_name(bench: Bench) -> str:
    return bench.app


def _mine_name(_: Bench) -> str:
    return MINE


def _first(bench: Bench) -> str:
    return bench.app_layers[0]


def _layer(
    name: str, do: Callable[[Bench], object], problem: str, action: str, *, quick: bool = True
) -> Damage:
    return Damage(name=name, do=do, problem=problem, thing=_app(0), action=action, quick=quick)


DAMAGES: tuple[Damage, ...] = (
    # layers that a registry has
    _layer("layer-folder-gone", lambda b: shutil.rmtree(b.layer(_first(b))), "missing", "fetched"),
    _layer("tar-gone", lambda b: b.tar(_first(b)).unlink(), "missing", "fetched"),
    _layer("tar-cut", lambda b: cut(b.tar(_first(b)), 512), "wrong-size", "fetched"),
    _layer("tar-empty", lambda b: os.truncate(b.tar(_first(b)), 0), "wrong-size", "fetched"),
    _layer("tar-grown", lambda b: grow(b.tar(_first(b))), "wrong-size", "fetched"),
    _layer(
        "tar-another",
        lambda b: shutil.copy(b.tar(b.app_layers[1]), b.tar(_first(b))),
        "wrong-size",
        "fetched",
    ),
    _layer("tar-bit-flipped", lambda b: flip(b.tar(_first(b))), "wrong-digest", "fetched", quick=False),
    _layer(
        "tar-header-flipped", lambda b: flip(b.tar(_first(b)), 130), "wrong-digest", "fetched", quick=False
    ),
    _layer("tar-zeroed", lambda b: zero(b.tar(_first(b))), "wrong-digest", "fetched", quick=False),
    _layer("tar-is-a-symlink", lambda b: link_away(b.tar(_first(b))), "wrong-type", "fetched"),
    _layer(
        "tar-is-a-fifo",
        lambda b: (b.tar(_first(b)).unlink(), os.mkfifo(b.tar(_first(b)))),
        "wrong-type",
        "fetched",
    ),
    _layer("tar-writable-by-all", lambda b: b.tar(_first(b)).chmod(0o666), "unsafe", "fixed"),
    _layer("tar-of-another-user", lambda b: os.chown(b.tar(_first(b)), 1234, 1234), "unsafe", "fixed"),
    _layer("layer-folder-is-a-symlink", lambda b: link_away(b.layer(_first(b))), "wrong-type", "fetched"),
    _layer("layer-folder-writable-by-all", lambda b: b.layer(_first(b)).chmod(0o777), "unsafe", "fixed"),
    _layer("index-gone", lambda b: b.index(_first(b)).unlink(), "missing", "rebuilt"),
    _layer("index-cut", lambda b: cut(b.index(_first(b)), 100), "wrong-size", "rebuilt"),
    _layer("index-bit-flipped", lambda b: flip(b.index(_first(b))), "bad-index", "rebuilt", quick=False),
    _layer("index-tampered-with", tamper, "bad-index", "rebuilt", quick=False),
    _layer(
        "index-is-a-folder",
        lambda b: (b.index(_first(b)).unlink(), b.index(_first(b)).mkdir()),
        "wrong-type",
        "rebuilt",
    ),
    _layer("index-is-a-symlink", lambda b: link_away(b.index(_first(b))), "wrong-type", "rebuilt"),
    _layer("data-gone", lambda b: b.data(_first(b)).unlink(), "missing", "rebuilt"),
    _layer("data-cut", lambda b: cut(b.data(_first(b)), 512), "wrong-size", "rebuilt"),
    _layer("data-bit-flipped", lambda b: flip(b.data(_first(b)), 10), "bad-data", "rebuilt", quick=False),
    _layer("data-where-zeros-belong", past_a_hole, "bad-data", "rebuilt", quick=False),
    _layer(
        "row-of-another-size",
        lambda b: b.sql("UPDATE layers SET size = size + 512 WHERE diff_id = ?", values=(_first(b),)),
        "wrong-size",
        "fixed",
    ),
    _layer(
        "row-of-other-entries",
        lambda b: b.sql("UPDATE layers SET entries = entries + 1 WHERE diff_id = ?", values=(_first(b),)),
        "inconsistent",
        "fixed",
        quick=False,
    ),
    _layer(
        "layer-row-gone",
        lambda b: b.sql("DELETE FROM layers WHERE diff_id = ?", values=(_first(b),)),
        "missing",
        "fixed",
    ),
    _layer(
        "layer-row-and-folder-gone",
        lambda b: (
            b.sql("DELETE FROM layers WHERE diff_id = ?", values=(_first(b),)),
            shutil.rmtree(b.layer(_first(b))),
        ),
        "missing",
        "fetched",
    ),
    # what nobody else has, and what we have twice
    Damage(
        name="committed-tar-flipped",
        do=lambda b: flip(b.tar(b.mine_layer)),
        problem="wrong-digest",
        thing=_mine,
        action="quarantined",
        quick=False,
        image=_mine_name,
    ),
    Damage(
        name="committed-layer-gone",
        do=lambda b: shutil.rmtree(b.layer(b.mine_layer)),
        problem="missing",
        thing=_mine,
        action="quarantined",
        image=_mine_name,
    ),
    Damage(
        name="committed-index-gone",
        do=lambda b: b.index(b.mine_layer).unlink(),
        problem="missing",
        thing=_mine,
        action="rebuilt",
        image=_mine_name,
    ),
    Damage(
        name="tar-gone-blob-kept",
        do=lambda b: (b.tar(b.kept_layer).unlink(), b.sql("DELETE FROM blob_sources")),
        problem="missing",
        thing=lambda b: f"layer {b.kept_layer}",
        action="rebuilt",
        image=_kept,
    ),
    Damage(
        name="kept-blob-flipped",
        do=lambda b: flip(b.blob(_kept_blob(b))),
        problem="wrong-digest",
        thing=lambda b: f"blob {_kept_blob(b)}",
        action="forgotten",
        quick=False,
        image=_kept,
    ),
    Damage(
        name="kept-blob-gone",
        do=lambda b: b.blob(_kept_blob(b)).unlink(),
        problem="missing",
        thing=lambda b: f"blob {_kept_blob(b)}",
        action="forgotten",
        image=_kept,
    ),
    # documents and images' rows
    Damage(
        name="config-gone",
        do=lambda b: b.blob(b.configs[b.app]).unlink(),
        problem="missing",
        thing=_blob_of("configs"),
        action="fetched",
    ),
    Damage(
        name="config-flipped",
        do=lambda b: flip(b.blob(b.configs[b.app])),
        problem="wrong-digest",
        thing=_blob_of("configs"),
        action="fetched",
        quick=False,
    ),
    Damage(
        name="config-empty",
        do=lambda b: os.truncate(b.blob(b.configs[b.app]), 0),
        problem="wrong-size",
        thing=_blob_of("configs"),
        action="fetched",
    ),
    Damage(
        name="config-writable-by-all",
        do=lambda b: b.blob(b.configs[b.app]).chmod(0o622),
        problem="unsafe",
        thing=_blob_of("configs"),
        action="fixed",
    ),
    Damage(
        name="config-row-gone",
        do=lambda b: b.sql("DELETE FROM blobs WHERE digest = ?", values=(b.configs[b.app],)),
        problem="missing",
        thing=_blob_of("configs"),
        action="fixed",
    ),
    Damage(
        name="config-is-a-symlink",
        do=lambda b: link_away(b.blob(b.configs[b.app])),
        problem="wrong-type",
        thing=_blob_of("configs"),
        action="fetched",
    ),
    Damage(
        name="committed-config-flipped",
        do=lambda b: flip(b.blob(b.configs[MINE])),
        problem="wrong-digest",
        thing=_blob_of("configs", _mine_name),
        action="quarantined",
        quick=False,
        image=_mine_name,
    ),
    Damage(
        name="manifest-gone",
        do=lambda b: b.blob(b.manifests[b.app]).unlink(),
        problem="missing",
        thing=_blob_of("manifests"),
        action="fetched",
    ),
    Damage(
        name="manifest-flipped",
        do=lambda b: flip(b.blob(b.manifests[b.app])),
        problem="wrong-digest",
        thing=_blob_of("manifests"),
        action="fetched",
        quick=False,
    ),
    Damage(
        name="manifest-row-gone",
        do=lambda b: b.sql("DELETE FROM image_manifests WHERE digest = ?", values=(b.manifests[b.app],)),
        problem="inconsistent",
        thing=lambda b: f"image {b.app}",
        action="fixed",
    ),
    Damage(
        name="layers-of-config-unknown",
        do=lambda b: b.sql(
            "DELETE FROM config_layers WHERE config_digest = ? AND position = 1", values=(b.configs[b.app],)
        ),
        problem="inconsistent",
        thing=lambda b: f"image {b.app}",
        action="fixed",
        quick=False,
    ),
    Damage(
        name="all-layers-of-config-unknown",
        do=lambda b: b.sql("DELETE FROM config_layers WHERE config_digest = ?", values=(b.configs[b.kept],)),
        problem="inconsistent",
        thing=lambda b: f"image {b.kept}",
        action="fixed",
        image=_kept,
    ),
    # chains
    Damage(
        name="chain-gone",
        do=lambda b: b.chain(b.kept).unlink(),
        problem="missing",
        thing=_chain(_kept),
        action="rebuilt",
        image=_kept,
    ),
    Damage(
        name="chain-cut",
        do=lambda b: cut(b.chain(b.kept), 4096),
        problem="wrong-size",
        thing=_chain(_kept),
        action="rebuilt",
        image=_kept,
    ),
    Damage(
        name="chain-superblock-flipped",
        do=lambda b: flip(b.chain(b.kept), 1024 + 50),
        problem="bad-chain",
        thing=_chain(_kept),
        action="rebuilt",
        image=_kept,
    ),
    Damage(
        name="chain-flipped",
        do=lambda b: flip(b.chain(b.kept)),
        problem="bad-chain",
        thing=_chain(_kept),
        action="rebuilt",
        quick=False,
        image=_kept,
    ),
    Damage(
        name="chain-below-a-root-gone",
        do=lambda b: b.chain(b.app).unlink(),
        problem="missing",
        thing=_chain(_app_name),
        action="rebuilt",
    ),
    Damage(
        name="chain-below-a-root-flipped",
        do=lambda b: flip(b.chain(BELOW)),
        problem="bad-chain",
        thing=_chain(lambda b: BELOW),
        action="rebuilt",
        quick=False,
    ),
    Damage(
        name="chain-writable-by-all",
        do=lambda b: b.chain(b.app).chmod(0o666),
        problem="unsafe",
        thing=_chain(_app_name),
        action="fixed",
    ),
    Damage(
        name="chain-is-a-symlink",
        do=lambda b: link_away(b.chain(b.app)),
        problem="wrong-type",
        thing=_chain(_app_name),
        action="rebuilt",
    ),
    Damage(
        name="chain-of-another-uuid",
        do=lambda b: b.sql(
            "UPDATE chains SET uuid = zeroblob(16) WHERE chain_id = ?", values=(b.chains[b.kept],)
        ),
        problem="bad-chain",
        thing=_chain(_kept),
        action="forgotten",
        image=_kept,
    ),
    Damage(
        name="chain-below-a-root-of-another-uuid",
        do=lambda b: b.sql(
            "UPDATE chains SET uuid = zeroblob(16) WHERE chain_id = ?", values=(b.chains[b.app],)
        ),
        problem="bad-chain",
        thing=_chain(_app_name),
        action="failed",
    ),
    Damage(
        name="chain-of-unknown-layers",
        do=lambda b: b.sql("DELETE FROM chain_layers WHERE chain_id = ?", values=(b.chains[b.kept],)),
        problem="inconsistent",
        thing=_chain(_kept),
        action="forgotten",
        image=_kept,
    ),
    # prepared roots
    Damage(
        name="root-folder-gone",
        do=lambda b: shutil.rmtree(b.prepared(b.active)),
        problem="missing",
        thing=_root("active"),
        action="failed",
    ),
    Damage(
        name="upper-gone",
        do=lambda b: shutil.rmtree(b.prepared(b.active) / "upper"),
        problem="missing",
        thing=_root("active"),
        action="failed",
    ),
    Damage(
        name="upper-is-a-symlink",
        do=lambda b: link_away(b.prepared(b.active) / "upper"),
        problem="wrong-type",
        thing=_root("active"),
        action="failed",
    ),
    Damage(
        name="work-gone",
        do=lambda b: shutil.rmtree(b.prepared(b.active) / "work"),
        problem="missing",
        thing=_root("active"),
        action="fixed",
    ),
    Damage(
        name="root-folder-writable-by-all",
        do=lambda b: b.prepared(b.active).chmod(0o777),
        problem="unsafe",
        thing=_root("active"),
        action="fixed",
    ),
    # folders of the overlay driver
    Damage(
        name="unpacked-layer-gone",
        do=lambda b: shutil.rmtree(in_folder(b, ".")),
        problem="missing",
        thing=_folder,
        action="rebuilt",
    ),
    Damage(
        name="unpacked-file-changed",
        do=lambda b: flip(in_folder(b, "usr/file7")),
        problem="bad-folder",
        thing=_folder,
        action="rebuilt",
        quick=False,
    ),
    Damage(
        name="unpacked-file-added",
        do=lambda b: in_folder(b, "usr/planted").write_text("x"),
        problem="bad-folder",
        thing=_folder,
        action="rebuilt",
        quick=False,
    ),
    Damage(
        name="unpacked-file-gone",
        do=lambda b: in_folder(b, "etc/motd").unlink(),
        problem="bad-folder",
        thing=_folder,
        action="rebuilt",
        quick=False,
    ),
    Damage(
        name="unpacked-file-set-user-id",
        do=lambda b: in_folder(b, "usr/file7").chmod(0o4755),
        problem="bad-folder",
        thing=_folder,
        action="rebuilt",
        quick=False,
    ),
    Damage(
        name="glue-changed",
        do=lambda b: (b.root / "folders" / b.glue / "etc").chmod(0o700),
        problem="bad-folder",
        thing=lambda b: f"folder {b.glue}",
        action="rebuilt",
        quick=False,
    ),
    # the store's own
    Damage(
        name="store-open-to-others",
        do=lambda b: b.root.chmod(0o755),
        problem="unsafe",
        thing=_store,
        action="fixed",
        live=True,
    ),
    Damage(
        name="layers-writable-by-all",
        do=lambda b: (b.root / "layers").chmod(0o777),
        problem="unsafe",
        thing=_store,
        action="fixed",
    ),
    Damage(
        name="prepared-of-another-user",
        do=lambda b: os.chown(b.root / "prepared", 1234, 1234),
        problem="unsafe",
        thing=_store,
        action="fixed",
    ),
    Damage(
        name="metadata-writable-by-all",
        do=lambda b: (b.root / "meta.db").chmod(0o666),
        problem="unsafe",
        thing=_store,
        action="fixed",
    ),
    Damage(
        name="trash-folder-gone",
        do=lambda b: (b.root / "trash").rmdir(),
        problem="missing",
        thing=_store,
        action="fixed",
        live=True,
    ),
    Damage(
        name="something-in-empty",
        do=lambda b: (b.root / "empty" / "planted").write_text("x"),
        problem="not-empty",
        thing=_store,
        action="fixed",
    ),
    # what is no damage
    Damage(
        name="layer-without-a-row",
        do=lambda b: shutil.copytree(b.layer(_first(b)), b.root / "layers" / ("ab" * 32)),
        problem="unnamed",
        thing=lambda b: f"stray layers/{'ab' * 32}",
        action="",
        kind="leftover",
    ),
    Damage(
        name="temporary-file",
        do=lambda b: (b.root / "chains" / ".tmp-1234").write_text("x"),
        problem="temporary",
        thing=lambda b: "stray chains/.tmp-1234",
        action="",
        kind="leftover",
    ),
    Damage(
        name="stray-in-a-layer",
        do=lambda b: (b.layer(_first(b)) / "more").write_text("x"),
        problem="stray",
        thing=_app(0),
        action="",
        kind="leftover",
    ),
    Damage(
        name="a-strangers-file",
        do=lambda b: (b.root / "notes").write_text("x"),
        problem="unknown",
        thing=lambda b: "stray notes",
        action="",
        kind="warning",
    ),
    Damage(
        name="tar-with-a-second-name",
        do=lambda b: os.link(b.tar(_first(b)), b.root.parent / "second"),
        problem="linked",
        thing=_app(0),
        action="",
        kind="warning",
    ),
)
