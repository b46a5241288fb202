"""A bundle that a user without root runs: a user namespace with his own id, and nothing that takes root."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import orlop
from orlop.images.api import IdMap
from support import images, users
from support.layers import Layer

pytestmark = [pytest.mark.root, pytest.mark.any_kernel, pytest.mark.timeout(180)]


def test_a_user_without_root_runs_a_bundle_of_his_own_root(workdir: Path) -> None:
    layer = Layer().folder("bin").file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in ("sh", "id", "touch"):
        layer.symlink(f"bin/{applet}", "busybox")
    for name in ("etc", "proc", "dev", "sys", "tmp"):
        layer.folder(name)
    config = {"config": {"Cmd": ["/bin/sh", "-c", "id -u && touch /made"], "Env": ["PATH=/bin"]}}
    user = users.make(workdir / "user", "single")
    layout = user.home / "box"
    images.write_layout(layout, {"v1": images.make_image([layer.tar()], config=config)})
    for path in (layout, *layout.rglob("*")):
        shutil.chown(path, users.UID, users.GID)
    root, bundle = user.home / "a", user.home / "a.bundle"
    script = f"""
        set -e
        orlop() {{ "$PYTHON" -m orlop --driver native "$@"; }}
        orlop import -q {layout} localhost/box > /dev/null
        orlop prepare -q localhost/box {root} > /dev/null
        orlop bundle -q --rootless {root} {bundle}
        runc --root {user.runtime}/runc run --bundle {bundle} rootless-{user.folder.parent.name}
        orlop diff {root}
        orlop cleanup {root}
    """
    done = user.run("sh", "-c", script, env={"PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [str(bundle), "0"], (done.stdout, done.stderr)
    assert "A /made" in done.stdout


def test_a_volume_belongs_to_whom_the_user_namespace_shows(store: orlop.Store, workdir: Path) -> None:
    layer = Layer().folder("data", uid=5, gid=6, mode=0o2770).file("data/mine", b"1", uid=7, mode=0o4755)
    config = {"config": {"Cmd": ["/x"], "Volumes": {"/data": {}}}}
    image = images.make_image([layer.file("data/far", b"", uid=90_000).tar()], config=config)
    store.load(images.write_layout(workdir / "box", {"v1": image}), name="localhost/volume")
    ids = (IdMap(inside=0, outside=200_000, size=65_536),)
    with store.prepare("localhost/volume", workdir / "a", mount=True) as root:
        root.bundle(workdir / "b", uid_map=ids, gid_map=ids, seccomp="none")
    found = {path: (workdir / "b/volumes/data" / path).lstat() for path in (".", "mine", "far")}
    assert (found["."].st_uid, found["."].st_gid, found["."].st_mode & 0o7777) == (200_005, 200_006, 0o2770)
    assert (found["mine"].st_uid, found["mine"].st_mode & 0o7777) == (200_007, 0o4755)
    assert found["far"].st_uid == 90_000
    for folder in (workdir / "b", workdir / "b/volumes"):  # on the way to it
        assert (folder.stat().st_gid, folder.stat().st_mode & 0o7777) == (200_000, 0o710)
