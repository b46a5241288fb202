"""What is done on a disk whose power is cut, and what must be true of the disk afterwards.

`Work` does every verb once and notes in the disk's log when each began, and what a store has to hold when
it returned; `Court` looks at a disk after a cut and says, in sentences, what is not so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import stat
import subprocess
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orlop
from orlop.linux import loop
from orlop.linux.mount import perform
from orlop.testing.registry import MemoryRegistry
from support import images
from support.fusedisk import Disk
from support.layers import Layer

Tree = dict[str, str]  # path: digest of a file's content, or a symlink's target
FOLDERS = ("layers", "chains", "folders", "prepared", "trash", "content/blobs/sha256", "content/ingest")
LONG_AGO = 2 * 24 * 3600


@dataclass(slots=True)
class State:
    """What a store is to hold: the trees of its images by name, the files of its roots by path."""

    images: dict[str, Tree]
    roots: dict[str, Tree]

    @classmethod
    def of(cls, note: Any) -> State:
        """As it stands in a log."""
        return cls(note["images"], note["roots"])


# ------------------------------------------------------------------ images, and their trees without orlop


@functools.cache
def _files() -> dict[str, bytes]:
    files = {f"usr/bin/{n}": random.Random(n).randbytes(700 * n) for n in range(24)}
    return {"etc/motd": b"hello\n", **files}


_SPARSE = [(4096, b"x" * 512), (131072, b"y" * 1024)]


def make_image(which: str) -> images.Image:
    """Two layers; the lower one is the same in all images."""
    lower = Layer().folder("etc").folder("usr").folder("usr/bin").file("etc/old", b"goes")
    for name, data in _files().items():
        lower.file(name, data)
    lower.symlink("usr/sh", "bin/1").sparse("etc/sparse", 200_000, _SPARSE, how="gnu-1.0")
    upper = Layer().folder("srv").file("srv/data", _data(which)).whiteout("etc/old")
    return images.make_image([lower.tar(), upper.tar()], compression="gzip" if which == "a" else "zstd")


def tree_of_image(which: str) -> Tree:
    """What `make_image` is to show."""
    sparse = bytearray(200_000)
    for offset, piece in _SPARSE:
        sparse[offset : offset + len(piece)] = piece
    files = {**_files(), "etc/sparse": bytes(sparse), "srv/data": _data(which)}
    return {name: _hash(data) for name, data in files.items()} | {"usr/sh": "to bin/1"}


def _data(which: str) -> bytes:
    return random.Random(which).randbytes(90_000)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_of(top: Path) -> Tree:
    """What a folder shows, read whole."""
    found: Tree = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder) / name
            about = path.lstat()
            if stat.S_ISLNK(about.st_mode):
                what = f"to {os.readlink(path)}"
            elif stat.S_ISREG(about.st_mode):
                what = _hash(path.read_bytes())
            else:
                what = f"{about.st_mode:o} {about.st_rdev}"
            found[os.fspath(path.relative_to(top))] = what
    return found


def serve(registry: MemoryRegistry, which: str) -> str:
    """Put an image into a registry; returns its name."""
    image = make_image(which)
    for blob in image.blobs.values():
        registry.add_blob(which, blob)
    registry.add_manifest(which, "v1", image.document, image.media_type)
    return f"{registry.host}/{which}:v1"


def open_store(root: Path, run: Path, driver: str, registry: MemoryRegistry) -> orlop.Store:
    """The library's store, which trusts a registry."""
    settings = orlop.Settings(driver=driver, insecure_registries=(registry.host,))  # type: ignore[arg-type]  # a test's parameter
    return orlop.open(root, run, settings=settings)


def mounts_below(folder: Path) -> list[Path]:
    """Mount points below a folder, the latest first."""
    points = [Path(line.split(" ")[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in reversed(points) if folder in point.parents]


# ------------------------------------------------------------------ the work


class Work:
    """All verbs, one after the other, on a store in ``mounted``; what is not the store's lies in ``folder``."""

    def __init__(self, folder: Path, mounted: Path, driver: str, disk: Disk) -> None:
        self.folder, self.mounted, self.driver, self.disk = folder, mounted, driver, disk
        self.state = State({}, {})

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[State]:
        """One verb: its begin and its end are noted, with what is true then."""
        self.disk.mark({"begin": what})
        yield self.state
        self.disk.mark({"end": what, **asdict(self.state)})

    def run(self, how: str) -> None:
        """Do it, or ``break`` the disk; ``forget`` to sync, as a store would that never does."""
        (self.folder / "work").mkdir()
        layout = images.write_layout(self.folder / "layout", {"latest": make_image("a")})
        with MemoryRegistry() as registry:
            pulled = serve(registry, "b")
            with self.step("open"):
                store = open_store(self.mounted / "root", self.folder / "run", self.driver, registry)
            if how == "forget":
                os.fsync = os.fdatasync = lambda fd: None  # type: ignore[assignment]  # of this process only
            with store:
                if how == "break":
                    self.break_disk(store, layout, pulled)
                else:
                    self.verbs(store, layout, pulled)

    def verbs(self, store: orlop.Store, layout: Path, pulled: str) -> None:
        one, two, three = (self.folder / "work" / name for name in ("one", "two", "three"))
        with self.step("import") as state:
            store.load(layout, name="localhost/a:1")
            state.images["localhost/a:1"] = tree_of_image("a")
        with self.step("pull") as state:
            store.pull(pulled)
            state.images[pulled] = tree_of_image("b")
        with self.step("prepare") as state:
            root = store.prepare("localhost/a:1", one, mount=True, pull="never")
            state.roots[str(one)] = state.images["localhost/a:1"]
        self.write(one, {"etc/new": b"new" * 5000, "etc/motd": b"changed\n"})
        self.commit(root, "localhost/c:1")
        with self.step("view") as state:
            store.prepare(pulled, two, view=True, pull="never")
            state.roots[str(two)] = state.images[pulled]
        self.write(one, {"etc/more": b"more\n"})
        self.commit(root, "localhost/d:1")
        self.fork_and_go_back(store, root)
        with self.step("tag") as state:
            store.tag("localhost/c:1", "localhost/e:1")
            state.images["localhost/e:1"] = state.images["localhost/c:1"]
        self.cleanup(store, two)
        self.remove(store, pulled)
        with self.step("prepare") as state:
            store.prepare("localhost/d:1", three, pull="never")
            state.roots[str(three)] = state.images["localhost/d:1"]
        self.cleanup(store, one)
        for name in ("localhost/c:1", "localhost/e:1", "localhost/d:1"):
            self.remove(store, name)
        with self.step("gc"):
            store.verbs.collect()
        self.cleanup(store, three)
        with self.step("gc"):
            store.verbs.collect()

    def fork_and_go_back(self, store: orlop.Store, root: orlop.Prepared) -> None:
        """Two forks, both or none; then what is written to the source after a checkpoint is taken back."""
        path, forks = Path(root.path), [self.folder / "work" / name for name in ("four", "five")]
        with self.step("fork") as state:
            root.fork(*forks)
            state.roots |= {str(fork): state.roots[root.path] for fork in forks}
        with self.step("checkpoint"):
            root.checkpoint("kept")
        self.write(path, {"etc/lost": b"lost\n"})
        with self.step("rollback") as state:
            root.rollback("kept")
            state.roots[root.path] = state.roots[str(forks[0])]
        for fork in forks:
            self.cleanup(store, fork)

    def break_disk(self, store: orlop.Store, layout: Path, pulled: str) -> None:
        """Some verbs, then all of them on a disk that takes no more writes; a note says what each came to."""
        one, two = self.folder / "work" / "one", self.folder / "work" / "two"
        with self.step("import") as state:
            store.load(layout, name="localhost/a:1")
            state.images["localhost/a:1"] = tree_of_image("a")
        with self.step("prepare") as state:
            root = store.prepare("localhost/a:1", one, mount=True, pull="never")
            state.roots[str(one)] = state.images["localhost/a:1"]
        self.write(one, {"etc/new": b"new" * 5000})
        self.disk.fail()
        came_to: dict[str, str] = {}
        for what, act in {
            "pull": lambda: store.pull(pulled),
            "tag": lambda: store.tag("localhost/a:1", "localhost/b:1"),
            "commit": lambda: root.commit("localhost/c:1"),
            "prepare": lambda: store.prepare("localhost/a:1", two, pull="never"),
            "cleanup": root.cleanup,
            "rmi": lambda: store.remove("localhost/a:1"),
            "gc": store.verbs.collect,
            "images": lambda: [image.name for image in store.images()],
            "prepared": lambda: [info.path for info in store.prepared()],
        }.items():
            try:
                came_to[what] = f"done {act()}"
            except orlop.Error as exc:
                came_to[what] = f"{exc.code} {exc}"
        self.disk.mark({"broken": came_to})

    def write(self, root: Path, files: dict[str, bytes]) -> None:
        """As a careful program in a container does it."""
        with self.step("write") as state:
            for name, data in files.items():
                with (root / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                folder = os.open((root / name).parent, os.O_RDONLY | os.O_DIRECTORY)
                os.fsync(folder)
                os.close(folder)
            written = {name: _hash(data) for name, data in files.items()}
            state.roots[str(root)] = {**state.roots[str(root)], **written}

    def commit(self, root: orlop.Prepared, name: str) -> None:
        with self.step("commit") as state:
            root.commit(name)
            state.images[name] = state.roots[root.path]

    def cleanup(self, store: orlop.Store, path: Path) -> None:
        with self.step("cleanup") as state:
            store.get(path).cleanup()
            del state.roots[str(path)]

    def remove(self, store: orlop.Store, name: str) -> None:
        with self.step("rmi") as state:
            store.remove(name)
            del state.images[name]


# ------------------------------------------------------------------ the verdict


class Court:
    """Looks at one disk after a cut.

    ``before`` is what was promised then; had the verb ``during`` returned, ``after`` would have been.
    """

    def __init__(
        self, folder: Path, place: Path, driver: str, *, before: State, after: State, during: str
    ) -> None:
        self.folder, self.place, self.driver = folder, place, driver
        self.before, self.after, self.during = before, after, during
        self.found: list[str] = []

    def findings(self, image: Path) -> list[str]:
        """What is wrong with a disk."""
        mounted = self.place / "disk"
        mounted.mkdir()
        with loop.attached(image) as device:
            try:
                perform("ext4", device, os.fspath(mounted), [])
            except OSError as exc:
                return [f"the file system does not mount: {exc}"]
            errors = Path(f"/sys/fs/ext4/{os.path.basename(device)}/errors_count")
            try:
                self.look(mounted / "root")
            except (orlop.Error, OSError) as exc:
                self.found.append(f"{exc!r} at {traceback.format_exc(limit=-3)}")
            if int(errors.read_text()):
                self.found.append("ext4 has seen errors")
            for point in mounts_below(self.place):
                subprocess.run(["umount", "--lazy", os.fspath(point)], check=True, timeout=30)
        return self.found

    def look(self, root: Path) -> None:
        with (
            MemoryRegistry() as registry,
            open_store(root, self.place / "run", self.driver, registry) as store,
        ):
            # The machine has come up anew: what lies in RUN and what was not synced is gone.
            store.verbs._core.__dict__["boot"] = "after the cut"  # type: ignore[attr-defined]  # the library's own
            self.check(store, "damage")
            self.images(store, root)
            self.roots(store)
            self.again(store, registry)
            self.end(store, root)

    def check(self, store: orlop.Store, *kinds: str) -> None:
        """What `orlop check --full` says."""
        found = store.check(full=True).findings
        self.found += [f"check finds {one}" for one in found if one.kind in kinds]

    def images(self, store: orlop.Store, root: Path) -> None:
        """Every image that is listed is whole, and those that were promised are there."""
        listed = {image.name for image in store.images()}
        if listed not in (set(self.before.images), set(self.after.images)):
            self.found.append(f"images {sorted(listed)}, not {sorted(self.before.images)}")
        for name in sorted(listed):
            for layer in store.inspect(name).layers:
                tar = root / "layers" / layer.diff_id.partition(":")[2] / "layer.tar"
                if f"sha256:{_hash(tar.read_bytes())}" != layer.diff_id:
                    self.found.append(f"{name}: the tar of {layer.diff_id} has other bytes")
            expected = self.before.images.get(name, self.after.images.get(name))
            if self.shown(store, name) != expected:
                self.found.append(f"{name} shows another tree")

    def shown(self, store: orlop.Store, name: str) -> Tree:
        with store.prepare(name, self.place / "view", view=True, mount=True, pull="never"):
            return tree_of(self.place / "view")

    def roots(self, store: orlop.Store) -> None:
        """Every root that was promised is there with all that was written to it for sure."""
        listed = {root.path for root in store.prepared()}
        if listed not in (set(self.before.roots), set(self.after.roots)):
            self.found.append(f"roots {sorted(listed)}, not {sorted(self.before.roots)}")
        for path in sorted(listed):
            root = store.get(path).mount()
            shown, sure = tree_of(Path(path)), self.before.roots.get(path) or self.after.roots[path]
            if self.during == "rollback" and shown == self.after.roots[path]:
                sure = shown
            if self.during == "write":  # what is being written may be old, new or half
                later = self.after.roots.get(path, sure)
                sure = {name: what for name, what in sure.items() if later.get(name) == what}
                shown = {name: what for name, what in shown.items() if name in sure}
            if shown != sure:
                wrong = sorted(name for name in {*shown, *sure} if shown.get(name) != sure.get(name))
                self.found.append(f"root {path} is wrong about {wrong}")
            if root.info.kind == "active":
                store.remove(root.commit("localhost/kept:1").name)

    def again(self, store: orlop.Store, registry: MemoryRegistry) -> None:
        """What was cut short can be done again."""
        if self.during == "import" or not self.before.images:
            store.load(self.folder / "layout", name="localhost/again:1")
            name, which = "localhost/again:1", "a"
        elif self.during == "pull":
            name, which = serve(registry, "b"), "b"
            store.pull(name)
        else:
            return
        if self.shown(store, name) != tree_of_image(which):
            self.found.append(f"{self.during}, done again, shows another tree")

    def end(self, store: orlop.Store, root: Path) -> None:
        """All can be deleted, and nothing stays."""
        for info in store.prepared():
            store.get(info.path).cleanup()
        for image in store.images():
            store.remove(image.name)
        for download in (root / "content/ingest").iterdir():
            for path in (download, *download.iterdir()):  # a download waits a day for somebody to go on
                os.utime(path, (time.time() - LONG_AGO,) * 2)
        store.verbs.collect()
        if left := store.verbs.collect().items:
            self.found.append(f"a second collection finds {left}")
        self.check(store, "damage", "leftover")
        for folder in FOLDERS:
            if names := os.listdir(root / folder):
                self.found.append(f"{folder} still holds {names}")
        if names := [name for name in os.listdir(root) if name.startswith(".tmp-")]:
            self.found.append(f"the store still holds {names}")
