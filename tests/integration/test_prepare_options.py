"""What a Prepare may ask for beyond an image and a path: mapped ids, a quota, mounts of the caller's own."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop import ExtraMount, IdMap
from orlop.config import DRIVERS, Driver
from orlop.images.prepared.extras import Extras
from orlop.linux import mount as mounts
from orlop.linux import mountinfo, userns
from orlop.observe import Call
from support import disks, images
from support.layers import Layer

pytestmark = pytest.mark.root

UIDS = (IdMap(inside=0, outside=100_000, size=65_536),)
GIDS = (IdMap(inside=0, outside=300_000, size=1_000), IdMap(inside=1_000, outside=400_000, size=1_000))


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return request.param


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    layer = (
        Layer()
        .folder("etc")
        .file("etc/motd", b"hello\n", uid=5, gid=1_006)
        .symlink("data", to="/srv/data")
        .symlink("out", to="../../../../etc")
        .folder("srv/data", mode=0o700, uid=9)
        .file("srv/file", b"f")
    )
    layout = images.write_layout(workdir / "layout", {"latest": images.make_image([layer.tar()])})
    return store.load(layout, name="localhost/base").pop().name


def owner(path: Path) -> tuple[int, int]:
    about = path.lstat()
    return about.st_uid, about.st_gid


# ------------------------------------------------------------------ ids


def test_mapped_ids_are_shown_and_the_disk_and_the_commit_have_the_images(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    with store.prepare(image, path, driver=driver, mount=True, uid_map=UIDS, gid_map=GIDS) as root:
        assert root.info.uid_map == UIDS
        assert owner(path / "etc/motd") == (100_005, 400_006)
        (path / "etc/motd").write_bytes(b"copied up")
        os.chown(path / "etc/motd", 100_007, 300_008)
        (path / "new").write_bytes(b"by root of the machine")
        subprocess.run(
            ["setpriv", "--reuid=100003", "--regid=300004", "--clear-groups", "touch", path / "tmp"],
            check=False,
        )
        name = root.commit().name
    with store.prepare(name, path, view=True, mount=True):
        assert owner(path / "etc/motd") == (7, 8)
        assert owner(path / "new") == (0, 0)
        assert owner(path / "srv/data") == (9, 0)


def test_whoever_performs_the_mounts_gets_mapped_ids(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    with store.prepare(image, path, driver=driver, uid_map=UIDS, gid_map=GIDS) as root:
        path.mkdir()
        for mount in root.mounts:
            mounts.perform(mount.type, mount.source, mount.target, mount.options)
        assert owner(path / "etc/motd") == (100_005, 400_006)
        (path / "written").touch()
        mounts.umount(path)


def test_the_maps_of_a_user_namespace_are_taken(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    fd = userns.make(
        [userns.IdRange(inside=0, outside=7_000, size=100)],
        [userns.IdRange(inside=0, outside=8_000, size=2_000)],
    )
    try:
        with store.prepare(
            image, store_dirs.work / "a", driver=driver, user_namespace=fd, mount=True
        ) as root:
            assert owner(store_dirs.work / "a/etc/motd") == (7_005, 9_006)
            assert root.info.uid_map == (IdMap(inside=0, outside=7_000, size=100),)
        with pytest.raises(orlop.InvalidArgument, match="not both"):
            store.prepare(image, store_dirs.work / "a", user_namespace=fd, uid_map=UIDS, gid_map=GIDS)
    finally:
        os.close(fd)
    with store.prepare(image, store_dirs.work / "a", user_namespace="/proc/self/ns/user") as root:
        assert root.info.uid_map == ()


def test_roots_with_and_without_mapped_ids_stand_on_one_chain_and_nothing_of_them_stays(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    store.prepare(image, store_dirs.work / "a", driver=driver, mount=True, uid_map=UIDS, gid_map=GIDS)
    store.prepare(image, store_dirs.work / "b", driver=driver, mount=True)
    store.prepare(image, store_dirs.work / "c", driver=driver, mount=True, uid_map=GIDS, gid_map=GIDS)
    found = [owner(store_dirs.work / name / "etc/motd")[0] for name in "abc"]
    assert found == [100_005, 5, 300_005]
    for root in store.prepared():
        store.get(root.path).cleanup()
    assert disks.mounts_below(store_dirs.run) == []
    assert os.listdir(store_dirs.run / "maps") == []


def test_mapped_views_are_read_only(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    with store.prepare(image, path, driver=driver, view=True, mount=True, uid_map=UIDS, gid_map=GIDS):
        assert owner(path / "etc/motd") == (100_005, 400_006)
        with pytest.raises(OSError, match="Read-only"):
            (path / "x").touch()


def test_maps_that_no_namespace_can_have_are_refused(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    twice = (IdMap(inside=0, outside=1, size=10), IdMap(inside=5, outside=100, size=10))
    for uid_map, gid_map in ((twice, GIDS), (UIDS, ()), ((IdMap(inside=0, outside=0, size=0),), GIDS)):
        with pytest.raises(orlop.InvalidArgument):
            store.prepare(image, store_dirs.work / "a", uid_map=uid_map, gid_map=gid_map)
    with pytest.raises(orlop.FailedPrecondition, match="self-contained"):
        store.prepare(
            image, store_dirs.work / "a", self_contained=True, driver="erofs", uid_map=UIDS, gid_map=GIDS
        )
    assert store.prepared() == []


# ------------------------------------------------------------------ quotas


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
def test_a_quota_ends_in_enospc_inside_the_root_and_nowhere_else(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver, mapped: bool
) -> None:
    path, maps = store_dirs.work / "a", {"uid_map": UIDS, "gid_map": GIDS} if mapped else {}
    with store.prepare(image, path, driver=driver, mount=True, quota=8 << 20, **maps) as root:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (path / "big").write_bytes(bytes(32 << 20))
        (path / "big").unlink()
        (path / "fits").write_bytes(b"x" * (6 << 20))
        (store_dirs.work / "beside").write_bytes(bytes(32 << 20))
        assert root.info.quota == 8 << 20
        layers = store.inspect(root.commit().name).layers
        assert 6 << 20 < layers[-1].size < 7 << 20
    assert disks.mounts_below(store_dirs.run) == []
    store.collect()  # waits for what is deleted behind the call
    assert list((store_dirs.root / "prepared").iterdir()) == []


def test_a_root_with_a_quota_comes_back_after_its_mounts_are_gone(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    with store.prepare(image, path, driver=driver, mount=True, quota=8 << 20) as root:
        (path / "kept").write_text("kept")
        for place in disks.mounts_below(store_dirs.work) + disks.mounts_below(store_dirs.run):
            mounts.umount(place)  # as a reboot does
        root.mount()
        assert (path / "kept").read_text() == "kept"


def test_quotas_that_can_be_none_are_refused(store: orlop.Store, image: str, store_dirs: StoreDirs) -> None:
    for options in ({"quota": 0}, {"quota": -5}, {"quota": 1 << 63}, {"quota": 8 << 20, "view": True}):
        with pytest.raises(orlop.InvalidArgument, match="quota"):
            store.prepare(image, store_dirs.work / "a", **options)
    assert list((store_dirs.root / "prepared").iterdir()) == []


# ------------------------------------------------------------------ mounts of the caller's


def test_further_mounts_come_in_order_with_targets_resolved_inside_the_root(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path, driver: Driver
) -> None:
    (workdir / "host").mkdir()
    (workdir / "host/x").write_text("from the host")
    path = store_dirs.work / "a"
    extra = (
        ExtraMount(type="tmpfs", target="/data/tmp", options=("size=1m", "mode=700")),
        ExtraMount(type="bind", source=str(workdir / "host"), target="/out/vol", options=("ro",)),
        ExtraMount(type="bind", source=str(workdir / "host/x"), target="/one/file"),
        ExtraMount(type="image", source=image, target="/image"),
    )
    with store.prepare(image, path, driver=driver, extra=extra, mount=True) as root:
        targets = [mount.target for mount in root.mounts]
        expected = ["", "/srv/data/tmp", "/etc/vol", "/one/file", "/image"]
        assert targets == [f"{path}{target}" for target in expected]
        assert (path / "srv/data/tmp").stat().st_mode & 0o777 == 0o700
        assert (path / "etc/vol/x").read_text() == (path / "one/file").read_text() == "from the host"
        assert (path / "image/etc/motd").read_bytes() == b"hello\n"
        for place in ("etc/vol/y", "image/y"):
            with pytest.raises(OSError, match="Read-only"):
                (path / place).touch()
        (path / "srv/data/tmp/t").touch()
        members = {layer.diff_id for layer in store.inspect(root.commit().name).layers}
        assert len(members) == 2
    assert not path.exists()
    assert (workdir / "host/x").read_text() == "from the host"
    assert disks.mounts_below(store_dirs.run) == []


def test_an_image_that_is_mounted_is_kept_until_the_root_goes(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path, driver: Driver
) -> None:
    layout = images.write_layout(
        workdir / "tools", {"latest": images.make_image([Layer().file("tool").tar()])}
    )
    tools = store.load(layout, name="localhost/tools").pop().name
    extra = (ExtraMount(type="image", source=tools, target="/tools"),)
    root = store.prepare(image, store_dirs.work / "a", driver=driver, extra=extra)
    store.remove(tools)
    store.collect()
    root.mount()
    assert (store_dirs.work / "a/tools/tool").exists()
    root.cleanup()
    store.collect()
    with pytest.raises(orlop.NotFound):
        store.inspect(tools)


def test_a_symlink_put_in_the_way_of_a_mount_leads_nowhere(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path, driver: Driver
) -> None:
    (workdir / "victim").mkdir()
    path = store_dirs.work / "a"
    extra = (ExtraMount(type="tmpfs", target="/vol/x"),)
    with store.prepare(image, path, driver=driver, extra=extra, mount=True) as root:
        root.unmount()
        store.verbs.mount(str(path))
        root.unmount()
        top = writable(root)
        (top / "vol/x").rmdir()
        (top / "vol").rmdir()
        (top / "vol").symlink_to(workdir)
        (workdir / "x").mkdir()
        with pytest.raises(orlop.FailedPrecondition, match="/vol/x"):
            root.mount()
        assert not mountinfo.is_mount_point(workdir / "x")
        assert not mountinfo.is_mount_point(path)


def writable(root: orlop.Prepared) -> Path:
    """The folder of the store that holds what is written to a root."""
    options = dict(option.partition("=")[::2] for option in root.mounts[0].options)
    return Path(options.get("upperdir", root.mounts[0].source))


BAD = {
    "a relative target": ExtraMount(type="tmpfs", target="x"),
    "the root": ExtraMount(type="tmpfs", target="/"),
    "a way out": ExtraMount(type="tmpfs", target="/a/../../b"),
    "a way through a file": ExtraMount(type="tmpfs", target="/srv/file/x"),
    "a folder on a file": ExtraMount(type="tmpfs", target="/srv/file"),
    "a relative source": ExtraMount(type="bind", source="x", target="/x"),
    "an option that steers": ExtraMount(type="tmpfs", target="/x", options=("context=evil",)),
    "an option with a comma": ExtraMount(type="tmpfs", target="/x", options=("size=1m,uid=0",)),
    "an option of another type": ExtraMount(type="bind", source="/etc", target="/x", options=("size=1m",)),
    "a writable image": ExtraMount(type="image", source="localhost/base", target="/x", options=("nosuid",)),
    "an image without a name": ExtraMount(type="image", target="/x"),
}


@pytest.mark.parametrize("case", BAD)
def test_mounts_that_can_be_none_are_refused(
    store: orlop.Store, image: str, store_dirs: StoreDirs, case: str
) -> None:
    with pytest.raises(orlop.InvalidArgument):
        store.prepare(image, store_dirs.work / "a", extra=(BAD[case],))
    assert store.prepared() == []
    assert list((store_dirs.root / "prepared").iterdir()) == []


def test_a_source_that_is_not_there_and_a_place_that_a_view_lacks(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    missing = (ExtraMount(type="bind", source="/no/such/thing", target="/x"),)
    with pytest.raises(orlop.NotFound):
        store.prepare(image, store_dirs.work / "a", driver=driver, extra=missing)
    new_place = (ExtraMount(type="tmpfs", target="/not/there"),)
    with pytest.raises(orlop.FailedPrecondition, match="/not/there"):
        store.prepare(image, store_dirs.work / "a", driver=driver, view=True, extra=new_place)
    there = (ExtraMount(type="tmpfs", target="/srv/data"),)
    with store.prepare(image, store_dirs.work / "a", driver=driver, view=True, extra=there, mount=True):
        (store_dirs.work / "a/srv/data/t").touch()


def test_an_image_that_goes_while_it_is_mounted_is_asked_for_again(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = Layer().file("tool").tar()
    both = {"x": images.make_image([tar]), "y": images.make_image([tar], config={"config": {"Env": ["A=b"]}})}
    store.load(images.write_layout(workdir / "tools", both))
    specs = Extras.specs

    def removed_meanwhile(self: Extras, *args: object) -> object:
        if any(info.name == "localhost/tools:x" for info in store.images()):
            store.remove("localhost/tools:x")
        return specs(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Extras, "specs", removed_meanwhile)
    extra = (ExtraMount(type="image", source="localhost/tools:x", target="/mnt"),)
    with pytest.raises(orlop.Error):  # pulled again, which nobody serves; never an empty folder
        store.prepare(image, store_dirs.work / "a", extra=extra, mount=True)
    assert store.prepared() == []


def test_an_unmount_that_is_refused_takes_nothing_away(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    extra = (ExtraMount(type="tmpfs", target="/mnt"),)
    with store.prepare(image, path, driver=driver, extra=extra, mount=True) as root:
        (path / "mnt/data").touch()
        user = subprocess.Popen(["sleep", "60"], cwd=path / "etc")
        try:
            with pytest.raises(orlop.FailedPrecondition, match="sleep"):
                root.unmount()
            assert (path / "mnt/data").exists()
        finally:
            user.kill()
            user.wait()


def test_a_tmpfs_of_somebody_else_stays(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    extra = (ExtraMount(type="tmpfs", target="/mnt"),)
    root = store.prepare(image, path, driver=driver, extra=extra, mount=True)
    subprocess.run(["mount", "-t", "tmpfs", "mine", path / "mnt"], check=True)
    (path / "mnt/precious").touch()
    with pytest.raises(orlop.FailedPrecondition):
        root.unmount()
    assert (path / "mnt/precious").exists()
    subprocess.run(["umount", path / "mnt"], check=True)
    root.cleanup()


def test_two_roots_that_mount_one_anothers_images_do_not_wait_for_one_another(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    two = {name: images.make_image([Layer().file(name).tar()]) for name in "ab"}
    store.load(images.write_layout(workdir / "two", two))
    failures: list[orlop.Error] = []

    def repeat(own: str, other: str) -> None:
        extra = (ExtraMount(type="image", source=f"localhost/two:{other}", target="/mnt"),)
        try:
            with orlop.open(store_dirs.root, workdir / f"run-{own}") as mine:
                for number in range(8):
                    maps = (IdMap(inside=0, outside=1_000 + number, size=10),)
                    call = Call(deadline=time.monotonic() + 60)
                    path = store_dirs.work / own
                    mine.prepare(
                        f"localhost/two:{own}", path, extra=extra, uid_map=maps, gid_map=maps, call=call
                    ).cleanup()
        except orlop.Error as exc:
            failures.append(exc)

    threads = [threading.Thread(target=repeat, args=pair) for pair in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_activation_with_mapped_ids_goes_with_its_last_root(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    store.prepare(image, store_dirs.work / "plain")
    for number in range(3):
        maps = (IdMap(inside=0, outside=1_000 + number, size=10),)
        store.prepare(image, store_dirs.work / "mapped", uid_map=maps, gid_map=maps).cleanup()
    assert len(os.listdir(store_dirs.run / "chains")) == 1


# ------------------------------------------------------------------ disks, seen from elsewhere


def test_a_disk_has_one_file_system_wherever_it_is_mounted(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    root = store.prepare(image, path, driver=driver, quota=8 << 20)
    path.mkdir()
    for mount in root.mounts:
        mounts.perform(mount.type, mount.source, mount.target, mount.options)
    (path / "kept").touch()
    disk = next((store_dirs.root / "prepared").glob("*/disk.img"))
    with orlop.open(store_dirs.root, workdir / "run2") as other:
        other.get(path)
        attached = subprocess.run(["losetup", "-j", disk], capture_output=True, text=True, check=True).stdout
        assert len(attached.splitlines()) == 1
        found = other.get(path)
        with pytest.raises(orlop.FailedPrecondition, match="in use"):
            found._verbs.cleanup(str(path))
    assert (path / "kept").exists()
    mounts.umount(path)
    root.cleanup()


def test_what_was_written_to_a_disk_is_committed_also_when_it_is_not_mounted(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    with store.prepare(image, path, driver=driver, quota=8 << 20, mount=True) as root:
        (path / "kept").write_text("kept")
        root.unmount()
        for place in disks.mounts_below(store_dirs.run):
            mounts.umount(place)
        name = root.commit().name
    with store.prepare(name, path, view=True, mount=True):
        assert (path / "kept").read_text() == "kept"


def test_a_lost_disk_is_kept_while_it_is_used_and_set_aside_if_it_was(
    store: orlop.Store, image: str, store_dirs: StoreDirs, driver: Driver
) -> None:
    path = store_dirs.work / "a"
    store.prepare(image, path, driver=driver, quota=8 << 20, mount=True)
    (path / "precious").touch()
    with contextlib.closing(sqlite3.connect(store_dirs.root / "meta.db")) as database:
        database.execute("DELETE FROM prepared")
        database.commit()
    store.collect()
    (path / "more").touch()
    assert len(list((store_dirs.root / "prepared").glob("*/disk.img"))) == 1
    mounts.umount(path)
    store.collect()
    (aside,) = os.listdir(store_dirs.root / "prepared")
    assert aside.startswith("quarantine-")


def test_a_disk_that_was_never_finished_is_collected(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    folder = store_dirs.root / "prepared" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "disk.img.new").write_bytes(bytes(4096))
    store.collect()
    assert not folder.exists()


def test_paths_that_are_no_text_are_refused(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    odd = os.fsdecode(os.fsencode(workdir) + b"/\xff")
    os.mkdir(odd)
    for extra in (
        ExtraMount(type="bind", source=odd, target="/x"),
        ExtraMount(type="tmpfs", target="/\udcff"),
    ):
        with pytest.raises(orlop.InvalidArgument, match="UTF-8"):
            store.prepare(image, store_dirs.work / "a", extra=(extra,))
