"""Export: layouts, docker archives, tars and file system images, as others read them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux.flock import FileLock
from orlop.linux.privatemounts import command
from orlop.observe import Call
from orlop.service import Daemon, ServiceLimits
from support import images, users
from support.layers import Layer
from support.registries import Registry
from support.trees import Entry, differences, snapshot

pytestmark = pytest.mark.root

SECOND = 1_000_000_000


def _rich() -> list[bytes]:
    """Layers that hold all that a root file system may."""
    xattrs = {
        "user.a": b"1",
        "trusted.b": b"\x00\xff",
        "security.capability": bytes.fromhex("01000002" + "00" * 16),
    }
    base = (
        Layer()
        .folder(".", mode=0o751, uid=7, gid=8, mtime_ns=1_600_000_000_123_456_789)
        .folder("tmp", mode=0o1777)
        .folder("bin")
        .file("bin/busybox", b"".join(number.to_bytes(4, "big") for number in range(30_000)), mode=0o4755)
        .symlink("bin/sh", "busybox")
        .folder("d", xattrs={"user.on-a-folder": b"x"})
        .file("d/hidden", b"x")
        .folder("d/deep")
        .file("d/deep/" + "n" * 200, b"long")
        .file("d/empty")
        .file("d/x", b"hello\n", xattrs=xattrs, mtime_ns=1_600_000_001_500_000_000, uid=100_000, gid=70_000)
        .hardlink("d/y", to="d/x")
        .device("d/null", "char", 1, 3)
        .device("d/sda", "block", 8, 0)
        .fifo("d/pipe")
        .symlink("d/dangling", "/nowhere/" + "t" * 150)
        .file("gone", b"x")
        .file(b"d/\xff\n odd", b"name")
    )
    top = Layer().folder("d").whiteout("gone").whiteout("d/hidden").file("top", b"t" * 100_000)
    return [base.tar(), top.tar()]


@pytest.fixture
def rich(store: orlop.Store, registry: Registry) -> str:
    """An image on a registry and here, its blobs dropped."""
    images.push(registry, "rich", "v1", images.make_image(_rich(), config={"config": {"Cmd": ["/bin/sh"]}}))
    return store.pull(f"{registry.host}/rich:v1").name


@pytest.fixture
def root(store: orlop.Store, rich: str, store_dirs: StoreDirs) -> Iterator[orlop.Prepared]:
    """A root of it, mounted, in which something was changed."""
    with store.prepare(rich, store_dirs.work / "root", mount=True) as prepared:
        place = Path(prepared.path)
        (place / "new").write_text("made here\n")
        os.link(place / "new", place / "new-too")
        (place / "top").unlink()
        (place / "d/empty").write_text("changed")
        yield prepared


def run(*argv: str | Path, check: bool = True) -> str:
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, (argv, done.stderr)
    return done.stdout


def tree_of(store: orlop.Store, name: str, place: Path) -> dict[bytes, Entry]:
    """What the kernel shows of an image."""
    with store.prepare(name, place, mount=True, view=True):
        return snapshot(place)


def without_nanoseconds(tree: dict[bytes, Entry]) -> dict[bytes, Entry]:
    return {path: replace(entry, mtime_ns=entry.mtime_ns // SECOND * SECOND) for path, entry in tree.items()}


def test_an_archive_is_what_skopeo_and_umoci_read_and_comes_back_as_it_was(
    store: orlop.Store, rich: str, registry: Registry, workdir: Path, store_dirs: StoreDirs
) -> None:
    store.tag(rich, "localhost/other:v2")
    before = store.inspect(rich).info
    archive, folder = workdir / "a.tar", workdir / "layout"
    done = store.export([rich, "localhost/other:v2"], archive)
    assert done.digests == (before.digest, before.digest)
    assert done.size == archive.stat().st_size
    assert store.export([rich, "localhost/other:v2"], folder, format="oci-dir").digests == done.digests
    for source in (f"oci-archive:{archive}:v1", f"oci:{folder}:v1", f"oci:{folder}:v2"):
        assert json.loads(run("skopeo", "inspect", source))["Digest"] == before.digest
    run("umoci", "unpack", "--keep-dirlinks", "--image", f"{folder}:v1", workdir / "bundle")
    assert (workdir / "bundle/rootfs/top").read_bytes() == b"t" * 100_000
    assert not (workdir / "bundle/rootfs/gone").exists()
    settings = orlop.Settings()
    with orlop.open(workdir / "again", workdir / "again-run", settings=settings) as other:
        found = other.load(archive)
        assert {info.name: info.digest for info in found} == dict.fromkeys(
            (rich, "localhost/other:v2"), before.digest
        )


def test_an_image_without_a_manifest_gets_the_one_that_a_push_sends(
    store: orlop.Store, root: orlop.Prepared, registry: Registry, workdir: Path
) -> None:
    name = root.commit(f"{registry.host}/mine:v1").name
    assert store.inspect(name).info.digest is None
    first = store.export(name, workdir / "one.tar")
    assert store.inspect(name).info.digest == first.digests[0]
    assert store.push(name).digest == first.digests[0]
    store.export(name, workdir / "two.tar")
    assert (workdir / "one.tar").read_bytes() == (workdir / "two.tar").read_bytes()
    with pytest.raises(orlop.FailedPrecondition, match="another form"):
        store.export(name, workdir / "three.tar", compression="zstd")
    zstd = store.export(name, workdir / "three.tar", compression="zstd", recompress=True)
    assert zstd.digests != first.digests
    assert store.inspect(name).info.digest == first.digests[0]
    assert (
        json.loads(run("skopeo", "inspect", f"oci-archive:{workdir}/three.tar"))["Digest"] == zstd.digests[0]
    )


def test_a_docker_archive_is_read_by_podman_skopeo_and_orlop(
    store: orlop.Store, rich: str, root: orlop.Prepared, workdir: Path
) -> None:
    mine = root.commit("localhost/mine:v1")
    archive = workdir / "both.docker.tar"
    done = store.export([rich, mine.name], archive)
    ids = {name: store.inspect(name).info.id for name in (rich, mine.name)}
    assert done.digests == tuple(ids.values())
    podman = [
        "podman",
        "--root",
        f"{workdir}/pod",
        "--runroot",
        f"{workdir}/pod-run",
        "--storage-driver",
        "vfs",
    ]
    run(*podman, "load", "-q", "-i", archive)
    for name, id_ in ids.items():
        shown = json.loads(run(*podman, "image", "inspect", name))[0]
        assert f"sha256:{shown['Id']}" == id_
        assert json.loads(run("skopeo", "inspect", "--config", "--raw", f"docker-archive:{archive}:{name}"))
    with orlop.open(workdir / "again", workdir / "again-run") as other:
        assert {info.name: info.id for info in other.load(archive)} == ids
    again = workdir / "again.docker.tar"
    store.export([rich, mine.name], again)
    assert again.read_bytes() == archive.read_bytes()
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        tops = json.loads(tar.extractfile("repositories").read())  # type: ignore[union-attr]
        for tag in tops.values():
            for top in tag.values():
                assert {f"{top}/VERSION", f"{top}/json", f"{top}/layer.tar"} <= set(names)
                parent = json.loads(tar.extractfile(f"{top}/json").read())["parent"]  # type: ignore[union-attr]
                assert f"{parent}/layer.tar" in names


def test_podman_and_containerd_import_an_archive_with_equal_digests(
    store: orlop.Store, rich: str, workdir: Path
) -> None:
    archive = workdir / "a.tar"
    digest = store.export(rich, archive).digests[0]
    podman = [
        "podman",
        "--root",
        f"{workdir}/pod",
        "--runroot",
        f"{workdir}/pod-run",
        "--storage-driver",
        "vfs",
    ]
    run(*podman, "load", "-q", "-i", archive)
    shown = json.loads(run(*podman, "image", "inspect", rich))[0]
    assert shown["Digest"] == digest
    with containerd(workdir / "containerd") as ctr:
        run(*ctr, "images", "import", "--no-unpack", archive)
        assert digest in run(*ctr, "images", "ls", f"name=={rich}")


def test_a_layout_that_is_there_keeps_what_it_has(
    store: orlop.Store, rich: str, root: orlop.Prepared, workdir: Path
) -> None:
    folder = images.write_layout(workdir / "layout", {"kept": images.make_image([Layer().file("a").tar()])})
    mine = root.commit("localhost/mine:kept").name
    for _ in range(2):
        store.export([rich, mine], f"{folder}/")
    listed = json.loads((folder / "index.json").read_bytes())["manifests"]
    refs = [line["annotations"]["org.opencontainers.image.ref.name"] for line in listed]
    assert refs == ["kept", "v1", mine]  # the tag of the last one is another's
    for ref in refs:
        run("skopeo", "inspect", "--raw", f"oci:{folder}:{ref}")
    (Path(root.path) / "more").write_text("x")
    root.commit(mine)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(orlop.AlreadyExists, match="another image"):
        store.export(mine, folder)
    assert sorted(path.name for path in folder.rglob("*")) == before
    store.export(mine, folder, force=True)
    assert len(json.loads((folder / "index.json").read_bytes())["manifests"]) == 3
    (workdir / "other").mkdir()
    (workdir / "other/file").touch()
    with pytest.raises(orlop.FailedPrecondition, match="no OCI layout"):
        store.export(mine, workdir / "other")


def test_all_platforms_are_exported_with_the_digest_of_their_index(
    store: orlop.Store, registry: Registry, workdir: Path
) -> None:
    both = [
        images.make_image([Layer().file("p", one.encode()).tar()], platform=one)
        for one in ("linux/amd64", "linux/arm64")
    ]
    index = images.make_index(both)
    images.push(registry, "multi", "v1", index)
    name = f"{registry.host}/multi:v1"
    store.pull(name, all_platforms=True)
    done = store.export(name, workdir / "multi.tar", all_platforms=True)
    assert done.digests == (index.digest,)
    one = store.export(name, workdir / "arm.tar", platform="linux/arm64")
    assert one.digests == (both[1].digest,)
    with orlop.open(workdir / "again", workdir / "again-run") as other:
        (info,) = other.load(workdir / "multi.tar", all_platforms=True)
        assert (info.index, len(info.platforms)) == (index.digest, 2)
    raw = run("skopeo", "inspect", "--raw", f"oci-archive:{workdir}/multi.tar")
    assert images.digest_of(raw.encode()) == index.digest
    with pytest.raises(orlop.InvalidArgument, match="docker archive"):
        store.export(name, workdir / "x.docker.tar", all_platforms=True)


def test_a_blob_that_nobody_has_is_named_and_nothing_is_left(
    store: orlop.Store, registry: Registry, workdir: Path
) -> None:
    image = images.make_image([Layer().file("here", b"x" * 5000).tar()])
    images.push(registry, "lost", "v1", image)
    name = store.pull(f"{registry.host}/lost:v1").name
    blob = json.loads(image.document)["layers"][0]["digest"]
    assert registry.request(f"/v2/lost/blobs/{blob}", method="DELETE")[0] == 202
    before = os.listdir(workdir)
    for form in ("oci", "oci-dir"):
        with pytest.raises(orlop.FailedPrecondition, match=blob) as caught:
            store.export(name, workdir / "a", format=form)  # type: ignore[arg-type]  # two of its values
        assert "fetch-blobs" in caught.value.hint
    assert os.listdir(workdir) == before
    assert store.export(name, workdir / "a", recompress=True).digests != (image.digest,)
    store.export(name, workdir / "a.docker.tar")


# -- file systems -----------------------------------------------------------------------------------


def test_a_tar_unpacked_by_gnu_tar_is_the_mounted_tree(
    store: orlop.Store, rich: str, root: orlop.Prepared, workdir: Path, store_dirs: StoreDirs
) -> None:
    for number, (thing, expected) in enumerate(
        (
            (rich, tree_of(store, rich, store_dirs.work / "view")),
            (root.path, snapshot(Path(root.path))),
        )
    ):
        archive, out = workdir / f"{number}.tar", workdir / f"out-{number}"
        store.export(thing, archive, format="tar")
        out.mkdir()
        run(
            *("tar", "-C", out, "-xpf", archive, "--numeric-owner", "--same-owner"),
            *("--xattrs", "--xattrs-include=*", "--acls"),
        )
        assert differences(expected, snapshot(out)) == []
        again = workdir / f"{number}-again.tar"
        store.export(thing, again, format="tar")
        assert again.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize("tool", ["tar2sqfs", "mksquashfs", "mkfs.erofs", "mke2fs"])
def test_a_file_system_image_shows_the_mounted_tree(
    tool: str,
    store: orlop.Store,
    rich: str,
    root: orlop.Prepared,
    workdir: Path,
    store_dirs: StoreDirs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = {"mkfs.erofs": "erofs", "mke2fs": "ext4"}.get(tool, "squashfs")
    program = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None
    (workdir / "bin").mkdir()
    (workdir / "bin" / tool).symlink_to(program)
    monkeypatch.setenv("PATH", str(workdir / "bin"))
    wanted = {rich: tree_of(store, rich, store_dirs.work / "view"), root.path: snapshot(Path(root.path))}
    for number, (thing, tree) in enumerate(wanted.items()):
        image = workdir / f"{number}.{form}"
        store.export(thing, image)
        with mounted(image, workdir / f"m{number}") as place:
            shown = snapshot(place)
        if form == "ext4":
            shown.pop(b"lost+found")
        if form != "erofs":
            shown = without_nanoseconds(shown)
        assert differences(tree if form == "erofs" else without_nanoseconds(tree), shown) == []
    store.export(root.path, workdir / f"again.{form}")
    assert (workdir / f"again.{form}").read_bytes() == (workdir / f"1.{form}").read_bytes()


def test_a_root_can_be_cleaned_up_while_a_tool_has_mounts_of_its_own(
    store: orlop.Store, rich: str, store_dirs: StoreDirs, workdir: Path
) -> None:
    prepared = store.prepare(rich, store_dirs.work / "other", mount=True)
    lowers = [str(workdir / "one"), str(workdir / "two")]
    for path in (*lowers, str(workdir / "target")):
        os.mkdir(path)
    Path(lowers[0], "here").write_text("shown")
    argv = ["/bin/sh", "-c", f"cat {workdir}/target/here; exec cat"]
    program = command([], lowers=lowers, options=(), target=str(workdir / "target"), argv=argv)
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.read(5) == b"shown"
            prepared.cleanup()
            process.stdin.close()
            assert (process.stdout.read(), process.wait(60)) == (b"", 0)
        finally:
            process.kill()
    assert os.listdir(workdir / "target") == []


# -- ways and accidents -----------------------------------------------------------------------------


def test_a_daemon_sends_what_the_library_writes_and_writes_no_file_itself(
    store: orlop.Store, rich: str, root: orlop.Prepared, workdir: Path, store_dirs: StoreDirs
) -> None:
    socket = f"unix:///run/orlop-test-{os.getpid()}/orlop.sock"
    limits = ServiceLimits()
    try:
        with Daemon(store.verbs, socket, limits=limits), orlop.connect(socket) as remote:
            for thing, name in (
                (rich, "a.tar"),
                (rich, "a.docker.tar"),
                (root.path, "b.tar"),
                (rich, "c.sqfs"),
            ):
                here = store.export(thing, workdir / f"here-{name}")
                there = remote.export(thing, workdir / f"there-{name}")
                assert replace(there, path="") == replace(here, path="")
                assert (workdir / f"there-{name}").read_bytes() == (workdir / f"here-{name}").read_bytes()
            remote.export(rich, f"{workdir}/layout/")
            assert run("skopeo", "inspect", "--raw", f"oci:{workdir}/layout:v1")
            with (workdir / "piped.tar").open("wb") as pipe:
                command = [sys.executable, "-m", "orlop", "--host", socket, "export", "-q", rich]
                subprocess.run(command, stdin=subprocess.DEVNULL, stdout=pipe, check=True, timeout=120)
            assert (workdir / "piped.tar").read_bytes() == (workdir / "here-a.tar").read_bytes()
            with remote.export_stream(rich) as stream:
                assert b"".join(stream) == (workdir / "here-a.tar").read_bytes()
            with remote.export_stream(rich) as stream:
                next(stream)  # and no more: the daemon's part ends
    finally:
        shutil.rmtree(f"/run/orlop-test-{os.getpid()}", ignore_errors=True)


def test_without_root_an_export_is_the_same_bytes(store: orlop.Store, workdir: Path) -> None:
    layout = images.write_layout(workdir / "layout", {"v1": images.make_image(_rich(), compression="none")})
    name = store.load(layout).pop().name
    user = users.make(workdir / "user", "subids")
    shutil.copytree(layout, user.home / "layout")
    run("chown", "-R", f"{users.UID}:{users.GID}", user.home / "layout")
    user.orlop("import", "-q", "layout", check=True)
    for out in ("a.tar", "a.sqfs"):
        user.orlop("export", "-q", "-o", out, name, check=True)
        store.export(name, workdir / out)
        assert (user.home / out).read_bytes() == (workdir / out).read_bytes()


@pytest.mark.hostile(40)
def test_a_full_disk_leaves_no_half_file(store: orlop.Store, rich: str, workdir: Path) -> None:
    small = workdir / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8k", "none", small)
    try:
        for name in ("a.tar", "a.docker.tar", "a.sqfs", "layout/"):
            with pytest.raises(orlop.ResourceExhausted, match=str(small)):
                store.export(rich, f"{small}/{name}")
            assert os.listdir(small) == []
    finally:
        run("umount", small)


@pytest.mark.hostile(39)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_export_that_is_stopped_leaves_no_file_of_that_name(
    signum: signal.Signals, code: int, root: orlop.Prepared, workdir: Path, store_dirs: StoreDirs
) -> None:
    key = hashlib.sha256(os.fsencode(root.path)).hexdigest()
    held = FileLock(store_dirs.root / "locks" / f"path-{key}")
    held.acquire(call=Call(), attempted="test")
    command = [sys.executable, "-m", "orlop", "--root", store_dirs.root, "--run", store_dirs.run, "export"]
    out = workdir / "out"
    out.mkdir()
    with (
        (workdir / "log").open("wb") as log,
        subprocess.Popen(
            [*map(str, command), "-q", "-o", str(out / "a.tar"), root.path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 100
            while not (os.listdir(out) and _waits_for(process.pid, key)):
                assert process.poll() is None, (workdir / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signum)
            assert process.wait(100) == code
        finally:
            process.kill()
            held.release()
    assert not (out / "a.tar").exists()
    if signum is signal.SIGINT:
        assert os.listdir(out) == []


def _waits_for(pid: int, key: str) -> bool:
    """Whether a process has the lock's file open."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(link).endswith(key):
                return True
        except FileNotFoundError:
            continue
    return False


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir()
    run("/bin/mount", "-o", "loop,ro", image, place)
    try:
        yield place
    finally:
        run("/bin/umount", place)


@contextmanager
def containerd(top: Path) -> Iterator[list[str]]:
    """A containerd of the test's own; what runs its `ctr`."""
    top.mkdir()
    socket = f"/run/orlop-test-{os.getpid()}.sock"  # a unix socket's path is short
    config = top / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{top}/root"\nstate = "{top}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\n  address = "{socket}"\n'
    )
    with (top / "log").open("wb") as log:
        process = subprocess.Popen(
            ["containerd", "-c", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    ctr = ["ctr", "-a", socket, "-n", "test"]
    try:
        for _ in range(600):
            assert process.poll() is None, (top / "log").read_text()
            if (
                subprocess.run([*ctr, "version"], capture_output=True, check=False, timeout=60).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        yield ctr
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for left in (socket, f"{socket}.ttrpc"):
            Path(left).unlink(missing_ok=True)
