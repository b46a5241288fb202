"""What is done to a store in trials of dying, and what must be so afterwards; `support.crashes` does the trials.

Every scenario can be done again after it was cut short anywhere: that is part of what is held.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orlop
from orlop.images.api import ExtraMount, IdMap
from orlop.images.backups.restore import restore
from orlop.images.snapshots import LABEL_REF
from orlop.images.store import LocalStore
from orlop.images.upkeep import Keep
from orlop.layers.worker.client import Template
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest, chain_id
from orlop.testing.crashes import At
from support import images
from support.eventlog import check_log
from support.layers import Layer

FILES: dict[str, dict[str, bytes]] = {
    "base": {"base": b"shared", "deep/er/file": b"x" * 70_000, "sparse": bytes(100_352) + b"end"},
    "app": {"top": b"top", "deep/top": b"t" * 5_000},
}
MINE = {"mine": b"written below a root" * 500}
CONTENT = b"content" * 3_000
MADE = "localhost/made:v1"
ROOTFS = "localhost/rootfs:1"
OTHER = "localhost/other:v1"
SPACE = "k8s.io"  # the namespace of snapshots


def layer(name: str) -> bytes:
    """The tar of one of the image's two layers."""
    made = Layer()
    for folder in ("deep", "deep/er") if name == "base" else ():
        made.folder(folder)
    for path, data in FILES[name].items():
        if path == "sparse":
            made.sparse(path, len(data), [(len(data) - 3, data[-3:])], how="gnu-1.0")
        else:
            made.file(path, data)
    return made.tar()


@dataclass(slots=True, kw_only=True)
class World:
    """What a step works in.  The store is opened when it is first asked for."""

    root: Path
    run: Path
    work: Path
    host: str
    layout: Path
    said: Path
    template: Template
    settings: dict[str, Any] = field(default_factory=dict)
    _store: orlop.Store | None = None

    @property
    def image(self) -> str:
        return f"{self.host}/app:v1"

    @property
    def path(self) -> Path:
        """Where the scenarios prepare their root."""
        return self.work / "rootfs"

    @property
    def store(self) -> orlop.Store:
        if self._store is None:
            settings = orlop.Settings(insecure_registries=(self.host,), **self.settings)
            self._store = orlop.open(self.root, self.run, settings=settings)
            self._store.verbs._core._template = self.template
        return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def answered(self, *words: str) -> None:
        """A verb has returned: what it did must be there from now on."""
        fd = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(fd, json.dumps(words).encode() + b"\n")
        os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing to do, after what was done before it; ``setup`` has what may be killed on its way."""

    name: str
    act: Callable[[World], None]
    setup: tuple[tuple[Callable[[World], None], At | None], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    damaged: bool = False  # by the setup; the scenario mends it


# ------------------------------------------------------------------ what is done


def open_it(world: World) -> None:
    assert world.store.images() == []


def pull(world: World) -> None:
    world.answered("image", world.store.pull(world.image).name)


def pull_in_pieces(world: World) -> None:
    """A pull that finds bytes ahead of the front, as several connections leave them."""
    for name in FILES:
        blob = images.compress(layer(name), "gzip")
        with world.store.verbs._core.blobs.ingest(Digest(images.digest_of(blob))) as ingest:
            ingest.write_at(len(blob) // 2, blob[len(blob) // 2 : -10])
    pull(world)


def index_of(image: images.Image) -> images.Image:
    """An index of the image, and of the same for another platform."""
    config = json.loads(image.config) | {"architecture": "s390x"}
    layers = [layer(name) for name in FILES]
    return images.make_index([image, images.make_image(layers, platform="linux/s390x", config=config)])


def pull_index(world: World) -> None:
    """A pull of two platforms."""
    name = f"{world.host}/app:all"
    world.answered("image", world.store.pull(name, all_platforms=True).name)
    held = world.store.inspect(name).info.platforms
    assert len(held) == 2, held


def load(world: World) -> None:
    world.answered("image", world.store.load(world.layout, name=world.image).pop().name)


def load_rootfs(world: World) -> None:
    """A root file system that comes through a pipe, in two pieces."""
    tar = layer("base")
    pieces = [tar[:1000], tar[1000:]]
    world.answered("image", world.store.load(pieces, name=ROOTFS, created=0).pop().name)


def prepare(driver: str, **options: Any) -> Callable[[World], None]:
    def act(world: World) -> None:
        if any(root.path == str(world.path) for root in world.store.prepared()):
            world.store.get(world.path).cleanup()
        world.store.prepare(world.image, world.path, driver=driver, pull="never", **options)
        world.answered("root", str(world.path))

    return act


def write(world: World) -> None:
    """What a container does in its root."""
    world.store.get(world.path).mount()
    for name, data in MINE.items():
        (world.path / name).write_bytes(data)
    world.store.get(world.path).unmount()


def commit(world: World) -> None:
    world.store.get(world.path).commit(MADE)
    world.answered("image", MADE)


def fork(world: World) -> None:
    """Two new roots, both or none; then the source is given up for two, and moves back."""
    store, path = world.store, str(world.path)
    one, two, first, second = (str(world.work / name) for name in ("one", "two", "first", "second"))
    there = {root.path for root in store.prepared()}
    assert len(there & {one, two}) != 1, there
    assert len(there & {path, first}) == 1, there
    assert second in there or first not in there, there
    if path in there:
        if one not in there:
            store.get(path).fork(one, two)
        if second in there:
            store.get(second).cleanup()
        store.get(path).fork(first, second, move=True, mount=True)
    store.get(first).fork(path, move=True)
    for root in (path, one, two):
        world.answered("root", root)


def go_back(world: World) -> None:
    """What was written is lost, and back from a checkpoint."""
    root = world.store.get(world.path)
    if not root.checkpoints():
        root.checkpoint("kept")
    root.mount()
    for name in MINE:
        (world.path / name).unlink(missing_ok=True)
    assert read_tree(world.path) == expected(root.info.image)
    root.rollback("kept")
    assert read_tree(world.path) == expected(root.info.image) | MINE
    root.drop_checkpoint("kept")
    root.unmount()
    world.answered("root", str(world.path))


def cleanup(world: World) -> None:
    with contextlib.suppress(orlop.NotFound):
        root = world.store.get(world.path)
        root.mount()
        root.cleanup()
    world.answered("no root", str(world.path))


def remove(world: World) -> None:
    with contextlib.suppress(orlop.NotFound):
        world.store.remove(world.image)
    world.answered("no image", world.image)


def collect(world: World) -> None:
    world.store.collect()


def expire(world: World) -> None:
    """A policy that keeps nothing."""
    world.store.collect(keep=Keep(count=0))
    world.answered("no image", world.image)


def damage(world: World) -> None:
    """A disk that loses things: an index, a chain, an unpacked folder's file, a layer's bytes."""
    indexes = sorted((world.root / "layers").glob("*/layer.index"))
    indexes[0].write_bytes(b"")
    for path in [
        *(world.root / "chains").iterdir(),
        *(world.root / "folders").glob("*/top"),
        _tar_of(world, "app"),
    ]:
        with path.open("r+b") as file:
            file.seek(600)
            file.write(b"rotten")


def rot(world: World) -> None:
    """A layer's bytes are not what they were."""
    _tar_of(world, "app").write_bytes(b"rotten")


def _tar_of(world: World, name: str) -> Path:
    return world.root / "layers" / images.digest_of(layer(name)).partition(":")[2] / "layer.tar"


def repair(world: World) -> None:
    found = world.store.check(full=True, repair=True)
    assert found.sound, found
    world.answered("image", world.image)


def repair_and_pull(world: World) -> None:
    """What nobody gives again is given up; a pull heals the image."""
    world.store.check(full=True, repair=True)
    pull(world)


def back_up(world: World) -> None:
    """To a file outside; then the store has nothing."""
    world.store.verbs.backup(str(_backup(world)), content=True)
    world.store.remove(world.image)


def bring_back(world: World) -> None:
    done = restore(_backup(world), world.root, world.run)
    world.answered("image", done.names[0])


def _backup(world: World) -> Path:
    return world.layout.with_name("backup.tar")


def lose_leases(world: World) -> None:
    """Rows that nothing needs, and no lease tells of."""
    world.store.verbs._core.db.write(lambda tx: tx.execute("DELETE FROM leases"))


def write_content(world: World) -> None:
    """A blob through containerd's API, in two goes and wherever the last one stopped; another gets it, too."""
    content = world.store.verbs.content_store
    digest, half = Digest.of(CONTENT), len(CONTENT) // 2
    for end in (half, len(CONTENT)):
        with contextlib.suppress(orlop.AlreadyExists):
            writer = content.write("one", "ref", len(CONTENT), digest)
            if end == half and writer.status.offset >= half:
                assert writer.digest == Digest.of(CONTENT[: writer.status.offset])
                writer.close()
                continue
            writer.write(writer.status.offset, CONTENT[writer.status.offset : end])
            if end > half:
                writer.commit({"containerd.io/gc.root": "x"})
            writer.close()
    world.answered("content", "one")
    with contextlib.suppress(orlop.AlreadyExists):
        writer = content.write("two", "ref", 0, digest)
        assert writer.status.offset == len(CONTENT)
        writer.commit({})
        writer.close()
    world.answered("content", "two")


def delete_content(world: World) -> None:
    """It goes with the last who has it."""
    for namespace in ("one", "two"):
        with contextlib.suppress(orlop.NotFound):
            world.store.verbs.content_store.delete(namespace, Digest.of(CONTENT))
        world.answered("no content", namespace)


def pin(world: World) -> None:
    world.store.pin(world.image, "kept")
    world.answered("pin", "kept")


def pin_much(world: World) -> None:
    """A log that is written ahead of what comes, and what comes."""
    pin(world)
    assert isinstance(world.store.verbs, LocalStore)
    world.store.verbs._core.db.grow_log()
    world.store.pin(world.image, "more")
    world.answered("pin", "more")


def share(world: World) -> None:
    """A layout for podman; then another name in it, which goes."""
    world.store.share(world.work / "share", world.image)
    world.answered("share", str(world.work / "share"))
    world.store.tag(world.image, OTHER)
    world.store.share(world.work / "share", OTHER)
    world.store.remove(OTHER)


def drop_share(world: World) -> None:
    """A store of mounts, and away with it."""
    world.store.share(world.work / "share", world.image, form="store", run_only=True)
    world.store.drop_share(world.work / "share")
    world.answered("no share", str(world.work / "share"))


def snapshot(world: World) -> None:
    """containerd's: one that is written to and committed, one of a layer of the store, and one on each."""
    snapshots = world.store.verbs.snapshots()
    there = {info.name for part in snapshots.walk(SPACE) for info in part}
    layers = [DiffID(images.digest_of(layer(name))) for name in FILES]
    none: dict[str, str] = {}
    if "written" not in there:
        if "writing" not in there:
            snapshots.prepare(SPACE, "writing", "", labels=none, call=Call())
        (mount,) = snapshots.mounts(SPACE, "writing", call=Call())
        for name, data in MINE.items():
            Path(mount.source, name).write_bytes(data)
        snapshots.commit(SPACE, "written", "writing", labels=none, call=Call())
    world.answered("snapshot", "written")
    for count in range(1, len(layers) + 1):
        below, name = chain_id(layers[: count - 1]) if count > 1 else "", chain_id(layers[:count])
        with contextlib.suppress(orlop.AlreadyExists):
            snapshots.prepare(SPACE, "unpacking", below, labels={LABEL_REF: name}, call=Call())
            raise AssertionError(f"{name} is to be unpacked")
        world.answered("snapshot", name)
    for key, parent in (("one", "written"), ("two", name)):
        if key not in there:
            snapshots.prepare(SPACE, key, parent, labels=none, call=Call())
        snapshots.remove(SPACE, key, call=Call())
        world.answered("no snapshot", key)


_EXTRA = (ExtraMount(type="tmpfs", source="tmpfs", target="/new/place", options=("size=64k",)),)
_MAP = (IdMap(inside=0, outside=200_000, size=65_536),)
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="open", act=open_it),
        Scenario(name="pull", act=pull, setup=((open_it, None),)),
        Scenario(name="pull-undurable", act=pull, settings={"durable": False, "keep_blobs": True}),
        Scenario(name="pull-in-pieces", act=pull_in_pieces, setup=((open_it, None),)),
        Scenario(name="pull-index", act=pull_index, setup=((pull, None),)),
        Scenario(name="import", act=load, setup=((open_it, None),)),
        Scenario(name="import-rootfs", act=load_rootfs, setup=((open_it, None),)),
        Scenario(name="prepare-erofs", act=prepare("erofs", mount=True, extra=_EXTRA), setup=((load, None),)),
        Scenario(name="prepare-overlay", act=prepare("overlay", mount=True), setup=((load, None),)),
        Scenario(name="prepare-native", act=prepare("native", mount=True), setup=((load, None),)),
        Scenario(name="prepare-view", act=prepare("erofs", view=True, mount=True), setup=((load, None),)),
        Scenario(name="prepare-quota", act=prepare("erofs", quota=4 << 20, mount=True), setup=((load, None),)),
        Scenario(
            name="prepare-mapped",
            act=prepare("erofs", uid_map=_MAP, gid_map=_MAP, mount=True),
            setup=((load, None),),
        ),
        Scenario(
            name="commit", act=commit, setup=((load, None), (prepare("erofs"), None), (write, None))
        ),
        Scenario(
            name="commit-native", act=commit, setup=((load, None), (prepare("native"), None), (write, None))
        ),
        Scenario(name="fork", act=fork, setup=((load, None), (prepare("erofs"), None), (write, None))),
        Scenario(name="checkpoint", act=go_back, setup=((load, None), (prepare("overlay"), None), (write, None))),
        Scenario(
            name="cleanup", act=cleanup, setup=((load, None), (prepare("erofs"), None), (write, None))
        ),
        Scenario(
            name="cleanup-native", act=cleanup, setup=((load, None), (prepare("native"), None), (write, None))
        ),
        Scenario(
            name="cleanup-quota",
            act=cleanup,
            setup=((load, None), (prepare("overlay", quota=4 << 20), None), (write, None)),
        ),
        Scenario(
            name="rmi",
            act=remove,
            setup=((load, None), (prepare("erofs"), None), (cleanup, None), (prepare("overlay"), None), (cleanup, None)),
        ),
        Scenario(name="gc-by-policy", act=expire, setup=((load, None), (prepare("erofs"), None), (cleanup, None))),
        Scenario(name="gc-of-rows", act=collect, setup=((pull, At("layer.named")), (lose_leases, None))),
        Scenario(
            name="repair",
            act=repair,
            damaged=True,
            setup=(
                (pull, None), (prepare("erofs"), None), (cleanup, None), (prepare("overlay"), None), (cleanup, None),
                (damage, None),
            ),
        ),
        Scenario(name="repair-lost", act=repair_and_pull, damaged=True, setup=((load, None), (rot, None))),
        Scenario(name="restore", act=bring_back, setup=((load, None), (back_up, None))),
        Scenario(name="pin", act=pin, setup=((load, None),)),
        Scenario(name="pin-much", act=pin_much, setup=((load, None),)),
        Scenario(name="snapshot", act=snapshot, setup=((load, None),)),
        Scenario(name="share", act=share, setup=((load, None),)),
        Scenario(name="share-drop", act=drop_share, setup=((load, None),)),
        Scenario(name="content", act=write_content),
        Scenario(name="content-delete", act=delete_content, setup=((write_content, None),)),
        Scenario(
            name="gc",
            act=collect,
            setup=(
                (load, None),
                (prepare("erofs"), At("root.filled")),
                (prepare("native"), At("root.copied")),
                (prepare("erofs"), At("root.named")),
                (cleanup, At("root.forgotten")),
                (remove, At("db.committed")),  # forgotten, and still there
                (load, None),
                (prepare("erofs"), At("chain.written")),
                (prepare("erofs"), At("file.synced")),
                (remove, At("db.committed")),
                (load, At("layer.placed")),  # files without a row
                (pull, At("layer.named")),  # a row under the lease of a dead process
            ),
        ),
    )
}  # fmt: skip


# ------------------------------------------------------------------ what must be so afterwards


def judge(world: World, scenario: Scenario) -> None:
    """See the module; raises AssertionError or an orlop error."""
    store = world.store
    if not scenario.damaged:
        check_whole(world)
    check_answered(world)
    world.said.unlink(missing_ok=True)
    scenario.act(world)
    check_answered(world)
    store.collect()
    check_whole(world)
    for root in store.prepared():
        store.get(root.path).cleanup()
    for shared in store.shares():
        store.drop_share(shared.folder)
    for pin in store.pins():
        store.unpin(pin.name)
    while found := [info for part in store.verbs.snapshots().walk(SPACE) for info in part]:
        for name in {info.name for info in found} - {info.parent for info in found}:
            store.verbs.snapshots().remove(SPACE, name, call=Call())
    for image in store.images():
        store.remove(image.name)
    for blob in store.verbs.content_store.content(None, ()):
        store.verbs.content_store.delete(None, blob.digest)
    for data in (world.root / "content/ingest").glob("*/data"):
        os.utime(data, (0, 0))  # a download waits a day to be resumed; now the day is over
    store.collect()
    check_log(store)
    left = {"again": store.collect(dry_run=True).items, "rows": store.verbs._core.db.read(_rows)}
    world.close()
    left |= left_on_disk(world)
    assert not any(left.values()), f"left: {left}"


def check_answered(world: World) -> None:
    """What a process was answered before it died is so."""
    said = [json.loads(line) for line in world.said.read_text().splitlines()] if world.said.exists() else []
    images = {info.name for info in world.store.images()}
    roots = {info.path for info in world.store.prepared()}
    there = {"image": images, "root": roots, "pin": {pin.name for pin in world.store.pins()}}
    there["share"] = {shared.folder for shared in world.store.shares()}
    there["snapshot"] = {info.name for part in world.store.verbs.snapshots().walk(SPACE) for info in part}
    content = world.store.verbs.content_store
    there["content"] = {name for name in ("one", "two") if list(content.content(name, ()))}
    for what, name in said:
        found = name in there[what.removeprefix("no ")]
        assert found == (not what.startswith("no ")), f"{what} {name}"


def check_whole(world: World) -> None:
    """Every image that is listed, and every root, shows what belongs into it."""
    store, place = world.store, world.work / "view"
    checked = store.check(full=True)
    assert checked.clean, checked.findings
    check_log(store)
    content = store.verbs.content_store
    for blob in content.content(None, ()):
        assert Digest.of(b"".join(part for _, part in content.read(None, blob.digest, 0, 0))) == blob.digest
    for info in store.images():
        store.inspect(info.name)
        with store.prepare(info.name, place, view=True, pull="never", mount=True):
            assert read_tree(place) == expected(info.name), info.name
        assert not place.exists(), f"the view of {info.name} is not cleaned up"
    snapshots = store.verbs.snapshots()
    for info in (info for part in snapshots.walk(SPACE) for info in part):
        if info.name == "written":
            size = snapshots.usage(SPACE, "written", call=Call()).size
            (mount,) = snapshots.view(SPACE, "checking", "written", labels={}, call=Call())
            assert read_tree(Path(mount.source)) == MINE
            assert size >= sum(map(len, MINE.values()))
            snapshots.remove(SPACE, "checking", call=Call())
        elif info.kind == "active":
            assert snapshots.mounts(SPACE, info.name, call=Call())
    for root in store.prepared():
        again = store.get(root.path)
        again.mount()
        found = read_tree(Path(root.path))
        assert found in (expected(root.image), expected(root.image) | MINE), root.path
        again.unmount()


def expected(image: str) -> dict[str, bytes]:
    """The files of an image."""
    if image == ROOTFS:
        return FILES["base"]
    return {**FILES["base"], **FILES["app"], **(MINE if image == MADE else {})}


def read_tree(top: Path) -> dict[str, bytes]:
    """All regular files below a folder, whole."""
    return {
        os.path.relpath(os.path.join(folder, name), top): Path(folder, name).read_bytes()
        for folder, _, names in os.walk(top)
        for name in names
    }


def left_on_disk(world: World) -> dict[str, list[str]]:
    """What lies in the folders of a store that should be empty."""
    root = world.root
    places = ["layers", "chains", "folders", "prepared", "snapshots", "trash"]
    places += ["content/ingest", "content/blobs/sha256"]
    found = {place: os.listdir(root / place) for place in places}
    found["locks"] = [name for name in os.listdir(root / "locks") if "-" in name]
    found["root"] = [name for name in os.listdir(root) if name.startswith(".tmp-")]
    found["shares"] = os.listdir(root / "shares") if (root / "shares").exists() else []
    for place in ("chains", "maps", "disks"):
        found[f"RUN/{place}"] = os.listdir(world.run / place) if (world.run / place).exists() else []
    found["work"] = [name for name in os.listdir(world.work) if name != world.said.name]
    return {place: names for place, names in found.items() if names}


def _rows(tx: Any) -> dict[str, int]:
    tables = [row[0] for row in tx.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    # Whom a blob was had from, and what is not synced, may outlast it.
    counts = {table: tx.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    return {table: count for table, count in counts.items() if count and table not in _LASTING}


_LASTING = {"unsynced", "sqlite_sequence", "events", "event_log"}
