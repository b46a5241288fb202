"""What durability costs: the same verbs with ``durable`` on and off, in turn, in one process.

Each round a fresh store pulls an image of its own making from a registry in memory, prepares and cleans up
roots, and commits a change.  On a loop-mounted ext4 with a journal; what the disk below makes of a flush is
its own affair, so read the ratios of one run, and the durable sequential write beside them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import orlop
from bench import lab
from bench.measure import Times
from bench.section import Bench, Row, Section
from orlop.testing.layers import Layer, write_layout
from orlop.testing.registry import MemoryRegistry

STEPS = ("pull", "prepare", "cleanup", "commit")
LIVES = 100  # roots prepared and cleaned up in a round
FILES = 4_000


WRITE = "one durable write of the image"


def measure(bench: Bench) -> Section:
    """For ``durable`` and ``not durable`` the milliseconds of each step."""
    rows = {
        (step, name): Row(what=step, tool=f"orlop, {name}", durable="yes" if name == "durable" else "no")
        for step in STEPS
        for name in ("durable", "not durable")
    }
    write = Row(what="pull", tool=WRITE, durable="yes", yardstick=True)
    with MemoryRegistry() as registry:
        size = _publish(registry, bench.disk / "layout")
        for number in range(bench.rounds):
            for name in ("durable", "not durable"):
                settings = orlop.Settings(
                    insecure_registries=(registry.host,), durable=name == "durable", driver="erofs"
                )
                steps = {step: Times() for step in STEPS}
                _round(bench.disk, f"{registry.host}/bench:v1", settings, steps)
                for step, times in steps.items():
                    for wall, cpu in zip(times.walls, times.cpus, strict=True):
                        rows[step, name].add(ms=wall * 1000, CPU_ms=cpu * 1000)
                bench.say(f"round {number + 1}, {name}: " + ", ".join(_ms(steps, step) for step in STEPS))
            write.add(ms=lab.sequential_write(bench.disk, size) * 1000)
    return Section(
        name="durable",
        title="What durability costs",
        words=str(__doc__),
        rows=[*rows.values(), write],
        base="orlop, not durable",
        ratios=("ms", "CPU ms"),
    )


def _ms(steps: dict[str, Times], step: str) -> str:
    return f"{step} {steps[step].walls[-1] * 1000:.2f} ms"


def _round(disk: Path, image: str, settings: orlop.Settings, steps: dict[str, Times]) -> None:
    root, run, place = disk / "durable", disk / "durable-run", disk / "durable-rootfs"
    with orlop.open(root, run, settings=settings) as store:
        store.verbs._core.template.start()  # type: ignore[attr-defined]  # starting it is not at issue
        time.sleep(0.3)
        _settle(disk)
        steps["pull"].take(lambda: store.pull(image))
        store.prepare(image, place).cleanup()  # the chain is not at issue
        _settle(disk)
        for _ in range(LIVES):
            made: list[orlop.Prepared] = []
            steps["prepare"].take(lambda made=made: made.append(store.prepare(image, place)))
            steps["cleanup"].take(made[0].cleanup)
        with store.prepare(image, place, mount=True) as prepared:
            for number in range(100):
                (place / f"new-{number}").write_bytes(os.urandom(20_000))
            _settle(disk)
            steps["commit"].take(lambda: prepared.commit("localhost/bench:made"))
    shutil.rmtree(root)
    shutil.rmtree(run)
    _settle(disk)


def _settle(disk: Path) -> None:
    """Let earlier writes reach this disk; a sync of all disks would wait for other people's."""
    subprocess.run(["sync", "-f", disk], check=True)


def _publish(registry: MemoryRegistry, folder: Path) -> int:
    """Put an image of three layers, not compressed, into the registry; the size of its tars."""
    dice = random.Random(1)
    tars = []
    for number in range(3):
        layer = Layer().folder(f"part-{number}")
        for name in range(FILES // 3):
            layer.file(f"part-{number}/{name}", dice.randbytes(dice.randrange(20_000)))
        tars.append(layer.tar())
    write_layout(folder, tars)
    (named,) = json.loads((folder / "index.json").read_text())["manifests"]
    for blob in (folder / "blobs" / "sha256").iterdir():
        if blob.name == named["digest"].partition(":")[2]:
            registry.add_manifest("bench", "v1", blob.read_bytes(), named["mediaType"])
        else:
            registry.add_blob("bench", blob.read_bytes())
    shutil.rmtree(folder)
    return sum(map(len, tars))
