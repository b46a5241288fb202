"""Run the benchmarks and write their tables to build/bench.

    python bench/run.py [pull|fetch|commit|drivers|scale|durable|confinement|snapshots] [IMAGE ...]

QUICK=1: two images, two rounds; ROUNDS=N: how often.  For snapshots: CLIENTS=8, SECONDS_EACH=20.

Absolute times mean nothing outside one run: read the ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import orlop
from bench import changes, commit, confinement, drivers, durable, fetch, lab, pull, scale, snapshots

OUT = Path("build/bench")
QUICK = os.environ.get("QUICK") == "1"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else "unknown"


def main(words: list[str]) -> None:
    parts = [word for word in words if word in PARTS] or list(PARTS)
    images = [word for word in words if word not in PARTS]
    rounds = int(os.environ.get("ROUNDS", "2" if QUICK else "3"))
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode, too
    before = lab.noise()
    with lab.disk() as disk:
        for part in parts:
            text, values = PARTS[part](disk, images, rounds)
            about = {
                "kernel": os.uname().release,
                "cpus": os.cpu_count(),
                "rounds": rounds,
                "noise_ms": [round(before, 1), round(lab.noise(), 1)],
                "orlop": version(sys.executable, "-m", "orlop", "--version"),
                "podman": version("podman", "--version"),
                "tar": version("tar", "--version"),
            }
            text += f"\n{json.dumps(about)}\n"
            (OUT / f"{part}.md").write_text(text)
            (OUT / f"{part}.json").write_text(json.dumps({"about": about, **values}, indent=1))
            print(text)


def bench_pull(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    images = images or ["python-app", "node-many"] + ([] if QUICK else ["debian-min", "ml", "deep"])
    rows = pull.compare(disk, images, rounds, say)
    return "# Pull to a usable root\n\n" + pull.table(rows), {"rows": [asdict(row) for row in rows]}


def bench_fetch(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    images = images or ["node-many"] + ([] if QUICK else ["ml"])
    rows = fetch.compare(disk, images, rounds, say)
    text = f"# Pull without preparing\n\n{fetch.table(rows)}\n{version('skopeo', '--version')}\n"
    return text, {"rows": [asdict(row) for row in rows]}


def bench_commit(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    layouts = Path(os.environ.get("LAB", "/var/tmp/orlop-lab")) / "images"
    base = layouts / "debian-min"
    kinds = [kind for kind in changes.CHANGES if not (QUICK and kind == "1 GiB")]
    rows = commit.compare(disk, base, kinds, rounds, say)
    many = images[0] if images else "debian-min" if QUICK else "node-many"
    times = commit.library(disk, layouts / many, rounds, say)
    forked = commit.forks(disk, base, say) if hasattr(orlop.Prepared, "fork") else None
    text = "# Commit and push\n\n" + commit.table(rows) + "\n" + commit.library_table(many, times, forked)
    text += f"\n{version('buildah', '--version')}\n"
    return text, {
        "rows": [asdict(row) for row in rows],
        "library": {step: asdict(each) for step, each in times.items()},
        "forks": asdict(forked) if forked is not None else None,
    }


def bench_drivers(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    image = images[0] if images else "node-many"
    layouts = Path(os.environ.get("LAB", "/var/tmp/orlop-lab")) / "images"
    lives = drivers.lives(disk, layouts / "debian-min", say)
    times = drivers.unpacking(disk, layouts / image, rounds, say)
    text = "# Drivers\n\nThe life of a root of debian-min:\n\n" + drivers.table(lives, times, image)
    steps = {driver: {step: asdict(t) for step, t in each.items()} for driver, each in lives.items()}
    return text, {"lives": steps, "unpacking": {name: asdict(t) for name, t in times.items()}}


def bench_scale(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    steps = scale.compare(disk, rounds, say)
    return "# A store with very much in it\n\n" + scale.table(steps), {
        "steps": [asdict(step) for step in steps]
    }


def bench_durable(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    found = durable.compare(disk, rounds, say)
    values = {name: {step: asdict(t) for step, t in steps.items()} for name, steps in found.items()}
    return "# What durability costs\n\n" + durable.table(found), {"steps": values}


def bench_confinement(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    image = images[0] if images else "debian-min"
    layouts = Path(os.environ.get("LAB", "/var/tmp/orlop-lab")) / "images"
    what, found = confinement.compare(disk, layouts / image, 3 * rounds, say)
    text = "# What confinement costs\n\n" + confinement.table(what, found)
    return text, {"what": what, "ways": {name: asdict(way) for name, way in found.items()}}


def bench_snapshots(disk: Path, images: list[str], rounds: int) -> tuple[str, dict[str, object]]:
    ways = snapshots.compare(disk, images or list(snapshots.WAYS), rounds, say)
    text = f"# containerd's snapshots\n\n{snapshots.table(ways)}\n{version('containerd', '--version')}\n"
    return text, {"ways": {name: way.summary() for name, way in ways.items()}}


PARTS = {
    "pull": bench_pull,
    "fetch": bench_fetch,
    "commit": bench_commit,
    "drivers": bench_drivers,
    "scale": bench_scale,
    "durable": bench_durable,
    "confinement": bench_confinement,
    "snapshots": bench_snapshots,
}


if __name__ == "__main__":
    main(sys.argv[1:])
