"""What a start of the command line costs: programs that do next to nothing, beside the others' programs.

Each asks for a version, for help, and for the images of a store that has one; orlop also prepares a root of
the image that is there, and gives it back, which with the others is another thing (``podman create``, say).
``ctr`` asks a containerd that runs already.  Commands run in turn; bytecode is there, as after an install.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import lab, peers
from bench.measure import run
from bench.section import BEST, Bench, Goal, Row, Section

STARTS = 20
CPU_MS = 60.0  # asked of --help and images
_ASKED = ("--help", "images")

Commands = dict[tuple[str, str], list[str]]  # what is done, by which tool


def _starts(commands: Commands, starts: int) -> list[Row]:
    """Run all, in turn, so often."""
    rows = {key: Row(what=key[0], tool=key[1]) for key in commands}
    for command in commands.values():
        run(command)  # whoever comes first would read all programs from the disk
    for _ in range(starts):
        for key, command in commands.items():
            cost = run(command)
            rows[key].add(wall_ms=cost.wall * 1000, CPU_ms=cost.cpu * 1000)
    return list(rows.values())


def _prepares(base: Sequence[str], image: str, path: Path, starts: int) -> list[Row]:
    """A root of an image that is there, and giving it back."""
    rows = {what: Row(what=what, tool="orlop", durable="yes") for what in ("prepare", "cleanup")}
    for _ in range(starts):
        for what, words in (("prepare", [image, str(path)]), ("cleanup", [str(path)])):
            cost = run([*base, what, *words])
            rows[what].add(wall_ms=cost.wall * 1000, CPU_ms=cost.cpu * 1000)
    return list(rows.values())


def measure(bench: Bench) -> Section:
    """All, as one table."""
    starts = 3 if bench.quick else STARTS * bench.rounds
    layout = lab.layout("debian-min")
    script = Path(sys.executable).with_name("orlop")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "orlop"]
    base = [*program, "--root", f"{bench.disk}/start", "--run", f"{bench.disk}/start-run"]
    name = "localhost/start:1"
    run([*base, "import", str(layout), name])
    plain = ("--version", "--help")  # as people ask: no store is named
    commands: Commands = {(word, "orlop"): [*program, word] for word in plain}
    commands["images", "orlop"] = [*base, "images"]
    theirs = [tool for tool in ("podman", "buildah") if shutil.which(tool)]
    for tool in theirs:  # they share a store
        where = ["--root", f"{bench.disk}/others", "--runroot", f"{bench.disk}/others-run"]
        other = [tool, *where, "--storage-driver", "overlay"]
        if tool == theirs[0]:
            run([*other, "pull", "-q", f"oci:{layout}"])
        commands |= {(word, tool): [tool, word] for word in plain}
        commands["images", tool] = [*other, "images"]
    daemon = None
    if shutil.which("containerd") and shutil.which("ctr"):
        daemon = peers.Containerd(bench.disk, "start containerd", config=peers.CONFIG)
        daemon.begin()
        commands |= {(word, "ctr"): daemon.ctr(word) for word in plain}
        commands["images", "ctr"] = daemon.ctr("images", "ls")
    try:
        rows = _starts(commands, starts)
        rows += _prepares(base, name, bench.disk / "start-root", starts)
    finally:
        if daemon is not None:
            daemon.end()
    for row in rows:
        said = ", ".join(f"{column} {row.median(column):.0f}" for column in row.figures)
        bench.say(f"{row.what}, {row.tool}: {said}")
    rows.sort(key=lambda row: row.what)
    seen = {row.what: row for row in rows if row.tool == "orlop"}
    return Section(
        name="startup",
        title="Start of the command line",
        words=str(__doc__),
        rows=rows,
        base=BEST,
        ratios=("wall ms", "CPU ms"),
        goals=[
            Goal(what=f"CPU of orlop {what}", asked=CPU_MS, seen=seen[what].median("CPU ms"), unit="ms")
            for what in _ASKED
        ],
    )
