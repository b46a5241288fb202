"""Shares: podman sees the image that orlop has, what is shared is kept, and nothing is shown that is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from support import images
from support.layers import Layer
from support.podmans import Podman

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def below() -> bytes:
    layer = Layer().folder("bin").file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in ("sh", "cat", "ls", "stat"):
        layer.symlink(f"bin/{applet}", "busybox")
    layer.folder("etc").file("etc/gone", b"1").file("etc/changed", b"old")
    return layer.folder("all").file("all/old", b"1").tar()


def above() -> bytes:
    layer = Layer().whiteout("etc/gone").file("etc/changed", b"new", uid=5, mode=0o640)
    return layer.folder("all").opaque("all").file("all/new", b"2").tar()


@pytest.fixture
def box(store: orlop.Store, workdir: Path) -> str:
    """An image of two layers, of which the upper one hides, changes and empties."""
    image = images.make_image([below(), above()], config={"config": {"Env": ["PATH=/bin"]}})
    store.load(images.write_layout(workdir / "box", {"v1": image}), name="localhost/box")
    return "localhost/box"


@pytest.fixture
def folder(store: orlop.Store, workdir: Path) -> Iterator[Path]:
    """Where to share; what is shared is dropped in the end, used or not."""
    yield workdir / "share"
    for share in store.shares():
        store.drop_share(share.folder)


@pytest.fixture
def podman(workdir: Path) -> Iterator[Podman]:
    made = Podman(workdir / "podman")
    yield made
    made.close()


def trees(folder: Path) -> list[Path]:
    return sorted(folder.glob("overlay/*/tree"))


def state(store: orlop.Store) -> str:
    (share,) = store.shares()
    return share.state


def test_podman_runs_pushes_and_keeps_what_orlop_has_without_a_copy(
    store: orlop.Store, box: str, folder: Path, podman: Podman, workdir: Path
) -> None:
    assert store.share(folder, box, form="store").images == ("localhost/box:latest",)
    odd = images.make_image([below()], config={"created": "yesterday"})  # podman would read nothing at all
    store.load(images.write_layout(workdir / "odd", {"v1": odd}), name="localhost/odd")
    assert len(store.share(folder, "localhost/odd").images) == 2
    option = ("--storage-opt", f"additionalimagestore={folder}")
    script = "ls /etc /all; cat /etc/changed; stat -c ' %u %a' /etc/changed"
    done = podman.run("podman", *option, "run", "--rm", "--network=none", box, "sh", "-c", script)
    assert "gone" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[lines.index("/all:") + 1] == "new"
    assert lines[-1] == "new 5 640"
    podman.run("podman", *option, "push", "-q", box, f"dir:{podman.folder}/pushed")
    manifest = json.loads((podman.folder / "pushed/manifest.json").read_bytes())
    diff_ids = json.loads(store.inspect(box).config)["rootfs"]["diff_ids"]
    assert manifest["config"]["digest"] == store.inspect(box).info.id
    assert len(manifest["layers"]) == len(diff_ids)
    assert sum(file.stat().st_size for file in podman.folder.glob("graph/overlay/*/diff/**/busybox")) == 0


def test_what_is_shared_is_kept_until_the_share_is_dropped_and_no_longer(
    store: orlop.Store, box: str, folder: Path, store_dirs: StoreDirs
) -> None:
    store.share(folder, box, form="store", run_only=True)
    store.remove(box)
    store.collect()
    assert state(store) == "ready"
    names = [tree.parent / "diff" for tree in trees(folder)]
    assert {str(path) for diff in names for path in diff.glob("etc/changed")}
    assert store.check(full=True).findings == ()
    # An overlay on it, as a container has one
    lowers = ":".join(os.fspath(diff) for diff in names)
    (store_dirs.work / "merged").mkdir()
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lowers}", store_dirs.work / "merged"],
        check=True,
    )
    try:
        with pytest.raises(FailedPrecondition, match="a container stands on it"):
            store.drop_share(folder)
    finally:
        subprocess.run(["umount", store_dirs.work / "merged"], check=True)
    store.drop_share(folder)
    assert not folder.exists()
    assert store.pins() == []
    store.collect()
    assert list((store_dirs.root / "layers").glob("*/layer.tar")) == []


def test_without_its_mounts_a_store_shows_no_layer_and_renewing_brings_them_back(
    store: orlop.Store, box: str, folder: Path, store_dirs: StoreDirs
) -> None:
    store.share(folder, box, form="store", run_only=True)
    for tree in trees(folder):
        subprocess.run(["umount", tree], check=True)
    assert state(store) == "unmounted"
    assert not any((tree.parent / "diff").exists() for tree in trees(folder))
    for chain in (store_dirs.root / "chains").glob("*-each.erofs"):
        chain.unlink()  # a cache
    assert store.share(folder).state == "ready"
    assert state(store) == "ready"
    assert all((tree.parent / "diff").is_dir() for tree in trees(folder))


def test_a_layout_has_every_blob_by_its_digest_and_says_when_it_has_not(
    store: orlop.Store, box: str, folder: Path
) -> None:
    store.share(folder, box)
    store.tag(box, "localhost/other")
    assert len(store.share(folder, "localhost/other").images) == 2
    blobs = list((folder / "blobs/sha256").iterdir())
    assert {blob.name for blob in blobs} == {sha256(blob.read_bytes()).hexdigest() for blob in blobs}
    tars = [blob for blob in blobs if blob.is_symlink() and blob.readlink().name == "layer.tar"]
    assert len(tars) == 2
    index = json.loads((folder / "index.json").read_bytes())
    names = [line["annotations"]["org.opencontainers.image.ref.name"] for line in index["manifests"]]
    assert names == ["localhost/box:latest", "localhost/other:latest"]
    tars[0].unlink()
    assert state(store) == "unfinished"
    assert store.share(folder).state == state(store) == "ready"
    shutil.rmtree(folder)
    assert state(store) == "missing"
    store.drop_share(folder)
    assert (store.shares(), store.pins()) == ([], [])


def test_what_cannot_be_shared_is_refused_and_leaves_nothing(
    store: orlop.Store, box: str, folder: Path, store_dirs: StoreDirs, workdir: Path
) -> None:
    linked = [Layer().file("a", b"1").tar(), Layer().hardlink("b", "a").tar()]
    layout = images.write_layout(workdir / "linked", {"v1": images.make_image(linked)})
    store.load(layout, name="localhost/linked")
    with pytest.raises(FailedPrecondition, match="hard link to a file of a lower layer"):
        store.share(folder, "localhost/linked", form="store")
    folder.mkdir()
    (folder / "mine").touch()
    with pytest.raises(AlreadyExists, match="holds something else"):
        store.share(folder, box)
    (folder / "mine").unlink()
    folder.rmdir()
    with pytest.raises(NotFound, match="no share"):
        store.share(folder)
    with pytest.raises(NotFound):
        store.share(folder, "localhost/none")
    with pytest.raises(NotFound, match="no share"):
        store.drop_share(folder)
    for wrong in (store_dirs.root / "x", "/", workdir / "a:b", workdir / "a,b"):
        with pytest.raises(InvalidArgument):
            store.share(wrong, box)
    assert (store.shares(), store.pins(), folder.exists()) == ([], [], False)
    store.share(folder, box)
    with pytest.raises(AlreadyExists, match="of form layout"):
        store.share(folder, box, form="store")
    with orlop.open(workdir / "root2", store_dirs.run) as other:
        other.load(workdir / "box", name=box)
        with pytest.raises(AlreadyExists, match="share of the store"):
            other.share(folder, box)
        assert other.shares() == []
