"""Fingerprints of trees: every change shows, and what might not show is not settled."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orlop.images.changed.states import with_layer
from orlop.layers.fingerprint import YOUNG, Look, any_writers, look
from orlop.linux.writers import may_be_written
from orlop.observe import Call
from orlop.spec.digest import DiffID
from orlop.spec.documents import parse_config, parse_json


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a/deep").mkdir(parents=True)
    (tmp_path / "a/deep/file").write_text("1")
    (tmp_path / "b").write_text("22")
    (tmp_path / "link").symlink_to("b")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.fixture
def fd(tree: Path) -> Iterator[int]:
    opened = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def fingerprint(fd: int) -> bytes:
    return look(fd, Call()).fingerprint


def passed(fd: int) -> None:
    """Wait until another change is sure to get another ctime."""
    newest = look(fd, Call()).newest
    while time.time_ns() - newest < 3 * YOUNG:
        os.sched_yield()


CHANGES: list[Callable[[Path], object]] = [
    lambda tree: (tree / "b").write_text("33"),
    lambda tree: os.utime(tree / "b", ns=(1, 1)),
    lambda tree: (tree / "a/deep/file").chmod(0o600),
    lambda tree: (tree / "a/deep/file").rename(tree / "a/file"),
    lambda tree: (tree / "a").rename(tree / "c"),
    lambda tree: (tree / "b").unlink(),
    lambda tree: (tree / "new").write_text(""),
    lambda tree: (tree / "a/deep/new").mkdir(),
    lambda tree: os.link(tree / "b", tree / "a/b"),
    lambda tree: (tree / "b").replace(tree / "link"),
    lambda tree: tree.chmod(0o700),
]


@pytest.mark.parametrize("change", CHANGES, ids=map(str, range(len(CHANGES))))
def test_every_change_gives_another_fingerprint(
    tree: Path, fd: int, change: Callable[[Path], object]
) -> None:
    passed(fd)
    before = fingerprint(fd)
    assert fingerprint(fd) == before
    (tree / "b").read_text()
    assert fingerprint(fd) == before
    change(tree)
    assert fingerprint(fd) != before


def test_names_are_told_apart_where_their_bytes_run_together(tree: Path, fd: int) -> None:
    seen = {fingerprint(fd)}
    for first, second in ((b"x\xff", b"y"), (b"x", b"\xffy")):
        for name in (first, second):
            os.symlink(b"t", os.fsencode(tree) + b"/" + name)
        seen.add(fingerprint(fd))
        for name in (first, second):
            os.unlink(os.fsencode(tree) + b"/" + name)
    assert len(seen) == 3


def test_what_was_changed_just_now_is_not_settled() -> None:
    now = 1_000_000_000_000
    found = Look(fingerprint=b"", newest=now, coarse=False)
    assert not found.settled(now)
    assert not found.settled(now + YOUNG)
    assert found.settled(now + YOUNG + 1)
    assert not replace(found, newest=now + 5).settled(now)  # the clock was set back
    assert not replace(found, coarse=True).settled(now + 1_999_999_999)
    assert replace(found, coarse=True).settled(now + 2_000_000_001)


def test_files_that_may_be_written_to_are_found(tree: Path, fd: int) -> None:
    assert not any_writers(fd, Call())
    with (tree / "b").open("rb"):
        assert not any_writers(fd, Call())
    with (tree / "a/deep/file").open("r+b") as file:
        assert any_writers(fd, Call())
        memory = mmap.mmap(file.fileno(), 1)
    assert any_writers(fd, Call())  # a mapping outlives its descriptor
    memory.close()
    assert not any_writers(fd, Call())


def test_whoever_opens_a_file_for_writing_while_it_is_asked_about_goes_on_and_nobody_dies(tree: Path) -> None:
    code = "import sys\nfor n in range(3000): open(sys.argv[1], 'r+b').close()"
    opener = subprocess.Popen([sys.executable, "-c", code, tree / "b"], stdin=subprocess.DEVNULL)
    try:
        reading = os.open(tree / "b", os.O_RDONLY)
        asked = 0
        while opener.poll() is None and asked < 200_000:
            may_be_written(reading)
            asked += 1
        os.close(reading)
        assert opener.wait(60) == 0
    finally:
        opener.kill()
        opener.wait()


def test_a_layer_more_tells_no_time_and_leaves_what_is_not_known() -> None:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "odd": {"x": 1},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "a" * 64]},
        "history": [],
    }
    new = DiffID("sha256:" + "b" * 64)
    once = with_layer(config, new)
    assert once == with_layer(config, new)
    document = parse_json(once, "test")
    assert parse_config(once, "test").diff_ids()[-1] == new
    assert (document["created"], document["odd"]) == ("2020-01-01T00:00:00Z", {"x": 1})
    assert document["history"] == [{"created_by": "unknown"}, {"created_by": "orlop capture"}]
