"""Every driver passes the conformance suite in every mode that it supports.

Root's checks run in this process, one test each.  Of each other mode the suite runs once, as a program in
that mode, and each line of its report becomes a test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from orlop.config import Driver
from orlop.testing.conformance import CHECKS, FACT, Abilities, Bench, Report, detect, perform
from support import users

pytestmark = pytest.mark.root

MODES: list[tuple[str, Driver]] = [
    ("root", "erofs"),
    ("root", "overlay"),
    ("root", "native"),
    ("subids", "overlay"),
    ("subids", "native"),
    ("single", "overlay"),
    ("single", "native"),
    ("container", "native"),
    ("plain", "native"),
]
# As whom the suite finds itself there
KNOWN_AS = {
    "root": "root",
    "subids": "many-ids",
    "single": "single-id",
    "container": "container",
    "plain": "none",
}
# Root of a container: with what docker leaves it, but for devices
CONTAINER = "-all,+chown,+dac_override,+fowner,+fsetid,+setfcap,+setgid,+setuid"
REFERENCE = "the_same_change_gives_the_same_layer"
PATIENCE = 280.0  # seconds for all drivers of a mode

Key = tuple[str, str, str]  # mode, driver, check
# Importing so many layers takes longer than all else; up to 128 are tried in every mode
HEAVY = "five_hundred_and_twenty_layers"
CASES = [(mode, driver, name) for mode, driver in MODES for name in CHECKS if name != HEAVY or mode == "root"]
# Modes much alike share the checks between them, but for a long soak
ALIKE = {"subids": 0, "single": 1, "container": 0, "plain": 1}
# As root, too, the drivers of folders; erofs has all checks to itself
SHARED = {"overlay": 0, "native": 1}
LONG = (pytest.mark.soak, pytest.mark.large)


def marks(case: tuple[str, Driver, str]) -> list[pytest.MarkDecorator]:
    mode, driver, name = case
    half = list(CHECKS).index(name) % 2
    ours = SHARED.get(driver, half) if mode == "root" else ALIKE[mode]
    theirs = half != ours and name != HEAVY
    return [*(LONG if theirs else ()), *([pytest.mark.any_kernel] if driver != "erofs" else [])]


# ------------------------------------------------------------------ the runs


@pytest.fixture(scope="module")
def bench(lab: Path) -> Iterator[Bench]:
    """Root's: one store for all drivers, so that layers are imported once."""
    work = lab / "conformance"
    (work / "work").mkdir(parents=True)
    made = Bench(
        open_store=lambda: orlop.open(work / "root", work / "run"), driver="erofs", work=work / "work"
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def report_of(request: pytest.FixtureRequest, lab: Path, bench: Bench) -> Callable[[Key], Report]:
    """The report of a check, performed if it was not; other modes perform all that were chosen at once."""
    chosen = [item.callspec.params["case"] for item in request.session.items if is_case(item)]
    reports: dict[Key, Report] = {}

    def find(key: Key) -> Report:
        mode, driver, name = key
        if mode == "root" and key not in reports:
            bench.driver = driver
            reports[key] = perform(name, bench)
        elif key not in reports:
            wanted = [other for other in chosen if other[0] == mode]
            wanted += [(mode, each, REFERENCE) for where, each in MODES if where == mode]
            for found in run(mode, lab / mode, wanted):
                reports[mode, found.driver, found.check] = found
        return reports[key]

    return find


def is_case(item: pytest.Item) -> bool:
    return item.path == Path(__file__) and "case" in getattr(getattr(item, "callspec", None), "params", ())


def run(mode: str, folder: Path, wanted: list[Key]) -> list[Report]:
    """Run the suite's program in a mode; every check that is wanted has a report."""
    drivers = list(dict.fromkeys(driver for _, driver, _ in wanted))
    names = list(dict.fromkeys(name for _, _, name in wanted))
    only = [] if len(names) == len(CHECKS) else [word for name in names for word in ("--only", name)]
    program = [
        "-m",
        "orlop.testing.conformance",
        *(word for driver in drivers for word in ("--driver", driver)),
        *only,
    ]
    done = subprocess.run(
        command(mode, folder, program), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    found = [Report.decode(line) for line in done.stdout.splitlines()]
    told = {(report.driver, report.check) for report in found}
    for driver in drivers:
        for name in names:
            if (driver, name) not in told:
                why = f"no report from mode {mode}, which ended with {done.returncode}: {done.stderr[-2000:]}"
                found.append(Report(check=name, driver=driver, outcome="failed", detail=why))
    return found


def command(mode: str, folder: Path, program: list[str]) -> list[str]:
    """What root starts for Python to run ``program`` in a mode, with a store and work below a folder."""
    if mode == "container":
        folder.mkdir()
        places = [folder / "root", folder / "run", folder / "work"]
        (folder / "work").mkdir()
        enter = ["setpriv", f"--bounding-set={CONTAINER}", f"--inh-caps={CONTAINER}"]
        return [*enter, sys.executable, *program, *store_at(*places)]
    user = users.make(folder, mode)
    work = user.home / "work"
    work.mkdir()
    os.chown(work, users.UID, users.GID)
    program = [sys.executable, *program, *store_at(user.data / "orlop", user.runtime / "orlop", work)]
    enter = [] if mode == "plain" else [sys.executable, "-m", "orlop", "unshare"]
    return user.command(*enter, *program)


def store_at(root: Path, run: Path, work: Path) -> list[str]:
    return ["--root", os.fspath(root), "--run", os.fspath(run), "--work", os.fspath(work)]


# ------------------------------------------------------------------ the tests


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=marks(case)) for case in CASES],
    ids="-".join,
)
def test_drivers_conform(case: Key, report_of: Callable[[Key], Report]) -> None:
    report = report_of(case)
    assert report.outcome == "passed", report.detail


@pytest.mark.parametrize(("mode", "driver"), MODES, ids=[f"{mode}-{driver}" for mode, driver in MODES])
def test_one_change_gives_the_layer_that_root_would_have_got(
    mode: str, driver: Driver, report_of: Callable[[Key], Report]
) -> None:
    expected = report_of(("root", "erofs", REFERENCE)).facts[FACT]
    assert report_of((mode, driver, REFERENCE)).facts[FACT] == expected


def test_every_check_says_what_it_checks() -> None:
    assert [name for name, check in CHECKS.items() if not check.__doc__] == []
    assert [name for name, check in CHECKS.items() if check.__name__ != name] == []


# ------------------------------------------------------------------ the suite itself


@pytest.mark.parametrize("mode", dict(MODES))
def test_the_suite_knows_the_mode_it_runs_in(mode: str, workdir: Path) -> None:
    code = "import dataclasses, json; from orlop.testing.conformance import detect; print(json.dumps(dataclasses.asdict(detect())))"
    if mode == "root":
        found = detect()
    else:
        argv = command(mode, workdir / mode, ["-c", code])
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        fields = json.loads(done.stdout)
        found = Abilities(**{**fields, "xattrs": tuple(fields["xattrs"])})
    assert found.mode == KNOWN_AS[mode]
    assert found.mount == (mode in {"root", "subids", "single"})
    assert found.chown == (mode in {"root", "subids", "container"})
    assert found.mknod == (mode == "root")


def test_a_check_that_fails_says_where_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bench: Bench) -> None:
        bench.prepare(bench.image())
        bench.leave_out("something")
        raise AssertionError("it does not hold")

    monkeypatch.setattr("orlop.testing.conformance.suite.CHECKS", {"broken": broken})
    report = perform("broken", bench)
    assert (report.outcome, report.left_out) == ("failed", ("something",))
    assert "it does not hold" in report.detail
    assert __file__ in report.detail
    assert bench.store.prepared() == []
    assert Report.decode(report.encode()).detail == report.detail
