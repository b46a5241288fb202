"""What a worker reads of its source, and what it goes past unread."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orlop.errors import Error, InvalidArgument, ResourceExhausted
from orlop.layers.tarread import TarReader
from orlop.layers.worker import READ
from orlop.layers.worker.feed import Feed
from orlop.layers.worker.process import _Source
from support.layers import Layer

BIG = 3 * READ + 1000
DATA = (
    Layer()
    .file("small", b"x" * 700)
    .file("big", b"y" * BIG)
    .file("after", b"z")
    .file("last", b"w" * BIG)
    .tar()
    + b"behind the end" * 100
)


@contextmanager
def source(path: Path, data: bytes, feed: Feed, *, offset: int = 0) -> Iterator[_Source]:
    """A source of some bytes that lie in a file, as a worker of this feed has it."""
    path.write_bytes(b"-" * offset + data)
    reader = feed.take_reader()
    answer = os.open(os.devnull, os.O_WRONLY)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield _Source(fd, reader, answer, offset)
    finally:
        feed.close()
        for each in (fd, reader, answer):
            os.close(each)


def outcome(chunks: Iterable[bytes]) -> object:
    """What a reader makes of a stream: entries and size, or an error's words."""
    reader = TarReader(chunks)
    try:
        return [(entry.name, entry.offset, entry.size, entry.dirty) for entry in reader], reader.size
    except Error as exc:
        return type(exc), str(exc)


CUTS = [
    len(DATA),
    512,
    1500,
    1536,
    2048,
    READ,
    BIG,
    BIG + 2048,
    BIG + 2560,
    BIG + 3584,
    2 * BIG,
    2 * BIG + 4096,
]


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_gone_past_unread_makes_no_difference(tmp_path: Path, cut: int) -> None:
    data = DATA[:cut]
    with source(tmp_path / "tar", data, Feed.whole(len(data)), offset=7) as skipping:
        assert outcome(skipping) == outcome([data])


def test_most_of_a_large_file_is_not_read(tmp_path: Path) -> None:
    with source(tmp_path / "tar", DATA, Feed.whole(len(DATA))) as skipping:
        read = list[int]()
        plain = skipping._read
        skipping._read = lambda count, at: read.append(count) or plain(count, at)  # type: ignore[method-assign,func-returns-value]
        outcome(skipping)
    assert sum(read) < len(DATA) // 2 + READ


def test_a_source_may_be_gone_past_before_it_is_there(tmp_path: Path) -> None:
    feed = Feed()
    for total in (10, 20_000, 20_001):
        feed.advance(total)
    feed.advance(len(DATA), complete=True)
    with source(tmp_path / "tar", DATA, feed) as skipping:
        assert skipping.skip(15_000) == 15_000
        assert next(skipping) == DATA[15_000 : 15_000 + READ]
        assert skipping.skip(len(DATA)) == len(DATA) - 15_000 - READ
        assert list(skipping) == []


@pytest.mark.parametrize("missing", [1, 500, BIG])
def test_a_source_that_is_shorter_than_announced_is_told_from_one_that_was_gone_past(
    tmp_path: Path, missing: int
) -> None:
    data = DATA[: 2 * BIG]  # in the middle of the last file's bytes
    with (
        source(tmp_path / "tar", data[:-missing], Feed.whole(len(data))) as skipping,
        pytest.raises(InvalidArgument, match="shorter than announced"),
    ):
        skipping.skip(len(data) + 1)


def test_what_is_gone_past_counts_as_the_rest(tmp_path: Path) -> None:
    with source(tmp_path / "tar", DATA, Feed.whole(len(DATA))) as skipping:
        skipping.most = BIG
        assert skipping.skip(BIG) == BIG
        with pytest.raises(ResourceExhausted, match=r"limits\.layer_size"):
            skipping.skip(1)
