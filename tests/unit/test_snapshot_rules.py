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
