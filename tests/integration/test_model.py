"""A store beside a model of it that fits on a screen: whatever is asked of both, they agree.

Hypothesis chooses what is asked, in which order, and of what; a failure is the shortest story that shows it.
After every step names, IDs, roots and what is in those that are mounted are compared; in the end all is given
back, and nothing may be left.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import orlop
from conftest import StoreDirs
from support import disks, images
from support.layers import Layer

pytestmark = pytest.mark.root

NAMES = st.sampled_from([f"localhost/{name}:1" for name in "pqrs"])
PLACES = st.sampled_from(["one", "two", "three"])
FILES = st.sampled_from(["base", "c", "new", "newer"])
TEXTS = st.sampled_from(["", "short", "long " * 2000])
LETTERS = st.sampled_from("cd")
OTHER = "linux/s390x"

LIMITS = settings(
    max_examples=30,
    stateful_step_count=40,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class ModelImage:
    """What a name means."""

    id: str
    contents: dict[str, str]
    layers: int
    held: frozenset[str] = frozenset()  # the platforms of its index
    platform: str = images.HOST


@dataclass(slots=True)
class ModelRoot:
    """What is prepared at a path."""

    image: str
    stands_on: ModelImage
    view: bool
    mounted: bool
    contents: dict[str, str]
    changed: bool = False


@dataclass(slots=True)
class Model:
    """All that a store has to remember."""

    images: dict[str, ModelImage] = field(default_factory=dict)
    roots: dict[str, ModelRoot] = field(default_factory=dict)


class StoreAndModel(RuleBasedStateMachine):
    """Each rule asks the store and the model the same."""

    def __init__(self, dirs: StoreDirs, layouts: dict[str, Path], number: int) -> None:
        super().__init__()
        self._layouts = layouts
        self._base = dirs.work / str(number)
        self._base.mkdir()
        self._root, self._run = dirs.root.with_name(f"root-{number}"), dirs.run.with_name(f"run-{number}")
        self._store = orlop.open(self._root, self._run)
        self._model = Model()

    def path(self, place: str) -> str:
        return str(self._base / place)

    def both(self, wrong: type[orlop.Error] | None, verb: Callable[[], object]) -> object:
        """Ask the store; ``wrong`` is what the model says of it."""
        if wrong is None:
            return verb()
        with pytest.raises(wrong) as caught:
            verb()
        assert type(caught.value) is wrong
        return None

    def missing(self, place: str) -> type[orlop.Error] | None:
        return None if self.path(place) in self._model.roots else orlop.NotFound

    # -- images

    @rule(letter=LETTERS, name=NAMES)
    def load(self, letter: str, name: str) -> None:
        known = self._model.images.get(name)
        image = images_of(letter)
        moved = known is not None and known.id != image.id
        self.both(
            orlop.AlreadyExists if moved else None, lambda: self._store.load(self._layouts[letter], name=name)
        )
        if not moved:
            self._model.images[name] = ModelImage(image.id, {"base": "shared", letter: letter}, 2)

    @rule(name=NAMES, every=st.booleans())
    def load_index(self, name: str, every: bool) -> None:
        known = self._model.images.get(name)
        moved = known is not None and not known.held
        self.both(
            orlop.AlreadyExists if moved else None,
            lambda: self._store.load(self._layouts["index"], name=name, all_platforms=every),
        )
        if not moved:
            held = (known.held if known else frozenset()) | {images.HOST} | ({OTHER} if every else set())
            self._model.images[name] = ModelImage(platform_image(images.HOST).id, {"here": "host"}, 1, held)

    @rule(name=NAMES, new=NAMES)
    def tag(self, name: str, new: str) -> None:
        known = self._model.images.get(name)
        self.both(None if known else orlop.NotFound, lambda: self._store.tag(name, new))
        if known:
            self._model.images[new] = known

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        known = self._model.images.pop(name, None)
        self.both(None if known else orlop.NotFound, lambda: self._store.remove(name))

    @rule(name=NAMES, force=st.booleans())
    def remove_by_id(self, name: str, force: bool) -> None:
        known = self._model.images.get(name)
        if known is None:
            return
        names = [other for other, image in self._model.images.items() if image.id == known.id]
        refused = len(names) > 1 and not force
        self.both(
            orlop.FailedPrecondition if refused else None,
            lambda: self._store.remove(known.id, force=force),
        )
        for gone in () if refused else names:
            del self._model.images[gone]

    @rule(name=NAMES)
    def inspect(self, name: str) -> None:
        known = self._model.images.get(name)
        details = self.both(None if known else orlop.NotFound, lambda: self._store.inspect(name))
        if known is not None:
            assert isinstance(details, orlop.ImageDetails)
            assert (details.info.id, len(details.layers)) == (known.id, known.layers)
            assert set(details.names) == {
                n for n, image in self._model.images.items() if image.id == known.id
            }

    # -- roots

    @rule(name=NAMES, place=PLACES, view=st.booleans(), mount=st.booleans())
    def prepare(self, name: str, place: str, view: bool, mount: bool) -> None:
        path, known = self.path(place), self._model.images.get(name)
        wrong = orlop.AlreadyExists if path in self._model.roots else None if known else orlop.NotFound
        self.both(wrong, lambda: self._store.prepare(name, path, view=view, mount=mount, pull="never"))
        if wrong is None and known is not None:
            self._model.roots[path] = ModelRoot(name, known, view, mount, dict(known.contents))

    @rule(name=NAMES, place=PLACES)
    def prepare_other(self, name: str, place: str) -> None:
        """The image of another platform, where the name holds it."""
        path, known = self.path(place), self._model.images.get(name)
        there = known is not None and OTHER in {known.platform, *known.held}
        wrong = orlop.AlreadyExists if path in self._model.roots else None if there else orlop.NotFound
        self.both(wrong, lambda: self._store.prepare(name, path, platform=OTHER, pull="never"))
        if wrong is None:
            other = ModelImage(platform_image(OTHER).id, {"there": "other"}, 1, platform=OTHER)
            if known is not None and known.platform == OTHER:  # a commit of such a root
                other = known
            self._model.roots[path] = ModelRoot(name, other, False, False, dict(other.contents))

    @rule(place=PLACES)
    def mount(self, place: str) -> None:
        self.both(self.missing(place), lambda: self._store.verbs.mount(self.path(place)))
        if not self.missing(place):
            self._model.roots[self.path(place)].mounted = True

    @rule(place=PLACES)
    def unmount(self, place: str) -> None:
        self.both(self.missing(place), lambda: self._store.verbs.unmount(self.path(place)))
        if not self.missing(place):
            self._model.roots[self.path(place)].mounted = False

    @rule(place=PLACES)
    def cleanup(self, place: str) -> None:
        self.both(self.missing(place), lambda: self._store.verbs.cleanup(self.path(place)))
        self._model.roots.pop(self.path(place), None)

    def writable(self, place: str) -> ModelRoot | None:
        root = self._model.roots.get(self.path(place))
        return root if root is not None and root.mounted and not root.view else None

    @rule(place=PLACES, file=FILES, text=TEXTS)
    def write(self, place: str, file: str, text: str) -> None:
        root = self.writable(place)
        if root is not None:
            Path(self.path(place), file).write_text(text)
            root.contents[file], root.changed = text, True

    @rule(place=PLACES, file=FILES)
    def delete(self, place: str, file: str) -> None:
        root = self.writable(place)
        if root is not None and root.contents.pop(file, None) is not None:
            Path(self.path(place), file).unlink()
            root.changed = True

    @rule(place=PLACES, name=NAMES)
    def commit(self, place: str, name: str) -> None:
        path, wrong = self.path(place), self.missing(place)
        root = self._model.roots.get(path)
        if root is not None and root.view:
            wrong = orlop.FailedPrecondition
        info = self.both(wrong, lambda: self._store.verbs.commit(path, name))
        if wrong is None and root is not None:
            assert isinstance(info, orlop.ImageInfo)
            layers = root.stands_on.layers + root.changed
            platform = root.stands_on.platform
            self._model.images[name] = ModelImage(info.id, dict(root.contents), layers, platform=platform)

    # -- the store

    @rule()
    def collect(self) -> None:
        self._store.collect()
        assert self._store.collect(dry_run=True).items == ()

    @rule()
    def open_again(self) -> None:
        self._store.close()
        self._store = orlop.open(self._root, self._run)

    @invariant()
    def agree(self) -> None:
        model = self._model
        listed = {
            info.name: (info.id, info.layers, {one.platform for one in info.platforms})
            for info in self._store.images()
        }
        assert listed == {name: (image.id, image.layers, image.held) for name, image in model.images.items()}
        roots = {info.path: (info.image, info.kind, info.mounted) for info in self._store.prepared()}
        assert roots == {
            path: (root.image, "view" if root.view else "active", root.mounted)
            for path, root in model.roots.items()
        }
        for path, root in model.roots.items():
            assert tree(Path(path)) == (root.contents if root.mounted else None)

    def teardown(self) -> None:
        try:
            for path in self._model.roots:
                self._store.verbs.cleanup(path)
            for name in self._model.images:
                self._store.remove(name)
            self._store.collect()
            left = {
                place: os.listdir(self._root / place) for place in ("layers", "chains", "prepared", "trash")
            }
            left |= {"blobs": os.listdir(self._root / "content/blobs/sha256")}
            left |= {"mounts": os.listdir(self._run / "chains")}
            left |= {"locks": [name for name in os.listdir(self._root / "locks") if "-" in name]}
            assert left == {place: [] for place in left}
            assert disks.mounts_below(self._base) == []
        finally:
            self._store.close()


def tree(path: Path) -> dict[str, str] | None:
    """The files in a root; None where there is none."""
    return {file.name: file.read_text() for file in path.iterdir()} if path.is_dir() else None


def images_of(letter: str) -> images.Image:
    layers = [Layer().file("base", b"shared").tar(), Layer().file(letter, letter.encode()).tar()]
    return images.make_image(layers)


def platform_image(platform: str) -> images.Image:
    layer = Layer().file("here", b"host") if platform == images.HOST else Layer().file("there", b"other")
    return images.make_image([layer.tar()], platform=platform)


def compare(dirs: StoreDirs, limits: settings) -> int:
    """Tell some stories; returns how many."""
    layouts = {
        letter: images.write_layout(dirs.work / f"layout-{letter}", {"v1": images_of(letter)})
        for letter in "cd"
    }
    index = images.make_index([platform_image(OTHER), platform_image(images.HOST)])
    layouts["index"] = images.write_layout(dirs.work / "layout-index", {"v1": index})
    numbers = itertools.count()
    run_state_machine_as_test(lambda: StoreAndModel(dirs, layouts, next(numbers)), settings=limits)
    return next(numbers)


def test_a_store_and_its_model_agree(store_dirs: StoreDirs) -> None:
    compare(store_dirs, LIMITS)


@pytest.mark.soak
def test_a_store_and_its_model_agree_for_long(store_dirs: StoreDirs, soak_seconds: float) -> None:
    end, told = time.monotonic() + soak_seconds, 0
    for number in itertools.count():
        work = store_dirs.work / f"turn-{number}"
        work.mkdir()
        dirs = StoreDirs(root=work / "root", run=work / "run", work=work / "work")
        dirs.work.mkdir()
        told += compare(dirs, settings(LIMITS, derandomize=False, max_examples=20, stateful_step_count=50))
        if time.monotonic() > end:
            break
    print(f"{told} stories of up to 50 steps")  # noqa: T201 - what was really done
