"""The store's core: what is made while others collect, what crashes leave, whose mounts are whose.

Each test here was a way to lose or to leak something.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.images.locks import root_lock
from orlop.images.store import LocalStore
from orlop.linux import mount as mounts
from orlop.linux import mountinfo
from orlop.metadata import garbage, layers, roots
from orlop.observe import Call, watch_points
from orlop.spec.digest import Digest
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root

LONG = 60.0  # seconds, for what takes milliseconds


def make(text: str = "hello\n", *, bulk: int = 3000) -> images.Image:
    tar = Layer().folder("etc").file("etc/motd", text.encode()).file("data", os.urandom(bulk)).tar()
    return images.make_image([tar])


def add(registry: MemoryRegistry, repository: str, image: images.Image) -> str:
    for blob in image.blobs.values():
        registry.add_blob(repository, blob)
    registry.add_manifest(repository, "v1", image.document, image.media_type)
    return f"{registry.host}/{repository}:v1"


def layer_blobs(image: images.Image) -> list[str]:
    return [digest for digest in image.blobs if digest != image.id]


@pytest.fixture
def memory() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def verbs(store: orlop.Store) -> LocalStore:
    """The store's own verbs, for tests that look into it."""
    assert isinstance(store.verbs, LocalStore)
    return store.verbs


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    layout = images.write_layout(workdir / "layout", {"latest": make()})
    return store.load(layout, name="localhost/base").pop().name


class Noticed(Call):
    """A call that says when it has to wait."""

    waits: threading.Event = threading.Event()

    def pause(self, seconds: float, attempted: str) -> None:
        self.waits.set()
        super().pause(seconds, attempted)


# ------------------------------------------------------------------ others collect meanwhile


def test_a_collection_takes_nothing_from_a_pull_that_is_under_way(
    store: orlop.Store, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    image = make(bulk=300_000)
    name = add(memory, "slow", image)
    hold = Fault(path=f"/blobs/{layer_blobs(image)[0]}", hold_after=1000, times=1)
    memory.misbehave(hold)
    reached = threading.Event()

    class Watch:
        def progress(self, event: orlop.Progress) -> None:
            if event.phase == "waiting" or (event.phase == "fetching" and event.done):
                reached.set()

        def warning(self, text: str) -> None:
            raise AssertionError(text)

    with ThreadPoolExecutor(1) as pool:
        pulling = pool.submit(store.pull, name, call=orlop.Call(observer=Watch()))
        assert reached.wait(LONG)
        for _ in range(3):
            assert store.collect().items == ()
        hold.release.set()
        pulled = pulling.result(LONG)
    assert store.images() == [pulled]
    assert store.inspect(name).manifest == image.document
    with store.prepare(name, store_dirs.work / "a", mount=True, pull="never"):
        assert (store_dirs.work / "a/etc/motd").read_text() == "hello\n"


def test_an_image_removed_before_its_root_is_made_is_not_found_never_an_empty_root(
    store: orlop.Store, verbs: LocalStore, image: str, store_dirs: StoreDirs
) -> None:
    path = str(store_dirs.work / "a")
    call = Noticed()
    call.waits.clear()
    with ThreadPoolExecutor(1) as pool:
        with verbs._core.locked("path", path, call=Call(), attempted="test"):
            preparing = pool.submit(store.prepare, image, path, pull="never", call=call)
            assert call.waits.wait(LONG)
            store.remove(image)
        with pytest.raises(orlop.NotFound):
            preparing.result(LONG)
    assert store.prepared() == []
    assert list((store_dirs.root / "prepared").iterdir()) == []


def test_an_image_that_another_is_just_pulling_again_is_never_an_empty_root(
    store: orlop.Store, verbs: LocalStore, image: str, store_dirs: StoreDirs
) -> None:
    path, core = str(store_dirs.work / "a"), verbs._core
    details = store.inspect(image)
    call = Noticed()
    call.waits.clear()
    with ThreadPoolExecutor(1) as pool, core.lease("pull") as lease:
        with core.locked("path", path, call=Call(), attempted="test"):
            preparing = pool.submit(store.prepare, image, path, pull="never", call=call)
            assert call.waits.wait(LONG)
            store.remove(image)
            # What a pull does before it names the image: the config is there, and not what it lists.
            core.write_document(Digest(details.info.id), details.config, lease=lease, call=Call())
        with pytest.raises((orlop.NotFound, orlop.Aborted)):
            preparing.result(LONG)
    assert store.prepared() == []


def test_an_image_removed_before_its_root_is_made_is_pulled_again_if_it_may_be(
    store: orlop.Store, verbs: LocalStore, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    name = add(memory, "again", make())
    store.pull(name)
    path = str(store_dirs.work / "a")
    call = Noticed()
    call.waits.clear()
    with ThreadPoolExecutor(1) as pool:
        with verbs._core.locked("path", path, call=Call(), attempted="test"):
            preparing = pool.submit(store.prepare, name, path, mount=True, call=call)
            assert call.waits.wait(LONG)
            store.remove(name)
        root = preparing.result(LONG)
    assert (store_dirs.work / "a/etc/motd").read_text() == "hello\n"
    root.cleanup()


def test_two_who_delete_one_thing_do_not_disturb_each_other(
    store: orlop.Store, verbs: LocalStore, store_dirs: StoreDirs
) -> None:
    def one(number: int) -> None:
        for turn in range(30):
            folder = (
                store_dirs.work / f"x{number}-{turn}"
            )  # out of the collector's sight until it is discarded
            folder.mkdir()
            for name in range(5):
                (folder / str(name)).touch()
            verbs._core.discard(folder)

    def other() -> None:
        while not done.is_set():
            store.collect()

    done = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        collecting = pool.submit(other)
        try:
            for future in [pool.submit(one, number) for number in range(3)]:
                future.result(LONG)
        finally:
            done.set()
        collecting.result(LONG)
    assert list((store_dirs.root / "trash").iterdir()) == []


# ------------------------------------------------------------------ what crashes leave


def leave_behind(root: Path, verbs: LocalStore, image: images.Image) -> list[str]:
    """All that a killed process can leave; what a collection should call each."""
    stray = {
        ".tmp-00": "f",
        "chains/.tmp-01": "f",
        f"chains/{'c' * 64}.erofs": "f",
        "content/blobs/sha256/.tmp-02": "f",
        f"content/blobs/sha256/{'d' * 64}": "f",
        f"content/ingest/{layer_blobs(image)[0].partition(':')[2]}/data": "f",
        f"layers/{'e' * 64}/layer.tar": "f",
        "layers/new-03/layer.tar": "f",
        "prepared/0000000000000004/upper": "d",
        "trash/05/deep/file": "f",
        "trash/06": "f",
    }
    for path, kind in stray.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if kind == "d" else place.write_text("left")
    for lock in ("lease-07", "root-08", "blob-09", "path-0a", "chain-0b"):
        (root / "locks" / lock).touch()
    verbs._core.db.write(lambda tx: garbage.lease_add(tx, "07", "blob", "sha256:" + "d" * 64))
    names = [path.removesuffix("/data").removesuffix("/layer.tar").removesuffix("/upper") for path in stray]
    return sorted("stray " + name.removesuffix("/deep/file") for name in names)


def test_what_killed_processes_leave_is_collected_at_once(
    store: orlop.Store, verbs: LocalStore, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    image = make()
    name = add(memory, "kept", image)
    store.pull(name)
    expected = leave_behind(store_dirs.root, verbs, image)
    for dry_run in (True, False):
        assert sorted(item for item, _ in store.collect(dry_run=dry_run).items) == expected
    assert store.collect(dry_run=True).items == ()
    root = store_dirs.root
    assert os.listdir(root / "trash") == os.listdir(root / "content/ingest") == []
    assert os.listdir(root / "prepared") == os.listdir(root / "chains") == []
    assert len(os.listdir(root / "layers")) == 1
    assert [lock for lock in os.listdir(root / "locks") if "-" in lock] == []
    assert verbs._core.db.read(garbage.lease_ids) == []
    with store.prepare(name, store_dirs.work / "a", mount=True, pull="never"):
        assert (store_dirs.work / "a/etc/motd").exists()


def test_what_a_living_process_is_making_is_not_collected(
    store: orlop.Store, verbs: LocalStore, store_dirs: StoreDirs
) -> None:
    root, core = store_dirs.root, verbs._core
    files = [root / "content/blobs/sha256/.tmp-1", root / "chains/.tmp-2"]
    folders = [root / "layers/new-1", root / "prepared/0123456789abcdef", root / f"layers/{'a' * 64}"]
    for file in files:
        file.touch()
    for folder in folders:
        folder.mkdir()
    held = [os.open(path, os.O_RDONLY) for path in (*files, folders[0])]
    for fd in held:
        fcntl.flock(fd, fcntl.LOCK_EX)
    kept = Digest.of(b"kept")
    call = Call()
    with (
        core.lease() as lease,
        core.locked("layer", "a" * 64, call=call, attempted="test"),
        core.locked("root", root_lock("0123456789abcdef"), call=call, attempted="test"),
    ):
        core.write_document(kept, b"kept", lease=lease, call=call)
        assert store.collect().items == ()
        assert all(path.exists() for path in (*files, *folders))
        assert core.blobs.read(kept) == b"kept"
    for fd in held:
        os.close(fd)
    # The document went with the lease, or goes now if nobody has swept since.
    assert len([item for item, _ in store.collect().items if kept.hex not in item]) == 5
    assert not any(path.exists() for path in (*files, *folders, core.blobs.path(kept)))


def test_a_name_that_orlop_would_not_give_is_left_alone(store: orlop.Store, store_dirs: StoreDirs) -> None:
    strange = [store_dirs.root / place for place in ("layers/README", "content/blobs/sha256/a note", "notes")]
    for path in strange:
        path.write_text("mine")
    assert store.collect().items == ()
    assert [path.read_text() for path in strange] == ["mine"] * 3


def test_a_root_without_a_row_is_set_aside_if_something_was_written_to_it(
    store: orlop.Store, verbs: LocalStore, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "a")
    (folder,) = (store_dirs.root / "prepared").iterdir()
    (folder / "upper/work of hours").write_text("precious")
    verbs._core.db.write(lambda tx: roots.delete_root(tx, folder.name))
    assert store.collect().items == ()
    aside = folder.with_name(f"quarantine-{folder.name}")
    assert (aside / "upper/work of hours").read_text() == "precious"
    assert store.collect().items == ()
    assert aside.exists()
    with pytest.raises(orlop.NotFound):
        root.cleanup()


def test_an_upper_that_is_in_use_is_not_collected_whatever_the_rows_say(
    store: orlop.Store, verbs: LocalStore, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    store.prepare(image, target, mount=True)
    (folder,) = (store_dirs.root / "prepared").iterdir()
    verbs._core.db.write(lambda tx: roots.delete_root(tx, folder.name))
    assert store.collect().items == ()
    (target / "still").write_text("works")
    mounts.umount(target)
    target.rmdir()


def test_a_prepare_that_fails_leaves_neither_folder_nor_activation(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    with pytest.raises(orlop.Error):
        store.prepare(image, store_dirs.work / "missing" / "a", mount=True)
    assert store.prepared() == []
    assert os.listdir(store_dirs.root / "prepared") == os.listdir(store_dirs.run / "chains") == []


def test_a_prepare_whose_image_is_removed_meanwhile_leaves_no_activation_of_what_it_shares(
    store: orlop.Store, verbs: LocalStore, workdir: Path, store_dirs: StoreDirs
) -> None:
    base, top = Layer(), Layer().file("top", b"top").tar()
    for number in range(40):
        base.file(f"f{number}", b"x")
    layout = images.write_layout(workdir / "low", {"latest": images.make_image([base.tar()])})
    low = store.load(layout, name="localhost/low").pop().name
    store.prepare(low, store_dirs.work / "low").cleanup()  # now there is a chain that others lie on
    layout = images.write_layout(workdir / "high", {"latest": images.make_image([base.tar(), top])})
    high = store.load(layout, name="localhost/high").pop().name

    def remove(point: str) -> None:
        if point == "root.made":
            store.remove(high)

    with watch_points(remove), pytest.raises(orlop.NotFound):
        store.prepare(high, store_dirs.work / "a", pull="never")
    verbs.collect_idle()  # what was busy when it was removed
    assert len(os.listdir(store_dirs.root / "chains")) == 1
    assert os.listdir(store_dirs.run / "chains") == []


# ------------------------------------------------------------------ whose mount is it


def tmpfs(place: Path) -> None:
    mounts.perform("tmpfs", "tmpfs", str(place), ())
    (place / "theirs").touch()


@pytest.mark.parametrize("kind", [{}, {"view": True}, {"self_contained": True}], ids=str)
def test_a_symlink_at_the_path_is_followed_and_undone(
    store: orlop.Store, image: str, store_dirs: StoreDirs, kind: dict[str, bool]
) -> None:
    real, link = store_dirs.work / "real", store_dirs.work / "link"
    real.mkdir()
    link.symlink_to("real")
    root = store.prepare(image, link, mount=True, **kind)
    assert (real / "etc/motd").exists()
    assert root.mount().info.mounted
    assert store.prepared()[0].mounted
    root.unmount()
    assert os.listdir(real) == []
    root.mount()
    root.cleanup()
    assert link.is_symlink()
    assert os.listdir(real) == []


@pytest.mark.parametrize("kind", [{}, {"view": True}, {"self_contained": True}], ids=str)
def test_a_mount_of_somebody_else_below_ours_stays(
    store: orlop.Store, image: str, store_dirs: StoreDirs, kind: dict[str, bool]
) -> None:
    target = store_dirs.work / "a"
    target.mkdir()
    tmpfs(target)
    root = store.prepare(image, target, mount=True, **kind)
    root.unmount()
    root.mount()
    root.cleanup()
    assert os.listdir(target) == ["theirs"]
    mounts.umount(target)


@pytest.mark.parametrize("kind", [{}, {"view": True}, {"self_contained": True}], ids=str)
def test_a_mount_of_somebody_else_in_our_place_is_not_taken_for_ours(
    store: orlop.Store, image: str, store_dirs: StoreDirs, kind: dict[str, bool]
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True, **kind)
    while mountinfo.is_mount_point(target):  # as after a reboot
        mounts.umount(target)
    tmpfs(target)
    assert [info.mounted for info in store.prepared()] == [False]
    root.cleanup()
    assert os.listdir(target) == ["theirs"]
    mounts.umount(target)


def test_a_mount_over_ours_keeps_the_root_whole(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True)
    (target / "precious").touch()
    tmpfs(target)
    for verb in (root.cleanup, root.unmount):
        with pytest.raises(orlop.FailedPrecondition, match=str(target)):
            verb()
    mounts.umount(target)
    assert (target / "precious").exists()
    root.cleanup()
    assert not target.exists()


def test_a_root_mounted_in_another_namespace_is_whole_and_remembered_as_mounted(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True)
    where = ["--root", store_dirs.root, "--run", store_dirs.run]
    apart = ["unshare", "--mount", "--propagation", "slave"]  # a private copy would hold others' mounts, too
    command = [*apart, sys.executable, "-m", "orlop", *where, "cleanup", target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "in use" in done.stderr) == (5, True)
    assert [info.mounted for info in store.prepared()] == [True]
    assert (target / "etc/motd").exists()
    root.cleanup()
    assert not target.exists()  # that orlop made the folder is still known


def test_a_folder_that_orlop_made_stays_if_it_is_somebodys_by_now(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True)
    mounts.umount(target)
    (target / "mine").touch()
    root.cleanup()
    assert os.listdir(target) == ["mine"]


@pytest.mark.parametrize("place", ["root", "run", "root/layers", "."])
def test_a_root_is_not_mounted_where_it_would_hide_the_store(
    store: orlop.Store, image: str, store_dirs: StoreDirs, place: str
) -> None:
    link = store_dirs.work / "link"
    link.symlink_to(store_dirs.root.parent / place)
    root = store.prepare(image, link)
    with pytest.raises(orlop.InvalidArgument, match="hide the store"):
        root.mount()
    with pytest.raises(orlop.InvalidArgument, match="hide the store"):
        store.prepare(image, store_dirs.root.parent, mount=True)
    root.cleanup()
    assert store.prepared() == []


def test_stores_that_share_a_run_folder_leave_each_other_alone(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    root = store.prepare(image, store_dirs.work / "a")
    with orlop.open(workdir / "other", store_dirs.run) as other:
        layout = workdir / "layout"
        other.load(layout, name="localhost/base")
        theirs = other.prepare("localhost/base", store_dirs.work / "b")
        assert len(os.listdir(store_dirs.run / "chains")) == 2
        theirs.cleanup()
        other.remove("localhost/base")
        other.collect()
    (store_dirs.work / "a").mkdir()
    for mount in root.mounts:
        mounts.perform(mount.type, mount.source, mount.target, mount.options)
    assert (store_dirs.work / "a/etc/motd").exists()
    mounts.umount(store_dirs.work / "a")


def test_a_chain_whose_file_is_another_image_is_data_loss(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    layout = images.write_layout(workdir / "second", {"latest": make("other")})
    store.load(layout, name="localhost/second")
    for name in (image, "localhost/second"):
        store.prepare(name, store_dirs.work / "a").cleanup()
    one, two = sorted((store_dirs.root / "chains").iterdir())
    one.write_bytes(two.read_bytes())
    failures = 0
    for name in (image, "localhost/second"):
        try:
            store.prepare(name, store_dirs.work / "a").cleanup()
        except orlop.DataLoss:
            failures += 1
    assert failures == 1
    assert os.listdir(store_dirs.run / "chains") == []


# ------------------------------------------------------------------ opening


def test_many_processes_may_make_one_store_at_once(store_dirs: StoreDirs) -> None:
    script = (
        "import sys, orlop, orlop.images.store\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        "print(orlop.open(sys.argv[1], sys.argv[2]).info().images)\n"
    )
    gate, opens_gate = os.pipe()
    command = [sys.executable, "-c", script, store_dirs.root, store_dirs.run]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(command, stdin=gate, stdout=pipe, stderr=pipe, text=True) for _ in range(8)]
    os.close(gate)
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    os.close(opens_gate)
    said = [process.communicate() for process in running]
    assert said == [("0\n", "")] * 8


def test_a_store_that_was_being_made_when_its_maker_died_can_be_opened(store_dirs: StoreDirs) -> None:
    store_dirs.root.mkdir()
    (store_dirs.root / ".tmp-0123").write_text("{")
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        assert store.images() == []


@pytest.mark.hostile(32)
def test_a_store_and_its_mount_points_are_closed_to_others_but_the_way_to_the_socket(
    store_dirs: StoreDirs,
) -> None:
    before = os.umask(0o077)
    try:
        orlop.open(store_dirs.root, store_dirs.run).close()
    finally:
        os.umask(before)
    modes = [
        path.stat().st_mode & 0o777 for path in (store_dirs.root, store_dirs.run, store_dirs.run / "chains")
    ]
    assert modes == [0o700, 0o711, 0o700]
    store_dirs.root.chmod(0o755)
    orlop.open(store_dirs.root, store_dirs.run).close()
    assert store_dirs.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("root", "run"), [("same", "same"), ("outer", "outer/inner"), ("outer/inner", "outer")], ids=str
)
def test_a_store_and_its_run_folder_are_apart(workdir: Path, root: str, run: str) -> None:
    with pytest.raises(orlop.InvalidArgument, match="lies in the other"):
        orlop.open(workdir / root, workdir / run)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("which", ["root", "run"])
def test_a_folder_of_another_user_is_refused(store_dirs: StoreDirs, which: str) -> None:
    folder = getattr(store_dirs, which)
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(orlop.FailedPrecondition, match="belongs to user 65534"):
        orlop.open(store_dirs.root, store_dirs.run)


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_a_store_that_lost_its_metadata_is_not_taken_for_a_new_one(
    store_dirs: StoreDirs, workdir: Path, lost: str
) -> None:
    layout = images.write_layout(workdir / "layout", {"latest": make()})
    with orlop.open(store_dirs.root, store_dirs.run) as store:
        image = store.load(layout, name="localhost/base").pop().name
    kept = {path: path.read_bytes() for path in store_dirs.root.glob("meta.db*")}
    for path in kept:
        path.unlink()
    if lost == "empty":
        (store_dirs.root / "meta.db").touch()
    with pytest.raises(orlop.DataLoss, match=r"meta\.db"):
        orlop.open(store_dirs.root, store_dirs.run)
    for path, data in kept.items():
        path.write_bytes(data)
    with orlop.open(store_dirs.root, store_dirs.run) as again:
        assert [info.name for info in again.images()] == [image]


def test_a_closed_store_says_so_whatever_is_asked(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    with orlop.open(store_dirs.root, store_dirs.run) as other:
        other.images()
    asked: list[Callable[[], object]] = [
        other.images,
        other.prepared,
        other.collect,
        lambda: other.prepare(image, store_dirs.work / "a"),
        lambda: other.pull("127.0.0.1:1/x"),
        lambda: other.load(store_dirs.work.parent / "layout"),
        lambda: other.remove(image),
    ]
    for ask in asked:
        with pytest.raises(orlop.FailedPrecondition, match="closed"):
            ask()


# ------------------------------------------------------------------ what is refused, and how


def test_no_error_of_the_system_leaves_the_library_as_it_is(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "a")
    away = store_dirs.root / "locks-away"
    (store_dirs.root / "locks").rename(away)
    asked: list[Callable[[], object]] = [
        lambda: store.prepare(image, store_dirs.work / "b"),
        lambda: store.tag(image, "localhost/other"),
        lambda: store.remove(image),
        store.collect,
        root.commit,
        root.cleanup,
        root.mount,
    ]
    for ask in asked:
        with pytest.raises(orlop.Error) as caught:
            ask()
        assert not isinstance(caught.value, orlop.Internal)
    away.rename(store_dirs.root / "locks")
    (store_dirs.root / "trash").rename(away)
    root.cleanup()  # what it leaves is deleted behind the call, then or by a collection
    away.rename(store_dirs.root / "trash")
    store.collect()
    assert os.listdir(store_dirs.root / "prepared") == []


def test_an_image_whose_config_went_bad_does_not_hide_the_others_and_a_pull_heals_it(
    store: orlop.Store, verbs: LocalStore, image: str, memory: MemoryRegistry
) -> None:
    bad = make()
    name = add(memory, "bad", bad)
    info = store.pull(name)
    verbs._core.blobs.path(Digest(info.id)).write_bytes(b"{}")
    listed = {found.name: found for found in store.images()}
    assert set(listed) == {image, name}
    assert (listed[name].id, listed[name].created) == (info.id, info.created)  # from its row
    with pytest.raises(orlop.DataLoss):
        store.inspect(name)
    healed = store.pull(name)
    assert (healed.id, healed.digest, healed.created) == (info.id, info.digest, info.created)
    assert store.inspect(name).config == bad.config


def test_an_image_for_another_platform_is_not_prepared_in_place_of_the_wanted_one(
    store: orlop.Store, memory: MemoryRegistry, store_dirs: StoreDirs
) -> None:
    other = "linux/s390x" if images.HOST != "linux/s390x" else "linux/amd64"
    parts = []
    for platform in (images.HOST, other):
        tar = Layer().file("platform", platform.encode()).tar()
        parts.append(images.make_image([tar], platform=platform))
    for part in parts:
        add(memory, "multi", part)
        memory.add_manifest("multi", part.digest, part.document, part.media_type)
    index = images.make_index(parts)
    memory.add_manifest("multi", "v1", index.document, index.media_type)
    name = f"{memory.host}/multi:v1"
    store.pull(name)
    with pytest.raises(orlop.NotFound, match=other):
        store.prepare(name, store_dirs.work / "a", platform=other, pull="never")
    with store.prepare(name, store_dirs.work / "a", platform=other, mount=True):
        assert (store_dirs.work / "a/platform").read_text() == other


@pytest.mark.hostile(30)
def test_no_image_gets_a_name_that_says_another_digest(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    name = "localhost/lie@sha256:" + "0" * 64
    root = store.prepare(image, store_dirs.work / "a")
    for give in (
        lambda: store.tag(image, name),
        lambda: root.commit(name),
        lambda: store.load(workdir / "layout", name=name),
    ):
        with pytest.raises(orlop.InvalidArgument, match="by its digest"):
            give()
    assert [info.name for info in store.images()] == [image]


@pytest.mark.hostile(36)
def test_a_path_that_no_mount_option_or_message_can_hold_is_refused(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    with pytest.raises(orlop.InvalidArgument, match="UTF-8"):
        store.prepare(image, os.fsdecode(os.fsencode(store_dirs.work) + b"/\xff"))
    for odd in ("a,b", "a:b", "a b", "a\\b", 'a"b'):
        with pytest.raises(orlop.InvalidArgument, match="self-contained"):
            store.prepare(image, store_dirs.work / odd, self_contained=True)
        with store.prepare(image, store_dirs.work / odd, mount=True):
            assert (store_dirs.work / odd / "etc/motd").exists()
    assert store.prepared() == []


def test_a_blob_that_a_pull_keeps_is_named_while_the_blobs_lock_is_held(
    store: orlop.Store, verbs: LocalStore
) -> None:
    core = verbs._core
    with core.lease() as lease:
        core.write_document(Digest.of(b"x"), b"x", lease=lease, call=Call())
        assert core.db.read(lambda tx: layers.has_blob(tx, Digest.of(b"x")))
    assert core.db.read(garbage.lease_ids) == []
    # Nothing named it while the lease lasted, so it went with the lease.
    assert not core.db.read(lambda tx: layers.has_blob(tx, Digest.of(b"x")))
    store.collect()
    assert not core.blobs.has(Digest.of(b"x"))
