"""A root's life in a store: prepare, mount, unmount, cleanup, by every way to ask for it.

The image is in the store, and another root of it stays prepared meanwhile, as where many roots stand on one
image; `alone` is without that one, so each life activates the image's chain and puts it away again.  Ways
are the library (callers are threads of one process, or processes), gRPC (one daemon; callers are processes)
and the command line (a process for each step).  Beside them are containerd's own overlayfs snapshotter, asked
through its socket (Prepare and Remove; nothing is mounted), and podman's command line (create and mount,
umount and rm).  orlop's results are durable, and so is what containerd's database says.

``gRPC`` and ``containerd`` are asked by the same client, which costs next to nothing (bench.grpcload): the
servers are compared, and not who asks.  ``gRPC, Python client`` is orlop's own client, as its users have it.

The stores with 1,000 and 100,000 roots are filled by `bench.filling`: rows by the functions that prepare
uses, and folders.  A step's figures are the times that half of the calls, and 99 % of them, took at most;
``lives/s`` counts all callers together, ``CPU ms`` is what callers and servers used for a life.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orlop
from bench import lab, peers
from bench.filling import Filling
from bench.lives import (
    IMAGE,
    UP,
    Lives,
    command_life,
    cpu_used,
    live,
    podman_life,
    processes,
    store_life,
    threads,
)
from bench.measure import Group, run
from bench.section import BEST, Bench, Goal, Plot, Row, Section
from orlop.testing.layers import Layer, write_layout

LIBRARY_MS = 0.5  # asked of Prepare and of Cleanup
GRPC_ONE, GRPC_RATE = 0.5, 3.0  # asked of both by gRPC, to containerd's: time of one caller, rate of eight
SAME = 1.1  # asked of a store with many roots, to one with one
MANY = (1, 1_000, 100_000)
LAYERS = (1, 60, 500)
CALLERS = 8
SHORT, WHOLE = ("prepare", "cleanup"), ("prepare", "mount", "unmount", "cleanup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A store with the image, of which a root stays prepared; ``paths`` is where the others come."""

    root: Path
    run: Path
    paths: Path

    def open(self) -> orlop.Store:
        return orlop.open(self.root, self.run)

    @property
    def words(self) -> dict[str, str]:
        return {"root": str(self.root), "run": str(self.run), "paths": str(self.paths)}


def _place(disk: Path, name: str, layout: Path, *, keep: bool = True, roots: int = 0) -> Place:
    place = Place(root=disk / name, run=disk / f"{name}-run", paths=disk / f"{name}-roots")
    place.paths.mkdir()
    with place.open() as store:
        store.load(layout, name=IMAGE)
        kept = store.prepare(IMAGE, place.paths / "kept")
        if not keep:
            kept.cleanup()
        if roots:
            Filling(store, place.root, IMAGE).add(roots=roots)
    return place


def _layout(folder: Path, layers: int) -> Path:
    """An image with so many layers, of a file each."""
    tars = [Layer().folder(f"d{k}").file(f"d{k}/file", b"%d" % k).tar() for k in range(layers)]
    write_layout(folder, tars)
    return folder


@contextmanager
def _daemon(place: Place) -> Iterator[tuple[Group, str]]:
    socket = place.root.with_name(f"{place.root.name}-s") / "o.sock"
    where = ["--root", str(place.root), "--run", str(place.run)]
    command = [sys.executable, "-m", "orlop", *where, "daemon", "--listen", f"unix://{socket}"]
    daemon = Group(command, log=place.root.with_name("daemon.log"))
    try:
        deadline = time.monotonic() + UP
        while not socket.exists():
            if not daemon.running or time.monotonic() > deadline:
                raise RuntimeError("the daemon does not come up: see daemon.log")
            time.sleep(0.05)
        yield daemon, f"unix://{socket}"
    finally:
        daemon.close()


# ------------------------------------------------------------------ measuring


class _Table:
    """Rows by what and tool; each measurement is a round more."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.rows: dict[tuple[str, str], Row] = {}

    def take(self, what: str, tool: str, lives: Lives, durable: str = "yes") -> None:
        row = self.rows.setdefault((what, tool), Row(what=what, tool=tool, durable=durable))
        lives.into(row)
        said = ", ".join(f"{step} {statistics.median(t) * 1000:.2f} ms" for step, t in lives.times.items())
        self._bench.say(f"{what}, {tool}: {said}; {lives.rate:.1f}/s")

    def median(self, what: str, tool: str, column: str) -> float:
        return self.rows[what, tool].median(column)


LIBRARY, GRPC = "orlop, library", "orlop, gRPC"
CLIENT = f"{GRPC}, Python client"


def _in_turn(places: Mapping[str, Place], steps: Sequence[str], seconds: float) -> dict[str, Lives]:
    """A life in one store, then in the next: what disturbs one disturbs all."""
    found = {what: Lives() for what in places}
    spent = dict.fromkeys(places, 0.0)
    with ExitStack() as stack:
        lives = {}
        for what, place in places.items():
            lives[what] = store_life(stack.enter_context(place.open()), place.paths / "one", steps)
            live(lives[what], 0.0)
        until = time.monotonic() + seconds * len(places)
        while not found[what].number or time.monotonic() < until:
            for what, life in lives.items():
                before = cpu_used()
                took, times = live(life, 0.0)
                found[what].cpu += cpu_used() - before
                found[what].add(took, times)
                spent[what] += took
    for what, lived in found.items():
        lived.rate = lived.number / spent[what]
    return found


def measure(bench: Bench) -> Section:
    """All, as one table."""
    table = _Table(bench)
    image = lab.layout("debian-min")
    seconds = 0.4 if bench.quick else 3.0
    many = MANY[:2] if bench.quick else MANY
    layers = LAYERS[:2] if bench.quick else LAYERS
    stores = {roots: _place(bench.disk, f"roots-{roots}", image, roots=roots - 1) for roots in many}
    chains = {
        f"{count} layers{', alone' if alone else ''}": _place(
            bench.disk,
            f"layers-{count}{alone}",
            _layout(bench.disk / f"layout-{count}{alone}", count),
            keep=not alone,
        )
        for count in layers
        for alone in ((False,) if bench.quick else (False, True))
    }
    bench.say(
        f"stores with {', '.join(map(str, many))} roots, images of {', '.join(map(str, layers))} layers"
    )
    with ExitStack() as stack:
        ways = _Ways(bench, stores[1], image, stack)
        for _ in range(bench.rounds):
            lab.settle()
            ways.measure(table, seconds)
            places = {f"{roots:,} roots": place for roots, place in stores.items()}
            for group in (places, chains):
                for steps, more in ((SHORT, ""), (WHOLE, ", all four steps")):
                    for what, lives in _in_turn(group, steps, seconds).items():
                        table.take(f"{what}{more}", LIBRARY, lives)
            for roots, place in stores.items():
                ways.served(table, place, f"{roots:,} roots", seconds)
    return _section(table, many, layers)


class _Ways:
    """Every way to ask for a life of the same image, by one caller and by eight."""

    def __init__(self, bench: Bench, place: Place, image: Path, stack: ExitStack) -> None:
        self._place = place
        self._server, self._socket = stack.enter_context(_daemon(place))
        script = Path(sys.executable).with_name("orlop")
        program = [str(script)] if script.exists() else [sys.executable, "-m", "orlop"]
        self._command = [*program, "--root", str(place.root), "--run", str(place.run)]
        self._podman: list[str] = []
        if shutil.which("podman"):
            where = ["--root", f"{bench.disk}/podman", "--runroot", f"{bench.disk}/podman-run"]
            self._podman = ["podman", *where, "--storage-driver", "overlay"]
            done = subprocess.run(
                [*self._podman, "pull", "-q", f"oci:{image}"], capture_output=True, text=True, check=True
            )
            self._podman_image = done.stdout.split()[-1]
            stack.callback(peers.unmount_below, bench.disk / "podman")
        self._containerd: peers.Containerd | None = None
        if shutil.which("containerd") and shutil.which("ctr"):
            daemon = self._containerd = peers.Containerd(bench.disk, "life containerd", config=peers.CONFIG)
            stack.callback(daemon.end)
            daemon.begin()
            for command in daemon.pull("debian-min"):
                run(command)

    def served(self, table: _Table, place: Place, what: str, seconds: float) -> None:
        """A store by gRPC, one caller; the daemon of the first one is there."""
        with contextlib.ExitStack() as stack:
            server, socket = self._server, self._socket
            if place is not self._place:
                server, socket = stack.enter_context(_daemon(place))
            asked = place.words | {"kind": "gRPC", "socket": socket, "steps": " ".join(SHORT)}
            table.take(what, GRPC, processes(asked, 1, seconds, server))

    def measure(self, table: _Table, seconds: float) -> None:
        """One round."""
        place = self._place
        with place.open() as store:
            for callers in (1, CALLERS):
                lives = [store_life(store, place.paths / f"t{k}", WHOLE) for k in range(callers)]
                threads(lives[:1], 0.0)
                table.take(_whole(callers), f"{LIBRARY}, threads", threads(lives, seconds))
                short = [store_life(store, place.paths / f"t{k}", SHORT) for k in range(callers)]
                table.take(_short(callers), f"{LIBRARY}, threads", threads(short, seconds))
        for callers in (1, CALLERS):
            asked = place.words | {"kind": "library", "steps": " ".join(SHORT)}
            if callers > 1:
                table.take(_short(callers), f"{LIBRARY}, processes", processes(asked, callers, seconds, None))
            remote = asked | {"kind": "gRPC", "socket": self._socket}
            table.take(_short(callers), GRPC, processes(remote, callers, seconds, self._server))
            client = remote | {"kind": "client"}
            table.take(_short(callers), CLIENT, processes(client, callers, seconds, self._server))
            whole = client | {"steps": " ".join(WHOLE)}
            table.take(_whole(callers), CLIENT, processes(whole, callers, seconds, self._server))
            if self._containerd is not None:
                parent = peers.chain_id(lab.diff_ids("debian-min"))
                peer = {"kind": "containerd", "socket": self._containerd.socket, "parent": parent}
                lives = processes(peer, callers, seconds, self._containerd.daemon)
                table.take(_short(callers), "containerd", lives)
            commands = [command_life(self._command, place.paths / f"c{k}") for k in range(callers)]
            table.take(_commands(callers), "orlop, command line", threads(commands, seconds))
            if self._podman:
                podman = [podman_life(self._podman, self._podman_image, f"c{k}") for k in range(callers)]
                table.take(_commands(callers), "podman", threads(podman, seconds), durable="no")


def _callers(number: int) -> str:
    return "1 caller" if number == 1 else f"{number} callers"


def _short(callers: int) -> str:
    return f"prepare, cleanup; {_callers(callers)}"


def _whole(callers: int) -> str:
    return f"all four steps; {_callers(callers)}"


def _commands(callers: int) -> str:
    return f"all four steps by commands; {_callers(callers)}"


def _beside_containerd(table: _Table) -> list[Goal]:
    """Through orlop's own gRPC; both are asked by a caller that costs next to nothing."""
    ours, theirs = (
        sum(table.median(_short(1), tool, f"{step} ms") for step in SHORT) for tool in (GRPC, "containerd")
    )
    rates = [table.median(_short(CALLERS), tool, "lives/s") for tool in (GRPC, "containerd")]
    what = "by orlop's own gRPC, to containerd's snapshotter"
    return [
        Goal(what=f"prepare and cleanup {what}, one caller", asked=GRPC_ONE, seen=ours / theirs),
        Goal(what=f"lives/s {what}, eight callers", asked=GRPC_RATE, seen=rates[0] / rates[1], least=True),
    ]


def _section(table: _Table, many: Sequence[int], layers: Sequence[int]) -> Section:
    goals = []
    for step in SHORT:
        column = f"{step} ms"
        one = table.median("1 roots", LIBRARY, column)
        goals.append(Goal(what=f"{step} in the library", asked=LIBRARY_MS, seen=one, unit="ms"))
        for tool in (LIBRARY, GRPC):
            most, few = (table.median(f"{number:,} roots", tool, column) for number in (many[-1], many[0]))
            way = tool.removeprefix("orlop, ")
            what = f"{step} with {many[-1]:,} roots, to {many[0]}, {way}"
            goals.append(Goal(what=what, asked=SAME, seen=most / few))
    with contextlib.suppress(KeyError):  # where there is no containerd
        goals += _beside_containerd(table)

    def points(name: Callable[[int], str], numbers: Sequence[int], step: str) -> list[tuple[float, float]]:
        return [(number, table.median(name(number), LIBRARY, f"{step} ms")) for number in numbers]

    return Section(
        name="lifecycle",
        title="A root's life",
        words=str(__doc__),
        rows=list(table.rows.values()),
        base=BEST,
        ratios=("lives/s", "CPU ms"),
        goals=goals,
        plots=[
            Plot(
                name="lifecycle-roots",
                title="A life beside many roots",
                x="prepared roots in the store",
                y="ms",
                log=True,
                lines={
                    f"{step}, {tool.removeprefix('orlop, ')}": [
                        (number, table.median(f"{number:,} roots", tool, f"{step} ms")) for number in many
                    ]
                    for tool in (LIBRARY, GRPC)
                    for step in SHORT
                },
            ),
            Plot(
                name="lifecycle-layers",
                title="A life of an image with many layers",
                x="layers",
                y="ms",
                log=True,
                lines={
                    f"{step}{alone}": points(lambda n, alone=alone: f"{n} layers{alone}", layers, step)
                    for step in SHORT
                    for alone in ("", ", alone")
                    if (f"{layers[0]} layers{alone}", LIBRARY) in table.rows
                },
            ),
        ],
    )
