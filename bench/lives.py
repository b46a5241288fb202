"""Who lives in `bench.lifecycle`: the steps of a root's life by each way, and callers that take them.

Callers are threads of this process, or processes of their own, for which this module is the program.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # a caller: a process of its own
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import orlop
from bench.grpcload import Line
from bench.measure import Group, run
from bench.section import Row

IMAGE = "localhost/life:1"
UP = 60.0  # seconds that a caller or a daemon may take to come up
_KEPT = {"containerd.io/gc.root": "2020-01-01T00:00:00Z"}  # else containerd may collect it first

Life = dict[str, Callable[[], object]]  # the steps of one life, in order


@dataclass(slots=True)
class Lives:
    """What some callers did in a while; times in seconds."""

    rate: float = 0.0  # lives a second, of all callers together
    cpu: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return len(next(iter(self.times.values()), []))

    def add(self, seconds: float, other: dict[str, list[float]]) -> None:
        """What one caller did, in so many seconds."""
        for step, times in other.items():
            self.times.setdefault(step, []).extend(times)
        self.rate += len(next(iter(other.values()))) / seconds

    def into(self, row: Row) -> None:
        """One more round of a row."""
        for step, times in self.times.items():
            ordered = sorted(times)
            row.add(**{f"{step} ms": statistics.median(times) * 1000})
            row.add(**{f"{step} p99 ms": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000})
        row.add(**{"lives/s": self.rate, "CPU ms": self.cpu / max(self.number, 1) * 1000})


# ------------------------------------------------------------------ callers


def live(life: Callable[[int], Life], seconds: float) -> tuple[float, dict[str, list[float]]]:
    """One caller: lives, one after the other, for some time, at least one; how long that took."""
    begun = time.monotonic()
    times: dict[str, list[float]] = {}
    number = 0
    while not number or time.monotonic() < begun + seconds:
        for step, run_step in life(number).items():
            start = time.perf_counter()
            run_step()
            times.setdefault(step, []).append(time.perf_counter() - start)
        number += 1
    return time.monotonic() - begun, times


def store_life(store: orlop.Store, path: Path, steps: Sequence[str]) -> Callable[[int], Life]:
    made: list[orlop.Prepared] = []
    every: Life = {
        "prepare": lambda: made.append(store.prepare(IMAGE, path)),
        "mount": lambda: store.get(path).mount(),
        "unmount": lambda: store.get(path).unmount(),
        "cleanup": lambda: made.pop().cleanup(),
    }
    return lambda number: {step: every[step] for step in steps}


def command_life(base: Sequence[str], path: Path) -> Callable[[int], Life]:
    return lambda number: {
        "prepare": lambda: run([*base, "prepare", "-q", IMAGE, str(path)]),
        "mount": lambda: run([*base, "mount", str(path)]),
        "unmount": lambda: run([*base, "unmount", str(path)]),
        "cleanup": lambda: run([*base, "cleanup", str(path)]),
    }


def podman_life(base: Sequence[str], image: str, name: str) -> Callable[[int], Life]:
    return lambda number: {
        "prepare": lambda: run([*base, "create", "--name", name, image, "true"]),
        "mount": lambda: run([*base, "mount", name]),
        "unmount": lambda: run([*base, "umount", name]),
        "cleanup": lambda: run([*base, "rm", name]),
    }


def _snapshot_life(socket: str, parent: str, name: str) -> Callable[[int], Life]:
    from orlop.proto.containerd.services.snapshots.v1 import snapshots_pb2 as pb

    line = Line(socket, {"containerd-namespace": "bench"})
    service = "/containerd.services.snapshots.v1.Snapshots/"

    def life(number: int) -> Life:
        key = f"{name}-{number}"
        prepare = pb.PrepareSnapshotRequest(snapshotter="overlayfs", key=key, parent=parent, labels=_KEPT)
        remove = pb.RemoveSnapshotRequest(snapshotter="overlayfs", key=key)
        return {
            "prepare": lambda: line.call(f"{service}Prepare", prepare.SerializeToString()),
            "cleanup": lambda: line.call(f"{service}Remove", remove.SerializeToString()),
        }

    return life


def _remote_life(socket: str, path: Path) -> Callable[[int], Life]:
    """Prepare and Cleanup by orlop's gRPC, asked as containerd is in `_snapshot_life`."""
    from orlop.proto.orlop.v1 import images_pb2 as pb

    line = Line(socket, {})
    service = "/orlop.v1.Images/"
    prepare = pb.PrepareRootRequest(name=IMAGE, path=str(path)).SerializeToString()
    cleanup = pb.CleanupRequest(path=str(path)).SerializeToString()
    return lambda number: {
        "prepare": lambda: line.call(f"{service}PrepareRoot", prepare),
        "cleanup": lambda: line.call(f"{service}Cleanup", cleanup),
    }


def _caller(asked: dict[str, str]) -> None:
    """This process as one caller: when it is told to, lives for some time; says times and CPU."""
    kind, name = asked["kind"], asked["name"]
    with ExitStack() as stack:
        if kind == "containerd":
            life = _snapshot_life(asked["socket"], asked["parent"], name)
        elif kind == "gRPC":
            life = _remote_life(asked["socket"].removeprefix("unix://"), Path(asked["paths"]) / name)
        else:
            opened = (
                orlop.connect(asked["socket"])
                if kind == "client"
                else orlop.open(asked["root"], asked["run"])
            )
            store = stack.enter_context(opened)
            life = store_life(store, Path(asked["paths"]) / name, asked["steps"].split())
        for run_step in life(-1).values():  # imports and first calls are not at issue
            run_step()
        print("ready", flush=True)
        sys.stdin.readline()
        before = cpu_used()
        seconds, times = live(life, float(asked["seconds"]))
        print(json.dumps([cpu_used() - before, seconds, times]), flush=True)


def cpu_used() -> float:
    """Seconds of CPU of this process and the children it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def processes(asked: dict[str, str], callers: int, seconds: float, server: Group | None) -> Lives:
    """So many processes of `_caller`, side by side, that begin when all are ready."""
    found = Lives()
    started: list[subprocess.Popen[str]] = []
    try:
        for number in range(callers):
            words = json.dumps(asked | {"name": f"p{number}", "seconds": str(seconds)})
            command = [sys.executable, __file__, words]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a caller of {asked['kind']} does not come up")
        served = server.cpu() if server else 0.0
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            said, _ = process.communicate(timeout=seconds + UP)
            if process.returncode:
                raise RuntimeError(f"a caller of {asked['kind']} exits with {process.returncode}")
            cpu, took, times = json.loads(said)
            found.cpu += cpu
            found.add(took, times)
        found.cpu += server.cpu() - served if server else 0.0
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    return found


def threads(lives: Sequence[Callable[[int], Life]], seconds: float) -> Lives:
    """So many threads of this process, side by side."""
    found, before = Lives(), cpu_used()
    results: list[tuple[float, dict[str, list[float]]]] = []
    callers = [
        threading.Thread(target=lambda life=life: results.append(live(life, seconds))) for life in lives
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if len(results) != len(lives):
        raise RuntimeError("a caller failed")
    found.cpu = cpu_used() - before
    for took, times in results:
        found.add(took, times)
    return found


if __name__ == "__main__":
    _caller(json.loads(sys.argv[1]))
