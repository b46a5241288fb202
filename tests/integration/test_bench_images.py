"""The bench images, each beside the tree that GNU tar makes of its layers.

Large: deselected unless ``-m images`` asks for them.  `bench/make_images.sh` makes them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import Driver
from support.images import read_layout, unpack_blob
from support.oracle import apply_layers, differences, snapshot

pytestmark = [pytest.mark.root, pytest.mark.images]

NAMES = ["debian-min", "python-app", "node-many", "ml", "deep"]


# Way: the driver, and whether self-contained.  The layers of deep are too many for one mount(2).
WAYS: list[tuple[Driver, bool]] = [("erofs", False), ("erofs", True), ("overlay", False), ("native", False)]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", NAMES)
def test_every_driver_shows_the_oracles_tree(
    store: orlop.Store, store_dirs: StoreDirs, oracle_dir: Path, bench_layouts: Path, name: str
) -> None:
    layout = bench_layouts / name
    (image,) = store.load(layout)
    tag = image.name.rpartition(":")[2]
    _, blobs = read_layout(layout, tag)
    tars = [unpack_blob(blob, oracle_dir / f"{number}.tar") for number, blob in enumerate(blobs)]
    open_times = apply_layers(tars, oracle_dir / "tree")
    expected = snapshot(oracle_dir / "tree")
    shutil.rmtree(oracle_dir / "tree")
    assert len(expected) > 1
    root = store_dirs.work / "root"
    for driver, whole in WAYS[:1] + WAYS[2:] if name == "deep" else WAYS:
        for view in (False, True):
            with store.prepare(
                image.name, root, mount=True, self_contained=whole, driver=driver, view=view
            ) as shown:
                actual = snapshot(root)
                assert differences(expected, actual, ignore_mtime_of=open_times) == [], (driver, view)
                if not view:
                    assert len(store.inspect(shown.commit().name).layers) == image.layers, driver
