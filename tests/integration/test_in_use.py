"""A root that only a passing mount namespace holds is not "in use"; one that stays held is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root


def copy_of_all_mounts(seconds: str) -> subprocess.Popen[bytes]:
    """A process in a private mount namespace of its own, which holds a copy of every mount."""
    script = f"echo ready; exec sleep {seconds}"
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def root(store: orlop.Store, workdir: Path, store_dirs: StoreDirs) -> orlop.Prepared:
    layout = images.write_layout(workdir / "layout", {"v1": images.make_image([Layer().file("f").tar()])})
    name = store.load(layout, name="localhost/held").pop().name
    return store.prepare(name, store_dirs.work / "a", mount=True)


def test_a_namespace_that_goes_away_soon_does_not_hinder_cleanup(
    store: orlop.Store, root: orlop.Prepared
) -> None:
    process = copy_of_all_mounts("0.5")
    root.cleanup()
    assert process.wait() == 0
    assert store.prepared() == []


def test_a_namespace_that_stays_hinders_cleanup_and_nothing_is_lost(
    store: orlop.Store, root: orlop.Prepared
) -> None:
    Path(root.path, "written").write_text("kept")
    process = copy_of_all_mounts("60")
    try:
        with pytest.raises(orlop.FailedPrecondition, match=rf"sleep \({process.pid}\)"):
            root.cleanup()
    finally:
        process.kill()
        process.wait()
    again = store.get(root.path).mount()
    assert Path(root.path, "written").read_text() == "kept"
    again.cleanup()
