"""What a daemon does with what a scrub finds."""

from __future__ import annotations

import logging
import threading

import pytest

from orlop.errors import DataLoss, Unavailable
from orlop.images.upkeep import Checked, Finding
from orlop.service.housekeeping import SCRUB_BUDGET, SCRUB_OLDER, SCRUB_PACE, Housekeeping

LONG = 30.0


class Idle:
    """A store that finds a damaged layer, or fails; it notes how it was asked."""

    def __init__(self, fault=None):
        self.fault = fault
        self.asked = []
        self.twice = threading.Event()

    def collect_idle(self, *, call):
        pass

    def scrub(self, *, budget, older, pace, call):
        self.asked.append((budget, older, pace))
        if len(self.asked) >= 2:
            self.twice.set()
        if self.fault is not None:
            raise self.fault
        told = {"problem": "wrong-digest", "thing": "layer sha256:ab", "detail": "other bytes"}
        return Checked(
            findings=(
                Finding(kind="damage", **told),
                Finding(kind="warning", **{**told, "thing": "layer sha256:cd"}),
            ),
            full=True,
        )


def watched(store, caplog):
    caplog.set_level(logging.WARNING)
    idle = Housekeeping(store, busy=lambda: False, every=0.01)
    idle.start()
    try:
        assert store.twice.wait(LONG)
    finally:
        idle.stop()
    return [record.getMessage() for record in caplog.records]


def test_each_damaged_layer_is_a_line_of_the_log_that_says_what_to_do(caplog):
    store = Idle()
    said = watched(store, caplog)
    assert set(store.asked) == {(SCRUB_BUDGET, SCRUB_OLDER, SCRUB_PACE)}
    assert any("layer sha256:ab" in line and "orlop check --full --repair" in line for line in said)
    assert not any("sha256:cd" in line for line in said)


@pytest.mark.parametrize("fault", [Unavailable("check", "no worker"), DataLoss("check", "no metadata")])
def test_a_scrub_that_fails_is_tried_again(caplog, fault):
    said = watched(Idle(fault), caplog)
    assert any(fault.reason in line for line in said)
