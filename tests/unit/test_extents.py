"""Extents of a growing file, their record, and an ingest that is opened again: whatever the record says."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.content.extents import ENTRY_SIZE, Extents, decode_entries, encode_entry
from orlop.content.ingests import Ingest, bytes_there

SIZE = 64
RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12)


@given(RANGES)
def test_extents_are_the_set_of_the_bytes_that_were_added(ranges: list[tuple[int, int]]) -> None:
    there, known = Extents(), set()
    for start, end in ranges:
        there.add(start, end)
        known |= set(range(start, end))
    listed = list(there)
    assert {at for start, end in listed for at in range(start, end)} == known
    assert all(one[1] < other[0] for one, other in itertools.pairwise(listed))
    assert there.total == len(known)
    assert there.front == next(at for at in range(SIZE + 1) if at not in known)
    missing = {at for start, end in there.gaps(SIZE) for at in range(start, end)}
    assert missing == set(range(SIZE)) - known


@given(RANGES, st.integers(0, 12 * ENTRY_SIZE), st.integers(0, 255))
def test_a_damaged_record_says_nothing_false(ranges: list[tuple[int, int]], at: int, value: int) -> None:
    good = [(start, end) for start, end in ranges if start < end]
    data = bytearray(b"".join(encode_entry(start, end) for start, end in good))
    before = bytes(data)
    if at < len(data):
        data[at] = value
    there, entries = decode_entries(bytes(data), SIZE)
    expected = Extents()
    for start, end in good[: at // ENTRY_SIZE] if bytes(data) != before else good:
        expected.add(start, end)
    assert list(there) == list(expected)
    assert entries <= len(good)


def test_what_lies_behind_the_files_end_is_not_believed() -> None:
    record = encode_entry(0, 10) + encode_entry(20, 40) + encode_entry(12, 14)
    there, entries = decode_entries(record, 30)
    assert (list(there), entries) == ([(0, 10)], 1)


# ------------------------------------------------------------------ the ingest


def opened(folder: Path) -> Ingest:
    return Ingest(folder / "one", folder / "blob")


def test_a_download_that_grows_at_its_end_alone_has_no_record(tmp_path: Path) -> None:
    one = opened(tmp_path)
    one.write(b"abc")
    one.write(memoryview(b"defg"))
    assert (one.size, one.held, one.gaps(10)) == (7, 7, [(7, 10)])
    one.close()
    assert os.listdir(tmp_path / "one") == ["data"]
    again = opened(tmp_path)
    assert (again.size, b"".join(again.chunks(2)), bytes_there(tmp_path / "one")) == (7, b"abcdefg", 7)
    again.close()


def test_bytes_ahead_of_the_front_are_there_again(tmp_path: Path) -> None:
    one = opened(tmp_path)
    one.write(b"ab")
    one.write_at(6, b"gh")
    one.write_at(2, b"c")
    one.close()
    again = opened(tmp_path)
    assert (again.size, again.held, again.gaps(10)) == (3, 5, [(3, 6), (8, 10)])
    again.write_at(3, b"def")
    assert (again.size, again.gaps(8), b"".join(again.chunks())) == (8, [], b"abcdefgh")
    again.close()
    third = opened(tmp_path)
    assert third.gaps(8) == []
    third.publish()
    assert ((tmp_path / "blob").read_bytes(), (tmp_path / "one").exists()) == (b"abcdefgh", False)


@pytest.mark.parametrize("record", [b"", b"torn", bytes(ENTRY_SIZE), encode_entry(0, 99)])
def test_a_record_that_says_nothing_leaves_what_the_files_length_says(tmp_path: Path, record: bytes) -> None:
    one = opened(tmp_path)
    one.write(b"abcd")
    one.close()
    (tmp_path / "one/extents").write_bytes(record)
    again = opened(tmp_path)
    assert (again.size, again.held) == (4, 4)
    again.write_at(8, b"x")
    again.close()
    third = opened(tmp_path)
    assert third.gaps(9) == [(4, 8)]
    third.close()


def test_a_torn_entry_costs_what_it_told_of_and_no_later_one(tmp_path: Path) -> None:
    one = opened(tmp_path)
    one.write_at(10, b"x" * 10)
    one.write_at(30, b"y" * 10)
    one.close()
    record = tmp_path / "one/extents"
    os.truncate(record, record.stat().st_size - 3)
    again = opened(tmp_path)
    assert again.gaps(40) == [(0, 10), (20, 40)]
    again.write_at(25, b"z")
    again.close()
    third = opened(tmp_path)
    assert third.gaps(40) == [(0, 10), (20, 25), (26, 40)]
    third.truncate()
    assert (third.held, third.length, os.listdir(tmp_path / "one")) == (0, 0, ["data"])
    third.close()


def test_bytes_that_no_record_tells_of_do_not_get_into_the_blob(tmp_path: Path) -> None:
    one = opened(tmp_path)
    one.write_at(6, b"g")
    os.pwrite(one.fd, b"beyond", 20)
    one.write_at(0, b"abcdef")
    one.publish()
    assert (tmp_path / "blob").read_bytes() == b"abcdefg"


def test_pieces_in_any_order_make_the_whole(tmp_path: Path) -> None:
    dice = random.Random(3)
    data = dice.randbytes(5_000)
    pieces = [(at, data[at : at + 50]) for at in range(0, len(data), 50)]
    dice.shuffle(pieces)
    one = opened(tmp_path)
    for number, (at, piece) in enumerate(pieces):
        one.write_at(at, piece)
        if number % 30 == 0:
            one.close()
            one = opened(tmp_path)
    assert (one.size, b"".join(one.chunks(999))) == (5_000, data)
    one.close()
