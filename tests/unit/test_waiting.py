"""Folders made beforehand: that neither a thread that fails nor one that never rests holds anybody up."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from orlop.images.waiting import Batch, Waiting
from orlop.linux.flock import FileLock
from orlop.observe import Call


class _Names(Waiting[str]):
    """Makes names in place of folders."""

    def __init__(self, locks: Path) -> None:
        self.locks, self.numbers = locks, itertools.count()
        self.there: set[str] = set()
        self.fails = False
        self.asked = threading.Event()  # the thread makes some
        self.go = threading.Event()
        self.go.set()
        super().__init__("orlop-names")

    def _make(self, like: str, count: int) -> list[tuple[str, Batch]]:
        if threading.current_thread().name == "orlop-names":
            self.asked.set()
            assert self.go.wait(60)
            if self.fails:
                raise MemoryError
        lock = FileLock(self.locks / str(next(self.numbers)), unlink_on_release=True)
        lock.acquire(call=Call(), attempted="make")
        batch = Batch(lock, count)
        made = [f"{like}{next(self.numbers)}" for _ in range(count)]
        self.there.update(made)
        return [(name, batch) for name in made]

    def _is_named(self, folder: str) -> bool:
        return False

    def _discard(self, folder: str) -> None:
        self.there.discard(folder)

    def take(self, count: int = 1) -> None:
        for _ in range(count):
            with self.taken("kind", "a") as name:
                self.there.discard(name)


def _ends(work: threading.Thread) -> bool:
    work.join(60)
    return not work.is_alive()


def test_a_thread_that_dies_keeps_nobody_from_taking_or_closing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    names = _Names(tmp_path)
    names.fails = True
    names.take(3)
    closing = threading.Thread(target=names.close, daemon=True)
    closing.start()
    assert _ends(closing)
    assert all(_ends(thread) for thread in threading.enumerate() if thread.name == "orlop-names")
    assert names.there == set()


def test_without_a_thread_each_is_made_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    names = _Names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        names.take(4)
        names.close()
    assert names.there == set()
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_made_meanwhile_is_discarded_before_a_rest_ends(tmp_path: Path) -> None:
    names = _Names(tmp_path)
    names.go.clear()
    names.take(2)
    assert names.asked.wait(60)
    resting = threading.Thread(target=names.rest, daemon=True)
    resting.start()
    names.go.set()
    assert _ends(resting)
    names.close()
    assert names.there == set()
    assert list(tmp_path.iterdir()) == []
