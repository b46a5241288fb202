"""What tells a tree of our own making that nobody wrote to from one that somebody did."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orlop.layers.stamps import Stamps, stamp_tree, written_since
from orlop.linux.sync import Sync


def stamps_of(tree: Path) -> Stamps:
    with opened(tree) as fd:
        stamp_tree(fd, tree.parent / "stamps")
    found = Stamps.load(tree.parent / "stamps")
    assert found is not None
    return found


@contextmanager
def opened(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_a_file_is_untouched_until_its_inode_or_its_path_is_another(tmp_path: Path) -> None:
    tree = tmp_path / "t"
    (tree / "d").mkdir(parents=True)
    old, young = tree / "d/old", tree / "young"
    old.write_text("1")
    while young.touch() or young.stat().st_ctime_ns - old.stat().st_ctime_ns < 50_000_000:
        continue  # the clock that stamps inodes is a coarse one
    stamps = stamps_of(tree)
    assert stamps.untouched(b"d/old", old.stat())
    assert not stamps.untouched(b"young", young.stat())  # a write right now might leave the same ctime
    assert not stamps.untouched(b"d/other", old.stat())
    about = old.stat()
    old.write_text("2")
    os.utime(old, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert not stamps.untouched(b"d/old", old.stat())


def test_stamps_that_are_none_are_told_from_stamps(tmp_path: Path) -> None:
    assert Stamps.load(tmp_path / "none") is None
    (tmp_path / "bad").write_bytes(b"ORLOPST1" + bytes(23))
    assert Stamps.load(tmp_path / "bad") is None


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file written": lambda tree: (tree / "d/f").write_text("2"),
    "a file made": lambda tree: (tree / "d/new").touch(),
    "a file removed": lambda tree: (tree / "d/f").unlink(),
    "a link made": lambda tree: (tree / "top").symlink_to("d"),
    "the top's mode": lambda tree: tree.chmod(0o700),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_right_after_the_stamps_is_seen_though_the_clock_of_inodes_is_coarse(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    for number in range(40):
        tree = tmp_path / str(number) / "t"
        (tree / "d").mkdir(parents=True)
        (tree / "d/f").write_text("1")
        with opened(tree) as fd:
            stamp_tree(fd, tree.parent / "stamps", sync=Sync(False))
            assert not written_since(fd, tree.parent / "stamps")
            change(tree)
            assert written_since(fd, tree.parent / "stamps")
