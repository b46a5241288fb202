"""Forks and checkpoints of prepared roots, on the real kernel, under every driver."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import DRIVERS, Driver
from orlop.observe import Call, CancelToken
from orlop.testing.crashes import recording
from support import disks, images
from support.layers import Layer
from support.trees import Entry, differences, snapshot

pytestmark = pytest.mark.root

every_driver = pytest.mark.parametrize("driver", DRIVERS)
one_driver = pytest.mark.parametrize("driver", ["erofs"])
two_drivers = pytest.mark.parametrize("driver", ["erofs", "native"])  # overlay's uppers are as erofs's


def load(store: orlop.Store, workdir: Path) -> str:
    one = (
        Layer()
        .folder("etc", mode=0o750, uid=7)
        .file("etc/motd", b"hello\n", uid=5, gid=6)
        .file("bin/tool", b"x" * 30_000, mode=0o755)
        .hardlink("bin/same", to="bin/tool")
        .folder("var")
        .folder("var/deep")
        .file("var/deep/one", b"1")
        .file("var/deep/two", b"2")
        .symlink("latest", "etc/motd")
    )
    two = Layer().file("etc/new", b"n", xattrs={"user.a": b"b"}).whiteout("var/deep/two")
    layout = images.write_layout(workdir / "layout", {"latest": images.make_image([one.tar(), two.tar()])})
    return store.load(layout, name="localhost/base").pop().name


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    return load(store, workdir)


def scribble(top: Path) -> None:
    """Changes of every kind."""
    (top / "etc/motd").write_text("changed\n")
    (top / "bin/same").unlink()
    os.chmod(top / "bin/tool", 0o4711)
    shutil.rmtree(top / "var")
    (top / "var").mkdir()
    (top / "var/fresh").write_bytes(b"fresh" * 1000)
    os.link(top / "var/fresh", top / "var/twin")
    os.mkfifo(top / "var/pipe")
    os.mknod(top / "var/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(top / "var/fresh", "user.x", b"y" * 200)
    os.chown(top / "etc/new", 1000, 2000)
    (top / "latest").unlink()
    (top / "latest").mkdir()
    os.symlink("../etc", top / "latest" / os.fsdecode(b"n\xff\xc3\xa4"))
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(700_000)
        file.write(b"data")
    os.utime(top / "var/fresh", ns=(1, 123_456_789))


def folders(store: orlop.Store, kind: str) -> list[str]:
    for one in store.verbs._core.behind:  # type: ignore[attr-defined]  # it is one of this process
        one.rest()  # folders that wait for a root, or for their end
    return sorted(os.listdir(Path(store.info().root) / kind))


class _Stopping:
    """Gives a call up as soon as a source is read."""

    def __init__(self, token: CancelToken) -> None:
        self._token = token

    def progress(self, event: orlop.Progress) -> None:
        if event.phase == "reading":
            self._token.cancel()

    def warning(self, text: str) -> None:
        pass


def tree_of(store: orlop.Store, name: str, place: Path) -> dict[bytes, object]:
    with store.prepare(name, place, view=True, mount=True):
        return dict(snapshot(place))


# ------------------------------------------------------------------ forks


@every_driver
def test_forks_show_what_the_source_shows_and_each_goes_its_own_way(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    work = store_dirs.work
    source = store.prepare(image, work / "a", driver=driver, mount=True, labels={"a": "1", "b": "2"})
    scribble(work / "a")
    before = snapshot(work / "a")
    hits: list[str] = []
    with recording(hits):
        one, two, three = source.fork(work / "f1", work / "f2", work / "f3", mount=True, labels={"b": "3"})
    assert hits.count("commit.written") == 1  # captured once
    for fork in (one, two, three):
        assert differences(before, snapshot(Path(fork.path))) == []
        assert (fork.info.driver, fork.info.labels, fork.info.image) == (driver, {"a": "1", "b": "3"}, image)
        assert fork.info.mounted
    assert differences(before, snapshot(work / "a")) == []
    assert store.get(work / "a").info.image_id == source.info.image_id

    # each is a root of its own
    shutil.rmtree(work / "f1/var")
    (work / "f2/mine").write_text("two")
    (work / "a/etc/motd").write_text("and again\n")
    assert differences(before, snapshot(work / "f3")) == []
    assert (work / "f2/etc/motd").read_text() == "changed\n"
    assert not (work / "f3/mine").exists()

    # what is committed of a fork is what it shows; a fork of a fork has it all
    committed = tree_of(store, two.commit("localhost/two").name, work / "view")
    assert differences(snapshot(work / "f2"), committed) == []
    (nested,) = store.fork(work / "f2", work / "f4", mount=True)
    assert differences(snapshot(work / "f2"), snapshot(work / "f4")) == []

    # the source may go, and the image's names
    source.cleanup()
    nested.cleanup()
    store.remove("localhost/two")
    store.remove(image)
    store.collect()
    assert differences(before, snapshot(work / "f3")) == []
    three.unmount()
    three.mount()
    assert differences(before, snapshot(work / "f3")) == []
    assert store.check(full=True).findings == ()
    for root in store.prepared():
        store.get(root.path).cleanup()
    store.collect()
    for kind in ("layers", "chains", "folders", "prepared", "trash"):
        assert folders(store, kind) == []
    assert folders(store, "content/blobs/sha256") == []


@one_driver
def test_a_source_is_captured_again_only_when_something_has_changed(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    work = store_dirs.work
    source = store.prepare(image, work / "a", driver=driver, mount=True)
    (work / "a/file").write_text("0")

    def read(top: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in top.glob("file*")}

    def forked(name: str) -> int:
        hits: list[str] = []
        with recording(hits):
            fork = source.fork(work / name, mount=True)[0]
        assert read(work / name) == read(work / "a")
        fork.cleanup()
        return hits.count("commit.written")

    keeper = source.fork(work / "keeper")[0]  # what nobody needs is collected
    assert forked("f") == 0
    for number in range(1, 4):  # right away, of the same size: the clock may not have moved on
        (work / "a/file").write_text(str(number))
        assert forked(f"f{number}") == 1
    keeper.cleanup()
    os.chmod(work / "a/file", 0o600)
    source.fork(work / "keeper")
    assert forked("g") == 0
    os.rename(work / "a/file", work / "a/file2")
    assert forked("h") == 1
    source.unmount()
    (fork,) = source.fork(work / "i", mount=True)
    assert (work / "i/file2").read_text() == "3"
    fork.cleanup()


@one_driver
def test_a_capture_is_not_remembered_while_a_file_is_open_for_writing(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    """A page that is dirty is written to without a further ctime."""
    work = store_dirs.work
    source = store.prepare(image, work / "a", driver=driver, mount=True)
    (work / "a/file").write_bytes(b"0" * 4096)
    with (work / "a/file").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        memory[0] = ord("1")
        for number in range(2, 4):
            memory[0] = ord(str(number))
            fork = source.fork(work / f"f{number}", mount=True)[0]
            assert (Path(fork.path) / "file").read_bytes()[:1] == str(number).encode()


@one_driver
def test_a_root_that_is_written_to_meanwhile_can_be_forked(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    """Or is refused for that; and the last fork, of a root at rest, is equal to it."""
    work = store_dirs.work
    source = store.prepare(image, work / "a", driver=driver, mount=True)
    end = threading.Event()

    def write() -> None:
        number = 0
        while not end.is_set():
            number += 1
            (work / f"a/{number % 7}").write_text(f"{number:06}")
            end.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            with contextlib.suppress(orlop.FailedPrecondition):  # it may say that it changed meanwhile
                source.fork(work / f"f{number}", mount=True)
    finally:
        end.set()
        writer.join()
    source.fork(work / "last", mount=True)
    assert differences(snapshot(work / "a"), snapshot(work / "last")) == []


def test_all_forks_of_a_call_appear_or_none(store: orlop.Store, image: str, store_dirs: StoreDirs) -> None:
    work = store_dirs.work
    source = store.prepare(image, work / "a", mount=True)
    (work / "a/file").write_text("a")
    store.prepare(image, work / "taken")
    before = [root.path for root in store.prepared()]
    there = folders(store, "prepared")
    (work / "plain").write_text("a file: nothing can be mounted on it")

    def refused(kind: type[orlop.Error], *paths: Path | str, **options: bool) -> None:
        with pytest.raises(kind):
            source.fork(*paths, **options)  # type: ignore[arg-type]  # as people do
        assert [root.path for root in store.prepared()] == before
        assert folders(store, "prepared") == there
        assert (work / "a/file").read_text() == "a"  # the source is what it was, mounted

    refused(orlop.AlreadyExists, work / "new", work / "taken")
    refused(orlop.AlreadyExists, work / "a")
    refused(orlop.InvalidArgument)
    refused(orlop.InvalidArgument, work / "new", work / "new")
    refused(orlop.InvalidArgument, "relative")
    refused(orlop.InvalidArgument, store_dirs.root / "inside")
    refused(orlop.NotFound, work / "new", work / "absent/new", mount=True)
    for move in (False, True):
        refused(orlop.Error, work / "new", work / "plain", mount=True, move=move)
    refused(orlop.AlreadyExists, work / "taken", move=True)
    call = Call()
    call = replace(call, observer=_Stopping(call.cancel))  # once it is unmounted
    with pytest.raises(orlop.Cancelled):
        source.fork(work / "new", work / "more", move=True, call=call)
    assert (work / "a/file").read_text() == "a"
    assert [root.path for root in store.prepared()] == before
    view = store.prepare(image, work / "view", view=True)
    with pytest.raises(orlop.FailedPrecondition, match="read-only view"):
        view.fork(work / "new")
    with pytest.raises(orlop.FailedPrecondition, match="read-only view"):
        view.checkpoint("one")
    with pytest.raises(orlop.NotFound):
        store.verbs.fork(str(work / "absent"), [str(work / "new")])


@two_drivers
def test_a_source_that_is_given_up_is_the_first_of_its_forks(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    work = store_dirs.work
    source = store.prepare(image, work / "a", driver=driver, mount=True, labels={"a": "1"})
    scribble(work / "a")
    before = snapshot(work / "a")
    held = os.open(work / "a/etc", os.O_RDONLY)
    try:
        with pytest.raises(orlop.FailedPrecondition, match="in use"):
            source.fork(work / "b", move=True)
        assert differences(before, snapshot(work / "a")) == []
    finally:
        os.close(held)
    uppers = {path: os.stat(path).st_ino for path in (store_dirs.root / "prepared").glob("*/*")}
    hits: list[str] = []
    with recording(hits):
        (moved,) = source.fork(work / "b", move=True, mount=True, labels={"b": "2"})
    assert "commit.written" not in hits  # no byte is copied
    assert {path: os.stat(path).st_ino for path in (store_dirs.root / "prepared").glob("*/*")} == uppers
    assert [root.path for root in store.prepared()] == [str(work / "b")]
    assert (source.path, moved.info.labels) == (str(work / "b"), {"a": "1", "b": "2"})
    assert differences(before, snapshot(work / "b")) == []
    assert not (work / "a").exists()

    moved.checkpoint("kept")
    several = moved.fork(work / "c", work / "d", work / "e", move=True, mount=True)
    assert [Path(fork.path).name for fork in several] == ["c", "d", "e"]
    assert [root.path for root in store.prepared()] == [str(work / name) for name in "cde"]
    for fork in several:
        assert differences(before, snapshot(Path(fork.path))) == []
    assert [point.name for point in several[0].checkpoints()] == ["kept"]
    assert several[1].checkpoints() == []


def test_forks_have_quota_id_maps_and_mounts_of_the_source(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    work = store_dirs.work
    maps = (orlop.IdMap(inside=0, outside=300_000, size=65_536),)
    extra = (orlop.ExtraMount(type="tmpfs", target="/scratch/deep", options=("size=64k",)),)
    source = store.prepare(
        image, work / "a", quota=8 << 20, uid_map=maps, gid_map=maps, extra=extra, mount=True
    )
    (work / "a/file").write_text("a")
    os.chown(work / "a/file", 300_007, 300_008)
    before = snapshot(work / "a")
    for fork in source.fork(work / "b", work / "c", mount=True):
        scratch = {b"scratch/deep"}  # a new tmpfs each
        assert differences(before, snapshot(Path(fork.path)), ignore_mtime_of=scratch) == []
        assert (fork.info.quota, fork.info.uid_map, fork.info.gid_map) == (8 << 20, maps, maps)
        assert len(fork.mounts) == 2
        with pytest.raises(OSError, match="No space left"):
            (Path(fork.path) / "big").write_bytes(bytes(12 << 20))
    source.checkpoint("one")
    (work / "a/file").unlink()
    source.rollback("one")
    assert differences(before, snapshot(work / "a"), ignore_mtime_of=scratch) == []
    assert os.path.ismount(work / "a/scratch/deep")


def test_many_forks_take_the_disk_of_one_capture(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    work = store_dirs.work
    source = store.prepare(image, work / "a", mount=True)
    (work / "a/data").write_bytes(random.Random(1).randbytes(10 << 20))
    before = used(store_dirs.root)
    forks = source.fork(*(work / f"f{number}" for number in range(30)))
    assert used(store_dirs.root) - before < 12_000_000  # a hundred: below 15
    first, last = forks[0].mount(), forks[-1].mount()
    assert differences(snapshot(work / "a"), snapshot(Path(first.path))) == []
    assert differences(snapshot(work / "a"), snapshot(Path(last.path))) == []


def used(folder: Path) -> int:
    done = subprocess.run(
        ["du", "--summarize", "--block-size=1", folder], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[0])


@pytest.mark.parametrize("seed", range(2))
def test_forks_and_rollbacks_of_random_changes_show_the_same_tree(
    store: orlop.Store, image: str, store_dirs: StoreDirs, seed: int
) -> None:
    play(store, image, store_dirs.work, seed, rounds=2)


@pytest.mark.soak
def test_forks_and_rollbacks_of_random_changes_show_the_same_tree_for_long(
    store: orlop.Store, image: str, store_dirs: StoreDirs, soak_seconds: float
) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    end = time.monotonic() + soak_seconds
    while time.monotonic() < end:
        try:
            play(store, image, store_dirs.work, seed, rounds=6)
        except BaseException:
            print(f"SEED={seed}")  # noqa: T201
            raise
        for root in store.prepared():
            store.get(root.path).cleanup()
        seed += 1


def play(store: orlop.Store, image: str, work: Path, seed: int, *, rounds: int) -> None:
    """Change, fork and go back, under a driver that the seed chooses."""
    dice = random.Random(seed)
    source = store.prepare(image, work / "0", driver=DRIVERS[seed % len(DRIVERS)], mount=True)
    kept: dict[str, dict[bytes, Entry]] = {}
    for number in range(rounds):
        mess(Path(source.path), dice)
        kept[f"p{number}"] = unlinked(Path(source.path))
        source.checkpoint(f"p{number}")
        (fork,) = source.fork(work / f"{number + 1}", mount=True)
        assert differences(kept[f"p{number}"], unlinked(Path(fork.path))) == []
        if dice.random() < 0.3:
            source, kept = fork, {}
    for name in dice.sample(sorted(kept), len(kept)):
        source.rollback(name)
        assert differences(kept[name], unlinked(Path(source.path))) == []


def unlinked(top: Path) -> dict[bytes, Entry]:
    """A tree without what overlayfs changes when it copies one of a file's several names up."""
    return {path: replace(entry, links=None, twins=()) for path, entry in snapshot(top).items()}


def mess(top: Path, dice: random.Random) -> None:
    """Some random changes below a folder."""
    for number in range(25):
        places = sorted(path for path in top.rglob("*") if not path.is_symlink())
        found = dice.choice(places) if places else top
        parents = [path for path in [top, *places] if path.is_dir()]
        new = dice.choice(parents) / f"n{number}-{dice.getrandbits(40)}"
        what = dice.randrange(8)
        if what == 0 and found.is_dir():
            shutil.rmtree(found)
            if dice.random() < 0.5:
                found.mkdir()
        elif what == 1:
            new.mkdir()
        elif what == 2:
            os.symlink("somewhere", new)
        elif what == 3 and found.is_file():
            os.link(found, new)
        elif what == 4 and found.is_file():
            found.unlink()
        elif what == 5 and found.is_file():
            os.rename(found, new)
        elif what == 6:
            os.chmod(found, 0o755 if found.is_dir() else dice.choice([0o600, 0o4755]))
        else:
            new.write_bytes(dice.randbytes(dice.choice([0, 10, 5000])))


_FORKER = """
import sys, orlop
root, run, source, *paths = sys.argv[1:]
with orlop.open(root, run) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    made = 0
    for path in paths:
        try:
            made += len(store.get(source).fork(path + "-1", path + "-2"))
        except orlop.AlreadyExists:
            pass
    print(made)
"""


def test_processes_that_fork_one_source_at_once_share_a_capture(
    store: orlop.Store, image: str, store_dirs: StoreDirs, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    work = store_dirs.work
    store.prepare(image, work / "a", mount=True)
    (work / "a/file").write_text("a" * 10_000)
    layers = len(folders(store, "layers"))
    shared = [str(work / f"s{number}") for number in range(4)]
    workers = [
        spawn(_FORKER, store_dirs.root, store_dirs.run, work / "a", *shared, work / f"own{number}")
        for number in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    answers = [worker.communicate("go\n", timeout=60)[0] for worker in workers]
    assert sum(map(int, answers)) == 2 * (4 + 3)  # of the shared paths each pair was made once
    assert len(folders(store, "layers")) == layers + 1
    assert len(store.prepared()) == 1 + 14
    store.get(work / "own2-2").mount()
    assert differences(snapshot(work / "a"), snapshot(work / "own2-2")) == []


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs, which end with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        running.append(started)
        return started

    yield start
    for process in running:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------ checkpoints


@every_driver
def test_a_root_goes_back_to_what_it_was_and_forth(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    place = store_dirs.work / "a"
    root = store.prepare(image, place, driver=driver, mount=True, labels={"a": "1"})
    shown = {"zero": snapshot(place)}
    root.checkpoint("zero")
    scribble(place)
    shown["one"] = snapshot(place)
    assert root.checkpoint("one").size > 0
    (place / "more").write_text("more")
    shown["two"] = snapshot(place)
    root.checkpoint("two")
    (place / "lost").write_text("lost")
    assert [point.name for point in root.checkpoints()] == ["zero", "one", "two"]
    with pytest.raises(orlop.AlreadyExists):
        root.checkpoint("one")

    for name in ("one", "two", "zero", "two"):
        root.rollback(name)
        assert (root.info.mounted, root.info.labels) == (True, {"a": "1"})
        assert differences(shown[name], snapshot(place)) == []
        assert [point.name for point in root.checkpoints()] == ["zero", "one", "two"]
    assert len(folders(store, "prepared")) == 1
    assert store.check(full=True).clean

    # what is written after a rollback is committed with what was there
    (place / "after").write_text("after")
    committed = tree_of(store, root.commit("localhost/after").name, store_dirs.work / "view")
    assert differences(snapshot(place), committed) == []

    # they keep what they need, and no more
    store.remove("localhost/after")
    store.remove(image)
    store.collect()
    root.drop_checkpoint("zero")
    root.drop_checkpoint("one")
    store.collect()
    root.unmount()
    root.rollback("two")
    assert not root.info.mounted
    root.mount()
    assert differences(shown["two"], snapshot(place)) == []
    root.cleanup()
    store.collect()
    for kind in ("layers", "chains", "folders", "prepared", "content/blobs/sha256"):
        assert folders(store, kind) == []


@two_drivers
def test_a_root_in_use_is_not_rolled_back(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    place = store_dirs.work / "a"
    root = store.prepare(image, place, driver=driver, mount=True)
    root.checkpoint("one")
    (place / "file").write_text("kept")
    before, there = snapshot(place), folders(store, "prepared")
    held = os.open(place / "file", os.O_RDONLY)
    try:
        with pytest.raises(orlop.FailedPrecondition, match="in use"):
            root.rollback("one")
        assert differences(before, snapshot(place)) == []
        assert folders(store, "prepared") == there
    finally:
        os.close(held)
    with pytest.raises(orlop.NotFound, match="no checkpoint two"):
        root.rollback("two")
    with pytest.raises(orlop.NotFound, match="no checkpoint two"):
        root.drop_checkpoint("two")
    for name in ("", ".", "a/b", "-x", "a b", "x" * 129):
        with pytest.raises(orlop.InvalidArgument):
            root.checkpoint(name)
    root.rollback("one")
    assert not (place / "file").exists()


def test_what_a_checkpoint_keeps_is_explained_and_counted(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    place = store_dirs.work / "a"
    root = store.prepare(image, place, mount=True)
    (place / "data").write_bytes(random.Random(2).randbytes(300_000))
    point = root.checkpoint("one")
    (place / "data").unlink()
    told = store.explain(point.image_id)
    assert [(reason.kind, reason.name, reason.note) for reason in told.kept_by] == [
        ("root", str(place), "its checkpoint one")
    ]
    parts = {part.kind: part for part in store.explain(str(place)).parts}
    assert "layer" in parts
    assert store.explain(str(place)).frees > 300_000
    assert store.collect().items == ()
    root.drop_checkpoint("one")
    store.collect()
    with pytest.raises(orlop.NotFound):
        store.explain(point.image_id)


def test_the_command_line_forks_and_goes_back(
    store: orlop.Store,
    image: str,
    store_dirs: StoreDirs,
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    work = store_dirs.work
    store.prepare(image, work / "a", mount=True)
    (work / "a/file").write_text("one")
    done = run_cli("fork", "--mount", "--label", "try=1", work / "a", work / "b", work / "c", check=True)
    assert done.stdout == f"{work}/b\n{work}/c\n"
    assert (work / "c/file").read_text() == "one"
    assert run_cli("checkpoint", work / "a", "one", check=True).stdout == "one\n"
    (work / "a/file").write_text("two")
    assert run_cli("checkpoint", "rollback", work / "a", "one", check=True).stdout == f"{work}/a\n"
    assert (work / "a/file").read_text() == "one"


# ------------------------------------------------------------------ where the file system shares blocks


def test_native_forks_share_blocks_where_the_file_system_can() -> None:
    with disks.scratch_folder() as folder:
        disk, place = folder / "disk.img", folder / "disk"
        with disk.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run(["mkfs.btrfs", "-q", disk], check=True)
        place.mkdir()
        subprocess.run(["mount", "-o", "loop", disk, place], check=True)
        with orlop.open(place / "root", place / "run", settings=orlop.Settings(driver="native")) as store:
            root = store.prepare(load(store, place), place / "a")
            (Path(root.folder or "") / "data").write_bytes(random.Random(3).randbytes(10 << 20))
            root.fork(place / "first")
            before = taken(place)
            forks = root.fork(*(place / f"f{number}" for number in range(4)))
            assert taken(place) - before < 20 << 20  # four copies would be 40
            trees = [snapshot(Path(one.folder or "")) for one in (root, forks[3])]
            assert differences(*trees) == []
            for found in store.prepared():
                store.get(found.path).cleanup()


def taken(disk: Path) -> int:
    subprocess.run(["sync", "-f", disk], check=True)
    about = os.statvfs(disk)
    return (about.f_blocks - about.f_bfree) * about.f_frsize
