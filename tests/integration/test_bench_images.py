"""The bench images, each beside the tree that GNU tar makes of its layers.

Large: deselected unless ``-m images`` asks for them.  `bench/make_images.sh` makes them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support.images import read_layout, unpack_blob
from support.oracle import apply_layers, differences, snapshot

pytestmark = [pytest.mark.root, pytest.mark.images]

NAMES = ["debian-min", "python-app", "node-many", "ml", "deep"]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        *((name, False) for name in NAMES),
        *((name, True) for name in NAMES if name != "deep"),  # its layers are too many for one mount(2)
    ],
)
def test_a_prepared_root_is_the_oracles_tree(
    store: orlop.Store, store_dirs: StoreDirs, oracle_dir: Path, bench_layouts: Path, name: str, whole: bool
) -> None:
    layout = bench_layouts / name
    (image,) = store.load(layout)
    root = store_dirs.work / "root"
    with store.prepare(image.name, root, mount=True, self_contained=whole):
        actual = snapshot(root)
    tag = image.name.rpartition(":")[2]
    _, blobs = read_layout(layout, tag)
    tars = [unpack_blob(blob, oracle_dir / f"{number}.tar") for number, blob in enumerate(blobs)]
    open_times = apply_layers(tars, oracle_dir / "tree")
    expected = snapshot(oracle_dir / "tree")
    shutil.rmtree(oracle_dir / "tree")
    assert len(expected) > 1
    assert differences(expected, actual, ignore_mtime_of=open_times) == []
