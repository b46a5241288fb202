"""A store of orlop's own for each test, and what all of them share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import orlop
from conftest import StoreDirs
from support import workers
from support.registries import Registry

# The files that take longest, the longest first: a worker has a file to itself, and the last must be short ones
LONGEST = (
    "test_run_without_root.py",
    "test_conformance.py",
    "test_commit_meaning.py",
    "test_layer_meaning.py",
    "test_check.py",
    "test_breakouts.py",
    "test_service.py",
    "test_power_cuts.py",
    "test_prepare_options.py",
    "test_crashes.py",
    "test_userns.py",
    "test_drivers.py",
    "test_runtime.py",
    "test_backup.py",
    "test_full_disk.py",
    "test_model.py",
    "test_refusals.py",
    "test_stress.py",
    "test_hostile_documents.py",
    "test_upgrades.py",
    "test_daemon.py",
    "test_hostile_masses.py",
    "test_interrupts.py",
    "test_hostile_layers.py",
    "test_store_core.py",
    "test_export.py",
    "test_processes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session", autouse=True)
def _one_template() -> Iterator[None]:
    """What layers are unpacked by is started once, not for each store."""
    with workers.one_template():
        yield


@pytest.fixture
def store(store_dirs: StoreDirs, registry: Registry) -> Iterator[orlop.Store]:
    """The library's store on fresh folders, which trusts the test's registry."""
    driver = os.environ.get("ORLOP_TEST_DRIVER", "auto")
    settings = orlop.Settings(insecure_registries=(registry.host,), driver=driver)
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as opened:
        yield opened
        for root in opened.prepared():
            opened.get(root.path).cleanup()
