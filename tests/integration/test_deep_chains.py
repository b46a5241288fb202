"""An image of very many layers stands on few images, and what is added to it costs what it adds."""

from __future__ import annotations

from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.chains import FRESH, MAX_DEPTH
from orlop.images.store import LocalStore
from support.images import make_image, write_layout
from support.layers import Layer

pytestmark = pytest.mark.root

LAYERS = 40
NAME = "localhost/deep:1"


@pytest.fixture
def deep(store: orlop.Store, workdir: Path) -> orlop.Store:
    """A store with an image of many small layers, none of them larger than the others."""
    tars = [Layer().file(f"file-{k}", b"%d" % k).file(f"other-{k}", b"").tar() for k in range(LAYERS)]
    store.load(write_layout(workdir / "layout", {"latest": make_image(tars)}), name=NAME)
    return store


def depths(store: orlop.Store) -> list[int]:
    """How high the stack of each chain that the store knows is."""
    assert isinstance(store.verbs, LocalStore)
    return store.verbs._core.db.read(
        lambda tx: sorted(row[0] for row in tx.execute("SELECT depth FROM chains"))
    )


def test_one_prepare_of_many_small_layers_builds_few_images(deep: orlop.Store, store_dirs: StoreDirs) -> None:
    with deep.prepare(NAME, store_dirs.work / "root", mount=True):
        assert depths(deep) == list(range(1, FRESH + 1))
        assert sorted(path.name for path in (store_dirs.work / "root").glob("file-*")) == sorted(
            f"file-{k}" for k in range(LAYERS)
        )


def test_each_commit_on_them_adds_one_image_and_no_stack_is_too_high(
    deep: orlop.Store, store_dirs: StoreDirs
) -> None:
    name = NAME
    for number in range(MAX_DEPTH):
        before = len(depths(deep))
        with deep.prepare(name, store_dirs.work / "root", mount=True) as root:
            assert len(depths(deep)) - before == (FRESH if number == 0 else 1)
            (store_dirs.work / "root" / f"new-{number}").write_text("new")
            name = root.commit(f"localhost/deep:{number + 2}").name
    assert max(depths(deep)) == MAX_DEPTH
    with deep.prepare(name, store_dirs.work / "root", mount=True):
        assert {f"new-{number}" for number in range(MAX_DEPTH)} <= {
            path.name for path in (store_dirs.work / "root").iterdir()
        }
