"""A store of orlop's own for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import orlop
from conftest import StoreDirs
from support.registries import Registry


@pytest.fixture
def store(store_dirs: StoreDirs, registry: Registry) -> Iterator[orlop.Store]:
    """The library's store on fresh folders, which trusts the test's registry."""
    driver = os.environ.get("ORLOP_TEST_DRIVER", "auto")
    settings = orlop.Settings(insecure_registries=(registry.host,), driver=driver)
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as opened:
        yield opened
        for root in opened.prepared():
            opened.get(root.path).cleanup()
