"""Policies and labels: which images a collection takes the names of, in a store as it is."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.images.store import LocalStore
from orlop.images.upkeep import Keep
from orlop.observe import watch_points
from support import images
from support.layers import Layer

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]

MB = 1_000_000
HOUR = 3600.0


@pytest.fixture
def verbs(store: orlop.Store) -> LocalStore:
    """The store's own verbs, for tests that look into it."""
    assert isinstance(store.verbs, LocalStore)
    return store.verbs


@pytest.fixture
def load(store: orlop.Store, verbs: LocalStore, workdir: Path) -> Callable[..., str]:
    """Import an image of a megabyte above a base that all share, last used some hours ago."""
    base = Layer().file("base", bytes(MB)).tar()

    def do(name: str, hours: float) -> str:
        image = images.make_image([base, Layer().file("own", os.urandom(MB)).tar()])
        full = store.load(images.write_layout(workdir / name, {"latest": image}), name=f"localhost/{name}")[
            0
        ].name
        age(verbs, full, hours)
        return full

    return do


def age(verbs: LocalStore, name: str, hours: float) -> None:
    used = time.time() - hours * HOUR
    verbs._core.db.write(lambda tx: tx.execute("UPDATE images SET used_at = ? WHERE name = ?", (used, name)))


def short(names: tuple[str, ...] | list[str]) -> list[str]:
    return [name.removeprefix("localhost/").removesuffix(":latest") for name in names]


def left(store: orlop.Store) -> list[str]:
    return short([info.name for info in store.images()])


def free(root: Path) -> int:
    about = os.statvfs(root)
    return about.f_bavail * about.f_frsize


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (Keep(), []),
        (Keep(age=1.5 * HOUR), ["d", "c", "b"]),
        (Keep(count=3), ["d"]),
        (Keep(size=int(3.5 * MB)), ["d", "c"]),
        (Keep(count=0, labels=("precious", "tier=gold")), ["b", "a"]),
    ],
    ids=["nothing", "age", "count", "size", "labels"],
)
def test_a_policy_takes_what_was_used_longest_ago(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs, keep: Keep, gone: list[str]
) -> None:
    for hours, name in enumerate("abcd", start=1):
        load(name, hours)
    store.label("localhost/c", {"tier": "gold"})
    store.label("localhost/d", {"precious": ""})
    would = store.collect(keep=keep, dry_run=True)
    assert left(store) == list("abcd")
    collected = store.collect(keep=keep)
    assert sorted(would.items) == sorted(collected.items)
    assert short(would.names) == short(collected.names) == gone
    assert left(store) == [name for name in "abcd" if name not in gone]
    assert len([item for item, _ in collected.items if item.startswith("layer ")]) == len(gone)
    assert len(gone) * MB <= collected.freed <= len(gone) * (MB + 50_000)
    assert len(os.listdir(store_dirs.root / "layers")) == 1 + len(left(store))
    assert store.collect(dry_run=True).items == ()


def test_as_many_images_go_as_it_takes_to_have_so_much_of_the_disk_free(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    for hours, name in enumerate("abc", start=1):
        load(name, hours)
    lost = load("lost", 9)
    verbs._core.db.write(lambda tx: tx.execute("DELETE FROM images WHERE name = ?", (lost,)))
    wanted = Keep(free=free(store_dirs.root) + int(2.5 * MB))  # a megabyte of which is garbage anyway
    would = store.collect(keep=wanted, dry_run=True)
    collected = store.collect(keep=wanted)
    assert short(would.names) == short(collected.names) == ["c", "b"]
    assert would.freed == collected.freed
    assert free(store_dirs.root) > wanted.free - 200_000  # the metadata have grown


def test_what_a_disk_reserves_for_root_is_not_free(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    load("a", 1)
    find = ["findmnt", "-n", "-o", "SOURCE", "-T", store_dirs.root]
    device = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run(["tune2fs", "-m", "20", device], check=True, capture_output=True)
    try:
        has = store.usage().free
        assert store.collect(keep=Keep(free=has - MB), dry_run=True).names == ()
        assert len(store.collect(keep=Keep(free=has + MB), dry_run=True).names) == 1
    finally:
        subprocess.run(["tune2fs", "-m", "0", device], check=True, capture_output=True)


def test_an_image_with_a_root_or_a_pin_never_goes(
    store: orlop.Store, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    for hours, name in enumerate("abcd", start=1):
        load(name, hours)
    store.tag("localhost/a", "localhost/a2")
    store.pin("localhost/b")
    mount = orlop.ExtraMount(type="image", source="localhost/d", target="/mnt")
    with store.prepare("localhost/c", store_dirs.work / "a", extra=(mount,)):
        collected = store.collect(keep=Keep(count=0, age=0, size=0))
        assert sorted(short(collected.names)) == ["a", "a2"]
        assert left(store) == ["b", "c", "d"]
    assert sorted(short(store.collect(keep=Keep(count=0)).names)) == ["c", "d"]
    assert left(store) == ["b"]


def test_an_image_that_gets_a_name_at_the_last_moment_keeps_all_its_names(
    store: orlop.Store, load: Callable[..., str]
) -> None:
    load("a", 5)

    def tag(point: str) -> None:
        if point == "collect.chosen":
            store.tag("localhost/a", "localhost/b")

    with watch_points(tag):
        assert store.collect(keep=Keep(age=HOUR)).names == ()
    assert left(store) == ["a", "b"]


def test_an_image_that_is_asked_for_at_the_last_moment_stays(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    load("a", 5)
    load("b", 4)
    done: list[orlop.Prepared] = []

    def prepare(point: str) -> None:
        if point == "collect.chosen" and not done:
            done.append(store.prepare("localhost/a", store_dirs.work / "a"))

    with watch_points(prepare):
        assert short(store.collect(keep=Keep(age=HOUR)).names) == ["b"]
    done[0].cleanup()
    assert left(store) == ["a"]
    assert store.collect(keep=Keep(age=HOUR)).names == ()  # it was used just now
    age(verbs, "localhost/a:latest", 2)
    assert short(store.collect(keep=Keep(age=HOUR)).names) == ["a"]


def test_preparing_committing_and_tagging_count_as_use(
    store: orlop.Store, verbs: LocalStore, load: Callable[..., str], store_dirs: StoreDirs
) -> None:
    name = load("a", 9)
    old = store.images()[0].used
    with store.prepare(name, store_dirs.work / "a") as root:
        assert store.images()[0].used > old
        age(verbs, name, 9)
        root.commit("localhost/made")
    used = {info.name: info.used for info in store.images()}
    assert used["localhost/made:latest"] > old
    assert store.inspect("localhost/made").info.used == used["localhost/made:latest"]


@pytest.mark.parametrize("keep", [Keep(age=-1), Keep(count=-2), Keep(labels=("",))], ids=str)
def test_a_limit_that_means_nothing_is_refused(store: orlop.Store, keep: Keep) -> None:
    with pytest.raises(InvalidArgument):
        store.collect(keep=keep)


def test_labels_belong_to_the_name_and_go_with_it(store: orlop.Store, load: Callable[..., str]) -> None:
    load("a", 1)
    load("b", 1)
    first = store.label("localhost/a", {"one": "1", "empty": "", "x": "\n"})
    assert first.labels == {"one": "1", "empty": "", "x": "\n"}
    assert store.label("localhost/a", {"one": "2", "x": None, "missing": None}).labels == {
        "one": "2",
        "empty": "",
    }
    store.tag("localhost/b", "localhost/a")  # the name moves and keeps them
    listed = {info.name: info.labels for info in store.images()}
    assert listed == {"localhost/a:latest": {"one": "2", "empty": ""}, "localhost/b:latest": {}}
    with pytest.raises(FailedPrecondition):
        store.label(store.inspect("localhost/b").info.id, {"k": "v"})
    store.remove("localhost/a")
    store.tag("localhost/b", "localhost/a")
    assert store.inspect("localhost/a").info.labels == {}


@pytest.mark.parametrize(
    "changes", [{"": "x"}, {"a=b": "x"}, {"a\n": "x"}, {"k": "\0"}, {"k" * 1001: ""}], ids=str
)
def test_labels_that_cannot_be_are_refused(
    store: orlop.Store, load: Callable[..., str], changes: dict[str, str | None]
) -> None:
    load("a", 1)
    with pytest.raises(InvalidArgument):
        store.label("localhost/a", changes)
    with pytest.raises(NotFound):
        store.label("localhost/other", {"fine": "x"})
