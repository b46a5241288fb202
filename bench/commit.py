"""Commit and push: orlop beside podman and buildah, in turn, each with a fresh root of the same image.

Each round each tool gets a root of `debian-min`, the same change is made in it, and it is committed and
pushed to a repository of the local registry that has the image's own layer already, so that only what is new
is sent.  orlop's rows are its command line, so a start of Python is in each of them, and its commit is
durable when it returns; the others' are not.  CPU is that of the command and all its descendants; memory
is the highest sum of PSS over them, in a run of its own.

Beside the command lines there is the library (`bench.forking`): commit, and commit with a prepare of the
result, of ten files on `node-many`; and a hundred forks of a root with 10 MB of changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench import changes, forking, lab
from bench import measure as measuring
from bench.section import BEST, Bench, Goal, Row, Section, best

__all__ = ["goals", "measure"]

COMMIT, COMMIT_CPU, PUSH, PUSH_CPU, BOTH = "commit s", "commit CPU s", "push s", "push CPU s", "both s"
AT_MOST = {"10 files": 1.0, "20,000 files": 0.25, "1 GiB": 0.25, "2,000 deletions": 1.0}  # a commit
BOTH_AT_MOST = 0.5
QUICK_KINDS = ("10 files", "2,000 deletions")


def measure(bench: Bench) -> Section:
    """Every tool with every change, in turn; then the library."""
    kinds = QUICK_KINDS if bench.quick else tuple(changes.CHANGES)
    tools = _tools(bench.disk)
    if bench.quick:  # podman's store is buildah's
        tools = [tool for tool in tools if tool.name != "podman"]
    rows = _compare(bench, kinds, tools)
    inside = forking.inside(bench)
    words = str(__doc__)
    if left := sorted({"buildah", "podman"} - {tool.name for tool in tools}):
        words += f"\nNot on this machine, or no time for it, so left out: {', '.join(left)}.\n"
    return Section(
        name="commit",
        title="Commit, push, fork",
        words=words,
        rows=[*rows, *inside.rows],
        base=BEST,
        ratios=(COMMIT, COMMIT_CPU, PUSH, PUSH_CPU, BOTH),
        goals=[*goals(rows), *inside.goals],
    )


def goals(rows: Sequence[Row]) -> list[Goal]:
    """What a commit, and a commit with a push, may take of the best other tool's time."""
    found = []
    for row in rows:
        if row.tool != "orlop":
            continue
        for column, words, asked in (
            (COMMIT, "commit", AT_MOST[row.what]),
            (BOTH, "commit and push", BOTH_AT_MOST),
        ):
            if others := best(rows, row.what, column):
                seen = row.median(column) / others
                found.append(Goal(what=f"{words} of {row.what}", asked=asked, seen=seen))
    return found


class Tool(Protocol):
    """One tool with an empty store of its own."""

    name: str
    durable: str

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
    durable = "yes"

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
    durable = "no"

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


def _tools(disk: Path) -> list[Tool]:
    """Those that this machine has."""
    return [kind(disk) for kind in (Orlop, Buildah, Podman) if kind is Orlop or shutil.which(kind.name)]


def _compare(bench: Bench, kinds: Sequence[str], tools: Sequence[Tool]) -> list[Row]:
    rows = {
        (kind, tool.name): Row(what=kind, tool=tool.name, durable=tool.durable)
        for kind in kinds
        for tool in tools
    }
    run = f"{os.getpid()}-{time.time_ns()}"  # no repository has been pushed to before
    base = f"{lab.REGISTRY}/commit-base/{run}:latest"
    layout = lab.layout("debian-min")
    _quiet(["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{base}"])
    try:
        for tool in tools:
            tool.pull(base)
        for kind in kinds:
            for number in range(bench.rounds):
                turn = number % len(tools)
                for tool in (*tools[turn:], *tools[:turn]):
                    to = f"{lab.REGISTRY}/commit-{tool.name}/{run}-{list(kinds).index(kind)}-{number}:new"
                    figures = _once(tool, kind, to)
                    rows[kind, tool.name].add(**figures)
                    said = ", ".join(f"{name} {figure:.2f}" for name, figure in figures.items())
                    bench.say(f"{kind}, {tool.name}: {said}")
            for tool in () if bench.quick else tools:
                to = f"{lab.REGISTRY}/commit-{tool.name}/{run}-{list(kinds).index(kind)}-memory:new"
                rows[kind, tool.name].add(**_memory(tool, kind, to))
    finally:
        for tool in tools:
            tool.close()
            _try(["rm", "-rf", str(bench.disk / tool.name), str(bench.disk / f"{tool.name}-run")])
    return list(rows.values())


def _once(tool: Tool, kind: str, to: str) -> dict[str, float]:
    """What a commit and a push of one change cost."""
    root = tool.root()
    try:
        changes.change(kind, root)
        measuring.run(tool.push("base", to.replace(":new", ":base")))
        lab.settle()
        commit = measuring.run(tool.commit())
        lab.settle()
        push = measuring.run(tool.push("done", to))
    finally:
        tool.clean()
    return {
        COMMIT: commit.wall,
        COMMIT_CPU: commit.cpu,
        PUSH: push.wall,
        PUSH_CPU: push.cpu,
        BOTH: commit.wall + push.wall,
    }


def _memory(tool: Tool, kind: str, to: str) -> dict[str, float]:
    """How much memory they take, in a run of their own."""
    root = tool.root()
    try:
        changes.change(kind, root)
        measuring.run(tool.push("base", to.replace(":new", ":base")))
        commit, push = (measuring.peak_pss(command) for command in (tool.commit(), tool.push("done", to)))
    finally:
        tool.clean()
    return {"commit peak MB": commit / 1e6, "push peak MB": push / 1e6}


def _quiet(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _try(command: list[str]) -> None:
    """What may have nothing to do."""
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
