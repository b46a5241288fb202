"""Jobs side by side: which failure is told."""

from __future__ import annotations

import threading

import pytest

from orlop.errors import Cancelled, Unauthenticated
from orlop.images.transfer.jobs import Jobs
from orlop.observe import Call

PATIENCE = 60  # seconds


def test_who_was_cancelled_because_another_failed_tells_why() -> None:
    call = Call()
    jobs = Jobs(2, call, name="test")
    begun = threading.Event()

    def fails() -> None:
        assert begun.wait(PATIENCE)
        raise Unauthenticated("push", "not you")

    def goes_on() -> None:
        begun.set()
        assert call.cancel.wait(PATIENCE)
        call.check("send")

    try:
        jobs.submit(fails)
        cancelled = jobs.submit(goes_on)
        with pytest.raises(Unauthenticated, match="not you"):
            jobs.settle([cancelled])
    finally:
        jobs.close()


def test_a_call_that_was_cancelled_says_so() -> None:
    call = Call()
    call.cancel.cancel()
    jobs = Jobs(1, call, name="test")
    try:
        with pytest.raises(Cancelled):
            jobs.settle([jobs.submit(lambda: call.check("send"))])
    finally:
        jobs.close()
