"""Import: what podman, buildah, skopeo and containerd write, docker's oldest form, root file systems, streams."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orlop
from conftest import StoreDirs
from support import images, users
from support.daemons import Crew
from support.layers import Layer

pytestmark = pytest.mark.root

EPOCH = 1_700_000_000
PATIENCE = 100.0  # seconds until something that must happen is given up


def tree_tar() -> bytes:
    """A root file system with one of each kind of thing."""
    layer = Layer()
    layer.folder("etc", mode=0o750, uid=3, gid=4, mtime_ns=EPOCH * 10**9 + 5)
    layer.file("etc/motd", b"hello\n", mode=0o644, xattrs={"user.a": b"1"}, mtime_ns=EPOCH * 10**9)
    layer.hardlink("etc/again", "etc/motd").symlink("link", "etc/motd")
    layer.device("null", "char", 1, 3).fifo("pipe")
    return layer.file("big", os.urandom(300_000)).tar()


def shown(store: orlop.Store, name: str, path: Path) -> dict[str, Any]:
    """What a root of an image shows, by path."""
    with store.prepare(name, path, pull="never", mount=True):
        return seen(path)


def seen(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(root):
        for entry in (*folders, *files):
            path = Path(folder, entry)
            about = path.lstat()
            kind = stat.S_IFMT(about.st_mode)
            what: object = about.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None
            if kind == stat.S_IFREG:
                what = path.read_bytes()
            elif kind == stat.S_IFLNK:
                what = os.readlink(path)
            xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path, follow_symlinks=False)}
            where = os.fspath(path.relative_to(root))
            links = about.st_nlink if kind == stat.S_IFREG else 0
            found[where] = (about.st_mode, about.st_uid, about.st_gid, about.st_mtime_ns, what, xattrs, links)
    return found


# -- root file systems ------------------------------------------------------------------------------


COMPRESSORS = {"": None, ".gz": ["gzip"], ".zst": ["zstd", "-q"], ".xz": ["xz"], ".bz2": ["bzip2"]}


def test_a_root_file_system_gives_one_image_however_it_comes(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    plain = tree_tar()
    unpacked = workdir / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-C", unpacked, "--xattrs", "-xpf", "-"], input=plain, check=True)
    expected = seen(unpacked)
    options: dict[str, Any] = {"created": EPOCH, "changes": ['CMD ["/bin/sh"]', "ENV A=b"], "message": "m"}
    found = set()
    for suffix, command in COMPRESSORS.items():
        data = (
            subprocess.run(command, input=plain, capture_output=True, check=True).stdout if command else plain
        )
        path = workdir / f"my.rootfs.tar{suffix}"
        path.write_bytes(data)
        (info,) = store.load(path, **options)
        assert info.name == f"localhost/my-rootfs:{info.id[7:19]}"
        (piped,) = store.load(io.BytesIO(data), name="localhost/piped", replace=True, **options)
        pieces = (data[at : at + 7_000] for at in range(0, len(data), 7_000))
        (again,) = store.load(pieces, name="localhost/piped", **options)
        found |= {info.id, piped.id, again.id}
    assert len(found) == 1
    details = store.inspect(f"localhost/my-rootfs:{info.id[7:19]}")
    (layer,) = details.layers
    assert layer.diff_id == images.digest_of(plain)
    assert details.manifest is None
    config = json.loads(details.config)
    assert config["config"] == {"Cmd": ["/bin/sh"], "Env": ["A=b"]}
    assert config["created"] == config["history"][0]["created"] == "2023-11-14T22:13:20Z"
    assert config["history"][0]["comment"] == "m"
    assert shown(store, "localhost/piped", store_dirs.work / "a") == expected
    assert not list(store_dirs.root.glob("layers/new-*"))


def test_a_folder_is_imported_as_it_is_and_twice_the_same(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    root = workdir / "tree"
    root.mkdir()
    subprocess.run(["tar", "-C", root, "--xattrs", "-xpf", "-"], input=tree_tar(), check=True)
    deep = root
    for _ in range(60):
        deep /= "d" * 50
        deep.mkdir(mode=0o700)
    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    (root / "out").symlink_to("/etc/passwd")
    os.utime(root / "etc/motd", ns=(0, -5_000_000_003))
    expected = seen(root)
    os.mknod(root / "socket", stat.S_IFSOCK | 0o600)
    (root / "etc/.wh.motd").touch()
    warnings: list[str] = []

    class Ear(orlop.observe.NullObserver):
        def warning(self, text: str) -> None:
            warnings.append(text)

    (root / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "mounted"], check=True)
    try:
        (root / "mounted/secret").touch()
        call = orlop.Call(observer=Ear())
        (info,) = store.load(root, created=EPOCH, call=call)
        (owned,) = store.load(root, created=EPOCH, owner=(7, 8), name="localhost/owned")
    finally:
        subprocess.run(["umount", root / "mounted"], check=True)
    assert len(warnings) == 3
    assert {text.partition(" ")[0] for text in warnings} == {"/socket", "/etc/.wh.motd", "/mounted"}
    found = shown(store, info.name, store_dirs.work / "a")
    assert found.pop("mounted")[4] is None
    about = found.pop("etc")  # its time is another since the files were made in it
    assert about[:3] == expected.pop("etc")[:3]
    assert found == expected
    (same,) = store.load(os.fspath(root), created=EPOCH, name="localhost/again")
    assert store.inspect(same.name).layers[0].entries == store.inspect(info.name).layers[0].entries
    (clamped,) = store.load(root, newest=EPOCH, name="localhost/clamped", owner=(7, 8))
    times = {entry[3] for entry in shown(store, clamped.name, store_dirs.work / "c").values()}
    assert max(times) == EPOCH * 10**9
    assert min(times) == -5_000_000_003
    owners = {entry[1:3] for entry in shown(store, owned.name, store_dirs.work / "b").values()}
    assert owners == {(7, 8)}


def test_without_root_a_folders_owners_are_those_of_ones_own_namespace(workdir: Path) -> None:
    user = users.make(workdir / "subids", "subids")
    tree = user.folder / "tree"
    for name, owner in (("mine", users.UID), ("of-1000", users.FIRST + 999)):
        (tree / name).mkdir(parents=True)
        os.chown(tree / name, owner, owner)
    user.orlop("import", "-q", tree, "localhost/tree", check=True)
    (layer,) = user.data.glob("orlop/layers/*/layer.tar")
    with tarfile.open(layer) as archive:
        assert {member.name: member.uid for member in archive if member.name != "."} == {
            "mine": 0,
            "of-1000": 1000,
        }
    (tree / "mine/hidden").touch(mode=0o000)  # root's
    done = user.orlop("import", tree, "localhost/other")
    assert done.returncode != 0
    assert "read /mine/hidden: Permission denied" in done.stderr


def test_nothing_is_no_root_file_system_unless_it_is_said_to_be_one(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path
) -> None:
    (workdir / "empty").mkdir()
    for source in (io.BytesIO(bytes(10_240)), workdir / "empty"):
        with pytest.raises(orlop.InvalidArgument, match="nothing in it"):
            store.load(source)
    with pytest.raises(orlop.InvalidArgument, match="nothing came"):
        store.load(io.BytesIO())
    (info,) = store.load(io.BytesIO(bytes(10_240)), name="localhost/scratch", format="rootfs")
    assert shown(store, info.name, store_dirs.work / "a") == {}


# -- what other programs write ----------------------------------------------------------------------


@pytest.fixture
def containerd(workdir: Path) -> Iterator[list[str]]:
    """The command that asks a containerd of the test's own."""
    folder = workdir / "containerd"
    folder.mkdir()
    (folder / "config.toml").write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs",'
        ' "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",'
        ' "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]\n'
        f'[grpc]\naddress = "{folder}/sock"\n[ttrpc]\naddress = "{folder}/ttrpc"\n'
    )
    ctr = ["ctr", "--address", f"{folder}/sock", "--timeout", "60s"]
    with Crew(folder / "said") as crew:
        process = crew.start("containerd", ["containerd", "--config", folder / "config.toml"])
        deadline = time.monotonic() + PATIENCE
        asked = [*ctr, "version"]
        while subprocess.run(asked, check=False, capture_output=True, timeout=PATIENCE).returncode:
            assert process.poll() is None, crew.said("containerd")
            assert time.monotonic() < deadline, crew.said("containerd")
            time.sleep(0.05)
        yield ctr


def run(*command: str | os.PathLike[str]) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tree_tar_of(made: images.Image) -> bytes:
    """The lowest layer of an image."""
    return images.decompress(made.blobs[json.loads(made.document)["layers"][0]["digest"]])


def two_layers() -> images.Image:
    """The one that all programs are given."""
    top = Layer().file("etc/motd", b"top\n", mode=0o600).whiteout("big")
    return images.make_image([tree_tar(), top.tar()])


def test_a_name_is_given_to_the_one_image_that_is_there_however_many_names_it_has(
    store: orlop.Store, workdir: Path
) -> None:
    one, other = two_layers(), images.make_image([tree_tar()])
    layout = images.write_layout(workdir / "names", {"1": one, "2": one})
    assert [info.name for info in store.load(layout, name="localhost/a:1")] == ["localhost/a:1"]
    layout = images.write_layout(workdir / "images", {"1": one, "2": other})
    with pytest.raises(orlop.InvalidArgument, match="2 images"):
        store.load(layout, name="localhost/b:1")
    assert [info.name for info in store.images()] == ["localhost/a:1"]


def test_what_podman_buildah_skopeo_and_containerd_save_is_imported_as_the_image_that_it_was(
    store: orlop.Store, store_dirs: StoreDirs, workdir: Path, containerd: list[str]
) -> None:
    made = two_layers()
    layout = images.write_layout(workdir / "layout", {"1": made})
    (ours,) = store.load(layout, name="localhost/ours")
    expected = shown(store, "localhost/ours", store_dirs.work / "a")
    name = "registry.example/team/app:1"
    saved = workdir / "saved"
    saved.mkdir()
    storage = ["--root", f"{workdir}/c", "--runroot", f"{workdir}/cr", "--storage-driver", "vfs"]
    run("skopeo", "copy", "-q", f"oci:{layout}:1", f"containers-storage:[vfs@{workdir}/c+{workdir}/cr]{name}")
    for form in ("docker-archive", "oci-archive", "oci-dir", "docker-dir"):
        if form != "docker-dir":  # which is skopeo's own "dir", and nobody else's
            run("podman", *storage, "save", "-q", "--format", form, "-o", saved / f"podman-{form}", name)
    run("podman", *storage, "save", "-q", "-m", "-o", saved / "podman-many", name, name)
    run("buildah", *storage, "push", "-q", name, f"oci-archive:{saved}/buildah-oci:{name}")
    run("buildah", *storage, "push", "-q", name, f"docker-archive:{saved}/buildah-docker:{name}")
    run("skopeo", "copy", "-q", f"oci:{layout}:1", f"docker-archive:{saved}/skopeo-docker:{name}")
    run("skopeo", "copy", "-q", f"oci:{layout}:1", f"oci-archive:{saved}/skopeo-oci:{name}")
    (workdir / "rootfs.tar").write_bytes(tree_tar_of(made))
    run("podman", *storage, "import", "-q", workdir / "rootfs.tar", "localhost/rootfs:1")
    theirs = run("podman", *storage, "inspect", "--format", "{{json .RootFS.Layers}}", "localhost/rootfs:1")
    (info,) = store.load(workdir / "rootfs.tar")
    assert [layer.diff_id for layer in store.inspect(info.name).layers] == json.loads(theirs)
    ctr = [*containerd, "-n", "test", "images"]
    run(*ctr, "import", "--no-unpack", saved / "skopeo-oci")
    known = run(*ctr, "ls", "-q")
    run(*ctr, "tag", known, f"{name}-ctr")
    run(*ctr, "export", saved / "containerd", f"{name}-ctr")
    with tarfile.open(saved / "containerd") as archive:  # the form of today's docker, too: both in one
        assert {"index.json", "manifest.json", "oci-layout"} <= set(archive.getnames())
    for number, path in enumerate(sorted(saved.iterdir())):
        found = store.load(path)
        assert len({info.id for info in found}) == 1, path.name
        (info, *_) = found
        if path.name != "podman-oci-dir":  # which podman gives no name
            assert info.name.startswith(name), path.name
        diff_ids = [layer.diff_id for layer in store.inspect(info.name).layers]
        assert diff_ids == [layer.diff_id for layer in store.inspect(ours.name).layers], path.name
        if "oci" in path.name and "buildah" not in path.name and "podman" not in path.name:
            assert info.digest == made.digest, path.name
        assert shown(store, info.name, store_dirs.work / str(number)) == expected, path.name
        for one in found:
            store.remove(one.name)
