"""How layers take turns, and meet before they go to the disk."""

from __future__ import annotations

import threading

import pytest

from orlop.errors import Cancelled
from orlop.images.transfer.turns import FINISHING, Gathering, Turn
from orlop.observe import Call

PATIENCE = 60  # seconds


def gathered(gathering: Gathering, count: int) -> None:
    """So many come; returns when all have gone on."""
    threads = [threading.Thread(target=gathering.wait, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_all_go_on_when_no_more_will_come() -> None:
    gathered(Gathering(3), 3)
    gathered(Gathering(2 * FINISHING + 1), 2 * FINISHING + 1)


def test_who_leaves_is_not_waited_for() -> None:
    gathering = Gathering(3)
    gathering.leave()
    gathered(gathering, 2)


def test_nobody_waits_for_ever_for_who_never_comes() -> None:
    gathering = Gathering(100)
    gathered(gathering, 1)
    gathered(gathering, 2)


def test_a_place_is_given_back_once_and_can_be_taken_again() -> None:
    places, gathering = threading.Semaphore(1), Gathering(2)
    with Turn(places, gathering, Call()) as first:
        assert not places.acquire(blocking=False)
        first.give_back()
        first.give_back()
        with Turn(places, gathering, Call()):
            assert not places.acquire(blocking=False)
        first.take()
        assert not places.acquire(blocking=False)
    assert places.acquire(blocking=False)
    assert not places.acquire(blocking=False)


def test_who_comes_back_with_locks_waits_for_no_place() -> None:
    places = threading.Semaphore(1)
    with Turn(places, Gathering(2), Call()) as first:
        first.give_back()
        with Turn(places, Gathering(2), Call()):
            first.retake()  # returns: the other may be waiting for a lock of the first
            first.give_back()
            assert not places.acquire(blocking=False)
        first.retake()
        assert not places.acquire(blocking=False)
    assert places.acquire(blocking=False)


def test_a_cancelled_call_stops_waiting_for_a_place() -> None:
    call = Call()
    call.cancel.cancel()
    with pytest.raises(Cancelled):
        Turn(threading.Semaphore(0), Gathering(1), call).take()
