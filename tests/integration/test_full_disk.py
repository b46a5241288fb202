"""A full disk and I/O errors, at any write: a clear error, nothing kept that was taken, all else goes on.

HOSTILE.md's row 40.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.testing.registry import MemoryRegistry
from support import disks, images
from support.full import Faults, fill, free_blocks
from support.layers import Layer

pytestmark = pytest.mark.root

DRIVERS = ("erofs", "overlay", "native")
SIZE = 48 << 20
TEXT = b"all work and no play\n" * 50_000  # a megabyte that compresses to nothing


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def make(*layers: Layer) -> images.Image:
    return images.make_image([layer.tar() for layer in layers])


def serve(registry: MemoryRegistry, repository: str, image: images.Image) -> str:
    for blob in image.blobs.values():
        registry.add_blob(repository, blob)
    registry.add_manifest(repository, "v1", image.document, image.media_type)
    return f"{registry.host}/{repository}:v1"


def used(folder: Path) -> dict[str, int]:
    """All files below a folder that hold something, with their blocks; SQLite's and the locks left out."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if not name.startswith(("meta.db", "reserve")) and "locks" not in path.parts:
                found[str(path.relative_to(folder))] = path.lstat().st_blocks
    return found


def settle(disk: Path) -> None:
    """Have what was written to a disk take its blocks."""
    subprocess.run(["sync", "--file-system", os.fspath(disk)], check=True, timeout=60)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as served:
        yield served


@pytest.fixture(scope="module")
def small() -> Iterator[Path]:
    with disks.disk(size=SIZE) as mounted:
        device = mounted.stat().st_dev
        name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
        # Ext4 keeps 2 % for itself, which statvfs counts as free: here the last block is the last.
        Path(f"/sys/fs/ext4/{name}/reserved_clusters").write_text("0")
        yield mounted


@dataclass(slots=True)
class Place:
    """A store on a small disk, and a file that takes the rest of it."""

    disk: Path
    store_dirs: StoreDirs
    registry: MemoryRegistry
    driver: str = "auto"

    @property
    def root(self) -> Path:
        return self.disk / "root"

    @property
    def ballast(self) -> Path:
        return self.disk / "ballast"

    def open(self) -> orlop.Store:
        settings = orlop.Settings(insecure_registries=(self.registry.host,), driver=self.driver)
        return orlop.open(self.root, self.store_dirs.run, settings=settings)

    def leave(self, size: int) -> None:
        fill(self.ballast, leave=size)

    def make_room(self) -> None:
        self.ballast.unlink()


@pytest.fixture
def place(small: Path, store_dirs: StoreDirs, registry: MemoryRegistry) -> Iterator[Place]:
    found = Place(small, store_dirs, registry)
    yield found
    found.ballast.unlink(missing_ok=True)
    with found.open() as store:
        for root in store.prepared():
            store.get(root.path).cleanup()
    for mount in disks.mounts_below(store_dirs.run):
        subprocess.run(["umount", os.fspath(mount)], check=True, timeout=30)
    for name in os.listdir(small):
        disks.remove(small / name)


def figures(error: orlop.ResourceExhausted, place: Place) -> tuple[int, int]:
    """What it needed and what was free; the error says where."""
    assert error.details["where"] == str(place.root)
    assert str(place.root) in str(error)
    return int(error.details["needed"]), int(error.details["free"])


# ------------------------------------------------------------------ a real disk without room


@pytest.mark.hostile(40)
def test_40_a_pull_that_cannot_fit_is_refused_with_figures_before_anything_is_fetched(place: Place) -> None:
    name = serve(place.registry, "big", make(Layer().file("data", noise(6 << 20))))
    with place.open() as store:
        place.leave(4 << 20)
        before = used(place.root)
        with pytest.raises(orlop.ResourceExhausted) as caught:
            store.pull(name)
        needed, free = figures(caught.value, place)
        assert needed > 6 << 20
        assert free < 5 << 20
        config_and_manifest = place.registry.seen("GET", "/blobs/")
        assert len(config_and_manifest) == 1  # the config's
        assert used(place.root) == before
        place.make_room()
        assert store.pull(name).name == name


@pytest.mark.hostile(40)
def test_40_what_a_disk_reserves_for_root_is_no_room_for_layers(
    store_dirs: StoreDirs, registry: MemoryRegistry, workdir: Path
) -> None:
    """Workers write them, who are nobody: the figures are of what these have."""
    image = make(Layer().file("data", noise(1 << 20)))
    name, layout = serve(registry, "a", image), images.write_layout(workdir / "a", {"v1": image})
    with disks.disk(size=SIZE, reserved=50) as mounted:
        place = Place(mounted, store_dirs, registry)
        with place.open() as store:
            place.leave(16 << 20)
            before = used(place.root)
            for act in (lambda: store.pull(name), lambda: store.load(layout)):
                with pytest.raises(orlop.ResourceExhausted) as caught:
                    act()
                needed, free = figures(caught.value, place)
                assert needed > free == 0
                assert used(place.root) == before
            place.make_room()
            assert store.pull(name).name == name


@pytest.mark.hostile(40)
def test_40_a_pull_that_runs_out_of_room_gives_all_back_and_says_how_much_was_needed(place: Place) -> None:
    small_layer = Layer().file("small", noise(100_000))
    name = serve(
        place.registry, "text", make(small_layer, *(Layer().file(f"t{n}", TEXT * 4) for n in range(3)))
    )
    with place.open() as store:
        place.leave(6 << 20)
        before, free_before = used(place.root), free_blocks(place.disk)
        with pytest.raises(orlop.ResourceExhausted) as caught:
            store.pull(name)
        needed, free = figures(caught.value, place)
        assert 0 < needed < free < 7 << 20  # the bytes that the manifest tells of were there
        assert used(place.root) == before
        assert free_blocks(place.disk) > free_before - 300  # what SQLite's log has grown by
        assert store.images() == []
        place.make_room()
        store.pull(name)
        with store.prepare(name, place.store_dirs.work / "a", mount=True, pull="never"):
            assert (place.store_dirs.work / "a/t2").read_bytes() == TEXT * 4


@pytest.mark.hostile(40)
def test_40_an_import_and_a_commit_that_do_not_fit_are_refused_with_figures(
    place: Place, workdir: Path
) -> None:
    big = images.write_layout(workdir / "big", {"v1": make(Layer().file("data", noise(6 << 20)))})
    base = images.write_layout(workdir / "base", {"v1": make(Layer().file("etc/a", b"a"))})
    with place.open() as store:
        store.load(base, name="localhost/base")
        root = store.prepare("localhost/base", place.store_dirs.work / "a", mount=True)
        (place.store_dirs.work / "a/data").write_bytes(noise(6 << 20))
        settle(place.disk)
        place.leave(4 << 20)
        before = used(place.root)
        for act in (lambda: store.load(big), root.commit):
            with pytest.raises(orlop.ResourceExhausted) as caught:
                act()
            needed, free = figures(caught.value, place)
            assert needed > 6 << 20 > free
            assert used(place.root) == before
        (workdir / "tree").mkdir()
        (workdir / "tree/data").write_bytes(noise(6 << 20))
        tar = Layer().file("data", noise(6 << 20)).tar()
        for source in ([tar], [gzip.compress(tar, 1)], workdir / "tree"):
            with pytest.raises(orlop.ResourceExhausted) as caught:  # how large it is says its end alone
                store.load(source)
            assert figures(caught.value, place)
            assert used(place.root) == before
        assert figures(caught.value, place)[0] == 6 << 20  # the file that is read counts whole
        place.make_room()
        store.load(workdir / "tree", name="localhost/tree")
        store.load(big)
        assert root.commit("localhost/new").name == "localhost/new:latest"
        root.cleanup()


@pytest.mark.hostile(40)
@pytest.mark.parametrize("driver", DRIVERS)
def test_40_a_prepare_without_room_takes_none_and_can_be_done_again(
    place: Place, workdir: Path, driver: str
) -> None:
    place.driver = driver
    layers = [Layer().file(f"d{n}", noise(1 << 20, n)) for n in range(4)]
    for number in range(3000 if driver == "erofs" else 30):
        layers[0].file(f"f{number}", b"x" * 600)
    layout = images.write_layout(workdir / "layout", {"v1": make(*layers)})
    path = place.store_dirs.work / "a"
    with place.open() as store:
        store.load(layout, name="localhost/base")
        place.leave(64 << 10 if driver == "erofs" else 3 << 20)
        with pytest.raises(orlop.ResourceExhausted) as caught:
            store.prepare("localhost/base", path, mount=True)
        needed, free = figures(caught.value, place)
        assert needed > (100_000 if driver == "erofs" else 4 << 20 if driver == "native" else 1 << 19)
        assert free < 4 << 20
        assert store.prepared() == []
        assert not os.listdir(place.root / "prepared")
        assert not [name for name in os.listdir(place.root / "folders") if name.startswith("new-")]
        place.make_room()
        with store.prepare("localhost/base", path, mount=True):
            assert (path / "d3").read_bytes() == noise(1 << 20, 3)


@pytest.mark.hostile(40)
@pytest.mark.parametrize("driver", DRIVERS)
def test_40_what_is_there_can_be_read_and_deleted_without_a_free_block(
    place: Place, workdir: Path, driver: str
) -> None:
    place.driver = driver
    one, two = place.store_dirs.work / "one", place.store_dirs.work / "two"
    lower = Layer().file("etc/a", b"a" * 1000)
    for name in ("keep", "drop"):
        image = make(lower, Layer().file(name, noise(200_000, len(name))))
        layout = images.write_layout(workdir / name, {"v1": image})
        with place.open() as store:
            store.load(layout, name=f"localhost/{name}")
    with place.open() as store:
        store.prepare("localhost/keep", one, mount=True)
        (one / "etc/b").write_bytes(b"b")
        store.prepare("localhost/drop", two)
    settle(place.disk)
    place.leave(0)
    assert free_blocks(place.disk) == 0
    with place.open() as store:  # anew, so that SQLite needs its log and what its users share
        assert [image.name for image in store.images()] == ["localhost/drop:latest", "localhost/keep:latest"]
        assert (one / "keep").read_bytes() == noise(200_000, 4)
        assert store.get(one).mounts
        place.leave(0)  # nobody gave anything back but the store's own reserve
        assert store.check(full=True).sound
        store.get(two).cleanup()
        place.leave(0)
        store.remove("localhost/drop")
        place.leave(0)
        store.verbs.collect()
        assert [image.name for image in store.images()] == ["localhost/keep:latest"]
        assert [root.path for root in store.prepared()] == [str(one)]
        assert (one / "keep").read_bytes() == noise(200_000, 4)
        store.get(one).cleanup()
        assert store.remove("localhost/keep").names == ("localhost/keep:latest",)
        store.verbs.collect()
    assert not os.listdir(place.root / "prepared")
    assert not os.listdir(place.root / "layers")
    assert free_blocks(place.disk) > 0


@pytest.mark.hostile(40)
def test_40_the_reserve_comes_back_when_there_is_room(place: Place, workdir: Path) -> None:
    layout = images.write_layout(workdir / "layout", {"v1": make(Layer().file("data", noise(3 << 20)))})
    reserve = place.root / "reserve"
    with place.open() as store:
        assert reserve.stat().st_blocks * 512 >= 1 << 20
        store.load(layout, name="localhost/base")
    place.leave(0)
    with place.open() as store:
        assert reserve.stat().st_blocks * 512 > 0
        store.remove("localhost/base")
        assert reserve.stat().st_blocks * 512 >= 1 << 19


# ------------------------------------------------------------------ every system call that writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """Something to do, what must come before, and what undoes it."""

    do: Callable[[orlop.Store], object]
    before: Callable[[orlop.Store], object] = lambda store: None
    after: Callable[[orlop.Store], object] = lambda store: None


class Bench:
    """A store with one image and one root, on which verbs are done with faults."""

    def __init__(self, dirs: StoreDirs, workdir: Path, registry: MemoryRegistry, driver: str) -> None:
        self.dirs, self.driver, self.registry = dirs, driver, registry
        self.trials = self.refused = 0
        lower = Layer().file("etc/a", b"a").folder("usr")
        for number in range(5):
            lower.file(f"usr/{number}", noise(3000 * number, number))
        lower.sparse("sparse", 100_000, [(4096, b"x" * 512)], how="gnu-1.0")
        self.base = images.write_layout(workdir / "base", {"v1": make(lower)})
        self.other = images.write_layout(
            workdir / "other", {"v1": make(lower, Layer().file("o", noise(9000)))}
        )
        self.pulled = serve(
            registry, "p", make(Layer().file("p", noise(50_000)), Layer().file("q", TEXT[:9999]))
        )
        self.kept, self.path = dirs.work / "kept", dirs.work / "path"
        self.store = self.open()
        self.store.load(self.base, name="localhost/base")
        self.store.prepare("localhost/base", self.kept, mount=True)
        (self.kept / "etc/b").write_bytes(noise(5000))

    def open(self) -> orlop.Store:
        settings = orlop.Settings(insecure_registries=(self.registry.host,), driver=self.driver)
        return orlop.open(self.dirs.root, self.dirs.run, settings=settings)

    def verbs(self) -> dict[str, Verb]:
        def prepare(store: orlop.Store, **options: object) -> object:
            return store.prepare("localhost/base", self.path, pull="never", **options)

        def cleanup(store: orlop.Store) -> None:
            if any(root.path == str(self.path) for root in store.prepared()):
                store.get(self.path).cleanup()

        def remove(name: str) -> Callable[[orlop.Store], None]:
            def act(store: orlop.Store) -> None:
                if any(image.name == name for image in store.images()):
                    store.remove(name)

            return act

        def load(store: orlop.Store) -> object:
            return store.load(self.other, name="localhost/other")

        def stray(store: orlop.Store) -> None:
            for name in ("layers/new-1/layer.tar", "trash/1", "content/blobs/sha256/.tmp-1"):
                (self.dirs.root / name).parent.mkdir(exist_ok=True)
                (self.dirs.root / name).write_text("left")

        other = remove("localhost/other:latest")
        return {
            "pull": Verb(do=lambda store: store.pull(self.pulled), after=remove(self.pulled)),
            "import": Verb(do=load, after=other),
            "prepare": Verb(do=prepare, after=cleanup),
            "view": Verb(do=lambda store: prepare(store, view=True), after=cleanup),
            "commit": Verb(
                do=lambda store: store.get(self.kept).commit("localhost/new"),
                after=remove("localhost/new:latest"),
            ),
            "fork": Verb(do=lambda store: store.fork(self.kept, self.path), after=cleanup),
            "cleanup": Verb(before=prepare, do=lambda store: store.get(self.path).cleanup(), after=cleanup),
            "rmi": Verb(before=load, do=lambda store: store.remove("localhost/other"), after=other),
            "gc": Verb(before=stray, do=lambda store: store.verbs.collect()),
        }

    def state(self) -> tuple[object, ...]:
        """What is listed, and every file of the store but caches and SQLite's."""
        store = self.store
        store.verbs.collect()
        listed = sorted((image.name, image.id) for image in store.images())
        roots = sorted((root.path, root.image_id) for root in store.prepared())
        caches = ("chains/", "folders/")
        files = sorted(name for name in used(self.dirs.root) if not name.startswith((*caches, "prepared/")))
        return listed, roots, sorted(os.listdir(self.dirs.root / "prepared")), files

    def check(self, where: str) -> None:
        """Every image that is listed is whole, and what was written stays."""
        with self.open() as store:
            for image in store.images():
                for layer in store.inspect(image.name).layers:
                    tar = self.dirs.root / "layers" / layer.diff_id.partition(":")[2] / "layer.tar"
                    assert "sha256:" + hashlib.sha256(tar.read_bytes()).hexdigest() == layer.diff_id, where
        assert (self.kept / "etc/b").read_bytes() == noise(5000), where

    def calls(self, verb: Verb, number: int) -> int:
        """How many calls a verb makes that can fail so."""
        verb.before(self.store)
        with Faults(number, at=-1) as faults:
            verb.do(self.store)
        verb.after(self.store)
        return len(faults.calls)

    def trial(self, name: str, verb: Verb, number: int, at: int) -> None:
        where = f"{self.driver}: {name} with {errno.errorcode[number]} at call {at}"
        expected = orlop.ResourceExhausted if number == errno.ENOSPC else orlop.DataLoss
        store, failure = self.store, None
        verb.before(store)
        before = self.state() if name not in {"cleanup", "rmi", "gc"} else None
        with Faults(number, at=at) as faults:
            try:
                verb.do(store)
            except orlop.Error as exc:
                failure = exc
        self.trials += 1
        self.refused += failure is not None
        where += f" ({faults.failed})"
        assert failure is None or isinstance(failure, expected), f"{where}: {failure!r}"
        assert store.tag("localhost/base", "localhost/goes-on").id, where  # other verbs go on
        store.remove("localhost/goes-on")
        self.check(where)
        if number == errno.EIO:
            self.wait_a_day()
        if failure is not None and before is not None:
            assert self.state() == before, f"{where}: {failure}"
        if failure is not None and not (name in {"cleanup", "rmi"} and self.done(store, name)):
            verb.do(store)
        self.check(where)
        verb.after(store)

    def wait_a_day(self) -> None:
        """Downloads are kept so long to be gone on with, unless the disk is full."""
        for path in (self.dirs.root / "content/ingest").rglob("*"):
            os.utime(path, (time.time() - 100_000,) * 2)

    def done(self, store: orlop.Store, name: str) -> bool:
        """Whether what could not be finished is forgotten all the same."""
        if name == "rmi":
            return all(image.name != "localhost/other:latest" for image in store.images())
        return all(root.path != str(self.path) for root in store.prepared())

    def close(self) -> None:
        for root in self.store.prepared():
            self.store.get(root.path).cleanup()
        self.store.close()


@pytest.fixture
def bench(store_dirs: StoreDirs, workdir: Path, registry: MemoryRegistry) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make_bench(driver: str) -> Bench:
        made.append(Bench(store_dirs, workdir, registry, driver))
        return made[-1]

    yield make_bench
    for one in made:
        one.close()


@pytest.mark.hostile(40)
@pytest.mark.parametrize("driver", DRIVERS)
def test_40_a_write_that_fails_fails_its_verb_and_nothing_else(
    bench: Callable[[str], Bench], driver: str
) -> None:
    trials, luck = bench(driver), random.Random(40)
    for name, verb in trials.verbs().items():
        for number in (errno.ENOSPC, errno.EIO):
            calls = trials.calls(verb, number)
            for at in luck.sample(range(calls), min(calls, 4)):
                trials.trial(name, verb, number, at)
    assert trials.refused > trials.trials // 2  # the others are borne: a lease's end, a reserve


def test_a_verb_that_is_done_does_not_fail_for_a_lock_file_that_stays(bench: Callable[[str], Bench]) -> None:
    trials = bench("native")
    with Faults(errno.EIO, at=0, only=("unlink",)) as faults:
        trials.store.tag("localhost/base", "localhost/before")
        trials.store.prepare("localhost/base", trials.path)
    assert "/locks/" in faults.failed
    assert trials.store.get(trials.path).mounts
    trials.store.get(trials.path).cleanup()


@pytest.mark.hostile(40)
@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("driver", DRIVERS)
def test_every_write_that_fails(bench: Callable[[str], Bench], driver: str, soak_seconds: float) -> None:
    trials, end, count = bench(driver), time.monotonic() + soak_seconds, 0
    every = [
        (name, verb, number, at)
        for name, verb in trials.verbs().items()
        for number in (errno.ENOSPC, errno.EIO)
        for at in range(trials.calls(verb, number))
    ]
    random.Random(4).shuffle(every)
    for name, verb, number, at in every:
        if time.monotonic() > end and count:
            break
        trials.trial(name, verb, number, at)
        count += 1
    sys.stdout.write(f"{driver}: {count} of {len(every)} calls failed, {trials.refused} with their verb\n")
