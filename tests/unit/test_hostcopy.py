"""A generator that one thread reads may be closed by another."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from orlop.errors import Cancelled
from orlop.images.browsing.hostcopy import Handed


def test_closing_waits_for_the_read_under_way_and_ends_the_generator() -> None:
    reading, go, ended = threading.Event(), threading.Event(), threading.Event()

    def chunks() -> Generator[bytes]:
        try:
            reading.set()
            go.wait(60)
            yield b"late"
            yield b"never"
        finally:
            ended.set()

    handed = Handed(chunks())
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(next(handed)))
    reader.start()
    assert reading.wait(60)
    closer = threading.Thread(target=handed.close)
    closer.start()
    assert not ended.is_set()
    go.set()
    closer.join(60)
    reader.join(60)
    assert got == [b"late"]
    assert ended.is_set()
    with pytest.raises(Cancelled):
        next(handed)
    handed.close()


def test_a_generator_of_ones_own_would_not_close_while_it_is_read() -> None:
    """What the class is for: Python refuses."""
    reading, go = threading.Event(), threading.Event()

    def chunks() -> Generator[bytes]:
        reading.set()
        go.wait(60)
        yield b""

    bare = chunks()
    reader = threading.Thread(target=lambda: next(bare))
    reader.start()
    assert reading.wait(60)
    with pytest.raises(ValueError, match="already executing"):
        bare.close()
    go.set()
    reader.join(60)
