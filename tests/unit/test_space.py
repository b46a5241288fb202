"""Room on the disk: what is said when there is none, and blocks that are kept for deleting."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from orlop.errors import DataLoss, Error, NotFound, ResourceExhausted, from_oserror
from orlop.images.space import Reserve, check_room, free_bytes, is_full, needing, told

MUCH = 1 << 60


def full_disk(filename: str | None = None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filename)


def test_more_than_is_free_is_refused_with_what_is_needed_what_is_free_and_where(tmp_path: Path) -> None:
    check_room(tmp_path, 1, "pull x")
    with pytest.raises(ResourceExhausted) as caught:
        check_room(tmp_path, MUCH, "pull x")
    assert str(caught.value).startswith(
        f"pull x: it needs at least 1048576.0 TiB on the disk of {tmp_path}, and "
    )
    assert caught.value.details["needed"] == str(MUCH)
    assert caught.value.details["where"] == str(tmp_path)
    assert int(caught.value.details["free"]) > 0


def test_work_that_needs_more_than_is_free_does_not_begin(tmp_path: Path) -> None:
    began = False
    with pytest.raises(ResourceExhausted), needing(tmp_path, MUCH, "pull x"):
        began = True
    assert not began


def test_an_error_about_a_descriptor_has_no_path(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(NotADirectoryError) as caught:
        os.listdir(file.fileno())
    assert type(caught.value.filename) is int
    assert from_oserror("list it", caught.value).reason == os.strerror(errno.ENOTDIR)


def test_too_many_links_of_a_file_are_the_file_systems_limit_and_name_who_needs_none() -> None:
    error = from_oserror("unpack it", OSError(errno.EMLINK, "Too many links"))
    assert isinstance(error, ResourceExhausted)
    assert "erofs" in error.hint


@pytest.mark.parametrize(
    "error", [full_disk(), from_oserror("write f", full_disk()), OSError(errno.EDQUOT, "quota")]
)
def test_room_that_runs_out_on_the_way_is_told_with_what_was_needed(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ResourceExhausted) as caught, needing(tmp_path, 3 << 20, "pull x"):
        raise error
    assert f"no room is left on the disk of {tmp_path}: it needed at least 3.0 MiB" in str(caught.value)
    assert caught.value.__cause__ is error
    assert is_full(caught.value)


def test_what_is_not_known_beforehand_is_found_out_when_room_runs_out(tmp_path: Path) -> None:
    with needing(tmp_path, lambda: MUCH, "copy x"):
        pass
    with pytest.raises(ResourceExhausted) as caught, needing(tmp_path, lambda: MUCH, "copy x"):
        raise full_disk()
    assert caught.value.details["needed"] == str(MUCH)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "bad"),
        NotFound("read x", "gone"),
        ResourceExhausted("read x", "too large", hint="limits.config_size"),
    ],
)
def test_other_errors_stay_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, needing(tmp_path, 1, "pull x"):
        raise error
    assert caught.value is error
    assert not is_full(error)


def test_what_was_told_once_is_not_told_again(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted) as caught, needing(tmp_path, 5, "outer"):
        check_room(tmp_path, MUCH, "inner")
    assert caught.value.attempted == "inner"
    assert told("outer", caught.value, tmp_path) is caught.value


def test_an_error_without_figures_gets_what_is_free_and_where(tmp_path: Path) -> None:
    error = told("tag x", from_oserror("write metadata", full_disk()), tmp_path)
    assert isinstance(error, ResourceExhausted)
    assert error.attempted == "write metadata"
    assert error.details["where"] == str(tmp_path)
    assert "needed" not in error.details
    assert told("tag x", full_disk(), tmp_path).attempted == "tag x"


def test_a_full_disk_that_is_not_the_stores_is_told_by_its_path(tmp_path: Path) -> None:
    error = told("export x", full_disk("/elsewhere/x.tar"), tmp_path)
    assert isinstance(error, ResourceExhausted)
    assert "/elsewhere/x.tar" in error.reason
    assert "where" not in error.details
    assert told("export x", full_disk(str(tmp_path / "f")), tmp_path).details["where"] == str(tmp_path)


def test_sqlite_that_finds_no_room_is_a_full_disk_and_an_error_of_the_disk_is_not() -> None:
    assert is_full(ResourceExhausted("write", "full", details={"errno": "ENOSPC"}))
    assert not is_full(ResourceExhausted("write", "no memory", details={"errno": "ENOMEM"}))
    assert not is_full(DataLoss("write", "bad", details={"errno": "EIO"}))
    assert not is_full(Error("write", "bad", details={"errno": "ENOSPC"}))


# ------------------------------------------------------------------ the reserve


def held(reserve: Path) -> int:
    return reserve.stat().st_blocks * 512


@pytest.fixture
def reserve(tmp_path: Path) -> Reserve:
    found = Reserve(tmp_path / "reserve", size=1 << 18)
    found.fill()
    assert held(tmp_path / "reserve") >= 1 << 18
    return found


def test_the_reserve_is_spent_only_by_who_deletes_and_comes_back(reserve: Reserve, tmp_path: Path) -> None:
    file = tmp_path / "reserve"
    assert not reserve.relieve()
    with reserve.deleting():
        assert reserve.relieve()
        assert held(file) == 0
        assert not reserve.relieve()  # nothing is left to spend
        with reserve.deleting():
            pass
        assert held(file) == 0  # the outer one is not done
    assert held(file) >= 1 << 18
    assert not reserve.relieve()


def test_another_thread_does_not_spend_it(reserve: Reserve) -> None:
    said: list[bool] = []
    with reserve.deleting():
        thread = threading.Thread(target=lambda: said.append(reserve.relieve()))
        thread.start()
        thread.join()
    assert said == [False]


def test_filling_it_twice_takes_it_once_and_its_loss_is_borne(reserve: Reserve, tmp_path: Path) -> None:
    file = tmp_path / "reserve"
    before = held(file)
    reserve.fill()
    assert held(file) == before
    file.unlink()
    assert not reserve.spend()
    with reserve.deleting():
        assert not reserve.relieve()
    assert held(file) == before


def test_it_follows_no_link(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * (1 << 18))
    (tmp_path / "reserve").symlink_to(precious)
    found = Reserve(tmp_path / "reserve", size=1 << 16)
    found.fill()
    assert not found.spend()
    assert precious.read_bytes() == b"x" * (1 << 18)


def test_a_disk_with_little_left_is_not_made_to_give_it(tmp_path: Path) -> None:
    found = Reserve(tmp_path / "reserve", size=free_bytes(tmp_path) // 2)
    found.fill()
    assert not (tmp_path / "reserve").exists()
