"""Prepare, Mounts, Cleanup: the life of a prepared root, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux import mount as mounts
from orlop.linux import mountinfo
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root


def base() -> Layer:
    return (
        Layer()
        .folder("etc", mode=0o755)
        .file("etc/motd", b"hello\n")
        .folder("tmp", mode=0o1777)
        .file("bin/tool", b"x" * 5000, mode=0o755)
    )


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    layout = images.write_layout(workdir / "layout", {"latest": images.make_image([base().tar()])})
    return store.load(layout, name="localhost/base").pop().name


def perform(root: orlop.Prepared) -> None:
    """What the caller of Prepare does with the mounts."""
    for mount in root.mounts:
        mounts.perform(mount.type, mount.source, mount.target, mount.options)


def test_a_prepared_root_shows_the_image_and_takes_writes(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    with store.prepare(image, target) as root:
        assert not target.exists()  # the path is not touched
        target.mkdir()
        perform(root)
        assert (target / "etc/motd").read_bytes() == b"hello\n"
        assert (target / "tmp").stat().st_mode & 0o7777 == 0o1777
        (target / "etc/motd").write_bytes(b"changed")
        (target / "bin/tool").unlink()
        mounts.umount(target)
    assert store.prepared() == []


def test_every_option_of_the_overlay_is_explicit(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    (mount,) = store.prepare(image, store_dirs.work / "a").mounts
    assert (mount.type, mount.target) == ("overlay", str(store_dirs.work / "a"))
    for option in ("xino=on", "index=off", "nfs_export=off", "metacopy=off", "redirect_dir=off"):
        assert option in mount.options


def test_the_whole_root_is_on_one_device_with_stable_inodes(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    store.prepare(image, target, mount=True)
    before = (target / "etc/motd").stat()
    (target / "etc/motd").write_bytes(b"copied up")
    after = (target / "etc/motd").stat()
    assert before.st_ino == after.st_ino
    assert {p.stat().st_dev for p in (target, target / "etc", target / "etc/motd")} == {before.st_dev}


def test_a_view_is_read_only_and_has_nothing_to_commit(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    root = store.prepare(image, store_dirs.work / "v", view=True, mount=True)
    (mount,) = root.mounts
    assert (mount.type, mount.options[:2]) == ("bind", ("bind", "ro"))
    with pytest.raises(OSError, match="Read-only"):
        (store_dirs.work / "v/new").touch()
    assert os.access(store_dirs.work / "v/bin/tool", os.X_OK)  # not noexec, as the activation is
    with pytest.raises(orlop.FailedPrecondition, match="view"):
        root.commit()


def test_a_path_can_be_prepared_again_only_after_cleanup(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    path = store_dirs.work / "a"
    root = store.prepare(image, path)
    with pytest.raises(orlop.AlreadyExists):
        store.prepare(image, path)
    root.cleanup()
    store.prepare(image, path)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("relative/path", "relative"),
        ("", "relative"),
        ("/srv//a", "clean"),
        ("/srv/a/", "clean"),
        ("/srv/../a", "clean"),
        ("/srv/./a", "clean"),
        ("/", "clean"),
        ("//srv", "clean"),
    ],
)
def test_a_path_must_be_absolute_and_clean(store: orlop.Store, image: str, path: str, reason: str) -> None:
    with pytest.raises(orlop.InvalidArgument, match=reason):
        store.prepare(image, path)
    assert store.prepared() == []


def test_a_path_inside_the_store_is_refused_also_through_a_symlink(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    (store_dirs.work / "link").symlink_to(store_dirs.root)
    for path in (store_dirs.root / "x", store_dirs.run / "x", store_dirs.work / "link" / "x"):
        with pytest.raises(orlop.InvalidArgument, match="inside the store"):
            store.prepare(image, path)


def test_an_unknown_image_is_not_found_when_pulling_is_off(store: orlop.Store, store_dirs: StoreDirs) -> None:
    with pytest.raises(orlop.NotFound, match=r"docker\.io/library/nothing:latest"):
        store.prepare("nothing", store_dirs.work / "a", pull="never")


def test_of_concurrent_prepares_of_one_path_exactly_one_wins(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    outcomes: list[str] = []

    def one() -> None:
        try:
            store.prepare(image, store_dirs.work / "same")
            outcomes.append("won")
        except orlop.AlreadyExists:
            outcomes.append("lost")

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    store.collect()  # folders may wait for others
    assert len(list((store_dirs.root / "prepared").iterdir())) == 1


def test_prepared_roots_share_one_activation_and_free_it(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    roots = [store.prepare(image, store_dirs.work / str(n)) for n in range(3)]
    chains = store_dirs.run / "chains"
    assert len([p for p in chains.iterdir() if mountinfo.is_mount_point(p)]) == 1
    for root in roots[:2]:
        root.cleanup()
    assert len(list(chains.iterdir())) == 1
    roots[2].cleanup()
    assert list(chains.iterdir()) == []


def test_a_root_in_use_is_not_cleaned_up_and_the_user_is_named(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True)
    (target / "kept").write_text("data")
    sleeper = subprocess.Popen(["sleep", "60"], cwd=target)
    try:
        with pytest.raises(orlop.FailedPrecondition, match=rf"sleep \({sleeper.pid}\)"):
            root.cleanup()
        assert (target / "kept").read_text() == "data"
        assert [info.path for info in store.prepared()] == [str(target)]
    finally:
        sleeper.kill()
        sleeper.wait()
    root.cleanup()
    assert not target.exists()  # orlop made it, orlop removes it


def test_a_root_mounted_by_its_caller_is_not_cleaned_up_under_it(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target)
    target.mkdir()
    perform(root)
    with pytest.raises(orlop.FailedPrecondition, match=str(target)):
        root.cleanup()
    mounts.umount(target)
    root.cleanup()
    assert target.is_dir()  # the caller's own


def test_a_lazily_unmounted_root_that_is_still_open_counts_as_in_use(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target)
    target.mkdir()
    perform(root)
    held = os.open(target / "etc/motd", os.O_RDONLY)
    mounts.umount(target, detach=True)
    with pytest.raises(orlop.FailedPrecondition):
        root.cleanup()
    os.close(held)
    root.cleanup()


def test_cleanup_of_an_unknown_path_is_not_found(store: orlop.Store, store_dirs: StoreDirs) -> None:
    with pytest.raises(orlop.NotFound):
        store.verbs.cleanup(str(store_dirs.work / "nothing"))


def test_a_chain_that_is_not_mounted_here_is_an_error_never_an_empty_root(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target)
    target.mkdir()
    for point in (store_dirs.run / "chains").iterdir():
        mounts.umount(point)
    with pytest.raises(FileNotFoundError):
        perform(root)
    perform(store.get(target))  # asking for the mounts again activates the chain
    assert (target / "etc/motd").exists()
    mounts.umount(target)


def test_live_overlays_survive_the_unmount_of_their_activation(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    store.prepare(image, target, mount=True)
    for point in (store_dirs.run / "chains").iterdir():
        mounts.umount(point, detach=True)
    assert (target / "etc/motd").read_bytes() == b"hello\n"


def test_prepared_roots_survive_their_process(store: orlop.Store, image: str, store_dirs: StoreDirs) -> None:
    target = store_dirs.work / "a"
    script = (
        "import orlop, os, signal, sys\n"
        "root = orlop.open(sys.argv[1], sys.argv[2]).prepare(sys.argv[3], sys.argv[4], mount=True)\n"
        "open(root.path + '/made', 'w').write('here')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, store_dirs.root, store_dirs.run, image, target], check=False
    )
    assert done.returncode == -9
    (info,) = store.prepared()
    assert (info.path, info.image, info.mounted) == (str(target), image, True)
    committed = store.get(target).commit()
    again = store.prepare(committed.name, store_dirs.work / "b", mount=True)
    assert (store_dirs.work / "b/made").read_text() == "here"
    again.cleanup()


def test_a_self_contained_root_is_two_mounts_that_need_no_other_folder(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    target.mkdir()
    root = store.prepare(image, target, self_contained=True)
    assert [mount.type for mount in root.mounts] == ["erofs", "overlay"]
    assert {mount.target for mount in root.mounts} == {str(target)}
    for point in (store_dirs.run / "chains").iterdir():
        mounts.umount(point, detach=True)
    perform(root)
    assert (target / "etc/motd").read_bytes() == b"hello\n"
    (target / "new").write_text("written")
    mounts.umount(target)
    mounts.umount(target)


def test_a_self_contained_view_is_read_only(store: orlop.Store, image: str, store_dirs: StoreDirs) -> None:
    target = store_dirs.work / "a"
    target.mkdir()
    root = store.prepare(image, target, self_contained=True, view=True)
    perform(root)
    assert (target / "etc/motd").read_bytes() == b"hello\n"
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    mounts.umount(target)
    mounts.umount(target)


def test_an_image_with_too_many_layers_for_mount_2_is_not_self_contained(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs
) -> None:
    tars = [Layer().file(f"f{n}", b"data").tar() for n in range(60)]
    layout = images.write_layout(workdir / "many", {"latest": images.make_image(tars)})
    name = store.load(layout, name="localhost/many").pop().name
    with pytest.raises(orlop.FailedPrecondition, match="60 layers"):
        store.prepare(name, store_dirs.work / "a", self_contained=True)
    assert store.prepared() == []


def test_a_removed_image_stays_usable_where_it_is_prepared(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True)
    store.remove(image)
    assert store.images() == []
    assert store.collect().items == ()
    assert (target / "bin/tool").read_bytes() == b"x" * 5000
    (target / "new").write_text("new")
    committed = root.commit("localhost/rescued")
    root.cleanup()
    store.prepare(committed.name, store_dirs.work / "b", mount=True)
    assert (store_dirs.work / "b/etc/motd").read_bytes() == b"hello\n"


def test_removing_the_last_name_frees_the_disk_at_once(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    store.prepare(image, store_dirs.work / "a").cleanup()
    removed = store.remove(image)
    assert removed.names == (image,)
    assert removed.freed > 5000
    for folder in ("layers", "chains", "content/blobs/sha256", "prepared", "trash"):
        assert list((store_dirs.root / folder).iterdir()) == []


def test_an_image_with_no_layer_at_all_is_an_empty_root(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs
) -> None:
    layout = images.write_layout(workdir / "none", {"latest": images.make_image([])})
    name = store.load(layout, name="localhost/scratch").pop().name
    root = store.prepare(name, store_dirs.work / "a", mount=True)
    assert list((store_dirs.work / "a").iterdir()) == []
    (store_dirs.work / "a/first").write_text("one")
    root.commit("localhost/one")
    store.prepare("localhost/one", store_dirs.work / "b", mount=True)
    assert os.listdir(store_dirs.work / "b") == ["first"]


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=[pytest.mark.soak, pytest.mark.large])])
def test_many_layers_prepare_and_mount_like_one(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs, count: int
) -> None:
    tars = [
        Layer().file("last", str(n).encode()).file(f"d/f{n}", b"data %d" % n).whiteout(f"d/f{n - 2}").tar()
        for n in range(count)
    ]
    layout = images.write_layout(workdir / "many", {"latest": images.make_image(tars)})
    name = store.load(layout, name="localhost/many").pop().name
    target = store_dirs.work / "a"
    root = store.prepare(name, target, mount=True)
    assert (target / "last").read_text() == str(count - 1)
    assert sorted(os.listdir(target / "d")) == sorted([f"f{count - 1}", f"f{count - 2}"])
    assert (target / f"d/f{count - 1}").read_bytes() == b"data %d" % (count - 1)
    (target / "more").write_text("on top")
    root.commit("localhost/more")
    store.prepare("localhost/more", store_dirs.work / "b", mount=True)
    assert (store_dirs.work / "b/more").read_text() == "on top"


def test_a_small_commit_on_a_large_image_does_not_touch_the_large_one(
    store: orlop.Store, workdir: Path, store_dirs: StoreDirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Layer()
    for folder in range(40):
        for number in range(50):
            large.file(f"srv/{folder}/{number}", b"payload")
    layout = images.write_layout(workdir / "large", {"latest": images.make_image([large.tar()])})
    name = store.load(layout, name="localhost/large").pop().name
    root = store.prepare(name, store_dirs.work / "a", mount=True)
    big_index = max((store_dirs.root / "layers").glob("*/layer.index"), key=lambda p: p.stat().st_size)
    big_index.rename(workdir / "moved-away")  # whoever reads it now fails
    for number in range(10):
        (store_dirs.work / f"a/srv/{number}/new").write_text("ten files")
    committed = root.commit()
    again = store.prepare(committed.name, store_dirs.work / "b", mount=True)
    assert (store_dirs.work / "b/srv/3/new").read_text() == "ten files"
    assert (store_dirs.work / "b/srv/3/49").read_bytes() == b"payload"
    assert again.mounts[0].options[0].count(":") == 1  # a small top above the large chain
    (workdir / "moved-away").rename(big_index)


def test_commits_on_commits_stack_to_eight_images_and_no_higher(
    store: orlop.Store, image: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    large = Layer()
    for number in range(400):
        large.file(f"f{number}", b"payload")
    layout = images.write_layout(workdir / "large", {"latest": images.make_image([large.tar()])})
    name = store.load(layout, name="localhost/large").pop().name
    heights = []
    for generation in range(10):
        root = store.prepare(name, store_dirs.work / f"g{generation}", mount=True)
        lowers = root.mounts[0].options[0].removeprefix("lowerdir=").split(":")
        heights.append(len(lowers))
        (store_dirs.work / f"g{generation}/made-{generation}").write_text(str(generation))
        (store_dirs.work / f"g{generation}/f{generation}").unlink()
        name = root.commit().name
        root.cleanup()
    assert heights == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]
    store.prepare(name, store_dirs.work / "end", mount=True)
    names = set(os.listdir(store_dirs.work / "end"))
    assert names == {f"f{n}" for n in range(10, 400)} | {f"made-{n}" for n in range(10)}


def test_the_command_line_says_what_to_mount(
    store: orlop.Store,
    image: str,
    store_dirs: StoreDirs,
    run_cli: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    import json

    target = store_dirs.work / "a"
    said = json.loads(run_cli("prepare", image, target, "--json", check=True).stdout)
    assert [set(mount) for mount in said] == [{"type", "source", "target", "options"}]
    target.mkdir()
    for mount in said:
        mounts.perform(mount["type"], mount["source"], mount["target"], mount["options"])
    assert (target / "etc/motd").exists()
    mounts.umount(target)
    run_cli("cleanup", target, check=True)
