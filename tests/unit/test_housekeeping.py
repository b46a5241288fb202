"""What a daemon does in idle moments: it waits for one, but not for ever, and goes on after a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from orlop.errors import Cancelled, Unavailable
from orlop.observe import Call
from orlop.service.housekeeping import CollectsIdle, Housekeeping

LONG = 30.0  # seconds, for what takes milliseconds


class Store:
    """Counts its collections; the first may fail or last until it is cancelled."""

    def __init__(self, *, fail: bool = False, hold: bool = False) -> None:
        self.turns = 0
        self.turned = threading.Semaphore(0)
        self.ended: list[type[BaseException]] = []
        self._fail, self._hold = fail, hold

    def collect_idle(self, *, call: Call) -> None:
        self.turns += 1
        self.turned.release()
        if self._fail and self.turns == 1:
            raise Unavailable("collect", "not now")
        if self._hold:
            try:
                call.pause(LONG, "collect")
            except Cancelled:
                self.ended.append(Cancelled)
                raise


@contextmanager
def kept(store: Store, *, busy: object = lambda: False, every: float = 0.01) -> Iterator[Housekeeping]:
    keeping = Housekeeping(store, busy=busy, every=every)  # type: ignore[arg-type]  # a lambda
    keeping.start()
    try:
        yield keeping
    finally:
        keeping.stop()


def test_it_collects_again_and_again_also_after_a_failure() -> None:
    store = Store(fail=True)
    assert isinstance(store, CollectsIdle)
    with kept(store):
        for _ in range(3):
            assert store.turned.acquire(timeout=LONG)


def test_it_waits_while_calls_run_and_begins_when_they_end() -> None:
    store, looks = Store(), [True, True, False]
    turns: list[int] = []

    def busy() -> bool:
        turns.append(store.turns)
        return looks.pop(0) if looks else False

    with kept(store, busy=busy, every=0.05):
        assert store.turned.acquire(timeout=LONG)
    assert turns[0] == 0


def test_where_calls_never_end_it_collects_all_the_same() -> None:
    store = Store()
    with kept(store, busy=lambda: True):
        assert store.turned.acquire(timeout=LONG)


@pytest.mark.parametrize("hold", [False, True])
def test_it_stops_at_once_also_in_the_middle(hold: bool) -> None:
    store = Store(hold=hold)
    with kept(store) as keeping:
        assert store.turned.acquire(timeout=LONG)
        keeping.stop()
        assert not keeping._thread.is_alive()
        keeping.stop()
    assert store.ended == ([Cancelled] if hold else [])


def test_it_can_be_stopped_before_it_ever_collected() -> None:
    store = Store()
    with kept(store, every=3600.0):
        pass
    assert store.turns == 0
