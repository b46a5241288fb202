"""A cut of power at any write: every image listed is whole, what was answered is there, the rest goes away.

HOSTILE.md's row 39, for cuts; `orlop.testing.crashes` and its tests have kills.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from support.fusedisk import MARK, Recording
from support.powercuts import CannotRecord, Cut, How, Verdict, choose, judge, record

pytestmark = pytest.mark.root

SHARE = {"erofs": 12, "overlay": 6, "native": 4}  # cuts that are always made
REFUSED = {"DATA_LOSS", "FAILED_PRECONDITION"}  # an I/O error; then ext4 lets nobody write any more
SEED = 4
ROUND = 40  # cuts of one recording, in the long trial


def recorded(folder: Path, driver: str, *, how: How = "work") -> Recording:
    folder.mkdir(exist_ok=True)
    try:
        return record(folder, driver, how=how)
    except CannotRecord as exc:
        pytest.skip(f"no cut of power is tried: {exc}")


def wrong(verdicts: list[Verdict]) -> str:
    return "\n".join(
        f"{verdict.cut} during {verdict.during}: {finding}"
        for verdict in verdicts
        for finding in verdict.findings
    )


@pytest.mark.hostile(39)
@pytest.mark.parametrize("driver", list(SHARE))
def test_39_after_a_cut_of_power_images_are_whole_and_what_was_answered_is_there(
    workdir: Path, driver: str
) -> None:
    recording = recorded(workdir, driver)
    verdicts = judge(workdir, driver, choose(recording, SHARE[driver], SEED))
    assert len(verdicts) == SHARE[driver]
    assert not wrong(verdicts)


@pytest.mark.any_kernel
def test_a_store_that_does_not_sync_is_found_out(workdir: Path) -> None:
    recording = recorded(workdir, "native", how="forget")
    (imported,) = (
        at
        for at, line in enumerate(recording.records)
        if line.kind == MARK and line.note.get("end") == "import"
    )
    verdicts = judge(workdir, "native", [Cut(position=imported + 1, luck="none", seed=0)])
    assert "DataLoss" in wrong(verdicts) or "other bytes" in wrong(verdicts)


@pytest.mark.hostile(40)
@pytest.mark.parametrize("driver", list(SHARE))
def test_40_a_disk_that_takes_no_more_writes_fails_what_writes_and_loses_nothing(
    workdir: Path, driver: str
) -> None:
    recording = recorded(workdir, driver, how="break")
    (came_to,) = (
        line.note["broken"] for line in recording.records if line.kind == MARK and "broken" in line.note
    )
    assert came_to.pop("images") == "done ['localhost/a:1']"
    assert came_to.pop("prepared") == f"done ['{workdir}/work/one']"
    assert " delete " not in came_to["prepare"]  # what failed first is told, not what failed while tidying up
    assert not [what for what in came_to.values() if what.split()[0] not in REFUSED], came_to
    end = len(recording.records)
    verdicts = judge(workdir, driver, [Cut(position=end, luck=luck, seed=1) for luck in ("none", "all")])
    assert not wrong(verdicts)


@pytest.mark.hostile(39)
@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_cuts(workdir: Path, soak_seconds: float) -> None:
    end, seed = time.monotonic() + soak_seconds, int(os.environ.get("SOAK_SEED", "1"))
    counts = dict.fromkeys(SHARE, 0)
    while time.monotonic() < end or not all(counts.values()):
        for driver in SHARE:
            folder = workdir / f"{driver}-{seed}"
            verdicts = judge(folder, driver, choose(recorded(folder, driver), ROUND, seed))
            counts[driver] += len(verdicts)
            assert not wrong(verdicts), f"seed {seed}"
        seed += 1
    sys.stdout.write(f"cuts without a finding: {counts}, seeds up to {seed - 1}\n")
