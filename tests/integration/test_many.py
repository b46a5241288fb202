"""Processes that share a store and are killed at any moment: what was answered holds, the rest is collected.

Each worker writes down what it is about to do and what it was told is done.  A kill -9 falls where it falls;
afterwards every image that is listed is whole, every root that was answered for has what was written to it,
and one collection leaves nothing else.  (`test_processes` has workers that live.)
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from support import disks, images
from support.layers import Layer
from support.registries import Registry

pytestmark = pytest.mark.root

WORKER = """
import json, os, random, sys
from pathlib import Path
import orlop
root, run, work, host, seed = sys.argv[1:]
log = os.open(Path(work, f"log-{seed}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def note(*words):
    os.write(log, json.dumps(words).encode() + b"\\n")
dice = random.Random(seed)
with orlop.open(root, run, settings=orlop.Settings(insecure_registries=(host,))) as store:
    turn, held, made = 0, [], []
    while True:
        turn += 1
        name = dice.choice([f"{host}/killed-a:v1", f"{host}/killed-b:v1", *made[-2:]])
        path = f"{work}/{seed}-{turn}"
        prepared = store.prepare(name, path, mount=True)
        note("prepared", path)
        assert Path(path, "base").read_text() == "shared", path
        Path(path, "mine").write_text(path)
        held.append(prepared)
        if dice.random() < 0.7:
            image = f"localhost/made-{seed}:{turn}"
            prepared.commit(image)
            note("made", image, path)
            made.append(image)
        if dice.random() < 0.7:
            old = held.pop(dice.randrange(len(held)))
            note("cleaning", old.path)
            old.cleanup()
            note("clean", old.path)
        if made and dice.random() < 0.3:
            note("removing", made[0])
            store.remove(made.pop(0))
        if dice.random() < 0.2:
            try:
                store.remove(f"{host}/killed-{dice.choice('ab')}:v1")
            except orlop.NotFound:
                pass  # another process was faster
        if dice.random() < 0.2:
            store.collect()
"""


def kill_some(dirs: StoreDirs, host: str, dice: random.Random, *, processes: int, rounds: int) -> None:
    """Start workers, and kill each after a while, several times over."""
    running: list[tuple[float, subprocess.Popen[str]]] = []
    left = processes * rounds
    while left or running:
        if left and len(running) < processes:
            arguments = [dirs.root, dirs.run, dirs.work, host, str(dice.getrandbits(32))]
            command = [sys.executable, "-c", WORKER, *map(os.fspath, arguments)]
            end = time.monotonic() + dice.uniform(0.5, 2.5)
            running.append((end, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
            left -= 1
            continue
        running.sort(key=lambda one: one[0])
        end, process = running.pop(0)
        time.sleep(max(0.0, end - time.monotonic()))
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said


def noted(work: Path) -> tuple[dict[str, str], set[str], set[str]]:
    """Images that were answered for, with where they came from; such roots; roots that may be either."""
    made: dict[str, str] = {}
    held: set[str] = set()
    either: set[str] = set()
    for log in work.glob("log-*"):
        for line in log.read_text().splitlines():
            what, name, *more = json.loads(line)
            if what == "made":
                made[name] = more[0]
            elif what == "removing":
                made.pop(name)
            elif what == "prepared":
                held.add(name)
            elif what == "cleaning":
                held.remove(name)
                either.add(name)
            elif what == "clean":
                either.remove(name)
        log.unlink()
    return made, held, either


def check(store: orlop.Store, dirs: StoreDirs) -> None:
    made, held, either = noted(dirs.work)
    listed = {info.name for info in store.images()}
    assert set(made) <= listed
    roots = {info.path for info in store.prepared()}
    assert held <= roots
    store.collect()
    assert store.collect(dry_run=True).items == ()
    assert len(os.listdir(dirs.root / "prepared")) == len(roots)
    for path in sorted(roots):
        root = store.get(path).mount()
        assert Path(path, "base").read_text() == "shared"
        if path in held and Path(path, "mine").exists() and Path(path, "mine").stat().st_size:
            assert Path(path, "mine").read_text() == path
        root.cleanup()
    for number, name in enumerate(sorted(listed)):
        place = dirs.work / f"check-{number}"
        with store.prepare(name, place, pull="never", mount=True):
            assert (place / "base").read_text() == "shared"
            if name in made:
                assert (place / "mine").read_text() == made[name]
    assert not either & {info.path for info in store.prepared()}
    for name in sorted(listed):
        store.remove(name)
    store.collect()
    root = dirs.root
    left = {place: os.listdir(root / place) for place in ("layers", "chains", "prepared", "trash")}
    left |= {"blobs": os.listdir(root / "content/blobs/sha256"), "mounts": os.listdir(dirs.run / "chains")}
    left |= {"locks": [name for name in os.listdir(root / "locks") if "-" in name]}
    assert left == {place: [] for place in left}
    assert disks.mounts_below(dirs.root.parent) == []


def stock(registry: Registry) -> None:
    base = Layer().file("base", b"shared").tar()
    for letter in "ab":
        top = Layer().file(letter, os.urandom(100_000)).tar()
        images.push(registry, f"killed-{letter}", "v1", images.make_image([base, top]))


def test_processes_that_are_killed_at_any_moment_lose_nothing_and_leave_nothing(
    store: orlop.Store, store_dirs: StoreDirs, registry: Registry
) -> None:
    stock(registry)
    kill_some(store_dirs, registry.host, random.Random(7), processes=4, rounds=3)
    check(store, store_dirs)


@pytest.mark.soak
def test_processes_that_are_killed_at_any_moment_for_long(
    store: orlop.Store, store_dirs: StoreDirs, registry: Registry, soak_seconds: float
) -> None:
    seed = int(os.environ.get("SEED") or time.time())
    print(f"SEED={seed}")  # noqa: T201 - shown with a failure
    dice = random.Random(seed)
    end = time.monotonic() + soak_seconds
    while time.monotonic() < end:
        stock(registry)
        kill_some(store_dirs, registry.host, dice, processes=6, rounds=4)
        check(store, store_dirs)
