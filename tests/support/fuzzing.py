"""The fuzz targets for tests (``fuzz/`` is no package, and nothing of it ships), and how Hypothesis is run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from hypothesis import HealthCheck, seed, settings

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"


def load() -> dict[str, Callable[[bytes], None]]:
    """The targets by name."""
    name = "orlop_fuzz_targets"
    if name not in sys.modules:
        spec = spec_from_file_location(name, FUZZ / "targets.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    targets: dict[str, Callable[[bytes], None]] = sys.modules[name].TARGETS
    return targets


def trials(count: int) -> settings:
    """So many examples, the same each time: what is new is for the soak tests and for ``make fuzz`` to find."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


def soak(check: Callable[[], None], seconds: float) -> int:
    """Run a test of Hypothesis's with one seed after the other, until the time is over; how many there were."""
    deadline, number = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        seed(number)(check)()
        number += 1
    return number
