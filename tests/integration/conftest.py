"""A store of orlop's own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import orlop
from conftest import StoreDirs
from support.registries import Registry


@pytest.fixture
def store(store_dirs: StoreDirs, registry: Registry) -> Iterator[orlop.Store]:
    """The library's store on fresh folders, which trusts the test's registry."""
    settings = orlop.Settings(insecure_registries=(registry.host,))
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as opened:
        yield opened
        for root in opened.prepared():
            opened.get(root.path).cleanup()
