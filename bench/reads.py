"""What programs see inside a root: orlop's EROFS beside overlayfs over plain folders, and the page cache.

The folders are those of orlop's own overlay driver: each layer unpacked, as podman and containerd have them,
on the same disk.  Both have the same kind of overlay on top.  Three states, each measured in turn:

- cold: as after a boot.  Nothing is mounted, all caches are dropped, and the time is that of the mount and
  of the work.  The loop device reads its file directly, where that is possible, so that nothing of the disk
  is cached below; what the host of a virtual machine caches is out of reach.
- pulled: cold, but what the tool wrote when it pulled is in the page cache: the layers' tars and the EROFS
  image, or the files in the folders.  ``tar dropped`` is orlop if it dropped the tars once they are durable.
- warm: mounted, and the same work was done before.

``directio`` is orlop with that setting: layers are read past the page cache.  Ratios are to the folders.  A
goal's ratio is the median of those of the rounds, each of two measurements next to one another.
"""

from __future__ import annotations

import statistics

from bench import lab
from bench import measure as measuring
from bench.pagecache import shared, ten_roots
from bench.reading import Work, file_works, programs
from bench.section import Bench, Goal, Row, Section
from bench.ways import DIRECT, DROPPED, FOLDERS, ORLOP, Ways

__all__ = ["measure"]

DEFAULT = ("python-app", "node-many")
WALL, CPU = "wall ms", "CPU ms"
COLD, PULLED, WARM = "cold", "pulled", "warm"
_ASKED = {"random": 1.1}  # of the folders' time; what is not named may be no slower
_TOOLS: dict[str, tuple[str, ...]] = {
    COLD: (ORLOP, DIRECT, FOLDERS),
    PULLED: (ORLOP, DROPPED, FOLDERS),
    WARM: (ORLOP, DIRECT, FOLDERS),
}


def measure(bench: Bench) -> Section:
    """Every image: programs, files, and ten roots in memory."""
    rows: list[Row] = []
    goals: list[Goal] = []
    for image in lab.choose(bench.images, quick=bench.quick, default=DEFAULT):
        with Ways(bench.disk / image, image) as ways:
            files = ways.files()
            started = programs(image)[: 1 if bench.quick else None]
            works = [*started, *file_works(files, quick=bench.quick)]
            for work in works:
                _one(bench, image, work, ways, rows, goals)
            found = ten_roots(image, ways, files)
            rows += found
            what = f"{image}: what each of ten roots has in memory for itself"
            goals.append(Goal(what=what, asked=0.01, seen=shared(found[0])))
    return Section(
        name="reads",
        title="Inside a root",
        words=str(__doc__),
        rows=rows,
        base=FOLDERS,
        ratios=(WALL, CPU),
        goals=goals,
    )


def _one(bench: Bench, image: str, work: Work, ways: Ways, rows: list[Row], goals: list[Goal]) -> None:
    """One kind of work in all states."""
    for state in (COLD, PULLED, WARM) if work.program else (COLD, WARM):
        tools = _TOOLS[state] if work.program or work.name.startswith("random") else (ORLOP, FOLDERS)
        what = f"{image}: {work.name}, {state}"
        found = {tool: Row(what=what, tool=tool) for tool in tools}
        if state == WARM:
            for tool in tools:
                work.run(ways.mount(tool))
        for number in range(_rounds(bench, work, state)):
            for tool in tools if number % 2 else tools[::-1]:
                _add(found[tool], work, ways, tool, state)
        rows += found.values()
        beside = found[FOLDERS].figures[WALL]
        seen = statistics.median(
            ours / theirs for ours, theirs in zip(found[ORLOP].figures[WALL], beside, strict=True)
        )
        bench.say(f"{what}: {seen:.2f} of the folders' {found[FOLDERS].median(WALL):.0f} ms")
        if work.goal:
            asked = _ASKED.get(work.name.partition(" ")[0], 1.0)
            goals.append(Goal(what=f"{what}, beside folders", asked=asked, seen=seen))


def _rounds(bench: Bench, work: Work, state: str) -> int:
    if bench.quick:
        return 2 if work.goal else 1
    if state == WARM:
        return 4 * bench.rounds + 1
    return 2 * bench.rounds + 1 if work.goal else bench.rounds


def _add(row: Row, work: Work, ways: Ways, tool: str, state: str) -> None:
    times = measuring.Times()
    if state == WARM:
        root = ways.mount(tool)
        times.take(lambda: work.run(root))
    else:
        ways.cold(tool)
        if state == PULLED:
            ways.as_pulled(tool)
        work.ready()
        times.take(lambda: work.run(ways.mount(tool)))
    row.add(wall_ms=times.wall * 1000, CPU_ms=times.cpu * 1000)
