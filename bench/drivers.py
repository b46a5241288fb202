"""The drivers beside one another: a root's life, and what it costs to unpack an image's layers.

A root's life is prepare, mount, unmount and cleanup through the library, for an image that is in the store
and has been prepared before.  Unpacking is the overlay driver's first prepare of an image that is in the
store, beside ``tar -xzf`` of the same layers and the sync of what it wrote.  Orlop's result needs no sync:
the layers' tars are durable, and folders of an earlier boot are made again.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import orlop
from bench import lab
from bench.measure import Times
from bench.section import Bench, Goal, Row, Section
from orlop.config import DRIVERS, Driver

REPEATS = {"erofs": 200, "overlay": 200, "native": 3}
STEPS = ("prepare", "mount", "unmount", "cleanup")
UNPACK, UNTAR, SYNC = "orlop, overlay driver", "tar -xz and sync", "sync"


def measure(bench: Bench) -> Section:
    """Both, as one table."""
    (image,) = lab.choose(bench.images, quick=bench.quick, default=["node-many"])[:1]
    repeats = {"erofs": 20, "overlay": 20} if bench.quick else REPEATS
    rows = []
    for driver, steps in _lives(bench.disk, lab.layout("debian-min"), repeats, bench.say).items():
        row = Row(what="a root's life, debian-min", tool=f"orlop, {driver}", durable="yes")
        for step, times in steps.items():
            row.figures[f"{step} ms"] = [wall * 1000 for wall in times.walls]
        rows.append(row)
    unpacked = _unpacking(bench.disk, lab.layout(image), bench.rounds, bench.say)
    whole = {
        UNPACK: unpacked[UNPACK],
        UNTAR: Times(
            walls=[sum(pair) for pair in zip(unpacked[UNTAR].walls, unpacked[SYNC].walls, strict=True)],
            cpus=[sum(pair) for pair in zip(unpacked[UNTAR].cpus, unpacked[SYNC].cpus, strict=True)],
        ),
    }
    for tool, times in whole.items():
        row = Row(what=f"unpacking {image}", tool=tool, durable="yes")
        row.figures |= {"wall s": times.walls, "CPU s": times.cpus}
        rows.append(row)
    beside = whole[UNPACK].wall / whole[UNTAR].wall
    return Section(
        name="drivers",
        title="The drivers beside one another",
        words=str(__doc__),
        rows=rows,
        base=UNTAR,
        ratios=("wall s", "CPU s"),
        goals=[Goal(what=f"unpacking {image}, beside tar and its sync", asked=1.0, seen=beside)],
    )


def _lives(
    disk: Path, layout: Path, repeats: dict[str, int], say: Callable[[str], None]
) -> dict[str, dict[str, Times]]:
    """For each driver the steps of a root's life."""
    found: dict[str, dict[str, Times]] = {}
    with orlop.open(disk / "lives", disk / "lives-run") as store:
        name = store.load(layout).pop().name
        for driver in (driver for driver in DRIVERS if driver in repeats):
            store.prepare(name, disk / "warm", driver=driver).cleanup()
            steps = found[driver] = {step: Times() for step in STEPS}
            lab.settle()
            for number in range(repeats[driver]):
                _one_life(store, name, disk / f"r{number}", driver, steps)
            say(f"{driver}: " + ", ".join(f"{step} {t.wall * 1000:.2f} ms" for step, t in steps.items()))
    subprocess.run(["rm", "-rf", disk / "lives"], check=True)
    return found


def _one_life(store: orlop.Store, name: str, path: Path, driver: Driver, steps: dict[str, Times]) -> None:
    made: list[orlop.Prepared] = []
    steps["prepare"].take(lambda: made.append(store.prepare(name, path, driver=driver)))
    (root,) = made
    steps["mount"].take(root.mount)
    steps["unmount"].take(root.unmount)
    steps["cleanup"].take(root.cleanup)


def _unpacking(disk: Path, layout: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Times]:
    """The overlay driver's unpacking beside GNU tar's, in turn."""
    times = {name: Times() for name in (UNPACK, UNTAR, SYNC)}
    for number in range(rounds):
        _unpack(disk, layout, times[UNPACK])
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
    times[UNTAR].take(lambda: _untar(layout, target))
    times[SYNC].take(lambda: subprocess.run(["sync", "-f", target], check=True))
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
