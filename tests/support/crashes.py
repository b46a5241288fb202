"""Trials of dying: a process does one thing to a store and is killed; another looks at what is left.

    with Trials(folder, host, layout) as trials:
        for at in each(trials.recorded("pull")):
            trials.kill("pull", at)

A warm process that has imported orlop and has one thread forks a child for each step, because a Python takes
longer to start than most steps do.  Children use one worker template, the real one, which outlives them.
Every child is ended within `LIMIT` seconds; the warm process ends with its standard input.

A trial starts from a copy of the store as the scenario's setup left it.  Afterwards `judge` opens it as any
next process does, and holds that every image listed is whole, that what was answered for is there, that the
same thing can be done again, and that one collection of what is then unneeded leaves nothing at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from orlop.layers.worker.client import Template
from orlop.testing.crashes import At, killing, recording
from support.crash_scenarios import SCENARIOS, World, judge

LIMIT = 60.0  # seconds, after which a child is killed whatever it does


# ------------------------------------------------------------------ the trials


@dataclass(slots=True)
class Outcome:
    """How a child ended: its exit code as `subprocess` has it, how long it took, what it wrote to stderr."""

    code: int
    seconds: float
    stderr: str


class Trials:
    """Trials in one folder, one at a time.  A context manager: the warm process lives as long."""

    def __init__(self, folder: Path, host: str, layout: Path) -> None:
        self.root, self.run, self.work = folder / "root", folder / "run", folder / "work"
        self._saved = folder / "saved"
        self._log = folder / "stderr"
        self._where = {
            "root": str(self.root), "run": str(self.run), "work": str(self.work),
            "host": host, "layout": str(layout), "said": str(self.work / "said"), "log": str(self._log),
        }  # fmt: skip
        for place in (self.work, self._saved):
            place.mkdir(parents=True)
        self._recorded: dict[str, tuple[list[str], float]] = {}  # points, and how long it took
        tests = str(Path(__file__).parents[1])
        self._warm = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r}); from support.crashes import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._warm.stdin is not None
        self._warm.stdin.close()
        try:
            self._warm.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._warm.kill()
            self._warm.wait()
        assert self._warm.stdout is not None
        self._warm.stdout.close()

    def recorded(self, name: str) -> list[str]:
        """The points that a scenario passes, in order."""
        return self._record(name)[0]

    def duration(self, name: str) -> float:
        """How many seconds a scenario takes."""
        return self._record(name)[1]

    def _record(self, name: str) -> tuple[list[str], float]:
        if name in self._recorded:
            return self._recorded[name]
        self._restore(name)
        hits = self.work / "hits"
        outcome = self._step(name, "act", hits=str(hits))
        assert outcome.code == 0, outcome.stderr
        self._recorded[name] = hits.read_text().split(), outcome.seconds
        hits.unlink()
        return self._recorded[name]

    def kill(self, name: str, at: At) -> bool:
        """Kill a scenario at a point, and judge what is left.

        False if it was over before: how often threads pass a point is not the same each time.
        """
        self._restore(name)
        outcome = self._step(name, "act", at=at)
        assert outcome.code == -signal.SIGKILL or (at.nth > 1 and not outcome.code), (
            f"{name}, {at}: {outcome}"
        )
        self._judge(name, str(at))
        return outcome.code != 0

    def kill_after(self, name: str, seconds: float) -> bool:
        """Kill a scenario after a while, and judge what is left; False if it was over by then."""
        self._restore(name)
        outcome = self._step(name, "act", seconds=seconds)
        assert outcome.code in {0, -signal.SIGKILL}, outcome.stderr
        self._judge(name, f"{seconds} s")
        return outcome.code != 0

    def _judge(self, name: str, when: str) -> None:
        outcome = self._step(name, "judge")
        assert outcome.code == 0, f"{name}, killed at {when}: {outcome.stderr}"

    def _restore(self, name: str) -> None:
        """Have the store as the scenario's setup leaves it."""
        saved = self._saved / name
        if not saved.exists():
            self.clear()
            for number, (_, at) in enumerate(SCENARIOS[name].setup):
                outcome = self._step(name, f"setup {number}", at=at)
                assert outcome.code == (0 if at is None else -signal.SIGKILL), f"{number}: {outcome.stderr}"
            self._unmount()
            if self.root.exists():
                _copy(self.root, saved)
            else:
                saved.mkdir()
        self.clear()
        if os.listdir(saved):
            _copy(saved, self.root)

    def clear(self) -> None:
        """Leave nothing mounted, and an empty folder to work in."""
        self._unmount()
        for folder in (self.root, self.run, self.work):
            shutil.rmtree(folder, ignore_errors=True)
        self.work.mkdir()

    def _unmount(self) -> None:
        from support import disks

        for place in (self.root, self.run, self.work):
            if place.exists():
                for mount in disks.mounts_below(place):
                    subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)

    def _step(
        self, name: str, step: str, *, at: At | None = None, seconds: float = 0, hits: str = ""
    ) -> Outcome:
        assert self._warm.stdin is not None
        assert self._warm.stdout is not None
        job = {"where": self._where, "scenario": name, "step": step, "seconds": seconds, "hits": hits}
        job["at"] = asdict(at) if at is not None else None
        self._warm.stdin.write(json.dumps(job) + "\n")
        self._warm.stdin.flush()
        answer = self._warm.stdout.readline()
        assert answer, "the warm process ended"
        return Outcome(**json.loads(answer), stderr=self._log.read_text())


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


# ------------------------------------------------------------------ the warm process


class _Shared(Template):
    """A worker template that was started before the fork, and stays when the one who forked is done."""

    def _ensure(self) -> Any:
        return self._socket if self._socket is not None else super()._ensure()

    def close(self) -> None:
        pass


_template = _Shared()


def serve() -> None:
    """Fork a child for each line of standard input; answer with a line when it has ended."""
    _warm_up()
    _template.start()
    for line in sys.stdin:
        job = json.loads(line)
        started = time.monotonic()
        log = os.open(job["where"]["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        pid = os.fork()
        if not pid:
            _child(job, log)
        os.close(log)
        code = _wait(pid, job["seconds"] or LIMIT)
        sys.stdout.write(json.dumps({"code": code, "seconds": time.monotonic() - started}) + "\n")
        sys.stdout.flush()


def _wait(pid: int, seconds: float) -> int:
    fd = os.pidfd_open(pid)
    try:
        if not select.select([fd], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(fd)


def _child(job: dict[str, Any], log: int) -> None:
    """Do one step and exit, whatever happens."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(log, 2)
        _perform(job)
        code = 0
    except BaseException as exc:  # noqa: BLE001 - told by the exit code
        traceback.print_exc()
        for pid in re.findall(r"\((\d+)\)", str(exc)):  # who uses a root
            with contextlib.suppress(OSError):
                words = (
                    Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
                space = os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink("/proc/self/ns/mnt")
                print(f"{pid}: child of {parent}, {space}: {words}", file=sys.stderr)  # noqa: T201
        sys.stderr.flush()
    finally:
        os._exit(code)


def _perform(job: dict[str, Any]) -> None:
    where = {key: Path(value) for key, value in job["where"].items() if key not in {"host", "log"}}
    scenario = SCENARIOS[job["scenario"]]
    step, _, number = job["step"].partition(" ")
    world = World(host=job["where"]["host"], template=_template, settings=scenario.settings, **where)
    with contextlib.ExitStack() as stack:
        hits: list[str] = []
        if job["at"] is not None:
            stack.enter_context(killing(At(**job["at"])))
        if job["hits"]:
            stack.enter_context(recording(hits))
        if step == "judge":
            judge(world, scenario)
        else:
            (scenario.setup[int(number)][0] if number else scenario.act)(world)
        world.close()
    if job["hits"]:
        Path(job["hits"]).write_text("\n".join(hits))


def _warm_up() -> None:
    """Import what verbs import when they are first used."""
    import orlop.images.archives.load
    import orlop.images.changed.changes
    import orlop.images.changed.checkpoints
    import orlop.images.changed.commit
    import orlop.images.changed.forks
    import orlop.images.collection.collect
    import orlop.images.prepared.roots
    import orlop.images.transfer.pull
    import orlop.images.transfer.push
    import orlop.layers.store
    import orlop.registry.access.credentials
    import orlop.registry.client
    import orlop.snapshots.probe  # noqa: F401


def each(hits: list[str]) -> Iterator[At]:
    """Every moment at which a run passes a point."""
    seen: dict[str, int] = {}
    for point in hits:
        seen[point] = seen.get(point, 0) + 1
        yield At(point, seen[point])


def share(recorded: Mapping[str, list[str]], dice: random.Random, *, least: int) -> dict[str, list[At]]:
    """For each scenario some moments to die at: each point in one of them, and ``least`` in each."""
    moments = {name: list(each(hits)) for name, hits in recorded.items()}
    chosen: dict[str, list[At]] = {name: [] for name in recorded}
    for point in sorted({at.point for ats in moments.values() for at in ats}):
        passing = [(name, at) for name, ats in moments.items() for at in ats if at.point == point]
        name = dice.choice(sorted({name for name, _ in passing}))
        chosen[name].append(dice.choice([at for other, at in passing if other == name]))
    for name, ats in moments.items():
        others = [at for at in ats if at not in chosen[name]]
        chosen[name] += dice.sample(others, min(len(others), max(0, least - len(chosen[name]))))
    return chosen
