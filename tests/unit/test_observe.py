"""Cancel tokens, deadlines and rates: how a call is told to stop, and how soon it hears."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import pytest

from orlop.errors import Cancelled, DeadlineExceeded, Error
from orlop.observe import NULL_OBSERVER, Call, CancelToken, Progress, Rate, result_of

SOON = 5.0  # seconds: what takes milliseconds, on a busy machine


def test_a_token_stays_cancelled() -> None:
    token = CancelToken()
    assert not token.cancelled
    token.cancel()
    token.cancel()
    assert token.cancelled


def test_a_child_ends_with_its_parent_and_can_end_alone() -> None:
    parent = CancelToken()
    one, other = parent.child(), parent.child()
    grandchild = one.child()
    one.cancel()
    assert (one.cancelled, grandchild.cancelled, other.cancelled, parent.cancelled) == (
        True,
        True,
        False,
        False,
    )
    parent.cancel()
    assert other.cancelled
    assert parent.child().cancelled


def test_waiting_for_a_token_ends_when_it_is_cancelled_or_the_time_is_over() -> None:
    token = CancelToken()
    assert token.wait(0.01) is False
    timer = threading.Timer(0.05, token.cancel)
    start = time.monotonic()
    timer.start()
    assert token.wait(60) is True
    assert time.monotonic() - start < SOON
    assert token.wait(60) is True
    assert token.wait(0) is True


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Call(cancel=_cancelled()), Cancelled),
        (lambda: Call(deadline=time.monotonic() - 1), DeadlineExceeded),
        (lambda: Call(cancel=_cancelled()).child(), Cancelled),
        (lambda: Call(deadline=time.monotonic() - 1).child(), DeadlineExceeded),
        (lambda: Call(cancel=_cancelled(), deadline=time.monotonic() - 1), Cancelled),
    ],
    ids=["cancelled", "late", "child of a cancelled", "child of a late", "both"],
)
def test_a_call_that_should_stop_says_what_was_attempted(
    make: Callable[[], Call], expected: type[Error]
) -> None:
    call = make()
    for stop in (lambda: call.check("pull x"), lambda: call.pause(60, "pull x")):
        start = time.monotonic()
        with pytest.raises(expected, match="pull x"):
            stop()
        assert time.monotonic() - start < SOON


def _cancelled() -> CancelToken:
    token = CancelToken()
    token.cancel()
    return token


def test_a_pause_ends_at_the_deadline_not_after_it() -> None:
    call = Call(deadline=time.monotonic() + 0.05)
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        call.pause(60, "wait")
    assert 0.05 <= time.monotonic() - start < SOON


def test_a_pause_without_reason_to_stop_just_ends() -> None:
    Call().pause(0.01, "wait")
    Call(deadline=time.monotonic() + 60).pause(0.01, "wait")


def test_calls_do_not_share_a_token() -> None:
    one, other = Call(), Call()
    one.cancel.cancel()
    assert not other.cancel.cancelled
    child = other.child()
    child.cancel.cancel()
    assert not other.cancel.cancelled
    assert child.observer is other.observer


def test_the_null_observer_takes_anything() -> None:
    NULL_OBSERVER.progress(Progress(item="a", phase="done"))
    NULL_OBSERVER.warning("w")


def test_a_rate_is_bytes_over_time_and_reports_ten_times_a_second_at_most() -> None:
    rate = Rate()
    end = time.monotonic() + 0.7
    due = added = 0
    start = time.monotonic()
    while time.monotonic() < end:
        due += rate.add(1000)
        added += 1000
    spent = time.monotonic() - start
    assert 1 <= due <= 10 * spent + 2
    assert 0 < rate.rate <= added / 0.5


def test_a_result_is_waited_for_so_that_a_signal_counts_whichever_thread_it_wakes() -> None:
    future: Future[int] = Future()
    before = signal.signal(signal.SIGUSR1, lambda *_: future.set_result(7))

    def take() -> None:  # the kernel gives the process's signals to any thread
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    thread = threading.Thread(target=take)
    timer = threading.Timer(
        0.2, thread.start
    )  # that the wait has begun makes it harder, nothing depends on it
    try:
        timer.start()
        assert result_of(future) == 7
    finally:
        timer.join()
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def test_the_result_is_the_futures_own() -> None:
    failed: Future[int] = Future()
    failed.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        result_of(failed)
    given_up: Future[int] = Future()
    given_up.cancel()
    with pytest.raises(CancelledError):
        result_of(given_up)
