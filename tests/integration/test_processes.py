"""Several processes on one store, with no daemon: nothing is lost, nothing is left, bytes move once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import orlop
from conftest import StoreDirs
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

Run = Callable[..., "subprocess.CompletedProcess[str]"]

WORKER = """
import random, sys
from pathlib import Path
import orlop
root, run, work, host, seed, rounds = sys.argv[1:]
dice = random.Random(seed)
settings = orlop.Settings(insecure_registries=(host,))
with orlop.open(root, run, settings=settings) as store:
    for turn in range(int(rounds)):
        name = f"{host}/many-{dice.choice('ab')}:v1"
        path = Path(work, f"{seed}-{turn}")
        prepared = store.prepare(name, path, mount=True)
        assert (path / "base").read_text() == "shared", path
        (path / "mine").write_text(f"{seed} {turn}")
        made = prepared.commit(f"localhost/made-{seed}:{turn}")
        with store.prepare(made.name, f"{path}-again", mount=True):
            assert Path(f"{path}-again/mine").read_text() == f"{seed} {turn}"
        prepared.cleanup()
        if dice.random() < 0.5:
            store.remove(made.name)
        if dice.random() < 0.3:
            try:
                store.remove(name)
            except orlop.NotFound:
                pass  # another process was faster
        if dice.random() < 0.3:
            store.collect()
"""


def start(dirs: StoreDirs, host: str, seed: int, rounds: int) -> subprocess.Popen[str]:
    arguments = [dirs.root, dirs.run, dirs.work, host, str(seed), str(rounds)]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *map(os.fspath, arguments)], stderr=subprocess.PIPE, text=True
    )


def together(store: orlop.Store, dirs: StoreDirs, registry: Registry, processes: int, rounds: int) -> None:
    base = Layer().file("base", b"shared").tar()
    for letter in "ab":
        top = Layer().file(letter, letter.encode()).tar()
        images.push(registry, f"many-{letter}", "v1", images.make_image([base, top]))
    running = [start(dirs, registry.host, seed, rounds) for seed in range(processes)]
    for process in running:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    assert store.prepared() == []
    store.collect()
    assert store.collect(dry_run=True).items == ()
    for number, info in enumerate(store.images()):
        with store.prepare(info.name, dirs.work / f"check-{number}", pull="never", mount=True):
            assert (dirs.work / f"check-{number}/base").read_text() == "shared"
    for info in store.images():
        store.remove(info.name)
    assert list((dirs.root / "layers").iterdir()) == []
    assert list((dirs.run / "chains").iterdir()) == []


def test_processes_share_a_store(store: orlop.Store, store_dirs: StoreDirs, registry: Registry) -> None:
    together(store, store_dirs, registry, processes=5, rounds=4)


@pytest.mark.soak
def test_processes_share_a_store_for_long(
    store: orlop.Store, store_dirs: StoreDirs, registry: Registry, soak_seconds: float
) -> None:
    end = time.monotonic() + soak_seconds
    while time.monotonic() < end:
        together(store, store_dirs, registry, processes=8, rounds=10)


def _image(registry: MemoryRegistry, size: int) -> tuple[str, str]:
    """A one-layer image in a registry in memory; its name and its layer's digest."""
    image = images.make_image([Layer().file("data", os.urandom(size)).tar()], compression="none")
    for blob in image.blobs.values():
        registry.add_blob("app", blob)
    registry.add_manifest("app", "v1", image.document, image.media_type)
    (layer,) = (digest for digest, blob in image.blobs.items() if len(blob) > size)
    return f"{registry.host}/app:v1", layer


def test_two_processes_pulling_one_image_move_its_bytes_once(store_dirs: StoreDirs, run_cli: Run) -> None:
    with MemoryRegistry() as registry:
        name, layer = _image(registry, 3_000_000)
        command = [
            sys.executable,
            "-m",
            "orlop",
            "--root",
            store_dirs.root,
            "--run",
            store_dirs.run,
            "pull",
            "-q",
            name,
        ]
        both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
        assert [process.wait(60) for process in both] == [0, 0]
        assert len(registry.seen("GET", layer)) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pull_that_is_stopped_leaves_nothing_half_done_and_is_resumed(
    store_dirs: StoreDirs, run_cli: Run, signum: signal.Signals
) -> None:
    with MemoryRegistry() as registry:
        name, layer = _image(registry, 8_000_000)
        registry.misbehave(Fault(method="GET", path=layer, times=1, hold_after=4_000_000))
        command = [
            sys.executable,
            "-m",
            "orlop",
            "--root",
            store_dirs.root,
            "--run",
            store_dirs.run,
            "pull",
            "-q",
            name,
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        data = store_dirs.root / "content/ingest" / layer.removeprefix("sha256:") / "data"
        deadline = time.monotonic() + 30
        while not (data.exists() and data.stat().st_size >= 3_000_000):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signum)
        process.communicate(timeout=30)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[signum]
        assert run_cli("images", "--json").stdout.strip() == "[]"
        assert [
            path for path in (store_dirs.root / "layers").iterdir() if not path.name.startswith("new-")
        ] == []
        assert run_cli("pull", "-q", name).returncode == 0
        last = registry.seen("GET", layer)[-1]
        assert last.headers.get("range", "").startswith("bytes="), "it began again from zero"
        run_cli("gc", check=True)
        assert not list((store_dirs.root / "layers").glob("new-*"))
        assert list((store_dirs.root / "content/ingest").iterdir()) == []
