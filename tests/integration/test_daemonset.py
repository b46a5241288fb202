"""The DaemonSet's mounts as runc performs them: what the daemon mounts in its container appears on the node."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux import mount as mounts
from support import images, pods
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

MANIFEST = Path(__file__).parents[2] / "packaging" / "kubernetes" / "daemonset.yaml"
_UP = 60.0  # seconds for the daemon to answer


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    pause, until = threading.Event(), time.monotonic() + _UP
    while True:
        try:
            with orlop.connect(address) as store:
                store.info()
            return
        except orlop.Unavailable:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text(errors="replace")[-4000:]) from None
            pause.wait(0.05)


def test_roots_of_a_daemon_in_a_pod_are_the_nodes_and_outlive_the_pod(
    store_dirs: StoreDirs, registry: Registry
) -> None:
    images.push(registry, "pod", "1", images.make_image([Layer().file("motd", b"of the image").tar()]))
    name = f"{registry.host}/pod:1"
    pod: Any = pods.parsed(MANIFEST)[2]["spec"]["template"]["spec"]
    roots = store_dirs.work / "roots"
    places = {"/var/lib/orlop": store_dirs.root, "/run/orlop": store_dirs.run, "/srv/orlop": roots}
    for place in places.values():
        place.mkdir(mode=0o700)
    places["/dev"] = Path("/dev")
    address = f"unix://{store_dirs.run}/socket/orlop.sock"
    words = [f"--root={store_dirs.root}", f"--run={store_dirs.run}", f"--insecure-registry={registry.host}"]
    command = [sys.executable, "-m", "orlop", *words, "daemon", f"--listen={address}"]
    mine, theirs = store_dirs.work / "mine", roots / "theirs"

    work = store_dirs.work / "pod"
    with pods.running(pod, places, command, work) as process:
        wait_for(address, process, work / "log")
        with orlop.connect(address) as store:
            mine.mkdir()
            for mount in store.prepare(name, mine).mounts:  # performed by us, on the node
                mounts.perform(mount.type, mount.source, mount.target, mount.options)
            store.prepare(name, theirs, mount=True, quota=32 << 20)  # by the daemon, on a loop device
            for root in (mine, theirs):
                assert (root / "motd").read_bytes() == b"of the image"
                (root / "new").write_text("written on the node")
            made = store.get(theirs).commit("localhost/from-the-node")
            assert made.layers == 2

    for root in (mine, theirs):  # the pod is gone
        assert (root / "new").read_text() == "written on the node"
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert sorted(info.path for info in store.prepared()) == sorted([str(mine), str(theirs)])
        mounts.umount(mine)
        for root in (mine, theirs):
            store.get(root).cleanup()
    assert not theirs.exists() or not theirs.is_mount()
