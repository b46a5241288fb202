"""Clients, one and eight, that prepare, ask for the mounts of, and remove snapshots, as hard as they can:

- ``orlop``: orlop's socket, asked directly;
- ``overlayfs``: containerd's socket, its own overlayfs snapshotter;
- ``proxy``: containerd's socket, orlop as its proxy plugin.

In turn, in rounds, on one disk, the same clients against each (bench.grpcload: processes that cost next to
nothing).  A snapshot stands on three committed ones; a life is Prepare, Mounts and Remove.  CPU is that of
the servers, containerd and the daemons, for a life; times are those of half, and 99 %, of the calls.
The disk's flushes and other people's work move all rates: read the ratios of one run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench import grpcload
from bench.measure import _tree
from bench.section import Bench, Goal, Row, Section
from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2 as pb

SERVICE = "/containerd.services.snapshots.v1.Snapshots/"
WAYS = ("orlop", "overlayfs", "proxy")
CLIENTS = int(os.environ.get("CLIENTS", "8"))
SECONDS = float(os.environ.get("SECONDS_EACH", "20"))
STEPS = ("Prepare", "Mounts", "Remove")
_NAMESPACE = {"containerd-namespace": "bench"}
_KEPT = {"containerd.io/gc.root": "2020-01-01T00:00:00Z"}  # else containerd would collect them meanwhile
_UP = 60.0


@dataclass(slots=True, kw_only=True)
class Way:
    """What came of one way with so many clients in one round; times in seconds."""

    lives: int = 0
    cpu: float = 0.0  # of the servers
    times: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})

    def percentile(self, step: str, percent: int) -> float:
        """How long the step took at most in ``percent`` of the lives."""
        times = sorted(self.times[step])
        return times[min(len(times) - 1, len(times) * percent // 100)]


def measure(bench: Bench) -> Section:
    """All ways in turn, with one client and with many."""
    place = bench.disk / "snapshots"
    place.mkdir()
    seconds = 1.5 if bench.quick else SECONDS
    crowds = (1, CLIENTS)
    rows = {
        (way, crowd): Row(what=_crowd(crowd), tool=way, durable="yes") for crowd in crowds for way in WAYS
    }
    with _Servers(place, list(WAYS)) as servers:
        for way in WAYS:
            _make_parents(*servers.asked(way))
        for number in range(bench.rounds):
            for (way, crowd), row in rows.items():
                subprocess.run(["sync", "-f", bench.disk], check=True)
                before = servers.cpu()
                found = _load(*servers.asked(way), crowd, seconds, f"{crowd}-{number}")
                found.cpu = servers.cpu() - before
                lives = max(found.lives, 1)
                row.add(**{"lives/s": found.lives / seconds, "CPU ms": found.cpu / lives * 1000})
                for step in STEPS:
                    row.add(**{f"{step} ms": found.percentile(step, 50) * 1000})
                    row.add(**{f"{step} 99 %": found.percentile(step, 99) * 1000})
                bench.say(f"round {number + 1}, {way}, {_crowd(crowd)}: {found.lives / seconds:.0f} lives/s")
    rate = {key: row.median("lives/s") for key, row in rows.items()}
    own = rate["overlayfs", CLIENTS]
    return Section(
        name="snapshots",
        title="containerd's snapshots",
        words=str(__doc__),
        rows=list(rows.values()),
        base="overlayfs",
        ratios=("lives/s", "CPU ms"),
        goals=[
            Goal(
                what=f"lives a second by {_crowd(CLIENTS)}, to overlayfs",
                asked=1.5,
                seen=rate["orlop", CLIENTS] / own,
                least=True,
            ),
            Goal(
                what=f"the same through containerd's proxy, {_crowd(CLIENTS)}",
                asked=1.0,
                seen=rate["proxy", CLIENTS] / own,
                least=True,
            ),
        ],
    )


def _crowd(clients: int) -> str:
    return "one client" if clients == 1 else f"{clients} clients"


class _Servers:
    """A containerd, and two daemons: one is asked directly, one is containerd's proxy plugin.

    Two, because a containerd's collector takes every snapshot for its own.
    """

    def __init__(self, place: Path, ways: list[str]) -> None:
        self._place = place
        self._socket = place / "c.sock"
        config = place / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{place}/c-root"\nstate = "{place}/c-state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
            f'[grpc]\naddress = "{self._socket}"\n'
            f'[proxy_plugins.orlop]\ntype = "snapshot"\naddress = "{self._daemon_socket("proxy")}"\n'
        )
        self._commands = [(self._daemon(way), self._daemon_socket(way)) for way in ways if way != "overlayfs"]
        if ways != ["orlop"]:
            self._commands.append((["containerd", "-c", os.fspath(config)], self._socket))
        self._processes: list[subprocess.Popen[bytes]] = []

    def asked(self, way: str) -> tuple[Path, str]:
        """Which socket a way asks, and for which snapshotter."""
        if way == "orlop":
            return self._daemon_socket(way), ""
        return self._socket, "overlayfs" if way == "overlayfs" else "orlop"

    def cpu(self) -> float:
        """Seconds that all have had."""
        return sum(_cpu(process.pid) for process in self._processes)

    def __enter__(self) -> Self:
        try:
            with (self._place / "servers.log").open("ab") as log:
                for command, socket in self._commands:
                    self._processes.append(
                        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                    )
                    _wait_for(socket, self._processes[-1])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _daemon_socket(self, way: str) -> Path:
        return self._place / way / "s" / "o.sock"

    def _daemon(self, way: str) -> list[str]:
        folder = self._place / way
        folder.mkdir()
        return [
            *(sys.executable, "-m", "orlop", "--root", f"{folder}/root", "--run", f"{folder}/run"),
            *("daemon", "--listen", f"unix://{self._daemon_socket(way)}"),
        ]


def _wait_for(socket: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _UP
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not come up")
        time.sleep(0.05)
    time.sleep(0.5)  # until it answers what came meanwhile


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process and its children have had."""
    ticks = 0
    for each in _tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _make_parents(socket: Path, snapshotter: str) -> None:
    """Three committed snapshots, one on the other."""
    line = grpcload.Line(os.fspath(socket), _NAMESPACE)
    parent = ""
    for number in range(3):
        key, name = f"unpacked-{number}", f"layer-{number}"
        line.call(SERVICE + "Prepare", _prepare(snapshotter, key, parent))
        commit = pb.CommitSnapshotRequest(snapshotter=snapshotter, name=name, key=key, labels=_KEPT)
        line.call(SERVICE + "Commit", commit.SerializeToString())
        parent = name
    line.close()


def _prepare(snapshotter: str, key: str, parent: str) -> bytes:
    return pb.PrepareSnapshotRequest(
        snapshotter=snapshotter, key=key, parent=parent, labels=_KEPT
    ).SerializeToString()


def _load(socket: Path, snapshotter: str, clients: int, seconds: float, name: str) -> Way:
    """Let the clients loose; what came of it."""
    command = [sys.executable, "-m", "bench.snapshots", os.fspath(socket), snapshotter, str(seconds)]
    start = str(time.monotonic() + 1.0)  # when all of them are up
    running = [
        subprocess.Popen(
            [*command, start, f"{name}-{number}"], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
        )
        for number in range(clients)
    ]
    found = Way()
    for each in running:
        said, _ = each.communicate(timeout=seconds + 300)
        if each.returncode:
            raise RuntimeError(f"a client exits with {each.returncode}")
        times = json.loads(said)
        found.lives += len(times["Remove"])
        for step in STEPS:
            found.times[step] += times[step]
    return found


def client(socket: str, snapshotter: str, seconds: float, start: float, name: str) -> None:
    """One client; writes how long its calls took."""
    line = grpcload.Line(socket, _NAMESPACE)
    times: dict[str, list[float]] = {step: [] for step in STEPS}
    time.sleep(max(0.0, start - time.monotonic()))
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        key = f"client-{name}-{number}"
        number += 1
        requests = (
            _prepare(snapshotter, key, "layer-2"),
            pb.MountsRequest(snapshotter=snapshotter, key=key).SerializeToString(),
            pb.RemoveSnapshotRequest(snapshotter=snapshotter, key=key).SerializeToString(),
        )
        for step, request in zip(STEPS, requests, strict=True):
            begun = time.perf_counter()
            line.call(SERVICE + step, request)
            times[step].append(time.perf_counter() - begun)
    line.close()
    json.dump(times, sys.stdout)


if __name__ == "__main__":
    client(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
