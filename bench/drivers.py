"""The drivers beside one another: a root's life, and what it costs to unpack an image's layers.

A root's life is prepare, mount, unmount and cleanup through the library, for an image that is in the store
and has been prepared before.  Unpacking is the overlay driver's first prepare of an image that is in the
store, beside ``tar -xzf`` of the same layers and the sync of what it wrote.  Orlop's result needs no sync:
the layers' tars are durable, and folders of an earlier boot are made again.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import orlop
from bench import lab
from orlop.config import DRIVERS, Driver

REPEATS = {"erofs": 200, "overlay": 200, "native": 3}


@dataclass(slots=True, kw_only=True)
class Times:
    """Wall and CPU seconds of several runs."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def take(self, run: Callable[[], object]) -> None:
        before, start = _cpu(), time.perf_counter()
        run()
        self.walls.append(time.perf_counter() - start)
        self.cpus.append(_cpu() - before)

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpus)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def lives(disk: Path, layout: Path, say: Callable[[str], None]) -> dict[str, dict[str, Times]]:
    """For each driver the steps of a root's life."""
    found: dict[str, dict[str, Times]] = {}
    with orlop.open(disk / "lives", disk / "lives-run") as store:
        name = store.load(layout).pop().name
        for driver in DRIVERS:
            store.prepare(name, disk / "warm", driver=driver).cleanup()
            steps = found[driver] = {step: Times() for step in ("prepare", "mount", "unmount", "cleanup")}
            lab.settle()
            for number in range(REPEATS[driver]):
                _one_life(store, name, disk / f"r{number}", driver, steps)
            say(f"{driver}: " + ", ".join(f"{step} {t.wall * 1000:.2f} ms" for step, t in steps.items()))
    shutil.rmtree(disk / "lives")
    return found


def _one_life(store: orlop.Store, name: str, path: Path, driver: Driver, steps: dict[str, Times]) -> None:
    made: list[orlop.Prepared] = []
    steps["prepare"].take(lambda: made.append(store.prepare(name, path, driver=driver)))
    (root,) = made
    steps["mount"].take(root.mount)
    steps["unmount"].take(root.unmount)
    steps["cleanup"].take(root.cleanup)


def unpacking(disk: Path, layout: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Times]:
    """The overlay driver's unpacking beside GNU tar's, in turn."""
    times = {name: Times() for name in ("orlop unpack", "tar -xz", "sync")}
    for number in range(rounds):
        _unpack(disk, layout, times["orlop unpack"])
        _unpack_with_tar(disk / "tar", layout, times)
        say(f"round {number + 1}: " + ", ".join(f"{name} {t.walls[-1]:.2f} s" for name, t in times.items()))
    return times


def _unpack(disk: Path, layout: Path, times: Times) -> None:
    with orlop.open(disk / "unpack", disk / "unpack-run") as store:
        name = store.load(layout).pop().name
        store.prepare(name, disk / "chain", driver="erofs").cleanup()  # the chain is not at issue
        lab.settle()
        times.take(lambda: store.prepare(name, disk / "u", driver="overlay"))
        store.get(disk / "u").cleanup()
    subprocess.run(["rm", "-rf", disk / "unpack"], check=True)
    lab.settle()


def _unpack_with_tar(target: Path, layout: Path, times: dict[str, Times]) -> None:
    times["tar -xz"].take(lambda: _untar(layout, target))
    times["sync"].take(lambda: subprocess.run(["sync", "-f", target], check=True))
    subprocess.run(["rm", "-rf", target], check=True)
    lab.settle()


def _untar(layout: Path, target: Path) -> None:
    """Each layer into a folder of its own, as an unpacker has to."""
    index = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].replace(":", "/")).read_text())
    for number, layer in enumerate(manifest["layers"]):
        folder = target / str(number)
        folder.mkdir(parents=True)
        blob = blobs / layer["digest"].replace(":", "/")
        subprocess.run(
            ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", folder, "-xzf", blob],
            check=True,
        )


def table(found: dict[str, dict[str, Times]], times: dict[str, Times], image: str) -> str:
    lines = [
        "| driver | prepare ms | mount ms | unmount ms | cleanup ms | all ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for driver, steps in found.items():
        walls = [steps[step].wall * 1000 for step in ("prepare", "mount", "unmount", "cleanup")]
        lines.append(f"| {driver} | " + " | ".join(f"{wall:.2f}" for wall in (*walls, sum(walls))) + " |")
    tar = times["tar -xz"].wall + times["sync"].wall
    ours = times["orlop unpack"].wall
    lines += [
        "",
        f"Unpacking {image}:",
        "",
        "| what | wall s | CPU s |",
        "| --- | --- | --- |",
        *(f"| {name} | {each.wall:.2f} | {each.cpu:.2f} |" for name, each in times.items()),
        "",
        f"unpack over tar with its sync: {ours / tar:.2f}",
    ]
    return "\n".join(lines) + "\n"
