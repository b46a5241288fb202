"""Fixtures and rules for all tests.

Root tests work on disks of their own (`lab`), with a registry of their own; under xdist each worker
has its own of each.  Where nothing may be skipped (CI=true, or ORLOP_NO_SKIP=1) a skip is a failure.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis

from orlop.config.keys import keys
from orlop.linux.mount import FsContext
from support import disks
from support.registries import Registry, serve

SELECTED_ONLY_BY_NAME = ("images", "soak")
LARGE_SECONDS = 600  # what `make soak` has unless told otherwise
NO_SKIP = os.environ.get("CI") == "true" or os.environ.get("ORLOP_NO_SKIP") == "1"
OF_SHELLS = {"ORLOP_LIMITS", "NO_COLOR", "CLICOLOR_FORCE"}
_soak_share = pytest.StashKey[float]()


# ------------------------------------------------------------------ what runs, and what counts


def pytest_configure(config: pytest.Config) -> None:
    os.environ["ORLOP_CONFIG"] = os.devnull  # no test depends on what this machine's files say
    for name in ({key.variable for key in keys().values()} | OF_SHELLS) & os.environ.keys():
        del os.environ[name]  # nor on what the shell that runs them says
    gc.disable()  # thousands of tests are collected, and none of what that makes is garbage
    # No property fails because the machine was slow.
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    hypothesis.register_profile("orlop", hypothesis(), deadline=None, suppress_health_check=slow)
    hypothesis.load_profile("orlop")
    # A shell's background job ignores these, and so would all that tests start and interrupt
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),  # and nohup's commands this one
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)
    if not hasattr(config, "workerinput") and os.geteuid() == 0:
        disks.sweep()


def pytest_unconfigure(config: pytest.Config) -> None:
    # After a Ctrl-C xdist's workers may be killed before they clean up
    if not hasattr(config, "workerinput") and os.geteuid() == 0:
        disks.sweep()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("markexpr")
    for name in SELECTED_ONLY_BY_NAME:
        if name not in chosen:
            marked = [item for item in items if item.get_closest_marker(name)]
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]

    if _soak_seconds() < LARGE_SECONDS:
        large = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


def _soak_seconds() -> float:
    return float(os.environ.get("SOAK_SECONDS", "60"))


def pytest_collection_finish(session: pytest.Session) -> None:
    seconds = _soak_seconds()
    trials = sum(1 for item in session.items if item.get_closest_marker("soak"))
    session.config.stash[_soak_share] = seconds / max(trials, 1)
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root: it mounts")
    if item.get_closest_marker("root") and not _goes_without_erofs(item) and (why := _no_erofs()):
        pytest.skip(f"needs EROFS on a file: {why}")


def _goes_without_erofs(item: pytest.Item) -> bool:
    """Whether a test says that it does, or is about another driver."""
    driver = getattr(item, "callspec", None) and item.callspec.params.get("driver")
    return bool(item.get_closest_marker("any_kernel")) or driver in {"overlay", "native"}


@functools.cache
def _no_erofs() -> str | None:
    """Why this kernel does not mount EROFS from a file; None if it should."""
    release = os.uname().release
    if tuple(int(part) for part in re.findall(r"\d+", release)[:2]) < (6, 12):
        return f"Linux 6.12 and later have it, this is {release}"
    try:
        FsContext("erofs").close()  # loads the module
    except OSError as exc:
        return exc.strerror
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _no_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _no_skip(report)
    return report


def _no_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if NO_SKIP and report.outcome == "skipped":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be skipped: {why}"


# ------------------------------------------------------------------ disks and folders


@pytest.fixture(scope="session")
def lab() -> Iterator[Path]:
    """A fresh loop-mounted ext4 with a journal, as users have it."""
    with disks.disk() as mounted:
        yield mounted


@pytest.fixture(scope="session")
def oracle_lab() -> Iterator[Path]:
    """A disk for what the oracle makes: xattr values up to 64 KiB, which a plain ext4 does not take."""
    with disks.disk(features="ea_inode") as mounted:
        yield mounted


_numbers = itertools.count()


@pytest.fixture
def workdir(lab: Path) -> Iterator[Path]:
    """A folder on `lab`; in the end nothing may be mounted or used below it that cannot be undone."""
    yield from _folder(lab)


@pytest.fixture
def oracle_dir(oracle_lab: Path) -> Iterator[Path]:
    """A folder on `oracle_lab`."""
    yield from _folder(oracle_lab)


def _folder(parent: Path) -> Iterator[Path]:
    folder = parent / str(next(_numbers))
    folder.mkdir()
    yield folder
    disks.end(folder)


# ------------------------------------------------------------------ registries


@pytest.fixture(scope="session")
def registry(lab: Path) -> Iterator[Registry]:
    """Debian's docker-registry; anybody may read, write and delete."""
    with serve(lab / "registry") as running:
        yield running


@pytest.fixture(scope="session")
def registry_auth(lab: Path) -> Iterator[Registry]:
    """The same behind basic authentication."""
    with serve(lab / "registry-auth", auth=True) as running:
        yield running


# ------------------------------------------------------------------ orlop


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreDirs:
    """A fresh ROOT and RUN, and a folder to prepare roots in."""

    root: Path
    run: Path
    work: Path


@pytest.fixture
def store_dirs(workdir: Path) -> StoreDirs:
    """Folders for one store, all on `lab`; ROOT and RUN are left for orlop to make."""
    work = workdir / "work"
    work.mkdir()
    return StoreDirs(root=workdir / "root", run=workdir / "run", work=work)


@pytest.fixture
def run_cli(store_dirs: StoreDirs) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``orlop ARGS`` on the test's store.  ``env`` adds variables; ``check`` demands exit code 0."""

    def run(
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - subprocess.run's own word
        timeout: float = 120,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        where = ["--root", os.fspath(store_dirs.root), "--run", os.fspath(store_dirs.run)]
        done = subprocess.run(
            [sys.executable, "-m", "orlop", *where, *map(os.fspath, args)],
            capture_output=True,
            text=True,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            timeout=timeout,
            check=False,
            env={**os.environ, **(env or {})},
        )
        if check and done.returncode:
            pytest.fail(f"orlop {' '.join(map(str, args))} exits with {done.returncode}: {done.stderr}")
        return done

    return run


# ------------------------------------------------------------------ the long ones


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """How long this soak test may run: its share of SOAK_SECONDS."""
    return request.config.stash[_soak_share]


@pytest.fixture(scope="session")
def bench_layouts() -> Path:
    """The folder of the bench images, each an OCI layout; ``make images`` makes them."""
    folder = Path(os.environ.get("LAB", "/var/tmp/orlop-lab")) / "images"
    assert folder.is_dir(), f"{folder} is missing: run `make images` first"
    return folder
