"""Run a command and say what it cost: wall time, CPU time of all its processes, peak memory.

CPU is that of the command and all descendants it waited for.  A daemon is in a control group of its own
(`Group`), whose CPU is counted beside it.  Memory is the sum of PSS (shared pages counted once) over the
command's process tree and the daemon's group, sampled while it runs, in a run of its own because sampling
costs time; what the page cache holds is nobody's.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE_SECONDS = 0.05
_GONE = 20.0  # seconds that a killed process may take to go
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of wall and CPU time."""

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(wall=self.wall + other.wall, cpu=self.cpu + other.cpu)


@dataclass(slots=True, kw_only=True)
class Times:
    """Wall and CPU seconds of several runs in this process, and of the workers that it keeps."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def take(self, run: Callable[[], object]) -> None:
        workers = _workers_cpu()
        before, start = _own_cpu(), time.perf_counter()
        run()
        self.walls.append(time.perf_counter() - start)
        used = _own_cpu() - before
        self.cpus.append(max(used + _workers_cpu() - workers, 0.0))

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpus)


def _own_cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _workers_cpu() -> float:
    """Of children that live, and of those that they waited for; in hundredths of a second."""
    found, todo = 0.0, [os.getpid()]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):  # ended meanwhile
            for task in os.listdir(f"/proc/{pid}/task"):  # a search of all of /proc would take too long here
                below = list(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
                todo += below
                found += sum(map(_cpu, below))
    return found


def run(command: Sequence[str]) -> Cost:
    """Run to the end; raises with the command's own words if it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exits with {done.returncode}: {done.stderr[-2000:]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Cost(wall=wall, cpu=cpu)


def peak_pss(command: Sequence[str], also: Callable[[], Iterable[int]] = tuple) -> int:
    """The highest sum of PSS seen over the command's process tree and ``also``'s processes, in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    highest = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(SAMPLE_SECONDS):
            highest = max(highest, sum(_pss(pid) for pid in {*_tree(process.pid), *also()}))

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = process.wait()
    done.set()
    sampler.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} exits with {code}")
    return highest


# ------------------------------------------------------------------ daemons


class Group:
    """A daemon and all that it starts, in a control group of their own where there are any.

    Version 2 counts CPU in every group; on a machine that has version 1 alone its ``cpuacct`` does.  Where
    there is neither, or no right to make a group, the process tree is summed: ``exact`` is False then, for
    what a short-lived grandchild used is missed if nobody waited for it.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._folder = _new_group(groups())
        enter = [] if self._folder is None else ["sh", "-c", _ENTER, "sh", f"{self._folder}/cgroup.procs"]
        try:
            with log.open("ab") as file:
                self._process = subprocess.Popen(
                    [*enter, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
                )
            while self._folder is not None and self.running and not self._members():
                time.sleep(0.001)  # until it is in its group
        except BaseException:
            self._remove()
            raise

    @property
    def exact(self) -> bool:
        return self._folder is not None

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def cpu(self) -> float:
        """Seconds of CPU that it has had so far."""
        if self._folder is None:
            return sum(map(_cpu, _tree(self._process.pid)))
        return group_cpu(self._folder)

    def pids(self) -> list[int]:
        """The processes that are in it now."""
        return _tree(self._process.pid) if self._folder is None else self._members()

    def _members(self) -> list[int]:
        return [int(word) for word in (self._folder / "cgroup.procs").read_text().split()]

    def close(self) -> None:
        """End it, by force if it does not go by itself."""
        left = set(self.pids()) if self.running else set()
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GONE)
        if self._folder is not None:  # who is in it now is certain; a tree is lost with its top
            left = set(self.pids())
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._remove()

    def _remove(self) -> None:
        until = time.monotonic() + _GONE
        while self._folder is not None:
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                self._folder = None
            except OSError:  # whoever was killed has not quite gone
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                self._folder = None


_ENTER = 'echo $$ >"$1" && shift && exec "$@"'


def groups(mounts: str | None = None) -> list[Path]:
    """Where control groups that count CPU can be made, the better first; ``mounts`` as in /proc/mounts."""
    unified, old = [], []
    for line in (Path("/proc/self/mounts").read_text() if mounts is None else mounts).splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            unified.append(Path(where))
        elif kind == "cgroup" and "cpuacct" in options.split(","):
            old.append(Path(where))
    return unified + old


def group_cpu(folder: Path) -> float:
    """Seconds of CPU that a control group has had, of either version."""
    if (folder / "cpuacct.usage").exists():
        return int((folder / "cpuacct.usage").read_text()) / 1e9
    for line in (folder / "cpu.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec":
            return int(value) / 1e6
    raise RuntimeError(f"{folder} does not count CPU")


def clear_groups(pid: int) -> None:
    """End what is left in the groups of a process that could not do so itself."""
    for folder in (found for place in groups() for found in place.glob(f"{_NAME}-{pid}-*")):
        until = time.monotonic() + _GONE
        while members := (folder / "cgroup.procs").read_text().split():
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(member), signal.SIGKILL)
            if time.monotonic() > until:
                raise RuntimeError(f"{folder}: {members} do not end")
            time.sleep(0.01)
        folder.rmdir()


_NAME = "orlop-bench"


def _new_group(places: Sequence[Path]) -> Path | None:
    for place in places:
        folder = place / f"{_NAME}-{os.getpid()}-{time.monotonic_ns()}"
        with contextlib.suppress(OSError):  # read-only, or another's
            folder.mkdir()
            return folder
    return None


# ------------------------------------------------------------------ processes and folders


def _tree(top: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended meanwhile
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [top]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def _cpu(pid: int) -> float:
    """Seconds that a process and the children it waited for have used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # ended meanwhile
    return sum(map(int, fields[11:15])) / _TICKS


def _pss(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0  # ended meanwhile
    return 0


def disk_usage(*folders: Path) -> int:
    """Bytes that folders take on their disk, as du counts them; hard links once."""
    there = [str(folder) for folder in folders if folder.exists()]
    if not there:
        return 0
    done = subprocess.run(["du", "-s", "-c", "-x", "-B1", *there], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1].split()[0])
