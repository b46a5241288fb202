"""Collecting: what goes at once, what behind the call, what the killed leave, and never what others are making."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.errors import DeadlineExceeded, Error, InvalidArgument, NotFound, ResourceExhausted
from orlop.images.collection.strays import _take_root
from orlop.images.store import LocalStore
from orlop.linux.flock import TurnLock
from orlop.metadata import garbage, layers, pins
from orlop.observe import Call, watch_points
from orlop.service.daemon import Daemon
from orlop.spec.digest import DiffID, Digest
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]

LONG = 60.0  # seconds, for what takes milliseconds


def make(*sizes: int, base: bytes = b"") -> images.Image:
    """An image with a layer for each size, after one that others may have, too."""
    tars = [Layer().file("base", base).tar()] if base else []
    tars += [Layer().file(f"f{n}", os.urandom(size)).tar() for n, size in enumerate(sizes)]
    return images.make_image(tars)


def add(registry: MemoryRegistry, repository: str, image: images.Image) -> str:
    for blob in image.blobs.values():
        registry.add_blob(repository, blob)
    registry.add_manifest(repository, "v1", image.document, image.media_type)
    return f"{registry.host}/{repository}:v1"


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def verbs(store: orlop.Store) -> LocalStore:
    """The store's own verbs, for tests that look into it."""
    assert isinstance(store.verbs, LocalStore)
    return store.verbs


@pytest.fixture
def load(store: orlop.Store, workdir: Path) -> Callable[..., str]:
    """Import an image under a name."""

    def do(name: str, image: images.Image) -> str:
        layout = images.write_layout(workdir / f"layout-{name}", {"latest": image})
        return store.load(layout, name=f"localhost/{name}").pop().name

    return do


def taken(root: Path) -> int:
    """The blocks of a store but for its metadata, which do not shrink."""
    size = 0
    for folder, _, files in os.walk(root):
        names = [file for file in files if not file.startswith(("meta.db", "reserve"))]
        size += sum(os.lstat(os.path.join(folder, name)).st_blocks for name in names)
        size += 0 if folder == os.fspath(root / "locks") else os.lstat(folder).st_blocks
    return size * 512


def whole(verbs: LocalStore, diff_ids: tuple[str, ...]) -> bool:
    """Whether all layers are there with the bytes that their names say."""
    tars = [verbs._core.layers.tar(DiffID(one)) for one in diff_ids]
    return all(
        "sha256:" + hashlib.sha256(tar.read_bytes()).hexdigest() == one
        for tar, one in zip(tars, diff_ids, strict=True)
    )


# ------------------------------------------------------------------ what was freed


@pytest.mark.parametrize("how", ["remove", "collect", "collect after a cleanup"])
def test_what_is_said_to_be_freed_is_what_the_disk_gains(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs, how: str
) -> None:
    root = store_dirs.root
    load("kept", make(100_000, base=b"shared"))
    empty = taken(root)
    name = load("gone", make(3_000_000, 5_000, 1_000_000, base=b"shared"))
    with store.prepare(name, store_dirs.work / "a"):
        pass
    would = store.collect(dry_run=True)  # which waits for what the cleanup left to go
    assert would.items == ()
    before, free = taken(root), os.statvfs(root).f_bfree * os.statvfs(root).f_bsize
    if how == "remove":
        freed = store.remove(name).freed
    else:
        core = verbs._core
        if how == "collect":  # only the name goes: what it kept is garbage that a killed process left
            core.db.write(lambda tx: tx.execute("DELETE FROM images WHERE name = ?", (name,)))
        else:
            with store.prepare(name, store_dirs.work / "b"):
                core.db.write(lambda tx: tx.execute("DELETE FROM images WHERE name = ?", (name,)))
                core.sweeper.close()  # the cleanup forgets, and nobody deletes behind it
        would = store.collect(dry_run=True)
        if how != "collect":
            core.sweeper._quit.clear()
        collected = store.collect()
        assert sorted(would.items) == sorted(collected.items)
        assert (would.freed, collected.names) == (collected.freed, ())
        freed = collected.freed
    assert freed == before - taken(root)
    assert freed > 4_000_000
    gained = os.statvfs(root).f_bfree * os.statvfs(root).f_bsize - free
    assert abs(gained - freed) < 1 << 20
    assert abs(taken(root) - empty) <= 4096  # folders that have grown stay so
    assert store.collect(dry_run=True).items == store.collect().items == ()


def test_what_others_need_is_neither_freed_nor_counted(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str]
) -> None:
    one, two = make(200_000, base=b"shared"), make(400_000, base=b"shared")
    first, second = load("one", one), load("two", two)
    store.tag(first, "localhost/again")
    assert store.remove(first).freed == 0
    freed = store.remove("localhost/again").freed
    assert 200_000 <= freed < 300_000
    assert whole(verbs, two.diff_ids)
    assert store.inspect(second).info.layers == 2


def test_a_dry_run_waits_for_no_writer_and_holds_none_up(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str]
) -> None:
    name = load("one", make(1000))
    core = verbs._core
    core.db.write(lambda tx: tx.execute("DELETE FROM images WHERE name = ?", (name,)))
    inside, leave = threading.Event(), threading.Event()

    def hold(tx: garbage.Transaction) -> None:
        inside.set()
        leave.wait(LONG)

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(core.db.write, hold)
        try:
            assert inside.wait(LONG)
            kinds = [item.partition(" ")[0] for item, _ in store.collect(dry_run=True).items]
            assert sorted(kinds) == ["blob", "blob", "layer"]
        finally:
            leave.set()
        holding.result(LONG)


# ------------------------------------------------------------------ two phases


def test_a_cleanup_takes_an_image_that_was_removed_while_it_was_prepared(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    image = make(1000, 2000)
    name = load("one", image)
    prepared = store.prepare(name, store_dirs.work / "a", mount=True)
    store.remove(name)
    assert store.collect().items == ()
    assert (store_dirs.work / "a/f0").exists()
    with orlop.open(store_dirs.root, store_dirs.run) as other:
        other.get(prepared.path).cleanup()
    # Closing waits for what is deleted behind the call.
    rows = verbs._core.db.read(lambda tx: [layers.get_layer(tx, DiffID(one)) for one in image.diff_ids])
    assert rows == [None, None]
    root = store_dirs.root
    for folder in ("layers", "chains", "folders", "prepared", "trash", "content/blobs/sha256"):
        assert os.listdir(root / folder) == [], folder
    for mounts in store_dirs.run.iterdir():
        assert not [one for one in mounts.iterdir() if one.name != "orlop.sock"], mounts


def test_what_a_killed_process_has_forgotten_the_next_one_deletes(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    load("kept", make(1000))
    names = [load(f"gone-{number}", make(50_000)) for number in range(3)]

    def forget(tx: garbage.Transaction) -> list[garbage.Forgotten]:
        for name in names:
            tx.execute("DELETE FROM images WHERE name = ?", (name,))
        return garbage.forget(tx, garbage.everything(tx))

    found = verbs._core.db.write(forget)  # and here it dies
    assert len(found) == 9
    assert all((store_dirs.root / item.path).exists() for item in found)
    would = store.collect(dry_run=True)
    assert sorted(item for item, _ in would.items) == sorted(f"stray {item.path}" for item in found)
    with orlop.open(store_dirs.root, store_dirs.run) as other:
        assert isinstance(other.verbs, LocalStore)
        assert sorted(other.verbs.collect_idle().items) == sorted(would.items)
    assert not any((store_dirs.root / item.path).exists() for item in found)
    assert store.collect().items == ()


def test_what_cannot_be_deleted_holds_up_nothing_else_and_is_tried_again(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    image = make(1000, 2000)
    name = load("one", image)
    stuck = store_dirs.root / "layers" / image.diff_ids[0].partition(":")[2]
    (stuck / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", stuck / "mnt"], check=True)
    said: list[str] = []

    class Listen:
        def progress(self, event: orlop.Progress) -> None:
            pass

        def warning(self, text: str) -> None:
            said.append(text)

    try:
        store.remove(name)
        assert os.listdir(store_dirs.root / "layers") in ([], [stuck.name])
        store.collect(call=Call(observer=Listen()))
        assert said
        assert verbs._core.layers.path(DiffID(image.diff_ids[1])).exists() is False
    finally:
        places = [stuck / "mnt", *(store_dirs.root / "trash").glob("*/mnt")]
        for place in places:
            subprocess.run(["umount", place], check=False, capture_output=True)
    store.collect()
    assert os.listdir(store_dirs.root / "layers") == os.listdir(store_dirs.root / "trash") == []
    assert verbs._core.db.read(garbage.trash_list) == []


def test_a_layer_that_is_made_anew_while_its_old_self_waits_to_be_deleted_stays(
    store: orlop.Store, verbs: LocalStore, memory: MemoryRegistry
) -> None:
    image = make(100_000)
    name = add(memory, "again", image)
    store.pull(name)
    core = verbs._core

    def forget(tx: garbage.Transaction) -> list[garbage.Forgotten]:
        tx.execute("DELETE FROM images WHERE name = ?", (name,))
        return garbage.forget(tx, garbage.everything(tx))

    assert len(core.db.write(forget)) == 3
    with core.locked("layer", DiffID(image.diff_ids[0]).hex, call=Call(), attempted="test"):
        assert not any("layers/" in item for item, _ in verbs.collect_idle().items)  # somebody is at it
    store.pull(name)
    assert verbs.collect_idle().items == ()
    assert core.db.read(garbage.trash_list) == []
    assert whole(verbs, image.diff_ids)


def test_what_is_made_and_forgotten_again_while_one_sweeps_is_deleted_all_the_same(
    verbs: LocalStore, store_dirs: StoreDirs
) -> None:
    core = verbs._core
    documents = sorted((f"document {number}".encode() for number in range(3)), key=Digest.of)

    def write_and_forget(documents: list[bytes], call: Call) -> None:
        with orlop.open(store_dirs.root, store_dirs.run) as other:
            assert isinstance(other.verbs, LocalStore)
            theirs = other.verbs._core
            theirs.sweeper.close()  # it dies before it deletes anything
            with theirs.lease("test") as lease:
                for document in documents:
                    theirs.write_document(Digest.of(document), document, lease=lease, call=call)

    write_and_forget(documents, Call())
    assert len(core.db.read(garbage.trash_list)) == 3
    moved: list[str] = []

    def meanwhile(point: str) -> None:
        if point == "trash.moved":
            moved.append(point)
            if len(moved) == 3:
                with contextlib.suppress(DeadlineExceeded):  # where the sweeper holds it still
                    write_and_forget(documents[:2], Call(deadline=time.monotonic() + 0.3))

    with watch_points(meanwhile):
        verbs.collect_idle()
    assert len(moved) >= 3
    verbs.collect_idle()
    assert os.listdir(store_dirs.root / "content/blobs/sha256") == []


def test_what_is_forgotten_again_before_the_sweeper_has_struck_it_off_stays_on_the_list(
    verbs: LocalStore, store_dirs: StoreDirs
) -> None:
    core = verbs._core
    document = b"a document"
    digest = Digest.of(document)
    file = store_dirs.root / "content/blobs/sha256" / digest.hex
    turn = TurnLock(core.layout.locks / "write")
    with core.lease("test") as lease:
        core.write_document(digest, document, lease=lease, call=Call())
        # Of its former self, which somebody forgot and did not delete.
        core.db.write(lambda tx: garbage.trash_add(tx, f"content/blobs/sha256/{digest.hex}"))
        turn.acquire(call=Call(), attempted="test")
        sweeper = threading.Thread(target=core.sweeper.sweep, kwargs={"call": Call()})
        try:
            sweeper.start()
            until = time.monotonic() + LONG
            while not core.db._writers._waiting:  # it has seen that the document is named
                assert time.monotonic() < until
                time.sleep(0.001)
            with contextlib.closing(sqlite3.connect(core.layout.database)) as another, another:
                another.execute("PRAGMA foreign_keys=ON")
                assert garbage.forget(another, garbage.lease_end(another, lease.id))
        finally:
            turn.release()
            sweeper.join(LONG)
    verbs.collect_idle()
    assert not file.exists()


# A sweeper of the parent's is at work while it forks; the child removes an image, and what it forgets goes.
FORK = """if True:
    import os, sys, threading
    import orlop
    from orlop.observe import watch_points

    store = orlop.open(sys.argv[1], sys.argv[2])
    core = store.verbs._core
    inside, leave = threading.Event(), threading.Event()

    def hold(point):
        if point == "trash.deleted" and not inside.is_set():
            inside.set()
            leave.wait(60)

    with watch_points(hold):
        store.unpin("last")
        inside.wait(60)
        child = os.fork()
        if child == 0:
            try:
                store.unpin("other")
                store.remove("localhost/one")
                core.sweeper.close()
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitpid(child, os.WNOHANG)
        for _ in range(600):
            if ended[0]:
                break
            threading.Event().wait(0.05)
            ended = os.waitpid(child, os.WNOHANG)
        else:
            os.kill(child, 9)
            ended = os.waitpid(child, 0)
        leave.set()
    store.close()
    sys.exit(ended[1])
"""


def test_a_forked_child_deletes_though_its_parents_sweeper_was_at_work(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    load("one", make(1000))
    for pin in ("last", "other"):
        store.pin(load(pin, make(1000)), pin)
        store.remove(f"localhost/{pin}")
    command = [sys.executable, "-W", "ignore", "-c", FORK, store_dirs.root, store_dirs.run]
    done = subprocess.run(command, capture_output=True, timeout=LONG, check=False)
    assert done.returncode == 0, done.stderr
    assert os.listdir(store_dirs.root / "layers") == os.listdir(store_dirs.root / "trash") == []


def test_a_root_that_is_being_cleaned_up_is_not_taken_for_a_lost_one(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    name, path = load("one", make(1000)), store_dirs.root.parent / "path"
    core, prepared = verbs._core, store_dirs.root / "prepared"
    seen: list[str] = []

    def prepare_and_write(point: str) -> None:
        if point == "root.made" and not seen:  # a collection begins: it lists a folder without a row
            seen.extend(os.listdir(prepared))

    with watch_points(prepare_and_write):
        store.prepare(name, path)
    upper = prepared / seen[0] / "upper"
    (upper / "written").write_bytes(b"x")
    taken: list[object] = []

    def collect(point: str) -> None:
        if point == "root.forgotten" and not taken:  # and comes to it now
            taken.append(_take_root(core, prepared / seen[0], Call(), True))

    with watch_points(collect):
        store.get(path).cleanup()
    assert taken == [None]
    store.collect()
    assert os.listdir(prepared) == []


# ------------------------------------------------------------------ leases


def test_a_lease_says_what_it_is_for_and_whose_it_is(
    store: orlop.Store, verbs: LocalStore, memory: MemoryRegistry
) -> None:
    image = make(200_000)
    name = add(memory, "slow", image)
    blob = next(one for one in image.blobs if one != image.id)
    hold = Fault(path=f"/blobs/{blob}", hold_after=1000, times=1)
    memory.misbehave(hold)
    fetching = threading.Event()
    kept: list[str] = []

    def watch(point: str) -> None:
        if point == "document.named":
            kept.append(point)
        if len(kept) == 2:  # config and manifest, while the layer is held up
            fetching.set()

    with watch_points(watch), ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(store.pull, name)
        try:
            assert fetching.wait(LONG)
            found = verbs._core.db.read(lambda tx: tx.execute("SELECT what, pid FROM leases").fetchall())
            assert [tuple(row) for row in found] == [(f"pull {name}", os.getpid())]
            assert verbs.collect_idle().items == ()
        finally:
            hold.release.set()
        pulling.result(LONG)
    assert verbs._core.db.read(garbage.lease_ids) == []


def test_what_a_failed_pull_has_brought_waits_for_the_next_try_until_a_collection(
    store: orlop.Store, verbs: LocalStore, memory: MemoryRegistry
) -> None:
    image = make(50_000, 60_000)
    name = add(memory, "half", image)
    blobs = [one for one in image.blobs if one != image.id]
    first = DiffID(image.diff_ids[0])
    for after in ("another try", "a collection"):
        memory.behave()
        memory.misbehave(Fault(path=f"/blobs/{blobs[1]}", status=404))
        with pytest.raises(Error):
            store.pull(name)
        rows = verbs._core.db.read(lambda tx: layers.get_layer(tx, first))
        assert rows is None or verbs._core.layers.tar(first).exists()
        memory.behave()
        if after == "another try":
            store.pull(name)
            assert whole(verbs, image.diff_ids)
            store.remove(name)
        else:
            verbs.collect_idle()
            assert os.listdir(verbs.root / "layers") == []
    assert verbs._core.db.read(garbage.lease_ids) == []


def test_what_lacked_room_gives_back_what_it_took_at_once(store: orlop.Store, verbs: LocalStore) -> None:
    core = verbs._core
    document = Digest.of(b"taken")

    def work() -> None:
        with core.lease("test") as lease:
            core.write_document(document, b"taken", lease=lease, call=Call())
            raise ResourceExhausted("test", "the disk is full")

    with pytest.raises(ResourceExhausted):
        work()
    assert not core.db.read(lambda tx: layers.has_blob(tx, document))
    core.sweeper.close()  # waits for what is deleted behind the call
    assert not core.blobs.has(document)


def test_a_prepare_that_lost_its_image_once_keeps_it_the_next_time(
    store: orlop.Store, verbs: LocalStore, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    name = add(memory, "contended", make(1000))
    tries: list[str] = []

    def remove_meanwhile(point: str) -> None:
        if point == "root.made":
            tries.append(point)
            store.remove(name)

    with watch_points(remove_meanwhile), store.prepare(name, store_dirs.work / "a"):
        assert len(tries) == 2
        assert store.images() == []
    assert verbs._core.db.read(garbage.lease_ids) == []


# ------------------------------------------------------------------ pins


def test_a_pin_keeps_a_thing_whatever_happens_to_its_names(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    image = make(10_000, 20_000)
    name = load("one", image)
    with store.prepare(name, store_dirs.work / "a", driver="erofs") as root:
        assert root.info.driver == "erofs"
    chain = (store_dirs.root / "chains").glob("*.erofs").__next__().stem
    pinned = store.pin(name, "whole")
    assert (pinned.name, pinned.kind, pinned.ref, pinned.expires) == ("whole", "image", image.id, None)
    store.remove(name)
    assert store.collect().items == ()
    assert whole(verbs, image.diff_ids)
    layer = store.pin(f"layer {image.diff_ids[0]}")
    assert layer.name.startswith("pin-")
    store.pin(f"chain {chain}", "chained")
    assert [pin.name for pin in store.pins()] == sorted(["chained", layer.name, "whole"])
    store.unpin("whole")  # the chain needs both layers, and nothing the documents
    store.collect()
    assert whole(verbs, image.diff_ids)
    assert os.listdir(store_dirs.root / "content/blobs/sha256") == []
    store.unpin("chained")
    store.collect()
    assert os.listdir(store_dirs.root / "layers") == [image.diff_ids[0].partition(":")[2]]
    store.unpin(layer.name)
    store.collect()
    assert os.listdir(store_dirs.root / "layers") == []
    with pytest.raises(NotFound):
        store.unpin(layer.name)


def test_a_pin_moves_and_expires(store: orlop.Store, verbs: LocalStore, load: Callable[..., str]) -> None:
    one, two = make(1000), make(2000)
    names = load("one", one), load("two", two)
    store.pin(names[0], "mine", expires=time.time() + 3600)
    store.remove(names[0])
    store.pin(names[1], "mine", expires=time.time() + 3600)  # now nothing keeps the first
    assert [pin.ref for pin in store.pins()] == [two.id]
    store.collect()
    assert verbs._core.db.read(lambda tx: layers.get_layer(tx, DiffID(one.diff_ids[0]))) is None
    store.remove(names[1])
    verbs._core.db.write(lambda tx: tx.execute("UPDATE pins SET expires_at = 1"))
    assert store.pins() == []
    with pytest.raises(NotFound):
        store.unpin("mine")
    assert {item.partition(" ")[0] for item, _ in verbs.collect_idle().items} == {"layer", "blob"}
    assert verbs._core.db.read(lambda tx: pins.get_pin(tx, "default", "mine")) is None


@pytest.mark.parametrize(
    ("thing", "name", "expires", "error"),
    [
        ("localhost/missing", None, None, NotFound),
        ("layer sha256:" + "0" * 64, None, None, NotFound),
        ("localhost/one", "", None, InvalidArgument),
        ("localhost/one", "two\nlines", None, InvalidArgument),
        ("localhost/one", None, 1.0, InvalidArgument),
        ("localhost/one", None, float("nan"), InvalidArgument),
        ("localhost/one", None, 6e14, InvalidArgument),  # no date has that time
        ("pin other", None, None, InvalidArgument),
    ],
)
def test_what_cannot_be_pinned_is_refused(
    store: orlop.Store,
    load: Callable[..., str],
    thing: str,
    name: str | None,
    expires: float | None,
    error: type[Error],
) -> None:
    load("one", make(100))
    store.pin("localhost/one", "other")
    with pytest.raises(error):
        store.pin(thing, name, expires=expires)
    assert [pin.name for pin in store.pins()] == ["other"]


# ------------------------------------------------------------------ when nobody asks


def test_an_idle_daemon_collects_what_ended_by_itself(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    image = make(1000)
    store.pin(load("one", image), "mine", expires=time.time() + 3600)
    store.remove("localhost/one")
    layer = verbs._core.layers.path(DiffID(image.diff_ids[0]))
    with Daemon(verbs, f"unix://{store_dirs.run}/d/s.sock", idle_every=0.02):
        assert layer.exists()
        verbs._core.db.write(lambda tx: tx.execute("UPDATE pins SET expires_at = 1"))
        until = time.monotonic() + LONG
        while layer.exists() and time.monotonic() < until:
            time.sleep(0.01)
    assert not layer.exists()
    assert store.collect().items == ()


# ------------------------------------------------------------------ others make what one deletes

WORKER = """
import hashlib, random, sys
import orlop
from orlop.spec.digest import DiffID
root, run, host, layout, seed, rounds = sys.argv[1:]
dice = random.Random(seed)
settings = orlop.Settings(insecure_registries=(host,))
with orlop.open(root, run, settings=settings) as store:
    core = store.verbs._core
    mine = f"localhost/mine-{seed}"
    def whole(name):
        found = [layer.diff_id for layer in store.inspect(name).layers]
        assert len(found) == 3, found
        for one in found:
            bytes_ = core.layers.tar(DiffID(one)).read_bytes()
            assert "sha256:" + hashlib.sha256(bytes_).hexdigest() == one, (name, one)
            core.layers.load_index(DiffID(one))
    for turn in range(int(rounds)):
        # Nobody else removes this name, so what it means is whole until it is removed here.
        if dice.random() < 0.5:
            store.load(layout, name=mine)
        else:
            store.pull(f"{host}/contended-{seed}:v1")
            store.tag(f"{host}/contended-{seed}:v1", mine)
        whole(mine)
        if dice.random() < 0.3:
            path = f"{root}-roots-{seed}-{turn}"
            prepared = store.prepare(mine, path, pull="never")
            if dice.random() < 0.5:
                store.remove(mine)
                store.load(layout, name=mine)
            prepared.cleanup()
            whole(mine)
        # This one everybody removes: it may be gone, but is never there in part.
        shared = f"{host}/contended:v1"
        store.pull(shared)
        try:
            whole(shared)
        except (orlop.NotFound, FileNotFoundError):
            pass
        for name in (mine, f"{host}/contended-{seed}:v1", shared):
            try:
                store.remove(name)
            except orlop.NotFound:
                pass
        if dice.random() < 0.5:
            store.collect()
"""


def contend(
    dirs: StoreDirs, memory: MemoryRegistry, workdir: Path, *, processes: int, rounds: int, first: int = 0
) -> None:
    image = make(20_000, 30_000, base=b"contended")
    layout = images.write_layout(workdir / f"contended-{first}", {"latest": image})
    add(memory, "contended", image)
    seeds = range(first, first + processes)
    for seed in seeds:
        add(memory, f"contended-{seed}", image)
    running: list[tuple[subprocess.Popen[bytes], Path]] = []
    try:
        for seed in seeds:
            said = workdir / f"said-{seed}"
            arguments = [dirs.root, dirs.run, memory.host, layout, seed, rounds]
            with said.open("wb") as file:
                command = [sys.executable, "-c", WORKER, *map(str, arguments)]
                running.append((subprocess.Popen(command, stdout=file, stderr=file), said))
        for process, said in running:
            assert process.wait(240) == 0, said.read_text()[-3000:]
    finally:
        for process, _ in running:
            process.kill()
            process.wait()


def assert_empty(store: orlop.Store, root: Path) -> None:
    store.collect()
    assert store.images() == []
    assert store.collect(dry_run=True).items == ()
    for folder in ("layers", "chains", "folders", "trash", "content/blobs/sha256"):
        assert os.listdir(root / folder) == [], folder


def test_a_pull_is_whole_while_others_remove_and_collect_its_layers(
    store: orlop.Store, memory: MemoryRegistry, store_dirs: StoreDirs, workdir: Path
) -> None:
    contend(store_dirs, memory, workdir, processes=3, rounds=5)
    assert_empty(store, store_dirs.root)


@pytest.mark.soak
def test_a_pull_is_whole_for_long_while_others_remove_and_collect_its_layers(
    store: orlop.Store, memory: MemoryRegistry, store_dirs: StoreDirs, workdir: Path, soak_seconds: float
) -> None:
    until = time.monotonic() + soak_seconds
    first = 0
    while time.monotonic() < until:
        contend(store_dirs, memory, workdir, processes=6, rounds=10, first=first)
        assert_empty(store, store_dirs.root)
        first += 6
    print(f"{first} processes, each 10 rounds")  # noqa: T201 - the count of trials
