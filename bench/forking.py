"""Through the library: commits of ten files, commits with a prepare of the result, and a hundred forks.

One process does all of it, so no start of Python is in these.  What is committed and forked is durable when
the call returns.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orlop
from bench import changes, lab
from bench import measure as measuring
from bench.measure import Times
from bench.section import Bench, Goal, Row

__all__ = ["Inside", "inside"]

FORKS = 100
COMMITS = 20  # of ten files, in a round
QUICK_COMMITS = 5
BOTH_MS, FORKS_S, ADDED_MB = 60.0, 2.0, 15.0  # what is asked
STEPS = ("commit", "commit and prepare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """Rows and goals for the section of commits."""

    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)


def inside(bench: Bench) -> Inside:
    """Commits of ten files, then forks."""
    (image,) = lab.choose(bench.images, quick=bench.quick, default=["node-many"])[:1]
    found = Inside()
    times = _commits(bench, image)
    for step, each in times.items():
        row = Row(what=f"10 files on {image}: {step}", tool="orlop, library", durable="yes")
        row.figures |= {
            "wall ms": [wall * 1000 for wall in each.walls],
            "CPU ms": [c * 1000 for c in each.cpus],
        }
        found.rows.append(row)
    seen = times[STEPS[1]].wall * 1000
    found.goals.append(
        Goal(what=f"commit and prepare of 10 files on {image}, library", asked=BOTH_MS, seen=seen, unit="ms")
    )
    forks = Row(what=f"{FORKS} forks of a root with 10 MB of changes", tool="orlop, library", durable="yes")
    for _ in range(bench.rounds):
        forks.add(**_forks(bench))
    found.rows.append(forks)
    found.goals.extend(
        [
            Goal(what=f"{FORKS} forks", asked=FORKS_S, seen=forks.median("all s"), unit="s"),
            Goal(what=f"disk of {FORKS} forks", asked=ADDED_MB, seen=forks.median("added MB"), unit="MB"),
        ]
    )
    return found


def _commits(bench: Bench, image: str) -> dict[str, Times]:
    found = {step: Times() for step in STEPS}
    disk = bench.disk
    with _store(disk / "library") as store:
        name = store.load(lab.layout(image)).pop().name
        store.prepare(name, disk / "warm").cleanup()
        for number in range(bench.rounds * (QUICK_COMMITS if bench.quick else COMMITS)):
            with store.prepare(name, disk / "changed", mount=True) as root:
                changes.change("10 files", disk / "changed")
                (disk / "changed" / "etc" / "bench-0").write_text(f"{number}")  # a layer of its own
                found["commit"].take(lambda root=root: root.commit("localhost/one:1"))
                (disk / "changed" / "etc" / "bench-0").write_text(f"{number} again")
                made: list[orlop.Prepared] = []
                found["commit and prepare"].take(lambda root=root, made=made: made.append(_both(store, root)))
                made[0].cleanup()
            for each in ("localhost/one:1", "localhost/two:1"):
                store.remove(each)
    bench.say(", ".join(f"{step} {times.wall * 1000:.1f} ms" for step, times in found.items()))
    return found


def _both(store: orlop.Store, root: orlop.Prepared) -> orlop.Prepared:
    root.commit("localhost/two:1")
    return store.prepare("localhost/two:1", f"{root.path}-result")


def _forks(bench: Bench) -> dict[str, float]:
    """A hundred forks of one root; ``move s`` is a fork that gives up its source."""
    disk, place = bench.disk, bench.disk / "forks"
    with _store(place) as store:
        name = store.load(lab.layout("debian-min")).pop().name
        root = store.prepare(name, disk / "source", mount=True)
        for number in range(100):
            (disk / "source" / "opt" / f"file-{number}").write_bytes(os.urandom(100_000))
        os.sync()
        before = measuring.disk_usage(place)
        paths = [disk / f"fork-{number}" for number in range(FORKS)]
        start = time.perf_counter()
        made = list(root.fork(paths[0]))
        first = time.perf_counter() - start
        made += root.fork(*paths[1:])
        whole = time.perf_counter() - start
        os.sync()
        added = (measuring.disk_usage(place) - before) / 1e6
        for fork in made:
            fork.cleanup()
        root.unmount()
        start = time.perf_counter()
        (moved,) = root.fork(disk / "moved", move=True)
        giving_up = time.perf_counter() - start
        moved.cleanup()
    bench.say(f"the first fork {first * 1000:.0f} ms, {FORKS} forks {whole:.2f} s, {added:.1f} MB")
    return {"first s": first, "all s": whole, "move s": giving_up, "added MB": added}


@contextmanager
def _store(folder: Path) -> Iterator[orlop.Store]:
    """A store of its own, gone at the end."""
    with orlop.open(folder, folder.with_name(f"{folder.name}-run")) as store:
        try:
            yield store
        finally:
            for info in store.prepared():
                store.get(info.path).cleanup()
    shutil.rmtree(folder)
