"""What keeps a store in order, beside the others' ways: import, check, delete.

Import is of an image's OCI layout, and of a docker archive of it: orlop's is verified, indexed and durable
when it returns.  Beside it are ``podman pull`` and ``podman load`` of the same, ``umoci unpack``, which makes
one tree, and as a yardstick ``skopeo copy`` to a folder, which unpacks nothing.  Check has no like elsewhere:
orlop's plain one, and the one that reads every byte.

Delete is of an image that was pulled from the registry and of which one root was prepared and given back, by
``orlop rmi``, ``podman rmi``, ``buildah rmi``, ``ctr image rm --sync`` and ``rm -rf``; the command ends when
all is gone from the file system, which ``left MB`` shows.  Listing and looking up in a store with very much
in it are in the part ``scale``.  Memory is the highest sum of PSS, in a run of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import lab, peers
from bench.measure import disk_usage, peak_pss, run
from bench.section import BEST, Bench, Goal, Row, Section, best

DELETE = 0.05  # asked of a delete, to the best peer
LEFT_OUT = ("buildah", "skopeo, umoci")  # in haste: podman's store, and a folder

Command = list[str]


def measure(bench: Bench) -> Section:
    """All, as one table."""
    (image,) = lab.choose(bench.images, quick=bench.quick, default=["node-many"])[:1]
    rows = [*_imports(bench, image), *_deletes(bench, image)]
    goals = []
    what = f"delete {image}"
    ours = next(row for row in rows if row.what == what and row.tool == "orlop")
    other = best(rows, what, "wall s")
    if other:
        goals.append(
            Goal(what=f"{what}, beside the best peer", asked=DELETE, seen=ours.median("wall s") / other)
        )
    return Section(
        name="upkeep",
        title="Import, check, delete",
        words=str(__doc__),
        rows=rows,
        base=BEST,
        ratios=("wall s", "CPU s"),
        goals=goals,
    )


# ------------------------------------------------------------------ import and check


class _Imports:
    """The commands that bring a layout or an archive into an empty store of a tool."""

    def __init__(self, disk: Path, layout: Path, archive: Path) -> None:
        self._disk = disk
        script = Path(sys.executable).with_name("orlop")
        self._orlop = [str(script)] if script.exists() else [sys.executable, "-m", "orlop"]
        self._layout = layout
        self._archive = archive

    @property
    def orlop(self) -> Command:
        return [*self._orlop, "--root", f"{self._disk}/in-orlop", "--run", f"{self._disk}/in-orlop-run"]

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(self._disk / f"in-{tool}" for tool in ("orlop", "podman", "skopeo", "umoci"))

    def all(self) -> dict[tuple[str, str], Command]:
        """By what is read, and the tool that reads it."""
        layout, archive = "import an OCI layout", "import a docker archive"
        found = {
            (layout, "orlop"): [*self.orlop, "import", str(self._layout), "localhost/in:1"],
            (archive, "orlop"): [*self.orlop, "import", str(self._archive), "localhost/in:1"],
        }
        if shutil.which("podman"):
            podman = [
                "podman",
                "--root",
                f"{self._disk}/in-podman",
                "--runroot",
                f"{self._disk}/in-podman-run",
            ]
            podman += ["--storage-driver", "overlay"]
            found[layout, "podman"] = [*podman, "pull", "-q", f"oci:{self._layout}"]
            found[archive, "podman"] = [*podman, "load", "-q", "-i", str(self._archive)]
        if shutil.which("skopeo"):
            to = f"dir:{self._disk}/in-skopeo"
            found[layout, "skopeo"] = ["skopeo", "copy", "-q", f"oci:{self._layout}", to]
            found[archive, "skopeo"] = ["skopeo", "copy", "-q", f"docker-archive:{self._archive}", to]
        if shutil.which("umoci"):
            to = f"{self._disk}/in-umoci"
            found[layout, "umoci"] = ["umoci", "raw", "unpack", "--image", f"{self._layout}:latest", to]
        return found

    def clear(self) -> None:
        """Empty all stores again."""
        peers.unmount_below(self._disk)
        for folder in (*self.folders, *(Path(f"{folder}-run") for folder in self.folders)):
            subprocess.run(["rm", "-rf", folder], check=True)


def _imports(bench: Bench, image: str) -> list[Row]:
    archive = bench.disk / "archive.tar"
    imports = _Imports(bench.disk, lab.layout(image), archive)
    run([*imports.orlop, "import", str(lab.layout(image)), "localhost/in:1"])
    run([*imports.orlop, "export", "--format", "docker", "-o", str(archive), "localhost/in:1"])
    imports.clear()
    commands = {
        key: command
        for key, command in imports.all().items()
        if not bench.quick or key[1] in ("orlop", "podman")
    }
    rows = {key: _row(*key, image) for key in commands}
    checks = {
        words: Row(what=f"{' '.join(words)}, {image}", tool="orlop")
        for words in (("check",), ("check", "--full"))
    }
    for number in range(bench.rounds + 1):
        memory = number == bench.rounds
        for (what, tool), command in commands.items():
            if memory and bench.quick and tool != "orlop":
                continue
            lab.settle()
            _take(rows[what, tool], command, memory=memory)
            if tool == "orlop" and "layout" in what:
                for words, row in checks.items():
                    _take(row, [*imports.orlop, *words], memory=memory)
            imports.clear()
        bench.say(f"imports, {'for the memory' if memory else f'round {number + 1}'}: done")
    archive.unlink()
    return [*rows.values(), *checks.values()]


def _row(what: str, tool: str, image: str) -> Row:
    durable = "yes" if tool == "orlop" else "no"
    return Row(what=f"{what}, {image}", tool=tool, durable=durable, yardstick=tool == "skopeo")


def _take(row: Row, command: Command, *, memory: bool, also: Callable[[], Sequence[int]] = tuple) -> None:
    """Once more: what it took, or how much memory."""
    if memory:
        row.add(peak_memory_MB=peak_pss(command, also) / 1e6)
    else:
        cost = run(command)
        row.add(wall_s=cost.wall, CPU_s=cost.cpu)


# ------------------------------------------------------------------ delete


def _deletes(bench: Bench, image: str) -> list[Row]:
    what = f"delete {image}"
    rows: dict[str, Row] = {}
    lab.warm(image)
    for number in range(bench.rounds + 1):
        for tool in peers.tools(bench.disk, quick=bench.quick):
            mine = tool.name == "orlop"
            if bench.quick and not mine and (number == bench.rounds or tool.name in LEFT_OUT):
                continue
            row = rows.setdefault(tool.name, Row(what=what, tool=tool.name, durable=tool.durable))
            tool.begin()
            try:
                empty = disk_usage(*tool.folders)
                for command in tool.pull(image):
                    run(command)
                for command in tool.release():
                    run(command)
                lab.settle()
                if number == bench.rounds:
                    also = tool.daemon.pids if tool.daemon is not None else tuple
                    _take(row, tool.remove(image), memory=True, also=also)
                else:
                    before = tool.daemon.cpu() if tool.daemon is not None else 0.0
                    cost = run(tool.remove(image))
                    served = tool.daemon.cpu() - before if tool.daemon is not None else 0.0
                    left = max(disk_usage(*tool.folders) - empty, 0)
                    row.add(wall_s=cost.wall, CPU_s=cost.cpu + served, left_MB=left / 1e6)
                    bench.say(f"{what}, {tool.name}: {cost.wall:.2f} s")
            finally:
                tool.end()
    return list(rows.values())
