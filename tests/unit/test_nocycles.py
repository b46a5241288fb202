"""When Python's collector of cycles rests."""

from __future__ import annotations

import gc
import os
import signal
import threading

import pytest

from orlop.layers.nocycles import no_cycles


def test_the_collector_rests_until_the_last_is_done() -> None:
    assert gc.isenabled()
    first, second = no_cycles(), no_cycles()
    with first:
        assert not gc.isenabled()
        second.__enter__()
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_it_goes_on_after_a_failure_and_stays_off_where_it_was_off() -> None:
    with pytest.raises(ValueError, match="x"), no_cycles():
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    try:
        with no_cycles():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_child_of_a_busy_process_collects() -> None:
    at_work, done = threading.Event(), threading.Event()

    def work() -> None:
        with no_cycles():
            at_work.set()
            done.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert at_work.wait(60)
        if not (child := os.fork()):
            signal.alarm(60)
            code = 1
            try:
                before = gc.isenabled()
                with no_cycles():
                    within = gc.isenabled()
                code = 0 if (before, within, gc.isenabled()) == (True, False, True) else 1
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert status == 0
    finally:
        done.set()
        thread.join()
    assert gc.isenabled()
