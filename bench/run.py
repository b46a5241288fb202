"""Run the benchmarks and write their tables to build/bench.

    python bench/run.py [IMAGE ...]        QUICK=1: two images, two rounds; ROUNDS=N: how often

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

from bench import lab, pull

OUT = Path("build/bench")
QUICK = os.environ.get("QUICK") == "1"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else "unknown"


def main(images: list[str]) -> None:
    images = images or ["python-app", "node-many"] + ([] if QUICK else ["debian-min", "ml", "deep"])
    rounds = int(os.environ.get("ROUNDS", "2" if QUICK else "3"))
    before = lab.noise()
    with lab.disk() as disk:
        rows = pull.compare(disk, images, rounds, say)
    about = {
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "rounds": rounds,
        "noise_ms": [round(before, 1), round(lab.noise(), 1)],
        "orlop": version(sys.executable, "-m", "orlop", "--version"),
        "podman": version("podman", "--version"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    text = "# Pull to a usable root\n\n" + pull.table(rows) + f"\n{json.dumps(about)}\n"
    (OUT / "pull.md").write_text(text)
    (OUT / "pull.json").write_text(
        json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
