"""Many processes on one store at once: by the library, by a daemon, by the command line; some with a RUN of
their own, some in a mount namespace of their own.  What was answered for is there, and nothing else is left.

(`test_many` has processes that are killed; these must all end well, and in time: a deadlock shows its stacks.)
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.observe import watch_points
from orlop.testing.registry import MemoryRegistry
from support import daemons, disks, images
from support import stress_actor as actors
from support.layers import Layer

pytestmark = pytest.mark.root

# slave, not private: what is unmounted here must not live on in a namespace that copied it
APART = ("unshare", "--mount", "--propagation", "slave")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """So many processes of a kind, with so many operations each."""

    processes: int
    operations: int
    face: str = "library"
    own_run: bool = False
    own_namespace: bool = False


SMALL = (
    Share(processes=2, operations=26),
    Share(processes=1, operations=26, own_run=True),
    Share(processes=1, operations=26, own_namespace=True),
    Share(processes=1, operations=24, own_run=True, own_namespace=True),
    Share(processes=2, operations=24, face="daemon"),
    Share(processes=1, operations=8, face="command"),
)  # 8 processes, 184 operations
WHOLE = (
    Share(processes=6, operations=76),
    Share(processes=4, operations=76, own_run=True),
    Share(processes=4, operations=76, own_namespace=True),
    Share(processes=4, operations=76, own_run=True, own_namespace=True),
    Share(processes=10, operations=46, face="daemon"),
    Share(processes=3, operations=42, face="command"),
    Share(processes=1, operations=46, face="command", own_namespace=True),
)  # 32 processes, 2,000 operations
WHOLE_SECONDS = 60  # a soak test with less to run in has the small share again and again


@dataclass(slots=True)
class Scene:
    """One store and all that work on it."""

    dirs: StoreDirs
    registry: str
    remote: dict[str, actors.Contents]
    layouts: dict[str, actors.Contents]

    def task(self, name: str, share: Share, seed: int, address: str) -> list[str]:
        run = self.dirs.run.with_name(f"run-{name}") if share.own_run else self.dirs.run
        task = {
            "name": name,
            "face": share.face,
            "seed": seed,
            "operations": share.operations,
            "root": str(self.dirs.root),
            "run": str(run),
            "work": str(self.dirs.work),
            "address": address,
            "registry": self.registry,
            "remote": self.remote,
            "layouts": self.layouts,
            "result": str(self.dirs.work / f"{name}.json"),
        }
        command = [sys.executable, actors.__file__, json.dumps(task)]
        return [*(APART if share.own_namespace else ()), *command]


def stock(dirs: StoreDirs, registry: MemoryRegistry) -> Scene:
    """Two images in the registry and two layouts; all have a layer in common."""
    remote, layouts = {}, {}
    base = Layer().file("base", b"shared").tar()
    for letter in "abcd":
        top = Layer().file(letter, letter.encode()).file("ballast", os.urandom(50_000)).tar()
        image = images.make_image([base, top])
        contents = {"base": "shared", letter: letter}
        if letter in "ab":
            for blob in image.blobs.values():
                registry.add_blob(f"stress-{letter}", blob)
            registry.add_manifest(f"stress-{letter}", "v1", image.document, image.media_type)
            remote[f"{registry.host}/stress-{letter}:v1"] = contents
        else:
            layouts[str(images.write_layout(dirs.work.parent / f"layout-{letter}", {"v1": image}))] = contents
    return Scene(dirs=dirs, registry=registry.host, remote=remote, layouts=layouts)


def together(scene: Scene, shares: tuple[Share, ...], seed: int, *, seconds: float) -> Counter[str]:
    """Let them all work, and look at what is there afterwards; returns what was done how often."""
    dice = random.Random(seed)
    dirs = scene.dirs
    socket = dirs.work / "socket" / "orlop.sock"
    with (
        daemons.Crew(dirs.work.parent / "crew") as crew,
        daemons.daemon(crew, dirs.root, dirs.run, socket=socket, registry=scene.registry) as address,
    ):
        numbers = itertools.count()
        names = []
        for share in shares:
            for _ in range(share.processes):
                name = f"{share.face}-{next(numbers)}"
                crew.start(name, scene.task(name, share, dice.getrandbits(32), address))
                names.append(name)
        crew.wait(names, seconds)
    counts: Counter[str] = Counter()
    made: dict[str, actors.Contents] = {}
    roots: dict[str, actors.Contents] = {}
    for name in names:
        state = json.loads((dirs.work / f"{name}.json").read_text())
        counts.update(state["counts"])
        made.update(state["images"])
        roots.update(state["roots"])
    check(scene, made, roots)
    return counts


def check(scene: Scene, made: dict[str, actors.Contents], roots: dict[str, actors.Contents]) -> None:
    """All that was answered for is there and whole; once it is given back, nothing is left."""
    dirs = scene.dirs
    with orlop.open(dirs.root, dirs.run) as store:
        assert {info.path for info in store.prepared()} == set(roots)
        listed = {info.name for info in store.images()}
        assert listed - {*scene.remote, *actors.SHARED} == set(made)
        store.collect()
        for path, contents in roots.items():
            root = store.get(path).mount()
            assert read(Path(path), contents) == contents
            root.cleanup()
        for number, name in enumerate(sorted(listed)):
            contents = made.get(name) or scene.remote.get(name) or {"base": "shared"}
            place = dirs.work / f"check-{number}"
            with store.prepare(name, place, pull="never", mount=True, view=True):
                assert read(place, contents) == contents
        for name in sorted(listed):
            store.remove(name)
        store.collect()
    runs = sorted(dirs.run.parent.glob("run*"))
    for run in runs:
        with orlop.open(dirs.root, run) as store:
            store.collect()
            assert store.collect(dry_run=True).items == ()
    left = {
        place: os.listdir(dirs.root / place) for place in ("layers", "chains", "folders", "prepared", "trash")
    }
    left["blobs"] = os.listdir(dirs.root / "content/blobs/sha256")
    left["ingests"] = os.listdir(dirs.root / "content/ingest")
    left["locks"] = [name for name in os.listdir(dirs.root / "locks") if "-" in name]
    left |= {f"mounts of {run.name}": os.listdir(run / "chains") for run in runs}
    assert left == {place: [] for place in left}
    assert disks.mounts_below(dirs.root.parent) == []


def read(place: Path, contents: actors.Contents) -> actors.Contents:
    return {file: (place / file).read_text() for file in contents}


def test_many_processes_of_all_kinds_lose_nothing_and_leave_nothing(store_dirs: StoreDirs) -> None:
    with MemoryRegistry() as registry:
        counts = together(stock(store_dirs, registry), SMALL, 4, seconds=120)
    done = counts.total() - sum(counts[word] for word in actors.NOT_OPERATIONS)
    assert done == sum(share.processes * share.operations for share in SMALL)
    assert set(actors.WEIGHTS) <= set(counts)


def test_an_image_is_answered_for_as_it_was_named_though_another_takes_it_away_at_once(
    store_dirs: StoreDirs,
) -> None:
    with MemoryRegistry() as registry:
        scene = stock(store_dirs, registry)
        layout, remote = next(iter(scene.layouts)), next(iter(scene.remote))
        options = orlop.Settings(insecure_registries=(registry.host,))
        with (
            orlop.open(store_dirs.root, store_dirs.run, settings=options) as store,
            orlop.open(store_dirs.root, store_dirs.run) as other,
        ):

            def take_away(point: str) -> None:
                if point == "image.named":
                    for info in other.images():
                        other.remove(info.name)

            with watch_points(take_away):
                (loaded,) = store.load(layout, name="localhost/a:1")
                pulled = store.pull(remote)
            assert [loaded.name, pulled.name] == ["localhost/a:1", remote]
            assert [loaded.layers, pulled.layers] == [2, 2]
            assert loaded.platform == images.HOST
            assert store.images() == []


@pytest.mark.soak
def test_many_processes_of_all_kinds_for_long(store_dirs: StoreDirs, soak_seconds: float) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")  # noqa: T201 - shown with a failure
    end = time.monotonic() + soak_seconds
    shares = WHOLE if soak_seconds >= WHOLE_SECONDS else SMALL
    with MemoryRegistry() as registry:
        scene = stock(store_dirs, registry)
        for number in itertools.count(seed):
            counts = together(scene, shares, number, seconds=1200)
            print(f"{dict(counts)}")  # noqa: T201 - what was really done
            if time.monotonic() > end:
                break
