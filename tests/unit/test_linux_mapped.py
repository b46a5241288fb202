"""Bytes of files that are lent by the kernel."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from orlop.linux.mapped import mapped

SIZE = 3 * mmap.ALLOCATIONGRANULARITY + 100


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, SIZE),
        (0, 1),
        (1, 10),
        (mmap.ALLOCATIONGRANULARITY - 1, 2),
        (mmap.ALLOCATIONGRANULARITY, mmap.ALLOCATIONGRANULARITY),
        (SIZE - 1, 1),
    ],
)
def test_any_range_is_lent_as_it_is(tmp_path: Path, offset: int, length: int) -> None:
    data = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file, mapped(file.fileno(), offset, length) as view:
        assert view.readonly
        assert bytes(view) == data[offset : offset + length]


def test_what_is_not_there_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    """As it is with a page that the disk does not give."""
    (tmp_path / "file").write_bytes(b"x")
    with (
        (tmp_path / "file").open("rb") as file,
        pytest.raises(OSError, match="Bad address"),
        mapped(file.fileno(), 0, SIZE),
    ):
        pass


def test_what_cannot_be_mapped_is_an_error(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="No such device"), mapped(folder, 0, 1):
            pass
    finally:
        os.close(folder)
