"""Files of an upper, opened by their paths one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.layers.upper import Below

LINK = r"\[Errno (20|40)\]"  # ENOTDIR, ELOOP: what the kernel says of a link


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    for name in ("a/one", "a/two", "b/c/three", "four"):
        path = tmp_path / "upper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "upper"


@pytest.fixture
def below(upper: Path) -> Iterator[Below]:
    fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
    with Below(fd) as opened:
        yield opened
    os.close(fd)


def text(below: Below, path: bytes) -> str:
    fd = below.open(path)
    try:
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)


def test_each_path_is_its_own_file(below: Below) -> None:
    for name in ("a/one", "a/two", "four", "b/c/three", "a/one", "four"):
        assert text(below, name.encode()) == name


def test_no_link_is_followed_to_or_on_the_way(below: Below, upper: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (upper / "link").symlink_to(tmp_path / "outside" / "secret")
    (upper / "away").symlink_to(tmp_path / "outside")
    for path in (b"link", b"away/secret"):
        with pytest.raises(OSError, match=LINK):
            below.open(path)


def test_a_folder_that_became_a_link_leads_nowhere(below: Below, upper: Path, tmp_path: Path) -> None:
    assert text(below, b"a/one") == "a/one"
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (upper / "a").rename(upper / "moved")
    (upper / "a").symlink_to(tmp_path / "outside")
    assert text(below, b"a/two") == "a/two"  # of the folder that was looked at
    with pytest.raises(OSError, match=LINK):
        below.open(b"a/secret")


def test_what_is_not_in_the_folder_that_was_is_looked_for_in_the_one_that_is(
    below: Below, upper: Path
) -> None:
    assert text(below, b"a/one") == "a/one"
    (upper / "a").rename(upper / "moved")
    (upper / "a").mkdir()
    (upper / "a" / "new").write_text("new")
    assert text(below, b"a/new") == "new"


def test_a_path_to_nothing_leaves_no_descriptor_open(below: Below) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (b"no", b"no/no", b"b/c/no", b"b/no/no"):
        with pytest.raises(FileNotFoundError):
            below.open(path)
    below.close()
    assert len(os.listdir("/proc/self/fd")) == before
