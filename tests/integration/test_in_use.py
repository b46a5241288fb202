"""A root that only a passing copy of its mount holds is not "in use"; one that stays held is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import Driver
from orlop.linux import mount
from orlop.linux.mount import open_tree
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root


@pytest.fixture
def root(store: orlop.Store, workdir: Path, store_dirs: StoreDirs) -> orlop.Prepared:
    layout = images.write_layout(workdir / "layout", {"v1": images.make_image([Layer().file("f").tar()])})
    name = store.load(layout, name="localhost/held").pop().name
    return store.prepare(name, store_dirs.work / "a", mount=True)


def test_a_copy_of_the_mount_that_goes_away_soon_does_not_hinder_cleanup(
    store: orlop.Store, root: orlop.Prepared
) -> None:
    """As a container makes one while it starts; here it is of this mount alone."""
    copy = open_tree(root.path)
    timer = threading.Timer(0.4, os.close, [copy])
    timer.start()
    root.cleanup()
    timer.join()
    assert store.prepared() == []


def test_a_copy_of_the_mount_that_stays_hinders_cleanup_and_nothing_is_lost(
    store: orlop.Store, root: orlop.Prepared
) -> None:
    Path(root.path, "written").write_text("kept")
    copy = open_tree(root.path)
    try:
        with pytest.raises(orlop.FailedPrecondition, match="in use"):
            root.cleanup()
    finally:
        os.close(copy)
    again = store.get(root.path).mount()
    assert Path(root.path, "written").read_text() == "kept"
    again.cleanup()


@pytest.mark.parametrize("more", [(), ("ro",)], ids=["rw", "ro"])
@pytest.mark.parametrize("driver", ["erofs", "overlay"])
def test_a_root_that_others_have_mounted_is_in_use_though_nothing_was_written(
    store: orlop.Store, root: orlop.Prepared, store_dirs: StoreDirs, driver: Driver, more: tuple[str, ...]
) -> None:
    path = store_dirs.work / "b"
    path.mkdir()
    other = store.prepare(root.info.image, path, driver=driver)
    (spec,) = other.mounts
    mount.perform(spec.type, spec.source, path, (*more, *spec.options))
    try:
        with pytest.raises(orlop.FailedPrecondition, match="in use"):
            other.cleanup()
    finally:
        mount.umount(path)
    other.cleanup()
    assert [info.path for info in store.prepared()] == [root.path]
