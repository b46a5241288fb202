"""Drivers beside one another in one store: chosen by probing, sharing layers, made again, collected."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.config import DRIVERS, Driver
from orlop.linux import mount as mounts
from support import disks, images
from support.layers import Layer
from support.trees import differences, snapshot

pytestmark = pytest.mark.root

FOLDER_DRIVERS: tuple[Driver, ...] = ("overlay", "native")


def base() -> Layer:
    return (
        Layer()
        .folder("etc", mode=0o750, uid=7)
        .file("etc/motd", b"hello\n", uid=5, gid=6)
        .file("bin/tool", b"x" * 300_000, mode=0o755)
        .hardlink("bin/same", to="bin/tool")
    )


def load(store: orlop.Store, workdir: Path, *layers: Layer, name: str = "base") -> str:
    tars = [layer.tar() for layer in layers]
    layout = images.write_layout(workdir / f"layout-{name}", {"latest": images.make_image(tars)})
    return store.load(layout, name=f"localhost/{name}").pop().name


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    return load(store, workdir, base(), Layer().file("etc/new", b"n").whiteout("bin/same"))


def sql(store: orlop.Store, query: str, *args: object) -> list[tuple[object, ...]]:
    """What no verb tells or does."""
    with contextlib.closing(sqlite3.connect(Path(store.info().root) / "meta.db")) as connection:
        found = connection.execute(query, args).fetchall()
        connection.commit()
    return found


def folders(store: orlop.Store) -> list[str]:
    return sorted(os.listdir(Path(store.info().root) / "folders"))


# ------------------------------------------------------------------ the choice


def test_the_best_driver_that_works_is_chosen_and_each_has_its_reason(store: orlop.Store) -> None:
    info = store.info()
    assert info.driver == "erofs"
    assert [driver.name for driver in info.drivers] == list(DRIVERS)
    assert all(driver.available and driver.reason for driver in info.drivers)
    assert info.privilege == "root"
    assert info.features["file system of the store"] == "ext4"


def test_probing_leaves_nothing_behind(store: orlop.Store) -> None:
    store.info()
    assert folders(store) == []
    assert disks.mounts_below(Path(store.info().run)) == []


def test_the_setting_chooses_and_the_call_overrides(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    settings = orlop.Settings(driver="overlay")
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as other:
        assert other.info().driver == "overlay"
        assert other.prepare(image, store_dirs.work / "a").info.driver == "overlay"
        assert other.prepare(image, store_dirs.work / "b", driver="native").info.driver == "native"
        assert other.prepare(image, store_dirs.work / "c", driver="auto").info.driver == "erofs"
    assert [root.driver for root in store.prepared()] == ["overlay", "native", "erofs"]


def test_a_driver_that_there_is_not_is_refused_by_name(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    with pytest.raises(orlop.InvalidArgument, match="zfs"):
        store.prepare(image, store_dirs.work / "a", driver="zfs")  # type: ignore[arg-type]


def test_roots_of_all_drivers_live_beside_one_another(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    trees = {}
    for driver in DRIVERS:
        root = store.prepare(image, store_dirs.work / driver, driver=driver, mount=True)
        trees[driver] = snapshot(Path(root.path))
    for driver in FOLDER_DRIVERS:
        assert differences(trees["erofs"], trees[driver]) == []
    for driver in DRIVERS:
        assert store.get(store_dirs.work / driver).info.mounted
        store.get(store_dirs.work / driver).cleanup()
    assert store.prepared() == []


def test_self_contained_mounts_are_the_erofs_drivers_alone(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    for driver in FOLDER_DRIVERS:
        with pytest.raises(orlop.FailedPrecondition, match=driver):
            store.prepare(image, store_dirs.work / "a", driver=driver, self_contained=True)
    assert store.prepared() == []


# ------------------------------------------------------------------ folders


def many_layers(count: int) -> list[Layer]:
    layers = [base()]
    for number in range(1, count):
        layer = Layer().file(f"n/f{number}", b"%d" % number, mtime_ns=number).file("etc/motd", b"%d" % number)
        if number % 7 == 3:
            layer.whiteout(f"n/f{number - 1}")
        layers.append(layer)
    return layers


@pytest.mark.parametrize("count", [40, 130, pytest.param(520, marks=[pytest.mark.soak, pytest.mark.large])])
def test_any_number_of_layers_fits_into_one_page_of_options(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, count: int
) -> None:
    name = load(store, workdir, *many_layers(count))
    with store.prepare(name, store_dirs.work / "erofs", driver="erofs", mount=True) as root:
        expected = snapshot(Path(root.path))
    with store.prepare(name, store_dirs.work / "overlay", driver="overlay") as root:
        (mount,) = root.mounts
        assert len(",".join(mount.options)) < 4096
        (store_dirs.work / "overlay").mkdir()
        subprocess.run(  # mount(2), which takes a page, and not the new API
            [sys.executable, "-c", _MOUNT, mount.source, mount.target, ",".join(mount.options)], check=True
        )
        try:
            assert differences(expected, snapshot(Path(root.path))) == []
        finally:
            subprocess.run(["umount", root.path], check=True)


_MOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
source, target, options = (os.fsencode(word) for word in sys.argv[1:])
if libc.mount(source, target, b"overlay", 0, options):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
"""


def test_a_layer_is_unpacked_once_whatever_lies_below_it(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    top = Layer().file("top", b"t")
    one = load(store, workdir, base(), top, name="one")
    two = load(store, workdir, Layer().file("other", b"o"), top, name="two")
    store.prepare(one, store_dirs.work / "one", driver="overlay")
    store.prepare(two, store_dirs.work / "two", driver="overlay")
    assert sql(store, "SELECT COUNT(*), COUNT(DISTINCT of) FROM folders WHERE kind = 'layer'") == [(3, 3)]


def test_a_folder_of_an_earlier_boot_is_made_again_in_its_place(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "a", driver="overlay")
    mounts, before = root.mounts, folders(store)
    # After a power cut: the names are there, the bytes are not.
    for folder in before:
        for path in (Path(store.info().root) / "folders" / folder).rglob("*"):
            if path.is_file():
                os.truncate(path, 0)
    sql(store, "UPDATE folders SET boot = 'another'")
    root = store.get(store_dirs.work / "a")
    assert (root.mounts, folders(store)) == (mounts, before)
    root.mount()
    assert (store_dirs.work / "a/etc/motd").read_bytes() == b"hello\n"
    root.cleanup()


def test_folders_go_with_the_image_and_stay_with_the_root(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "a", driver="overlay")
    store.remove(image)
    store.collect()
    assert root.mount().info.mounted
    assert (store_dirs.work / "a/etc/new").read_bytes() == b"n"
    root.cleanup()
    store.collect()
    assert folders(store) == []
    assert sql(store, "SELECT * FROM folders UNION ALL SELECT *, 0, 0, 0, 0, 0, 0 FROM folder_layers") == []


def test_folders_that_a_dead_process_left_are_collected(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    store.prepare(image, store_dirs.work / "a", driver="overlay")
    known = folders(store)
    for name in ("new-0123456789abcdef", "0123456789"):
        (store_dirs.root / "folders" / name / "x").mkdir(parents=True)
    assert {item for item, _ in store.collect(dry_run=True).items} >= {"stray folders/0123456789"}
    store.collect()
    assert folders(store) == known


# ------------------------------------------------------------------ copies


def test_a_copy_that_is_used_is_not_cleaned_up(store: orlop.Store, image: str, store_dirs: StoreDirs) -> None:
    root = store.prepare(image, store_dirs.work / "a", driver="native")
    assert root.folder is not None
    user = subprocess.Popen(["sleep", "60"], cwd=root.folder)
    try:
        with pytest.raises(orlop.FailedPrecondition, match=rf"sleep \({user.pid}\)"):
            root.cleanup()
        assert (Path(root.folder) / "etc/motd").exists()
    finally:
        user.kill()
        user.wait()
    root.cleanup()


def test_a_bind_of_a_copy_in_another_mount_namespace_counts_as_use(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "a", driver="native")
    (store_dirs.work / "b").mkdir()
    script = f"mount --bind {root.folder} {store_dirs.work}/b && echo ready && sleep 60"
    user = subprocess.Popen(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    try:
        assert user.stdout is not None
        assert user.stdout.readline() == "ready\n"
        with pytest.raises(orlop.FailedPrecondition, match="in use"):
            root.cleanup()
    finally:
        subprocess.run(["pkill", "-P", str(user.pid)], check=False)
        user.kill()
        user.wait()
    root.cleanup()


def test_a_write_that_hides_behind_its_size_and_time_is_seen(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    with store.prepare(image, store_dirs.work / "a", driver="native") as root:
        assert root.folder is not None
        path = Path(root.folder) / "etc/motd"
        about = path.stat()
        path.write_bytes(b"HELLO\n")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        name = root.commit().name
    with store.prepare(name, store_dirs.work / "b", view=True, mount=True):
        assert (store_dirs.work / "b/etc/motd").read_bytes() == b"HELLO\n"


def test_files_that_change_places_are_seen(store: orlop.Store, store_dirs: StoreDirs, workdir: Path) -> None:
    name = load(store, workdir, Layer().file("a/x", b"1").file("b/x", b"2"), name="swap")
    with store.prepare(name, store_dirs.work / "a", driver="native") as root:
        top = Path(root.folder or "")
        times = {folder: (top / folder).stat().st_mtime_ns for folder in ("a", "b", ".")}
        (top / "a").rename(top / "c")
        (top / "b").rename(top / "a")
        (top / "c").rename(top / "b")
        for folder, mtime in times.items():
            os.utime(top / folder, ns=(mtime, mtime))
        name = root.commit().name
    with store.prepare(name, store_dirs.work / "b", view=True, mount=True):
        assert (store_dirs.work / "b/a/x").read_bytes() == b"2"


def test_a_lost_copy_is_deleted_unless_somebody_wrote_to_it(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    kept = store.prepare(image, store_dirs.work / "a", driver="native")
    store.prepare(image, store_dirs.work / "b", driver="native")
    (Path(kept.folder or "") / "etc/mine").write_text("precious")
    sql(store, "DELETE FROM prepared")
    store.collect()
    (aside,) = os.listdir(store_dirs.root / "prepared")
    assert aside.startswith("quarantine-")
    assert (store_dirs.root / "prepared" / aside / "tree/etc/mine").read_text() == "precious"
    shutil.rmtree(store_dirs.root / "prepared" / aside)


@pytest.fixture(params=["btrfs", "xfs"])
def sharing_disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk whose file system shares blocks between files."""
    with disks.scratch_folder() as folder:
        image, mounted = folder / "disk.img", folder / "disk"
        with image.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run([f"mkfs.{request.param}", "-q", image], check=True, capture_output=True)
        mounted.mkdir()
        subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
        yield mounted


def test_copies_share_their_blocks_where_the_file_system_can(sharing_disk: Path) -> None:
    with orlop.open(sharing_disk / "root", sharing_disk / "run") as store:
        assert "reflink" in next(d.reason for d in store.info().drivers if d.name == "native")
        big = Layer().file("big", os.urandom(60 << 20)).file("small", b"s", uid=3)
        name = load(store, sharing_disk, big)
        store.prepare(name, sharing_disk / "r0", driver="native")
        before = used(sharing_disk)
        for number in range(1, 6):
            store.prepare(name, sharing_disk / f"r{number}", driver="native")
        assert used(sharing_disk) - before < 20 << 20
        root = store.get(sharing_disk / "r3")
        (Path(root.folder or "") / "big").write_bytes(b"changed")
        assert (Path(store.get(sharing_disk / "r4").folder or "") / "big").stat().st_size == 60 << 20
        assert (Path(root.folder or "") / "small").stat().st_uid == 3
        assert len(store.inspect(root.commit().name).layers) == 2
        for found in store.prepared():
            store.get(found.path).cleanup()


def used(folder: Path) -> int:
    subprocess.run(["sync", "-f", folder], check=True)
    about = os.statvfs(folder)
    return (about.f_blocks - about.f_bfree) * about.f_frsize


def test_a_copy_whose_root_folder_alone_was_changed_is_set_aside(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "a", driver="native")
    (Path(root.folder or "") / "top").touch()
    (Path(root.folder or "") / "top").unlink()
    sql(store, "DELETE FROM prepared")
    store.collect()
    (aside,) = os.listdir(store_dirs.root / "prepared")
    assert aside.startswith("quarantine-")


def test_a_tree_for_copies_is_not_taken_for_a_lower_of_an_overlay(
    store_dirs: StoreDirs, workdir: Path
) -> None:
    marks = {"trusted.overlay.metacopy": b"", "trusted.overlay.redirect": b"/bin"}
    layers = [Layer().folder("d", xattrs={"trusted.overlay.opaque": b"x"}).file("m", b"data", xattrs=marks)]
    layers += [Layer().file(f"f{number}", b"%d" % number) for number in range(29)]
    long = store_dirs.root / ("long" * 50)  # so long that most layers must be one tree
    long.parent.mkdir()
    with orlop.open(long, store_dirs.run) as store:
        most = int(store.info().features["lowers in one mount"])
        step = most // 2
        below = -(-(len(layers) + 2 - most) // step) * step
        first = load(store, workdir, *layers[:below], name="first")
        whole = load(store, workdir, *layers, name="whole")
        for driver in ("native", "overlay"):
            with store.prepare(first, store_dirs.work / "v", driver=driver, view=True, mount=True):
                shown = {name: os.getxattr(store_dirs.work / "v/m", name) for name in marks}
                assert shown == marks, driver
            with store.prepare(whole, store_dirs.work / "w", driver="overlay", mount=True):
                assert (store_dirs.work / "w/m").read_bytes() == b"data"


def test_hard_links_between_branches_deeper_than_folders_are_kept_open(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    deep = "a/" * 299
    name = load(store, workdir, Layer().file(f"x/{deep}f", b"1").hardlink(f"y/{deep}l", to=f"x/{deep}f"))
    for driver in FOLDER_DRIVERS:
        with store.prepare(name, store_dirs.work / driver, driver=driver, mount=True) as root:
            one, two = (Path(root.path) / f"x/{deep}f", Path(root.path) / f"y/{deep}l")
            assert os.path.samestat(one.stat(), two.stat())


def test_what_fails_for_a_moment_says_nothing_about_a_driver(
    store: orlop.Store, image: str, store_dirs: StoreDirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptors(*args: object, **kwargs: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr("orlop.linux.mount.mount_erofs", no_descriptors)
        with pytest.raises(orlop.Error, match="Too many open files"):
            store.prepare(image, store_dirs.work / "a")
    assert store.prepare(image, store_dirs.work / "a").info.driver == "erofs"


def test_a_view_of_folders_that_is_mounted_is_not_cleaned_up(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    for driver in FOLDER_DRIVERS:
        path = store_dirs.work / driver
        root = store.prepare(image, path, driver=driver, view=True)
        path.mkdir()
        for mount in root.mounts:
            mounts.perform(mount.type, mount.source, mount.target, mount.options)
        with pytest.raises(orlop.FailedPrecondition, match="mounted"):
            root.cleanup()
        mounts.umount(path)
        root.cleanup()


# ------------------------------------------------------------------ without the right to mount


AS_IN_A_CONTAINER = """
import os, sys
import orlop
root, run, name, path, new = sys.argv[1:]
with orlop.open(root, run) as store:
    assert store.info().privilege == "container"
    made = store.prepare(name, path)
    top = made.folder
    exec(new, {"os": os, "top": top})
    print(made.commit().name)
    made.cleanup()
"""
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 6, number)
    for tag, number in ((1, 2**32 - 1), (2, 7), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
)
CHANGES_OF_WHAT_A_RECORD_CANNOT_HOLD = {
    "an owner of a symlink": ("os.chown(top + '/l', 0, 0, follow_symlinks=False)", "l"),
    "a symlink made anew": ("os.unlink(top + '/l'); os.symlink('other', top + '/l')", "l"),
    "an ACL taken away": ("os.removexattr(top + '/acl', 'system.posix_acl_access')", "acl"),
}


@pytest.mark.parametrize("case", CHANGES_OF_WHAT_A_RECORD_CANNOT_HOLD)
def test_in_a_container_nothing_that_changed_is_taken_for_the_images(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, case: str
) -> None:
    layer = Layer().symlink("l", to="there", uid=1000, gid=1000)
    name = load(store, workdir, layer.file("acl", mode=0o660, xattrs={"system.posix_acl_access": ACL}))
    change, place = CHANGES_OF_WHAT_A_RECORD_CANNOT_HOLD[case]
    command = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", sys.executable, "-c"]
    done = subprocess.run(
        [*command, AS_IN_A_CONTAINER, store_dirs.root, store_dirs.run, name, store_dirs.work / "a", change],
        check=True,
        capture_output=True,
        text=True,
    )
    with store.prepare(done.stdout.strip(), store_dirs.work / "b", view=True, mount=True) as root:
        shown = Path(root.path) / place
        assert shown.lstat().st_uid == 0
        assert os.listxattr(shown, follow_symlinks=False) == []
    with store.prepare(name, store_dirs.work / "b", view=True, mount=True) as root:
        assert os.listxattr(Path(root.path) / "acl") == ["system.posix_acl_access"]
