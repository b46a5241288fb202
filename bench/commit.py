"""Commit and push: orlop beside podman and buildah, in turn, each with a fresh root of the same image.

Each round each tool gets a root of `debian-min`, the same change is made in it, and it is committed and
pushed to a repository of the local registry that has the image's own layer already, so that only what is new
is sent.  orlop's commit is durable when it returns; the others' are not.  CPU is that of the command and all
its descendants.

Beside the command lines there is the library: commit, and commit with a prepare of the result, of ten files
on `node-many`; and a hundred forks of a root with 10 MB of changes, with the disk that they add.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import orlop
from bench import changes, lab, measure
from bench.drivers import Times

FORKS = 100
COMMITS = 20  # of ten files through the library, in a round
STEPS = ("commit", "push")


class Tool(Protocol):
    """One tool with an empty store of its own."""

    name: str

    def pull(self, name: str) -> None:
        """Bring the image in, and call it ``localhost/base``."""

    def root(self) -> Path:
        """A fresh root, mounted."""

    def commit(self) -> list[str]:
        """The command that commits it."""

    def push(self, what: str, to: str) -> list[str]:
        """The command that pushes the image (``base``) or what was committed (``done``)."""

    def clean(self) -> None:
        """Forget the root and what was committed."""

    def close(self) -> None:
        """Leave nothing mounted."""


class Orlop:
    """orlop, through its command line."""

    name = "orlop"

    def __init__(self, disk: Path) -> None:
        self._path = disk / "orlop-rootfs"
        script = Path(sys.executable).with_name("orlop")
        start = [str(script)] if script.exists() else [sys.executable, "-m", "orlop"]
        where = ["--root", str(disk / "orlop"), "--run", str(disk / "orlop-run")]
        self._base = [*start, *where, "--insecure-registry", lab.REGISTRY]

    def _run(self, *words: str) -> None:
        _quiet([*self._base, *words])

    def pull(self, name: str) -> None:
        self._run("pull", "-q", name)
        self._run("tag", name, "localhost/base")
        self.root()
        self.clean()  # the chain of the image is not at issue

    def root(self) -> Path:
        self._run("prepare", "-q", "--mount", "localhost/base", str(self._path))
        return self._path

    def commit(self) -> list[str]:
        return [*self._base, "commit", "-q", str(self._path), "localhost/done"]

    def push(self, what: str, to: str) -> list[str]:
        return [*self._base, "push", "-q", f"localhost/{what}", to]

    def clean(self) -> None:
        self._run("cleanup", str(self._path))
        _try([*self._base, "rmi", "localhost/done"])

    def close(self) -> None:
        _try([*self._base, "cleanup", str(self._path)])


class Buildah:
    """buildah, with containers/storage's overlay driver."""

    name = "buildah"

    def __init__(self, disk: Path) -> None:
        self._store = disk / self.name
        where = ["--root", str(self._store), "--runroot", str(disk / f"{self.name}-run")]
        self._base = [self.name, *where, "--storage-driver", "overlay"]

    def _run(self, *words: str) -> str:
        return _quiet([*self._base, *words])

    def pull(self, name: str) -> None:
        self._run("pull", "-q", "--tls-verify=false", name)
        self._run("tag", name, "localhost/base")

    def root(self) -> Path:
        self._run("from", "--pull-never", "--name", "bench", "localhost/base")
        return Path(self._run("mount", "bench").strip())

    def commit(self) -> list[str]:
        return [*self._base, "commit", "-q", "bench", "localhost/done"]

    def push(self, what: str, to: str) -> list[str]:
        return [*self._base, "push", "-q", "--tls-verify=false", f"localhost/{what}", f"docker://{to}"]

    def clean(self) -> None:
        self._run("rm", "bench")
        _try([*self._base, "rmi", "localhost/done"])

    def close(self) -> None:
        _try([*self._base, "rm", "-a"])
        _try(["umount", str(self._store / "overlay")])


class Podman(Buildah):
    """podman, likewise."""

    name = "podman"

    def root(self) -> Path:
        self._run("create", "--name", "bench", "localhost/base", "true")
        return Path(self._run("mount", "bench").strip())

    def clean(self) -> None:
        self._run("umount", "bench")
        super().clean()


@dataclass(slots=True, kw_only=True)
class Row:
    """What one tool took for one change, over all rounds."""

    change: str
    tool: str
    steps: dict[str, Times] = field(default_factory=lambda: {step: Times() for step in STEPS})

    @property
    def both(self) -> float:
        """Wall seconds of commit and push together."""
        pairs = zip(*(self.steps[step].walls for step in STEPS), strict=True)
        return statistics.median(sum(pair) for pair in pairs)


def compare(
    disk: Path, layout: Path, kinds: Sequence[str], rounds: int, say: Callable[[str], None]
) -> list[Row]:
    """Every tool with every change, in turn, ``rounds`` times."""
    tools: list[Tool] = [Orlop(disk), Buildah(disk), Podman(disk)]
    rows = {(kind, tool.name): Row(change=kind, tool=tool.name) for kind in kinds for tool in tools}
    run = f"{os.getpid()}-{time.time_ns()}"  # no repository has been pushed to before
    base = f"{lab.REGISTRY}/commit-base/{run}:latest"
    _quiet(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{base}"])
    try:
        for tool in tools:
            tool.pull(base)
        for kind in kinds:
            for number in range(rounds):
                for tool in tools:
                    to = f"{lab.REGISTRY}/commit-{tool.name}/{run}-{list(kinds).index(kind)}-{number}:new"
                    _once(tool, kind, to, rows[kind, tool.name])
                    steps = rows[kind, tool.name].steps
                    say(f"{kind}, {tool.name}: " + ", ".join(_seconds(step, steps[step]) for step in STEPS))
    finally:
        for tool in tools:
            tool.close()
            _try(["rm", "-rf", str(disk / tool.name), str(disk / f"{tool.name}-run")])
    return list(rows.values())


def _once(tool: Tool, kind: str, to: str, row: Row) -> None:
    root = tool.root()
    try:
        changes.change(kind, root)
        measure.run(tool.push("base", to.replace(":new", ":base")))
        for step, command in (("commit", tool.commit()), ("push", tool.push("done", to))):
            lab.settle()
            cost = measure.run(command)
            row.steps[step].walls.append(cost.wall)
            row.steps[step].cpus.append(cost.cpu)
    finally:
        tool.clean()


def _seconds(step: str, times: Times) -> str:
    return f"{step} {times.walls[-1]:.2f} s (CPU {times.cpus[-1]:.2f})"


def _quiet(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _try(command: list[str]) -> None:
    """What may have nothing to do."""
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# ------------------------------------------------------------------ the library


def library(disk: Path, layout: Path, rounds: int, say: Callable[[str], None]) -> dict[str, Times]:
    """Commits of ten files, and commits with a prepare of the result, in one process."""
    found = {step: Times() for step in ("commit", "commit and prepare")}
    with _store(disk / "library") as store:
        name = store.load(layout).pop().name
        store.prepare(name, disk / "warm").cleanup()
        for number in range(rounds * COMMITS):
            with store.prepare(name, disk / "changed", mount=True) as root:
                changes.change("10 files", disk / "changed")
                (disk / "changed" / "etc" / "bench-0").write_text(f"{number}")  # a layer of its own
                found["commit"].take(lambda root=root: root.commit("localhost/one:1"))
                (disk / "changed" / "etc" / "bench-0").write_text(f"{number} again")
                made: list[orlop.Prepared] = []
                found["commit and prepare"].take(lambda root=root, made=made: made.append(_both(store, root)))
                made[0].cleanup()
            for image in ("localhost/one:1", "localhost/two:1"):
                store.remove(image)
    say(", ".join(f"{step} {times.wall * 1000:.1f} ms" for step, times in found.items()))
    return found


def _both(store: orlop.Store, root: orlop.Prepared) -> orlop.Prepared:
    root.commit("localhost/two:1")
    return store.prepare("localhost/two:1", f"{root.path}-result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forks:
    """What a hundred forks took: seconds of the first fork and of all, bytes that they added on disk."""

    first: float
    all: float
    added: int
    moved: float  # a fork that gives up its source


def forks(disk: Path, layout: Path, say: Callable[[str], None]) -> Forks:
    """Forks of a root with 10 MB of changes."""
    place = disk / "forks"
    with _store(place) as store:
        name = store.load(layout).pop().name
        root = store.prepare(name, disk / "source", mount=True)
        for number in range(100):
            (disk / "source" / "opt" / f"file-{number}").write_bytes(os.urandom(100_000))
        os.sync()
        before = measure.disk_usage(place)
        paths = [disk / f"fork-{number}" for number in range(FORKS)]
        start = time.perf_counter()
        made = list(root.fork(paths[0]))
        first = time.perf_counter() - start
        made += root.fork(*paths[1:])
        whole = time.perf_counter() - start
        os.sync()
        added = measure.disk_usage(place) - before
        for fork in made:
            fork.cleanup()
        root.unmount()
        start = time.perf_counter()
        (moved,) = root.fork(disk / "moved", move=True)
        giving_up = time.perf_counter() - start
        moved.cleanup()
    found = Forks(first=first, all=whole, added=added, moved=giving_up)
    say(f"the first fork {first * 1000:.0f} ms, {FORKS} forks {whole:.2f} s, {added / 1e6:.1f} MB")
    return found


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


# ------------------------------------------------------------------ tables


def table(rows: list[Row]) -> str:
    """The rows as Markdown; ratios are to the faster of the others in the same run."""
    lines = [
        "| change | tool | commit s | ratio | CPU s | push s | ratio | CPU s | both s | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        others = [other for other in rows if other.change == row.change and other.tool != "orlop"]
        commit, push = row.steps["commit"], row.steps["push"]
        best = [min(other.steps[step].wall for other in others) for step in STEPS]
        lines.append(
            f"| {row.change} | {row.tool} | {commit.wall:.2f} | {commit.wall / best[0]:.2f} "
            f"| {commit.cpu:.2f} | {push.wall:.2f} | {push.wall / best[1]:.2f} | {push.cpu:.2f} "
            f"| {row.both:.2f} | {row.both / min(other.both for other in others):.2f} |"
        )
    return "\n".join(lines) + "\n"


def library_table(image: str, times: dict[str, Times], forked: Forks | None) -> str:
    """The library's numbers as Markdown."""
    lines = [
        f"Through the library, ten files on {image}:",
        "",
        "| what | wall ms | CPU ms |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {step} | {each.wall * 1000:.1f} | {each.cpu * 1000:.1f} |" for step, each in times.items()]
    if forked is not None:
        lines += [
            "",
            (
                f"{FORKS} forks of a root with 10 MB of changes: {forked.all:.2f} s, of which the first "
                f"{forked.first * 1000:.0f} ms; {forked.added / 1e6:.1f} MB of disk.  A fork that gives up "
                f"its source: {forked.moved * 1000:.0f} ms."
            ),
        ]
    return "\n".join(lines) + "\n"
