"""containerd's snapshots without a kernel: names, counting and syncing, what fits into a mount, the pool."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.config import Settings
from orlop.errors import FailedPrecondition, InvalidArgument, Unavailable
from orlop.images.chains import Chains
from orlop.images.core import Core
from orlop.images.layout import Layout
from orlop.images.snapshotting import names, settle
from orlop.images.snapshotting.pool import LOW, Pool, pool_lock
from orlop.images.snapshotting.stack import NOTHING_BELOW, Bottom, Stacks
from orlop.linux.files import remove_tree
from orlop.linux.sync import Sync
from orlop.observe import Call


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Core]:
    opened = Core.open(Layout(root=tmp_path / "root", run=tmp_path / "run"), Settings(durable=False))
    yield opened
    opened.close()


class Synced(Sync):
    """Counts what is synced."""

    def __init__(self) -> None:
        super().__init__(True)
        self.files = 0

    def file(self, fd: int) -> None:
        self.files += 1
        super().file(fd)


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("key", "namespace"),
    [
        ("k8s.io/12/sha256:ab", "k8s.io"),
        ("default/1/extract-1 sha256:ab", "default"),
        ("default/0/a/1/b", "default"),
        ("layer", None),
        ("a/b/c", None),
        ("/1/c", None),
        ("a/1/", None),
        ("a//c", None),
    ],
)
def test_a_name_that_a_containerd_made_tells_its_namespace(key: str, namespace: str | None) -> None:
    assert names.namespace_in(key) == namespace


def test_a_name_of_ours_tells_it_as_the_one_that_was_asked_for() -> None:
    assert names.beside("k8s.io/12/extract", "sha256:ab") == "k8s.io/0/sha256:ab"
    assert names.namespace_in(names.beside("k8s.io/12/extract", "sha256:ab")) == "k8s.io"
    assert names.beside("mine", "sha256:ab") == "sha256:ab"


@pytest.mark.parametrize(
    ("namespace", "key", "parent", "found"),
    [
        ("a", "a/2/x", "b/0/p", "b"),  # a containerd's
        ("a", "a/2/x", "p", "a"),
        ("a", "a/2/x", "", "a"),
        ("a", "x", "b/0/p", "a"),
        ("a", "b/2/x", "b/0/p", "a"),
    ],
)
def test_a_parent_is_where_a_containerds_name_for_it_tells(
    namespace: str, key: str, parent: str, found: str
) -> None:
    assert names.parents_namespace(namespace, key, parent) == found


@pytest.mark.parametrize("namespace", ["default", "k8s.io", "a", "A_b-c.9", "x" * 76])
def test_what_containerd_takes_for_a_namespace_is_one(namespace: str) -> None:
    names.check_namespace(namespace, "try")


@pytest.mark.parametrize("namespace", ["", ".", "a/b", "-a", "a-", "a..b", "ä", "a\n", "x" * 77])
def test_nothing_else_is(namespace: str) -> None:
    with pytest.raises(InvalidArgument):
        names.check_namespace(namespace, "try")


def test_a_label_has_4096_bytes_and_a_value() -> None:
    assert names.checked_labels({"k": "v" * 4095, "gone": "", "ä": "1"}, "try") == {"k": "v" * 4095, "ä": "1"}
    for odd in ({"k": "v" * 4096}, {"k" * 4097: ""}, {"ä": "ä" * 2048}):
        with pytest.raises(InvalidArgument):
            names.checked_labels(odd, "try")


# ------------------------------------------------------------------ what was written


def test_each_file_and_folder_is_synced_once_however_many_names_it_has(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number % 7}").mkdir(exist_ok=True)
        (tmp_path / f"{number % 7}" / f"{number}").write_bytes(b"x" * number)
    os.link(tmp_path / "1" / "1", tmp_path / "2" / "twin")
    os.symlink("nowhere", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    synced = Synced()
    usage = settle.settle(os.fsencode(tmp_path), sync=synced, call=Call())
    assert (usage.inodes, synced.files) == (1 + 7 + 300 + 2, 300 + 7 + 1)
    assert usage == settle.count(os.fsencode(tmp_path), call=Call())


def test_no_depth_is_too_much(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(30):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    os.close(here)
    synced = Synced()
    assert settle.settle(os.fsencode(top), sync=synced, call=Call()).inodes == 1 + 30 + 1
    assert synced.files >= 1
    remove_tree(top)


# ------------------------------------------------------------------ mounts


def test_what_does_not_fit_into_one_mount_is_refused(core: Core) -> None:
    stacks = Stacks(core, Chains(core))
    ids = [f"{number:010x}" for number in range(501)]
    (mount,) = stacks.mounts("active", "f" * 10, ids[:100], NOTHING_BELOW, "try")
    options = dict(option.partition("=")[::2] for option in mount.options)
    assert options["lowerdir"].split(":") == [stacks.folder(one) for one in ids[:100]]
    with pytest.raises(FailedPrecondition, match="overlayfs takes 500"):
        stacks.mounts("active", "f" * 10, ids, NOTHING_BELOW, "try")
    with pytest.raises(FailedPrecondition, match="do not fit"):
        stacks.mounts("view", "f" * 10, ids[:400], NOTHING_BELOW, "try")
    # Where the folders have nothing in common with the chain, containerd cannot shorten them.
    elsewhere = Bottom(chain="c", trees=("/elsewhere/chains/c/root",))
    with pytest.raises(FailedPrecondition, match="do not fit"):
        stacks.mounts("active", "f" * 10, ids[:200], elsewhere, "try")


# ------------------------------------------------------------------ the pool


class Lots(Pool):
    """Draws the lots for its names that it is told to draw."""

    drawn = ("0" * 8, "0" * 8, "1" * 8)

    def _prefix(self) -> str:
        lot, *rest = self.drawn
        self.drawn = tuple(rest)
        return lot


def test_a_name_that_is_taken_already_costs_nobody_what_lies_there(core: Core) -> None:
    there = core.layout.snapshots / ("0" * 8 + "01") / "fs" / "file"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody's")
    made = Lots(core)._make(3)
    assert [name for name, _ in made] == ["1" * 8 + number for number in ("00", "01", "02")]
    assert there.read_bytes() == b"somebody's"
    assert sorted(os.listdir(core.layout.snapshots)) == sorted([there.parts[-3], *(name for name, _ in made)])
    made[0][1].lock.release()


def test_folders_are_synced_each_before_they_are_anybodys(core: Core) -> None:
    class Folders(Sync):
        def folder(self, folder: Path | str | int) -> None:
            synced.append(os.fspath(folder))  # type: ignore[arg-type]  # no descriptor is given

    synced: list[str] = []
    core.sync = Folders(True)  # type: ignore[misc]
    ((name, batch),) = Pool(core)._make(1)
    place = os.fspath(core.layout.snapshots)
    assert synced == [f"{place}/{name}/fs", f"{place}/{name}", place]
    batch.lock.release()


def test_folders_wait_and_what_was_not_named_is_gone(core: Core) -> None:
    pool, place = Pool(core), core.layout.snapshots
    seen = set()
    for _ in range(3 * LOW):
        with contextlib.suppress(LookupError), pool.taken() as taken:
            assert sorted(os.listdir(place / taken)) == ["fs", "work"]
            assert (place / taken / "fs").stat().st_mode & 0o7777 == 0o755
            assert core.try_locked("pool", pool_lock(taken)) is None  # a collector leaves it alone
            seen.add(taken)
            raise LookupError("not named")
        assert not (place / taken).exists()
    assert len(seen) == 3 * LOW
    pool.close()
    pool.close()
    assert os.listdir(place) == []
    assert [name for name in os.listdir(core.layout.locks) if name.startswith("pool")] == []
    with pytest.raises(Unavailable), pool.taken():
        pass
