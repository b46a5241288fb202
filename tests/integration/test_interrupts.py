"""Ctrl-C, SIGTERM and kill -9 in the middle of prepare, commit and run: nothing half done, and all tidied up.

Where a command stands when the signal comes is no matter of luck: the test holds a lock that the command
needs at that point, or the registry holds a blob back.  `test_processes` does the same to pull.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux.flock import FileLock
from orlop.observe import Call
from orlop.testing.registry import Fault, MemoryRegistry
from support import disks, images
from support.layers import Layer

pytestmark = pytest.mark.root

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
each_signal = pytest.mark.parametrize("signum", CODES, ids=lambda signum: signum.name)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def image(store: orlop.Store, workdir: Path) -> str:
    tar = Layer().folder("etc").file("etc/motd", b"hello\n").file("data", bytes(5000)).tar()
    layout = images.write_layout(workdir / "layout", {"v1": images.make_image([tar])})
    return store.load(layout, name="localhost/there").pop().name


@contextmanager
def started(dirs: StoreDirs, *args: str | Path) -> Iterator[subprocess.Popen[str]]:
    """``orlop ARGS`` on the test's store, running."""
    command = [sys.executable, "-m", "orlop", "--root", dirs.root, "--run", dirs.run, *args]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_open(process: subprocess.Popen[str], path: Path) -> bool:
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            if os.readlink(link) == os.fspath(path):
                return True
        except FileNotFoundError:
            continue
    return False


def stop_at(
    lock: Path, dirs: StoreDirs, signum: signal.Signals, *args: str | Path
) -> subprocess.CompletedProcess[str]:
    """Start a command, and send it a signal where it waits for a lock that we hold all the time."""
    held = FileLock(lock)
    held.acquire(call=Call(), attempted="test")
    try:
        with started(dirs, *args) as process:
            until(lambda: has_open(process, lock), process)
            process.send_signal(signum)
            out, err = process.communicate(timeout=30)
            return subprocess.CompletedProcess(args, process.returncode, out, err)
    finally:
        held.release()


def expect_clean(store: orlop.Store, dirs: StoreDirs, *, images_left: list[str]) -> None:
    """After a collection the store has what is listed, and nothing else."""
    store.collect()
    assert store.collect(dry_run=True).items == ()
    assert [info.name for info in store.images()] == images_left
    assert len(os.listdir(dirs.root / "layers")) == len(images_left)
    assert len(os.listdir(dirs.root / "prepared")) == len(store.prepared())
    assert os.listdir(dirs.root / "trash") == []
    assert [name for name in os.listdir(dirs.root / "locks") if "-" in name] == []


@each_signal
@pytest.mark.parametrize("chain", ["to build", "there"])
def test_a_prepare_that_is_stopped_before_its_row_is_no_root(
    store: orlop.Store, image: str, store_dirs: StoreDirs, signum: signal.Signals, chain: str
) -> None:
    if chain == "there":
        store.prepare(image, store_dirs.work / "a").cleanup()
    done = stop_at(
        store_dirs.root / "locks/write", store_dirs, signum, "prepare", "-q", image, store_dirs.work / "a"
    )
    assert (done.returncode, done.stdout) == (CODES[signum], "")
    assert store.prepared() == []
    expect_clean(store, store_dirs, images_left=[image])
    assert os.listdir(store_dirs.run / "chains") == []
    with store.prepare(image, store_dirs.work / "a", mount=True):
        assert (store_dirs.work / "a/etc/motd").read_text() == "hello\n"


@each_signal
def test_a_prepare_that_is_stopped_while_it_pulls_leaves_no_image(
    store: orlop.Store, store_dirs: StoreDirs, signum: signal.Signals
) -> None:
    tar = Layer().file("data", os.urandom(3_000_000)).tar()
    image = images.make_image([tar], compression="none")
    with MemoryRegistry() as registry:
        for blob in image.blobs.values():
            registry.add_blob("app", blob)
        registry.add_manifest("app", "v1", image.document, image.media_type)
        name, layer = f"{registry.host}/app:v1", image.diff_ids[0]
        registry.misbehave(Fault(method="GET", path=layer, times=1, hold_after=1_000_000))
        data = store_dirs.root / "content/ingest" / layer.removeprefix("sha256:") / "data"
        target = store_dirs.work / "a"
        with started(store_dirs, "prepare", "-q", "--mount", name, target) as process:
            until(lambda: data.exists() and data.stat().st_size >= 700_000, process)
            process.send_signal(signum)
            process.communicate(timeout=30)
            assert process.returncode == CODES[signum]
        assert store.images() == store.prepared() == []
        assert not target.exists()
        store.collect()
        assert [path.name for path in (store_dirs.root / "content/ingest").iterdir()] == [data.parent.name]
        assert os.listdir(store_dirs.root / "layers") == []
        with store.prepare(name, target, mount=True):
            assert (target / "data").stat().st_size == 3_000_000
        start = int(registry.seen("GET", layer)[-1].headers["range"].removeprefix("bytes=").rstrip("-"))
        assert start >= 700_000
        expect_clean(store, store_dirs, images_left=[name])


@each_signal
def test_a_commit_that_is_stopped_makes_no_image_and_harms_no_root(
    store: orlop.Store, image: str, store_dirs: StoreDirs, signum: signal.Signals
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target, mount=True)
    (target / "mine").write_text("work of hours")
    done = stop_at(
        store_dirs.root / "locks/write", store_dirs, signum, "commit", "-q", target, "localhost/made"
    )
    assert (done.returncode, done.stdout) == (CODES[signum], "")
    expect_clean(store, store_dirs, images_left=[image])
    assert (target / "mine").read_text() == "work of hours"
    assert root.commit("localhost/made").name == "localhost/made:latest"
    with store.prepare("localhost/made", store_dirs.work / "b", mount=True):
        assert (store_dirs.work / "b/mine").read_text() == "work of hours"


@each_signal
def test_a_cleanup_that_is_stopped_leaves_the_root_whole_or_gone(
    store: orlop.Store, image: str, store_dirs: StoreDirs, signum: signal.Signals
) -> None:
    target = store_dirs.work / "a"
    root = store.prepare(image, target)
    target.mkdir()
    (upper,) = (store_dirs.root / "prepared").glob("*/upper")
    (upper / "mine").write_text("work of hours")
    done = stop_at(store_dirs.root / "locks/write", store_dirs, signum, "cleanup", "-q", target)
    assert (done.returncode, done.stdout) == (CODES[signum], "")
    assert [info.path for info in store.prepared()] == [str(target)]
    root.mount()
    assert (target / "mine").read_text() == "work of hours"
    root.cleanup()
    expect_clean(store, store_dirs, images_left=[image])


@each_signal
def test_a_run_that_is_stopped_while_it_prepares_leaves_nothing_but_what_a_kill_leaves(
    store: orlop.Store, image: str, store_dirs: StoreDirs, run_cli: Run, signum: signal.Signals
) -> None:
    lock = store_dirs.root / "locks/write"
    done = stop_at(lock, store_dirs, signum, "run", image, "/bin/true")
    assert (done.returncode, done.stdout) == (CODES[signum], "")
    assert store.prepared() == []
    expect_clean(store, store_dirs, images_left=[image])
    containers = Path(f"{store_dirs.run}-containers")
    left = (
        [path.name for path in containers.iterdir() if path.name != ".runtime"] if containers.exists() else []
    )
    assert len(left) == (1 if signum == signal.SIGKILL else 0)
    assert [path for path in disks.mounts_below(store_dirs.run) if "chains" not in str(path)] == []


def test_a_second_signal_ends_a_command_at_once(
    store: orlop.Store, image: str, store_dirs: StoreDirs
) -> None:
    with MemoryRegistry() as registry:
        registry.misbehave(Fault(path="/manifests/", hold_after=0))
        registry.add_manifest("app", "v1", b"{}", images.OCI_MANIFEST)
        with started(store_dirs, "pull", "-q", f"{registry.host}/app:v1") as process:
            until(lambda: bool(registry.seen("GET", "/manifests/")), process)
            assert process.stderr is not None
            process.send_signal(signal.SIGINT)
            assert "stopping" in process.stderr.readline() + process.stderr.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            # killed by it where the first had just ended the work: 130, too, to a shell
            assert process.returncode in (130, -signal.SIGINT)
    expect_clean(store, store_dirs, images_left=[image])
