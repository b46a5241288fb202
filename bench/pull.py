"""Pull to the first prepared root: from a registry on this machine and an empty store to a root.

orlop's side is ``orlop prepare IMAGE PATH``: pull, verify every byte, index, and return when all is durable.
podman's is ``podman pull``, buildah's ``buildah from``, skopeo's a copy to an OCI layout and then ``umoci raw
unpack``, containerd's ``ctr image pull`` and ``ctr snapshots prepare``.  The others return before their files
are on the disk; ``durable`` says so for each, and ``synced s`` is the wall time with a sync of the disk
afterwards, which brings all to the same.

All start from an empty store with the registry's files in the page cache, in turn, and whose turn is first
changes each round.  CPU is that of the commands and all their descendants, and of the daemon's control
group; memory is the highest sum of PSS over all of these, in a run of its own; disk is what du says of all
that a tool keeps, after a sync.  An image ``on`` another is pulled where the other one is already: they
share layers.  One durable sequential write of the image's tars, in the same turns, is the disk's own measure.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import lab, peers
from bench import measure as measuring
from bench.measure import Cost
from bench.peers import Tool
from bench.section import BEST, Bench, Goal, Plot, Row, Section, best, is_ours

__all__ = ["SHARED", "goals", "measure"]

SHARED = {"python-app": "debian-min", "ml": "python-app"}  # and what is there before
WALL = {"debian-min": 0.6, "deep": 0.6}  # of the best other tool's; all others:
WALL_OF_OTHERS = 0.4
CPU = 0.6
WRITES, MORE = 1.3, 0.25  # times one durable write of the tars, and seconds
MEMORY_MB = 150.0
FLAT_MB = 20.0  # what more bytes may add: entries, and layers in flight, take a little
WRITE = "one durable write of the tars"
WALL_S, SYNCED_S, CPU_S, PEAK, DISK = "wall s", "synced s", "CPU s", "peak MB", "disk MB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One image to pull, and what is pulled before, unmeasured."""

    image: str
    on: str = ""

    @property
    def what(self) -> str:
        return f"{self.image} on {self.on}" if self.on else self.image


def measure(bench: Bench) -> Section:
    """Every tool with every image."""
    images = lab.choose(bench.images, quick=bench.quick)
    jobs = [Job(image=image) for image in images]
    jobs += [Job(image=image, on=on) for image, on in SHARED.items() if image in images and on in images]
    tools = peers.tools(bench.disk, quick=bench.quick)
    rows: list[Row] = []
    for job in jobs:
        lab.warm(job.image)
        rows += _job(bench, job, tools)
    return Section(
        name="pull",
        title="Pull to the first prepared root",
        words=_words(),
        rows=rows,
        base=BEST,
        ratios=(WALL_S, SYNCED_S, CPU_S, DISK),
        goals=goals(rows),
        plots=_plots(rows),
    )


def _words() -> str:
    words = str(__doc__)
    if left := peers.missing():
        words += f"\nNot on this machine, so left out: {', '.join(left)}.\n"
    if not measuring.groups():
        words += "\nThere are no control groups here: a daemon's CPU is summed over its processes.\n"
    return words


def _job(bench: Bench, job: Job, tools: Sequence[Tool]) -> list[Row]:
    rows = {tool.name: Row(what=job.what, tool=tool.name, durable=tool.durable) for tool in tools}
    write = Row(what=job.what, tool=WRITE, durable="yes", yardstick=True)
    size = lab.tars(job.image)
    for number in range(bench.rounds):
        turn = number % len(tools)
        for tool in (*tools[turn:], *tools[:turn]):
            figures = _pull(bench.disk, tool, job)
            rows[tool.name].add(**figures)
            said = ", ".join(f"{name} {figure:.2f}" for name, figure in figures.items())
            bench.say(f"{job.what}, {tool.name}: {said}")
        if not job.on:
            lab.settle()
            write.add(**{WALL_S: lab.sequential_write(bench.disk, size)})
    if not job.on:
        for tool in tools[:1] if bench.quick else tools:  # orlop is the first
            rows[tool.name].add(**{PEAK: _peak(tool, job) / 1e6})
    return [*rows.values(), *([write] if write.figures else [])]


def _pull(on: Path, tool: Tool, job: Job) -> dict[str, float]:
    """What one pull cost, and what the tool then has on the disk."""
    try:
        _begin(tool, job)
        before = tool.daemon.cpu() if tool.daemon else 0.0
        cost = Cost(wall=0.0, cpu=0.0)
        for command in tool.pull(job.image):
            cost += measuring.run(command)
        daemon = tool.daemon.cpu() - before if tool.daemon else 0.0
        start = time.perf_counter()
        subprocess.run(["sync", "-f", on], check=True)
        synced = cost.wall + time.perf_counter() - start
        disk = measuring.disk_usage(*tool.folders) / 1e6
        return {WALL_S: cost.wall, SYNCED_S: synced, CPU_S: cost.cpu + daemon, DISK: disk}
    finally:
        tool.end()


def _peak(tool: Tool, job: Job) -> int:
    try:
        _begin(tool, job)
        also = tool.daemon.pids if tool.daemon else tuple
        return max(measuring.peak_pss(command, also) for command in tool.pull(job.image))
    finally:
        tool.end()


def _begin(tool: Tool, job: Job) -> None:
    tool.begin()
    for command in tool.pull(job.on) if job.on else ():
        measuring.run(command)
    lab.settle()


# ------------------------------------------------------------------ what it comes to


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What was asked of each image's pull, and was seen."""
    found = []
    for ours in rows:
        if not is_ours(ours):
            continue
        image, _, on = ours.what.partition(" on ")
        found += _beside_others(ours, rows, 1.0 if on else WALL.get(image, WALL_OF_OTHERS))
        writes = [row.median(WALL_S) for row in rows if row.what == ours.what and row.yardstick]
        if writes:
            found.append(
                Goal(
                    what=f"{ours.what}: wall, {WRITES} durable writes of its tars and {MORE} s",
                    asked=WRITES * writes[0] + MORE,
                    seen=ours.median(WALL_S),
                    unit="s",
                )
            )
    return found + _memory(
        {row.what: row.median(PEAK) for row in rows if is_ours(row) and PEAK in row.figures}
    )


def _beside_others(ours: Row, rows: Sequence[Row], wall: float) -> list[Goal]:
    found = []
    for words, column, asked in (("wall", WALL_S, wall), ("CPU", CPU_S, CPU), ("disk", DISK, 1.0)):
        least = best(rows, ours.what, column)
        if least:
            what = f"{ours.what}: {words} beside the best"
            found.append(Goal(what=what, asked=asked, seen=ours.median(column) / least))
    return found


def _memory(peaks: dict[str, float]) -> list[Goal]:
    found = []
    if peaks:
        most = max(peaks, key=lambda what: peaks[what])
        what = f"peak memory, the most of all images ({most})"
        found.append(Goal(what=what, asked=MEMORY_MB, seen=peaks[most], unit="MB"))
    if "ml" in peaks and "debian-min" in peaks:
        grown = peaks["ml"] - peaks["debian-min"]
        what = "peak memory: what ml takes more than debian-min, of a fifth of its bytes"
        found.append(Goal(what=what, asked=FLAT_MB, seen=grown, unit="MB"))
    return found


def _plots(rows: Sequence[Row]) -> list[Plot]:
    """Bars of each image's figures, one for each tool."""
    groups = tuple(dict.fromkeys(row.what for row in rows))
    return [
        Plot(
            name=name,
            title=f"Pull to the first prepared root: {title}",
            x="image",
            y=column,
            groups=groups,
            lines={
                tool: [
                    (groups.index(row.what), row.median(column))
                    for row in rows
                    if row.tool == tool and column in row.figures
                ]
                for tool in dict.fromkeys(row.tool for row in rows)
            },
        )
        for name, title, column in (
            ("wall", "wall time", WALL_S),
            ("synced", "wall time with a sync of the disk", SYNCED_S),
            ("cpu", "CPU time", CPU_S),
            ("disk", "space on the disk", DISK),
            ("memory", "peak memory", PEAK),
        )
    ]
