"""The daemon over a real store: killed and started again, spoken to by all faces at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import orlop
from conftest import StoreDirs
from orlop.linux import mount as mounts
from orlop.proto.docker.containerkit.types import image_pb2, image_pb2_grpc
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@contextmanager
def daemon(dirs: StoreDirs, registry: Registry) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A daemon of its own process; yields its address."""
    address = f"unix://{dirs.work}/socket/orlop.sock"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "orlop", "--root", dirs.root, "--run", dirs.run),
            *("--insecure-registry", registry.host, "daemon", "--listen", address),
        ],
        stderr=(dirs.work / "daemon.log").open("ab"),
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                orlop.connect(address).info()
                break
            except orlop.Unavailable:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((dirs.work / "daemon.log").read_text()) from None
                time.sleep(0.05)
        yield address, process
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def name(registry: Registry) -> str:
    base = Layer().folder("etc").file("etc/motd", b"hello\n").file("gone", b"x")
    images.push(registry, "daemon-base", "v1", images.make_image([base.tar()]))
    return f"{registry.host}/daemon-base:v1"


def test_roots_outlive_a_killed_daemon(store_dirs: StoreDirs, registry: Registry, name: str) -> None:
    target = store_dirs.work / "a"
    with daemon(store_dirs, registry) as (address, process):
        with orlop.connect(address) as store:
            store.prepare(name, target, mount=True)
            store.prepare(name, store_dirs.work / "b")
        (target / "new").write_text("written before the kill")
        (target / "gone").unlink()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (target / "new").read_text() == "written before the kill"  # the mount lives on
    with daemon(store_dirs, registry) as (address, _), orlop.connect(address) as store:
        assert [info.path for info in store.prepared()] == [str(target), str(store_dirs.work / "b")]
        committed = store.get(target).commit("localhost/rescued")
        for info in store.prepared():
            store.get(info.path).cleanup()
        assert not target.exists()
        with store.prepare(committed.name, target, mount=True):
            assert (target / "new").read_text() == "written before the kill"
            assert not (target / "gone").exists()
        assert store.prepared() == []


def test_a_client_of_the_2016_definitions_does_the_whole_job(
    store_dirs: StoreDirs, registry: Registry, name: str
) -> None:
    target = store_dirs.work / "a"
    target.mkdir()
    with daemon(store_dirs, registry) as (address, _), grpc.insecure_channel(address) as channel:
        service = image_pb2_grpc.ImagesStub(channel)
        layers = service.Prepare(image_pb2.PrepareRequest(path=str(target), name=name)).layers
        for mount in layers:
            mounts.perform(mount.type, mount.source, mount.target, tuple(mount.options))
        (target / "etc/motd").write_text("changed\n")
        made = service.Commit(image_pb2.CommitRequest(path=str(target))).name
        with pytest.raises(grpc.RpcError) as busy:
            service.Cleanup(image_pb2.CleanupRequest(path=str(target)))
        assert busy.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        mounts.umount(target)
        service.Cleanup(image_pb2.CleanupRequest(path=str(target)))
        with pytest.raises(grpc.RpcError) as unknown:
            service.Cleanup(image_pb2.CleanupRequest(path=str(target)))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        layers = service.Prepare(image_pb2.PrepareRequest(path=str(target), name=made)).layers
        for mount in layers:
            mounts.perform(mount.type, mount.source, mount.target, tuple(mount.options))
        assert (target / "etc/motd").read_text() == "changed\n"
        mounts.umount(target)
        service.Cleanup(image_pb2.CleanupRequest(path=str(target)))


def test_a_second_daemon_on_one_store_is_refused(
    store_dirs: StoreDirs, registry: Registry, run_cli: Run
) -> None:
    with daemon(store_dirs, registry):
        done = run_cli("daemon", "--listen", f"unix://{store_dirs.work}/other/o.sock")
        assert done.returncode == 5
        assert "daemon" in done.stderr


def test_library_command_line_and_daemon_share_one_store(
    store_dirs: StoreDirs, registry: Registry, name: str, run_cli: Run
) -> None:
    with daemon(store_dirs, registry) as (address, _):
        settings = orlop.Settings(insecure_registries=(registry.host,))
        with (
            orlop.connect(address) as there,
            orlop.open(store_dirs.root, store_dirs.run, settings=settings) as here,
        ):
            there.pull(name)
            assert here.images() == there.images()
            here.prepare(name, store_dirs.work / "a", mount=True)
            with pytest.raises(orlop.AlreadyExists):
                there.prepare(name, store_dirs.work / "a")
            (store_dirs.work / "a/new").write_text("x")
            assert (
                run_cli("commit", store_dirs.work / "a", "localhost/shared").stdout
                == "localhost/shared:latest\n"
            )
            assert there.inspect("localhost/shared") == here.inspect("localhost/shared")
            there.get(store_dirs.work / "a").cleanup()
            assert here.prepared() == []


def test_verbs_give_the_same_results_with_and_without_a_daemon(
    store_dirs: StoreDirs, registry: Registry, name: str, run_cli: Run
) -> None:
    run_cli("pull", name, check=True)
    run_cli("prepare", name, store_dirs.work / "a", check=True)
    with daemon(store_dirs, registry) as (address, _):
        for verb in (
            ["images", "--json"],
            ["ps", "--json"],
            ["inspect", name],
            ["mounts", str(store_dirs.work / "a"), "--json"],
            ["gc", "--dry-run", "--json"],
            ["inspect", "nothing-here"],
            ["cleanup", "/not/prepared"],
            ["prepare", name, "relative"],
        ):
            alone = run_cli(*verb)
            asked = subprocess.run(
                [sys.executable, "-m", "orlop", "--host", address, *verb],
                capture_output=True,
                text=True,
                check=False,
                env={key: value for key, value in os.environ.items() if not key.startswith("ORLOP_")},
            )
            assert (asked.returncode, asked.stdout, asked.stderr) == (
                alone.returncode,
                alone.stdout,
                alone.stderr,
            )


def test_run_works_through_a_daemon(store_dirs: StoreDirs, registry: Registry) -> None:
    box = Layer().folder("bin").file("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755)
    for applet in ("sh", "cat", "echo"):
        box.symlink(f"bin/{applet}", "busybox")
    images.push(registry, "daemon-box", "v1", images.make_image([box.tar()]))
    with daemon(store_dirs, registry) as (address, _):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "orlop", "--host", address, "--run", store_dirs.work / "client-run"),
                *(
                    "run",
                    "--rm",
                    "--net",
                    "none",
                    "-i",
                    f"{registry.host}/daemon-box:v1",
                    "sh",
                    "-c",
                    "cat; exit 7",
                ),
            ],
            input="through\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (7, "through\n"), done.stderr
        assert orlop.connect(address).prepared() == []


_SERVE_AND_USE = """
import sys
from pathlib import Path
import orlop, orlop.facade
from orlop.service.daemon import Daemon

root, run, work, layout, registry = sys.argv[1:]
settings = orlop.Settings(insecure_registries=(registry,))
with orlop.open(root, run, settings=settings) as store, Daemon(store.verbs, f"unix://{work}/s/orlop.sock"):
    before = set(sys.modules)
    store.load(layout, name="localhost/a:1")
    with store.prepare("localhost/a:1", work + "/root", mount=True) as prepared:
        Path(work, "root/new").write_text("x")
        made = prepared.commit().name
    store.tag(made, f"{registry}/imports:1")
    store.push(f"{registry}/imports:1")
    store.pull(f"{registry}/imports:1")
    store.explain("localhost/a:1"), store.usage(), store.check(), store.pin("localhost/a:1")
    store.backup(work + "/backup"), store.remove("localhost/a:1"), store.collect()
    print(*sorted(set(sys.modules) - before))
"""


def test_a_daemon_imports_nothing_once_it_serves(store_dirs: StoreDirs, registry: Registry) -> None:
    image = images.make_image([Layer().file("f", b"data").tar()])
    layout = images.write_layout(store_dirs.work / "layout", {"latest": image})
    arguments = (store_dirs.root, store_dirs.run, store_dirs.work, layout, registry.host)
    done = subprocess.run(
        [sys.executable, "-c", _SERVE_AND_USE, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
