"""What `df` says of a store is what ``du`` says, and what it calls unique is what goes with an image."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.upkeep import ImageUsage, Usage
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

MADE = ("layers", "chains", "folders", "blobs", "roots")


def du(path: Path) -> int:
    """The bytes of disk that a tree takes; a file is one, too."""
    done = subprocess.run(
        ["du", "-sx", "-B1", os.fspath(path)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout.split()[0])


def usage(store: orlop.Store, root: Path) -> Usage:
    """The usage of a store that is at rest, held against ``du``."""
    for _ in range(20):  # what was deleted a moment ago may still be going
        before = du(root)
        found = store.usage()
        if before == du(root):
            break
    assert found.size == before
    return found


def part(found: Usage, kind: str) -> int:
    return next(part.size for part in found.parts if part.kind == kind)


def made(found: Usage) -> int:
    """All that is not bookkeeping."""
    return sum(part(found, kind) for kind in MADE)


def of(found: Usage, name: str) -> ImageUsage:
    return next(image for image in found.images if f"localhost/{name}:latest" in image.names)


def noise(seed: int, size: int) -> bytes:
    return bytes((seed * 131 + n * n) % 251 for n in range(256)) * (size // 256 + 1)


def layer(seed: int, size: int = 30_000) -> bytes:
    return Layer().folder("d").file(f"d/{seed}", noise(seed, size)).tar()


@pytest.fixture
def load(store: orlop.Store, workdir: Path) -> Callable[[str, Sequence[int]], str]:
    """Import an image of some layers, by number, under a name."""

    def load(name: str, numbers: Sequence[int]) -> str:
        image = images.make_image([layer(number, 30_000 * (number + 1)) for number in numbers])
        layout = images.write_layout(workdir / f"layout-{name}", {"latest": image})
        return store.load(layout, name=f"localhost/{name}").pop().name

    return load


Load = Callable[[str, Sequence[int]], str]


def remove_and_compare(store: orlop.Store, root: Path, name: str) -> None:
    """Remove an image; what went must be what was foretold, by all who foretold it."""
    before = usage(store, root)
    told = store.explain(f"localhost/{name}")
    unique = of(before, name).unique
    assert told.frees == unique
    assert told.size == of(before, name).size
    freed = store.remove(of(before, name).id, force=True).freed
    after = usage(store, root)
    assert made(before) - made(after) == unique == freed
    assert after.reclaimable == before.reclaimable


def test_sizes_are_those_of_du_and_what_is_unique_goes_with_its_image(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    root, work = store_dirs.root, store_dirs.work
    assert usage(store, root).images == ()
    load("base", [0])
    load("a", [0, 1])
    load("b", [0, 2, 3])
    load("again", [0, 1])
    store.tag("localhost/b", "localhost/b2")
    found = usage(store, root)
    assert [len(image.names) for image in found.images] == [2, 2, 1]  # a has the same config as again
    base = root / "layers" / images.digest_of(layer(0, 30_000)).partition(":")[2]
    assert of(found, "a").shared == of(found, "base").shared == du(base)

    with store.prepare("localhost/a", work / "r") as prepared:
        prepared.mount()
        (work / "r/new").write_bytes(noise(9, 200_000))
        os.link(work / "r/new", work / "r/same")
        prepared.commit("localhost/c")
        found = usage(store, root)
        assert part(found, "roots") > 200_000
    load("x", [4])
    load("y", [5])
    load("xy", [4, 5])
    store.prepare("localhost/xy", work / "xy").cleanup()
    store.remove("localhost/xy")  # its chain stays, as both its layers do
    found = usage(store, root)
    assert found.reclaimable == 0
    together = sum(image.unique for image in found.images)
    kinds = sum(part(found, kind) for kind in ("layers", "chains", "blobs"))
    assert of(found, "c").shared > of(found, "a").unique > 0
    assert du(base) < kinds - together < kinds

    for name in ("x", "c", "a", "base", "b", "y"):
        remove_and_compare(store, root, name)
    empty = usage(store, root)
    assert empty.images == ()
    assert empty.size - part(empty, "metadata") < 100_000


def test_roots_of_all_drivers_and_their_folders_are_counted(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    root, work = store_dirs.root, store_dirs.work
    load("a", [0, 1])
    load("b", [0, 2])
    for driver in ("erofs", "overlay", "native"):
        prepared = store.prepare("localhost/a", work / driver, driver=driver, mount=True)
        (work / driver / "written").write_bytes(noise(1, 100_000))
        prepared.unmount()
    store.prepare("localhost/b", work / "quota", quota=8 << 20)
    store.prepare("localhost/b", work / "view", driver="overlay", view=True)
    found = usage(store, root)
    parts = {one.kind: one for one in found.parts}
    assert parts["roots"].count == 4
    assert parts["roots"].size == du(root / "prepared")
    assert parts["folders"].size == du(root / "folders")
    assert parts["folders"].count == len(list((root / "folders").iterdir())) >= 3
    assert {image.unique for image in found.images} == {0}  # roots need all of it
    for path in ("erofs", "overlay", "native", "quota", "view"):
        before = usage(store, root)
        told = store.explain(str(work / path)).frees
        store.get(work / path).cleanup()
        store.collect()
        assert made(before) - made(usage(store, root)) == told
    for name in ("b", "a"):
        remove_and_compare(store, root, name)
    assert part(usage(store, root), "folders") == du(root / "folders") == du(root / "empty")


def test_what_a_collection_frees_is_called_reclaimable(
    store: orlop.Store, load: Load, store_dirs: StoreDirs
) -> None:
    root = store_dirs.root
    load("a", [0, 1])
    root_of_a = store.prepare("localhost/a", store_dirs.work / "r")  # which keeps it all
    store.remove("localhost/a")
    (ingest := root / "content/ingest" / ("ab" * 32)).mkdir()
    (ingest / "data").write_bytes(noise(1, 50_000))
    (left := root / "layers/new-0123456789abcdef").mkdir()
    (left / "layer.tar").write_bytes(noise(2, 70_000))
    (root / "trash/f00").write_bytes(noise(3, 90_000))
    (root / "chains/.tmp-left").write_bytes(noise(4, 10_000))
    (root / "mine").write_bytes(noise(5, 10_000))
    found = usage(store, root)
    sizes = {one.kind: (one.count, one.size, one.reclaimable) for one in found.parts}
    assert sizes["ingests"] == (1, du(root / "content/ingest"), 0)  # it waits to be resumed
    assert sizes["trash"] == (1, du(root / "trash"), du(root / "trash/f00"))
    assert sizes["layers"] == (3, du(root / "layers"), du(left))
    assert sizes["chains"][2] == du(root / "chains/.tmp-left")
    assert part(found, "other") >= du(root / "mine")
    assert store.explain(f"stray {left.relative_to(root)}").frees == du(left)

    os.utime(ingest / "data", (0, 0))
    before = usage(store, root)
    collected = store.collect()
    after = usage(store, root)
    bookkeeping = part(after, "metadata") - part(before, "metadata")
    assert before.size - after.size + bookkeeping == before.reclaimable == collected.freed
    assert after.reclaimable == 0

    root_of_a.cleanup()
    store.collect()
    assert part(usage(store, root), "roots") == du(root / "empty")


def test_kept_blobs_count_with_the_images_that_came_as_them(
    registry: Registry, store_dirs: StoreDirs, workdir: Path
) -> None:
    settings = orlop.Settings(insecure_registries=(registry.host,), keep_blobs=True)
    for name, numbers in (("one", [0, 1]), ("two", [0, 2])):
        images.push(registry, f"acc/{name}", "latest", images.make_image([layer(n) for n in numbers]))
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
        names = [store.pull(f"{registry.host}/acc/{name}").name for name in ("one", "two")]
        before = usage(store, store_dirs.root)
        blobs = next(one for one in before.parts if one.kind == "blobs")
        assert blobs.count == 3 + 2 * 2  # layers, and each image's documents
        unique = {image.names[0]: image.unique for image in before.images}
        for name in names:
            freed = store.remove(name).freed
            after = usage(store, store_dirs.root)
            if name == names[0]:
                assert freed == unique[name] == made(before) - made(after)
        assert after.images == ()
        assert after.reclaimable == 0


# ------------------------------------------------------------------ stores at random


class Trial:
    """A store filled at random, and emptied thing by thing; each says before what it will free."""

    def __init__(self, store: orlop.Store, dirs: StoreDirs, scratch: Path, seed: int) -> None:
        self.store, self.dirs, self.scratch, self.seed = store, dirs, scratch, seed
        self.draw = random.Random(seed)
        self.things: dict[str, Callable[[], object]] = {}

    def fill(self) -> None:
        draw, store = self.draw, self.store
        names: list[str] = []
        for number in range(draw.randint(2, 4)):
            layers = draw.sample(range(5), draw.randint(1, 4))
            image = images.make_image([layer(n, 20_000 * (n + 1)) for n in sorted(layers)])
            layout = images.write_layout(self.scratch / f"{self.seed}-{number}", {"latest": image})
            names.append(store.load(layout, name=f"localhost/i{number}").pop().name)
        for number in range(draw.randint(1, 4)):
            name, path = draw.choice(names), self.dirs.work / f"r{number}"
            driver = draw.choice(("erofs", "overlay", "native"))
            root = store.prepare(name, path, driver=driver, mount=True)
            (path / f"new{number}").write_bytes(noise(number, draw.choice([10, 50_000])))
            root.unmount()
            if draw.random() < 0.4:
                names.append(root.commit(f"localhost/c{number}").name)
            if draw.random() < 0.4:
                root.cleanup()
            else:
                self.things[str(path)] = root.cleanup
        if draw.random() < 0.5:
            store.tag(draw.choice(names), "localhost/more")
        for number in range(draw.randint(0, 2)):
            inspected = store.inspect(draw.choice(names))
            thing = draw.choice([inspected.info.name, f"layer {draw.choice(inspected.layers).diff_id}"])
            store.pin(thing, f"p{number}")
            self.things[f"pin p{number}"] = lambda number=number: store.unpin(f"p{number}")  # type: ignore[misc]  # bound now
        for image_id in {info.id for info in store.images()}:
            self.things[image_id] = lambda image_id=image_id: store.remove(image_id, force=True)  # type: ignore[misc]  # bound now
        store.collect()  # folders of roots cleaned up a moment ago are still waiting to go

    def empty(self) -> int:
        """Remove all, in any order; returns how many things that were."""
        order = sorted(self.things)
        self.draw.shuffle(order)
        for thing in order:
            before = usage(self.store, self.dirs.root)
            told = self.store.explain(thing)
            unique = {image.id: image.unique for image in before.images}
            assert unique.get(thing, told.frees) == told.frees, (self.seed, thing)
            self.things[thing]()
            self.store.collect()
            after = usage(self.store, self.dirs.root)
            assert made(before) - made(after) == told.frees, (self.seed, thing)
        assert not self.store.usage().images
        return len(order)


def test_whatever_is_removed_from_a_random_store_frees_what_was_foretold(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    removed = 0
    for seed in range(3):
        trial = Trial(store, store_dirs, workdir, seed)
        trial.fill()
        removed += trial.empty()
    assert removed > 10


@pytest.mark.soak
def test_the_same_for_many_stores(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, soak_seconds: float
) -> None:
    end, seed, removed = time.monotonic() + soak_seconds, 100, 0
    while time.monotonic() < end:
        trial = Trial(store, store_dirs, workdir, seed)
        trial.fill()
        removed += trial.empty()
        seed += 1
    assert removed > 0
