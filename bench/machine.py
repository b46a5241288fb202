"""What a run was like: the machine, the versions of all tools, and how disturbed it was."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import lab

__all__ = ["mood", "settings"]

VERSIONS: dict[str, tuple[str, ...]] = {
    "orlop": (sys.executable, "-m", "orlop", "--version"),
    "podman": ("podman", "--version"),
    "buildah": ("buildah", "--version"),
    "skopeo": ("skopeo", "--version"),
    "umoci": ("umoci", "--version"),
    "containerd": ("containerd", "--version"),
    "runc": ("runc", "--version"),
    "tar": ("tar", "--version"),
    "docker-registry": ("docker-registry", "--version"),
}


def settings(*, rounds: int, quick: bool) -> dict[str, Any]:
    """What is the same for all parts of a run."""
    tools = {name: version(*command) for name, command in VERSIONS.items()}
    newer = os.environ.get("CONTAINERD", "")
    if newer:
        tools["CONTAINERD"] = version(f"{newer}/containerd", "--version")
        tools["its mkfs.erofs"] = version(f"{newer}/mkfs.erofs", "-V")
    return {
        "at": time.strftime("%Y-%m-%d %H:%M"),
        "kernel": platform.release(),
        "CPUs": f"{os.cpu_count()}, {_model()}",
        "memory_MB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "python": f"{platform.python_version()}, hot loops {_hot_loops()}",
        "disk": lab.describe(quick=quick),
        "rounds": rounds,
        "quick": quick,
        "versions": tools,
    }


def mood(disk: Path, *, quick: bool) -> dict[str, float]:
    """How fast a fixed piece of arithmetic and a durable write are just now, and how many others run."""
    size = (64 if quick else 256) << 20
    return {
        "noise_ms": round(min(lab.noise() for _ in range(3)), 1),
        "disk_MB_s": round(size / lab.sequential_write(disk, size) / 1e6),
        "load": round(os.getloadavg()[0], 2),
    }


def version(*command: str) -> str:
    """The first line of what a tool says of itself."""
    if shutil.which(command[0]) is None:
        return "not there"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout or done.stderr).splitlines()
    return said[0] if said and not done.returncode else "cannot say its version"


def _hot_loops() -> str:
    spec = importlib.util.find_spec("orlop.layers.tarread")
    return "compiled" if spec and spec.origin and not spec.origin.endswith(".py") else "in Python"


def _model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()
