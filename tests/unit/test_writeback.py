"""Large files on their way to the disk: who is told what, and that a failed sync is not lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orlop.images.transfer.writeback import STEP, WriteBack
from orlop.linux.sync import DURABLE, Sync


@pytest.fixture
def fd(tmp_path: Path) -> object:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_a_large_file_is_synced_whole(fd: int) -> None:
    with WriteBack(fd, DURABLE) as back:
        for total in (STEP // 2, STEP, 3 * STEP, 3 * STEP + 1):
            back.grown(total)
        back.whole()
        assert back.settled()
        assert back.settled()


def test_of_a_small_file_or_one_that_need_not_last_nothing_is_promised(fd: int) -> None:
    for sync, total in ((DURABLE, STEP - 1), (Sync(False), 10 * STEP)):
        with WriteBack(fd, sync) as back:
            back.grown(total)
            back.whole()
            assert not back.settled()


def test_a_sync_that_fails_is_told_to_who_needs_it() -> None:
    out, into = os.pipe2(os.O_CLOEXEC)  # which cannot be synced
    try:
        with WriteBack(into, DURABLE) as back:
            back.grown(STEP)
            back.grown(2 * STEP)
            back.whole()
            with pytest.raises(OSError, match="Invalid argument"):
                back.settled()
    finally:
        os.close(out)
        os.close(into)


def test_giving_a_file_up_ends_the_thread(fd: int) -> None:
    with WriteBack(fd, DURABLE) as back:
        back.grown(STEP)
        thread = back._thread
    assert thread is not None
    assert not thread.is_alive()
