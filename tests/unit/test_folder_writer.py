"""Entries to files on disk, without privilege: in the form of who has none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.errors import Cancelled
from orlop.layers import folder as folders
from orlop.layers.folder import FolderWriter, Item, Written
from orlop.layers.forms import OVERRIDE, PLAIN
from orlop.linux.files import walk_folders
from orlop.observe import Call

SECOND = 1_000_000_000


def write(top: Path, items: list[Item], *, call: Call | None = None) -> Written:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    try:
        return FolderWriter(fd, form=PLAIN, call=call).write(items)
    finally:
        os.close(fd)


def item(key: int, parent: int, name: bytes, mode: int, **values: object) -> Item:
    made = Item(key, parent, name, mode)
    for field, value in values.items():
        setattr(made, field, value)
    return made


def root() -> Item:
    return item(0, 0, b"", stat.S_IFDIR | 0o755, mtime=5)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "source").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_files_have_their_bytes_times_and_names(tmp_path: Path, source: int) -> None:
    pieces = ((source, 2, 0, 3), (source, 0, 10, 2))
    items = [
        root(),
        item(1, 0, b"d", stat.S_IFDIR | 0o700, mtime=7, nsec=8),
        item(2, 1, b"\xff\n", stat.S_IFREG | 0o640, mtime=-3, nsec=9, size=14, pieces=pieces, shared=True),
        item(3, 0, b"same", 0, hard=2),
        item(4, 0, b"link", stat.S_IFLNK | 0o777, target=b"/nowhere", mtime=11),
        item(5, 0, b"pipe", stat.S_IFIFO | 0o600, mtime=12),
    ]
    written = write(tmp_path / "t", items)
    path = os.fsencode(tmp_path / "t") + b"/d/\xff\n"
    with open(path, "rb") as file:
        assert file.read() == b"234" + bytes(7) + b"01" + bytes(2)
    assert os.stat(path).st_mtime_ns == -3 * SECOND + 9
    assert os.stat(path).st_ino == (tmp_path / "t/same").stat().st_ino
    assert (tmp_path / "t/d").stat().st_mtime_ns == 7 * SECOND + 8
    assert (tmp_path / "t").stat().st_mtime_ns == 5 * SECOND
    assert os.readlink(tmp_path / "t/link") == "/nowhere"
    assert (tmp_path / "t/link").lstat().st_mtime_ns == 11 * SECOND
    assert stat.S_ISFIFO((tmp_path / "t/pipe").stat().st_mode)
    assert (written.entries, written.size) == (6, 14)


def test_what_cannot_be_applied_is_recorded(tmp_path: Path) -> None:
    write(tmp_path / "t", [root(), item(1, 0, b"su", stat.S_IFREG | 0o4000, uid=3)])
    assert os.getxattr(tmp_path / "t/su", OVERRIDE) == b"3:0:4000:file"
    assert (tmp_path / "t/su").stat().st_mode & 0o7777 == 0o600


def test_more_folders_than_may_be_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_OPEN_FOLDERS", 2)
    items = [root(), *(item(n, n - 1, b"n", stat.S_IFDIR | 0o755) for n in range(1, 60))]
    items += [item(100 + number, number, b"f", stat.S_IFREG | 0o644) for number in range(59, 0, -7)]
    write(tmp_path / "t", items)
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "t")) == 9


def test_paths_longer_than_path_max(tmp_path: Path) -> None:
    items = [root()] + [item(n, n - 1, b"n" * 200, stat.S_IFDIR | 0o755) for n in range(1, 40)]
    write(tmp_path / "t", items)
    fd = os.open(tmp_path / "t", os.O_RDONLY)
    try:
        assert sum(1 for _ in walk_folders(fd)) == 40
    finally:
        os.close(fd)


@pytest.mark.hostile(1, 2)
def test_a_name_that_is_taken_is_not_written_through(tmp_path: Path) -> None:
    items = [
        root(),
        item(1, 0, b"x", stat.S_IFLNK | 0o777, target=os.fsencode(tmp_path / "victim")),
        item(2, 0, b"x", stat.S_IFREG | 0o644),
    ]
    with pytest.raises(FileExistsError):
        write(tmp_path / "t", items)
    assert not (tmp_path / "victim").exists()


def test_a_cancelled_call_stops_it(tmp_path: Path) -> None:
    call = Call()
    call.cancel.cancel()
    with pytest.raises(Cancelled):
        write(tmp_path / "t", [root()], call=call)
