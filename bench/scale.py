"""How cost grows: with what a store holds, and with an image's layers, entries and bytes, and with cores.

**A store with very much in it** stands beside one with one image; it is filled by `bench.filling`.  What is
done there is done with real, small images, in both stores in turn.  What a call is about should cost the same
in both; what reads the whole store, a list or a collection, has its µs a thing.

**Curves** are of images made for that: many layers of one file each; many empty entries in one layer; one
file of many bytes; and, of cores, one image imported by commands that may use one or two.  Work is linear
in its own size where the power that cost grows with, between the last two points, is at most about 1; below
it, what is the same for every size shows.  What is looked at again (a second prepare, cleanup, inspect)
should not grow with entries or bytes at all.  Wall times stand in the plots; CPU (of workers, too), which
others disturb less, in the goals, of which each names the worst of its kind.  Memory is the highest sum of
PSS over a command that imports and its workers, in a run of its own.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import orlop
from bench import lab
from bench.filling import LAYERS_EACH, Filling
from bench.measure import Times, peak_pss, run
from bench.section import Bench, Goal, Plot, Row, Section
from orlop.testing.layers import Layer, write_layout

IMAGES, ROOTS = 10_000, 100_000
QUICK_IMAGES, QUICK_ROOTS = 300, 1_000
REAL = "localhost/real:1"
LAYERS = (1, 5, 20, 60, 500)
ENTRIES = (1_000, 10_000, 100_000, 300_000)
MEGABYTES = (1, 10, 100, 1_000)
MEMORY_MB, AT_ENTRIES = 150.0, 100_000  # asked of an import's memory
FLAT_MB = 20.0  # what ten times the bytes may add to it
LINEAR = 1.1  # the power asked of work that grows with its own size
NOT_MORE = 1.5  # the ratio asked of what should not grow; single calls of a few ms are noisy
SAME = 1.1  # the ratio asked of what does not look at the whole store
EMPTY, BIG = "orlop, empty store", "orlop, big store"
_GROWING = ("import", "first prepare", "check", "rmi")
_WHOLE = ("images()", "prepared()", "prepared(), one mounted", "gc --dry-run", "gc")


def measure(bench: Bench) -> Section:
    """Both, as one table."""
    rows, goals = _stores(bench)
    plots = []
    for name, sizes, make in (
        ("layers", LAYERS[:4] if bench.quick else LAYERS, _layers),
        ("entries", ENTRIES[:2] if bench.quick else ENTRIES, _entries),
        ("megabytes", MEGABYTES[:2] if bench.quick else MEGABYTES, _bytes),
    ):
        curve = _curve(bench, name, sizes, make)
        rows += curve.rows
        goals += curve.goals()
        plots += curve.plots()
    cores = _cores(bench)
    rows += cores
    plots.append(_cores_plot(cores))
    return Section(
        name="scale",
        title="How cost grows",
        words=str(__doc__),
        rows=rows,
        base=EMPTY,
        ratios=("wall ms", "CPU ms"),
        goals=goals,
        plots=plots,
    )


# ------------------------------------------------------------------ a store with very much in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One store, and the layouts that are imported there."""

    kind: str
    root: Path
    run: Path
    work: Path
    layouts: Path

    @property
    def path(self) -> Path:
        return self.work / "root"

    def open(self) -> orlop.Store:
        return orlop.open(self.root, self.run)


class _Steps:
    """Rows by what is done and where."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}

    def take(self, what: str, tool: str, step: Callable[[], object], things: int = 0) -> None:
        """Once more.  ``things`` is how much a list had to show, or a collection to look at."""
        row = self.rows.setdefault((what, tool), Row(what=what, tool=tool))
        times = Times()
        times.take(step)
        row.add(wall_ms=times.wall * 1000, CPU_ms=times.cpu * 1000)
        if things:
            row.add(**{"CPU µs a thing": times.cpu / things * 1e6})


def _stores(bench: Bench) -> tuple[list[Row], list[Goal]]:
    images, roots = (QUICK_IMAGES, QUICK_ROOTS) if bench.quick else (IMAGES, ROOTS)
    layouts = bench.disk / "layouts"
    _write_layouts(layouts, bench.rounds)
    places = []
    for name, kind in (("empty", EMPTY), ("big", BIG)):
        work = bench.disk / f"{name}-work"
        work.mkdir()
        place = Place(
            kind=kind, root=bench.disk / name, run=bench.disk / f"{name}-run", work=work, layouts=layouts
        )
        with place.open() as store:
            store.load(layouts / "real", name=REAL)
            store.prepare(REAL, place.work / "kept")  # in both, its chain is in use by others
            if kind == BIG:
                start = time.perf_counter()
                Filling(store, place.root, REAL).add(images=images, roots=roots)
                bench.say(f"{images} images, {roots} roots in {time.perf_counter() - start:.0f} s")
        places.append(place)
    lab.settle()
    steps = _Steps()
    for number in range(bench.rounds):
        _round(places, number, steps, images=images, roots=roots)
        bench.say(f"stores, round {number + 1}: done")
    for row in steps.rows.values():
        bench.say(f"{row.what}, {row.tool}: {row.median('wall ms'):.1f} ms")
    beside = {what: _beside(steps, what) for what, tool in steps.rows if tool == BIG and what not in _WHOLE}
    goals = [
        Goal(what=f"{what}, big store to empty (CPU)", asked=SAME, seen=beside.pop(what))
        for what in ("prepare", "cleanup")
    ]
    worst = max(beside, key=beside.__getitem__)
    about = f"all other calls about one thing, big store to empty (CPU); the worst is {worst}"
    goals.append(Goal(what=about, asked=SAME, seen=beside[worst]))
    for place in places:
        subprocess.run(["rm", "-rf", place.root], check=True)
    return list(steps.rows.values()), goals


def _beside(steps: _Steps, what: str) -> float:
    return steps.rows[what, BIG].median("CPU ms") / steps.rows[what, EMPTY].median("CPU ms")


def _write_layouts(folder: Path, rounds: int) -> None:
    base = Layer().folder("etc").file("etc/motd", b"hello\n" * 100)
    folder.mkdir()
    write_layout(folder / "real", [base.tar(), Layer().file("a", b"a").tar()])
    for number in range(rounds):  # removed again in each round, so each round has its own
        write_layout(folder / str(number), [base.tar(), Layer().file("n", str(number).encode()).tar()])


def _round(places: list[Place], number: int, steps: _Steps, *, images: int, roots: int) -> None:
    """All steps once or several times, each in one store and then in the other."""
    everything = images * (LAYERS_EACH + 4) + roots  # layers, names, chains, two documents; roots

    def take(what: str, step: Callable[[Place, orlop.Store], object], things: int = 0) -> None:
        for place, store in opened:
            known = things if place.kind == BIG else 0
            steps.take(what, place.kind, lambda place=place, store=store: step(place, store), known)

    with ExitStack() as stack:
        opened = [(place, stack.enter_context(place.open())) for place in places]
        for place, store in opened:
            store.info()  # the probes of a process's first call are not at issue
            store.prepare(REAL, place.path).cleanup()
        for _ in range(10):
            take("open, in this process", lambda place, _: place.open().close())
            take("info", lambda _, store: store.info())
            take("inspect", lambda _, store: store.inspect(REAL))
            take("tag", lambda _, store: store.tag(REAL, "localhost/tag:1"))
            take("rmi of a further name", lambda _, store: store.remove("localhost/tag:1"))
            take("prepare", lambda place, store: store.prepare(REAL, place.path))
            take("mounts", lambda place, store: store.verbs.mounts(str(place.path)))
            take("cleanup", lambda place, store: store.get(place.path).cleanup())
        take(
            "orlop inspect, a new process",
            lambda place, _: run([*_program(place.root, place.run), "inspect", REAL]),
        )
        take("images()", lambda _, store: store.images(), images)
        take("prepared()", lambda _, store: store.prepared(), roots)
        for turn in range(3):
            take("prepare, mounted", lambda place, store: store.prepare(REAL, place.path, mount=True))
            for place, _ in opened:
                (place.path / "new").write_text(f"new {turn}")
            take("commit", lambda place, store: store.get(place.path).commit("localhost/committed:1"))
            take("prepared(), one mounted", lambda _, store: store.prepared(), roots)
            take("cleanup, mounted", lambda place, store: store.get(place.path).cleanup())
        for _, store in opened:
            store.remove("localhost/committed:1")
        take("import", lambda place, store: store.load(place.layouts / str(number), name="localhost/n:1"))
        take("rmi of an image with a layer of its own", lambda _, store: store.remove("localhost/n:1"))
        take("gc --dry-run", lambda _, store: store.collect(dry_run=True), everything)
        take("gc", lambda _, store: store.collect(), everything)


# ------------------------------------------------------------------ curves


def _layers(folder: Path, count: int) -> None:
    tars = (Layer().folder(f"d{k}").file(f"d{k}/file", b"%d" % k).tar() for k in range(count))
    write_layout(folder, list(tars))


def _entries(folder: Path, count: int) -> None:
    layer = Layer()
    for number in range(count // 100):
        layer.folder(f"d{number}")
        for k in range(99):
            layer.file(f"d{number}/file-{k}", b"")
    write_layout(folder, [layer.tar()])


def _bytes(folder: Path, megabytes: int) -> None:
    """Half of it does not compress, as in most images."""
    block = os.urandom(500_000) + b"text" * 125_000
    layer = Layer()
    for number in range(max(1, megabytes // 50)):
        layer.file(f"file-{number}", block * min(megabytes, 50))
    write_layout(folder, [layer.tar()])


class _Curve:
    """What was done with images of several sizes."""

    def __init__(self, name: str, sizes: Iterable[int]) -> None:
        self._name = name
        self._sizes = tuple(sizes)
        self._steps = _Steps()
        self._memory: dict[int, Row] = {}

    @property
    def rows(self) -> list[Row]:
        timed = sorted(self._steps.rows.values(), key=lambda row: row.what.partition(",")[0])
        return [*timed, *self._memory.values()]

    def take(self, what: str, size: int, step: Callable[[], object]) -> None:
        self._steps.take(self._what(what, size), "orlop", step)

    def goals(self) -> list[Goal]:
        """How cost grows between the two largest: the worst of what grows, and of what should not."""
        first, last = self._sizes[-2:]
        ratios = {
            what: self._median(what, last, "CPU ms") / max(self._median(what, first, "CPU ms"), 0.01)
            for what in self._kinds()
        }
        worst = max(_GROWING, key=ratios.__getitem__)
        power = math.log(ratios[worst]) / math.log(last / first)
        about = f"power that work grows with by {self._name}; the worst is {worst}"
        found = [Goal(what=about, asked=LINEAR, seen=power)]
        if self._name != "layers":  # these are looked at one by one
            worst = max((what for what in ratios if what not in _GROWING), key=ratios.__getitem__)
            about = f"all else, {last:,} {self._name} to {first:,}; the worst is {worst}"
            found.append(Goal(what=about, asked=NOT_MORE, seen=ratios[worst]))
        if self._name == "entries":
            size = max(size for size in self._sizes if size <= AT_ENTRIES)
            about = f"memory of an import of {size:,} entries"
            found.append(Goal(what=about, asked=MEMORY_MB, seen=self._peak(size), unit="MB"))
        if self._name == "megabytes":
            about = f"memory of an import: what {last:,} MB take more than {first:,}"
            more = self._peak(last) - self._peak(first)
            found.append(Goal(what=about, asked=FLAT_MB, seen=more, unit="MB"))
        return found

    def remember(self, size: int, peak: int) -> None:
        """How much memory an import took."""
        what = self._what("import by a command", size)
        self._memory[size] = Row(what=what, tool="orlop, command line")
        self._memory[size].add(peak_MB=peak / 1e6)

    def _peak(self, size: int) -> float:
        return self._memory[size].median("peak MB")

    def plots(self) -> list[Plot]:
        memory = Plot(
            name=f"scale-{self._name}-memory",
            title=f"Memory of an import by {self._name}",
            x=self._name,
            y="peak MB",
            log=True,
            lines={"import, parent and workers": [(size, self._peak(size)) for size in self._sizes]},
        )
        return [self._walls(), memory]

    def _walls(self) -> Plot:
        return Plot(
            name=f"scale-{self._name}",
            title=f"Cost by {self._name}",
            x=self._name,
            y="wall ms",
            log=True,
            lines={
                what: [(size, self._median(what, size, "wall ms")) for size in self._sizes]
                for what in self._kinds()
            },
        )

    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(what.partition(",")[0] for what, _ in self._steps.rows))

    def _what(self, what: str, size: int) -> str:
        return f"{what}, {size:,} {self._name}"

    def _median(self, what: str, size: int, column: str) -> float:
        return self._steps.rows[self._what(what, size), "orlop"].median(column)


def _curve(bench: Bench, name: str, sizes: Iterable[int], make: Callable[[Path, int], None]) -> _Curve:
    curve = _Curve(name, sizes)
    layouts = {size: bench.disk / f"{name}-{size}" for size in sizes}
    for size, layout in layouts.items():
        make(layout, size)
    for number in range(bench.rounds):
        for size, layout in layouts.items():
            lab.settle()
            _one_size(bench.disk, layout, lambda what, step, size=size: curve.take(what, size, step))
        bench.say(f"{name}, round {number + 1}: done")
    for size, layout in layouts.items():
        root, where = bench.disk / "memory", bench.disk / "memory-run"
        peak = peak_pss([*_program(root, where), "import", str(layout), "localhost/memory:1"])
        curve.remember(size, peak)
        subprocess.run(["rm", "-rf", root, where], check=True)
        shutil.rmtree(layout)
    return curve


def _one_size(disk: Path, layout: Path, take: Callable[[str, Callable[[], object]], None]) -> None:
    """All that is done with an image, in a store of its own."""
    name, path = "localhost/size:1", disk / "size-root"
    with orlop.open(disk / "size", disk / "size-run") as store:
        store.info()
        take("import", lambda: store.load(layout, name=name))
        take("first prepare", lambda: store.prepare(name, path))
        for _ in range(3):
            other = disk / "size-other"
            take("prepare", lambda other=other: store.prepare(name, other))
            take("cleanup", lambda other=other: store.get(other).cleanup())
            take("inspect", lambda: store.inspect(name))
        store.get(path).mount()
        (path / "new").write_text("new")
        take("commit", lambda: store.get(path).commit("localhost/size:2"))
        take("prepare of the commit", lambda: store.prepare("localhost/size:2", disk / "size-other"))
        store.get(disk / "size-other").cleanup()
        store.get(path).cleanup()
        take("check", store.check)
        store.remove("localhost/size:2")
        take("rmi", lambda: store.remove(name))
        store.collect()
    subprocess.run(["rm", "-rf", disk / "size"], check=True)


# ------------------------------------------------------------------ cores


def _cores(bench: Bench) -> list[Row]:
    (image,) = lab.choose(bench.images, quick=bench.quick, default=["python-app"])[:1]
    cores = sorted(os.sched_getaffinity(0))
    rows = {count: Row(what=f"import of {image}, {count} cores", tool="orlop") for count in (1, 2)}
    for _ in range(bench.rounds):
        for count, row in rows.items():
            if count > len(cores):
                continue
            root, where = bench.disk / "cores", bench.disk / "cores-run"
            lab.settle()
            on = ["taskset", "-c", ",".join(map(str, cores[:count]))]
            cost = run([*on, *_program(root, where), "import", str(lab.layout(image)), "localhost/cores:1"])
            row.add(wall_ms=cost.wall * 1000, CPU_ms=cost.cpu * 1000)
            subprocess.run(["rm", "-rf", root, where], check=True)
    return [row for row in rows.values() if row.figures]


def _cores_plot(rows: list[Row]) -> Plot:
    return Plot(
        name="scale-cores",
        title="An import by cores",
        x="cores",
        y="ms",
        groups=tuple(map(str, range(1, len(rows) + 1))),
        lines={
            kind: [(number, row.median(f"{kind} ms")) for number, row in enumerate(rows)]
            for kind in ("wall", "CPU")
        },
    )


def _program(root: Path, where: Path) -> list[str]:
    return [sys.executable, "-m", "orlop", "--root", str(root), "--run", str(where)]
