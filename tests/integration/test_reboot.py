"""After a reboot, which is played: all mounts of a store are gone, RUN is gone, and the boot has another name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux import mount as mounts
from orlop.linux import mountinfo
from orlop.metadata import garbage
from support import disks, images
from support.layers import Layer

pytestmark = pytest.mark.root

BOOT = "another boot"


class Machine:
    """A store on a machine that can be started anew.  One process has the store open at a time."""

    def __init__(self, dirs: StoreDirs) -> None:
        self.dirs = dirs
        self.store = orlop.open(dirs.root, dirs.run)

    def reboot(self, *, keep_run: bool = False) -> orlop.Store:
        """Mounts are gone, and RUN, but for its folders if it does not lie on a tmpfs."""
        self.store.close()
        for place in disks.mounts_below(self.dirs.root.parent):
            mounts.umount(place)
        if not keep_run:
            shutil.rmtree(self.dirs.run)
        self.store = orlop.open(self.dirs.root, self.dirs.run)
        self.store.verbs._core.__dict__["boot"] = BOOT
        return self.store

    def left_in_run(self) -> list[str]:
        folders = ("chains", "maps", "disks")
        return [str(path) for name in folders for path in (self.dirs.run / name).glob("*")]


@pytest.fixture
def machine(store_dirs: StoreDirs) -> Iterator[Machine]:
    started = Machine(store_dirs)
    two = Layer().file("etc/two", b"two\n").whiteout("bin")
    one = Layer().folder("etc").file("etc/motd", b"one\n", uid=1000, gid=1000).file("bin/tool", b"x" * 9000)
    image = images.make_image([one.tar(), two.tar()])
    started.store.load(
        images.write_layout(store_dirs.work / "layout", {"latest": image}), name="localhost/base"
    )
    yield started
    for root in started.store.prepared():
        started.store.get(root.path).cleanup()
    started.store.close()


MAPS = (orlop.IdMap(inside=0, outside=100_000, size=65_536),)
KINDS = {
    "erofs": {"driver": "erofs"},
    "overlay": {"driver": "overlay"},
    "native": {"driver": "native"},
    "mapped": {"driver": "erofs", "uid_map": MAPS, "gid_map": MAPS},
    "quota": {"driver": "erofs", "quota": 8 << 20},
    "extra": {"driver": "erofs", "extra": (orlop.ExtraMount(type="tmpfs", target="/scratch"),)},
    "image": {
        "driver": "erofs",
        "extra": (orlop.ExtraMount(type="image", source="localhost/base", target="/i"),),
    },
    "self-contained": {"driver": "erofs", "self_contained": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_root_is_there_after_a_reboot_with_all_that_was_written(machine: Machine, kind: str) -> None:
    place = machine.dirs.work / "a"
    before = machine.store.prepare("localhost/base", place, mount=True, labels={"a": "b"}, **KINDS[kind])
    (place / "etc/new").write_text("new")
    (place / "etc/two").unlink()
    store = machine.reboot()
    (info,) = store.prepared()
    assert (info.path, info.mounted, info.missing, dict(info.labels)) == (
        str(place),
        False,
        False,
        {"a": "b"},
    )
    assert os.listdir(place) == []  # the folder that orlop made; nothing is shown that is not there
    assert store.get(place).mounts == before.mounts  # which makes ready what they name
    assert os.listdir(place) == []
    root = store.get(place).mount()
    assert root.info.mounted
    assert sorted(os.listdir(place / "etc")) == ["motd", "new"]
    assert (place / "etc/new").read_text() == "new"
    root.commit("localhost/changed")
    root.cleanup()
    assert not place.exists()
    store.collect()
    assert (store.prepared(), machine.left_in_run()) == ([], [])


@pytest.mark.parametrize("kind", ["erofs", "overlay", "native"])
def test_a_view_is_there_after_a_reboot(machine: Machine, kind: str) -> None:
    place = machine.dirs.work / "v"
    machine.store.prepare("localhost/base", place, mount=True, view=True, driver=kind)
    store = machine.reboot()
    store.get(place).mount()
    assert (place / "etc/motd").read_bytes() == b"one\n"
    store.get(place).cleanup()
    assert not place.exists()


@pytest.mark.parametrize("kind", ["erofs", "overlay", "quota", "mapped"])
def test_a_root_can_be_committed_and_cleaned_up_without_mounting_it_again(
    machine: Machine, kind: str
) -> None:
    place = machine.dirs.work / "a"
    machine.store.prepare("localhost/base", place, mount=True, **KINDS[kind])
    (place / "etc/new").write_text("new")
    store = machine.reboot()
    assert store.get(place).commit("localhost/changed").layers == 3
    store = machine.reboot()
    store.verbs.cleanup(str(place))
    assert (store.prepared(), machine.left_in_run()) == ([], [])
    assert not place.exists()


def test_roots_that_share_a_chain_share_its_mount_again(machine: Machine) -> None:
    for number in range(3):
        machine.store.prepare("localhost/base", machine.dirs.work / str(number))
    store = machine.reboot()
    for number in range(3):
        store.get(machine.dirs.work / str(number))
    assert len([one for one in machine.left_in_run() if mountinfo.is_mount_point(one)]) == 1


def test_mount_points_that_a_reboot_left_are_used_again_or_collected(machine: Machine) -> None:
    machine.store.prepare("localhost/base", machine.dirs.work / "a")
    machine.store.prepare("localhost/base", machine.dirs.work / "b", **KINDS["mapped"])
    machine.store.prepare("localhost/base", machine.dirs.work / "c", **KINDS["quota"])
    store = machine.reboot(keep_run=True)
    stale = machine.left_in_run()
    assert len(stale) >= 4
    assert not any(mountinfo.is_mount_point(one) for one in stale)
    store.get(machine.dirs.work / "a")
    store.get(machine.dirs.work / "b")
    store.verbs.cleanup(str(machine.dirs.work / "a"))
    store.verbs.cleanup(str(machine.dirs.work / "c"))
    store = machine.reboot(keep_run=True)
    store.collect()
    left = machine.left_in_run()
    store.get(machine.dirs.work / "b").cleanup()
    assert machine.left_in_run() == [], left


def test_locks_and_leases_of_the_time_before_hold_nothing_up(machine: Machine) -> None:
    """A pull, a Prepare and a download that the power cut ended: their files are there, nobody has them."""
    core = machine.store.verbs._core
    core.db.write(lambda tx: garbage.lease_add(tx, "0" * 64, "layer", "sha256:" + "0" * 64))
    for kind in ("lease", "path", "blob", "layer", "chain", "disk", "root", "maps", "folder"):
        core.lock_path(kind, "0" * 64).touch()
    (machine.dirs.root / "layers/new-0").mkdir()
    (machine.dirs.root / "prepared/0123456789abcdef/upper").mkdir(parents=True)
    (machine.dirs.root / ".tmp-0").touch()
    store = machine.reboot()
    store.prepare("localhost/base", machine.dirs.work / "a").cleanup()
    store.collect()
    locks = [path.name for path in (machine.dirs.root / "locks").iterdir() if "-" in path.name]
    left = [*(machine.dirs.root / "prepared").iterdir(), *machine.dirs.root.glob("layers/new-*")]
    assert (locks, left, (machine.dirs.root / ".tmp-0").exists()) == ([], [], False)
    assert store.verbs._core.db.read(lambda tx: tx.execute("SELECT COUNT(*) FROM leases").fetchone()[0]) == 0


def test_run_may_vanish_under_an_open_store(machine: Machine) -> None:
    """A daemon goes on where somebody has tidied /run up."""
    place = machine.dirs.work / "a"
    machine.store.prepare("localhost/base", place)
    for mounted in disks.mounts_below(machine.dirs.run):
        mounts.umount(mounted)
    shutil.rmtree(machine.dirs.run)
    for path, options in (
        (place, {}),
        (machine.dirs.work / "m", KINDS["mapped"]),
        (machine.dirs.work / "q", KINDS["quota"]),
    ):
        if options:
            machine.store.prepare("localhost/base", path, **options)
        machine.store.get(path).mount()
        assert (path / "etc/motd").read_bytes() == b"one\n"
        machine.store.get(path).cleanup()


def test_another_files_at_a_path_are_not_touched(machine: Machine) -> None:
    """Before orlop has mounted a root again, somebody else uses the path."""
    place = machine.dirs.work / "a"
    machine.store.prepare("localhost/base", place, mount=True)
    store = machine.reboot()
    (place / "mine").write_text("mine")
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    (place / "theirs").write_text("theirs")
    assert not store.prepared()[0].mounted
    store.verbs.cleanup(str(place))
    assert (place / "theirs").read_text() == "theirs"
    mounts.umount(place)
    assert (place / "mine").read_text() == "mine"


# ------------------------------------------------------------------ paths that are gone


def test_roots_whose_parent_folder_is_gone_are_reported(
    machine: Machine, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (machine.dirs.work / "disk").mkdir()
    place, other = machine.dirs.work / "disk/a", machine.dirs.work / "b"
    machine.store.prepare("localhost/base", place, mount=True)
    (place / "etc/new").write_text("new")
    machine.store.prepare("localhost/base", other)
    store = machine.reboot()
    shutil.rmtree(machine.dirs.work / "disk")
    assert {info.path: info.missing for info in store.prepared()} == {str(place): True, str(other): False}
    table = run_cli("ps", check=True).stdout
    assert "path gone" in next(line for line in table.splitlines() if str(place) in line)
    assert "path gone" not in next(line for line in table.splitlines() if str(other) in line)
    assert '"missing": true' in run_cli("ps", "--json", check=True).stdout
    root = store.get(place)  # what was written is still there, and can be mounted elsewhere or committed
    assert root.info.missing
    with pytest.raises(orlop.NotFound):
        root.mount()
    assert not store.prepared()[0].mounted
    assert root.commit("localhost/saved").layers == 3
    (machine.dirs.work / "disk").mkdir()
    assert not store.get(place).info.missing
    assert (Path(store.get(place).mount().path) / "etc/new").read_text() == "new"
    store.get(place).unmount()
    shutil.rmtree(machine.dirs.work / "disk", ignore_errors=True)
    store.verbs.cleanup(str(place))
    assert [info.path for info in store.prepared()] == [str(other)]


def test_a_process_of_its_own_finds_what_another_boot_prepared(machine: Machine) -> None:
    """The whole way, by the command line, as a user does it in the morning."""
    place = machine.dirs.work / "a"
    machine.store.prepare("localhost/base", place, mount=True)
    (place / "etc/new").write_text("new")
    machine.reboot()
    where = ["--root", os.fspath(machine.dirs.root), "--run", os.fspath(machine.dirs.run)]

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "orlop", *where, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    assert str(place) in run("ps")
    run("mount", os.fspath(place))
    assert (place / "etc/new").read_text() == "new"
    run("cleanup", os.fspath(place))
    assert run("ps", "-q") == ""
