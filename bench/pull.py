"""Pull to a usable root: orlop beside podman, in turn, each with an empty store.

orlop's side is ``orlop prepare IMAGE PATH``, which pulls, verifies every byte, indexes, and returns when all
is durable; podman's is ``podman pull``, which unpacks and returns before its layers are on the disk.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench import lab, measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One tool: how it pulls an image, where it keeps it, how to forget everything."""

    name: str
    durable: str
    pull: Callable[[str], list[str]]
    store: Path
    forget: Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Row:
    """What one peer cost for one image, over all rounds."""

    image: str
    peer: str
    durable: str
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    peak: int = 0
    disk: int = 0
    writes: list[float] = field(default_factory=list)  # of the image's bytes, durably, in the same turns

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpus)


def orlop(disk: Path) -> Peer:
    root, run, target = disk / "orlop", disk / "orlop-run", disk / "rootfs"
    base = [sys.executable, "-m", "orlop", "--root", str(root), "--run", str(run)]

    def forget() -> None:
        if root.exists():
            subprocess.run([*base, "cleanup", str(target)], check=True, stdout=subprocess.DEVNULL)
            shutil.rmtree(root)
        shutil.rmtree(run, ignore_errors=True)

    return Peer(
        name="orlop",
        durable="yes",
        pull=lambda image: [
            *base,
            "--insecure-registry",
            lab.REGISTRY,
            "prepare",
            f"{lab.REGISTRY}/{image}",
            str(target),
        ],
        store=root,
        forget=forget,
    )


def podman(disk: Path) -> Peer:
    root, run = disk / "podman", disk / "podman-run"
    base = ["podman", "--root", str(root), "--runroot", str(run), "--storage-driver", "overlay"]

    def forget() -> None:
        if root.exists():
            subprocess.run(["umount", root / "overlay"], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(root)
        shutil.rmtree(run, ignore_errors=True)

    return Peer(
        name="podman",
        durable="no",
        pull=lambda image: [*base, "pull", "-q", "--tls-verify=false", f"{lab.REGISTRY}/{image}"],
        store=root,
        forget=forget,
    )


def compare(disk: Path, images: list[str], rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure every peer with every image, in turn, ``rounds`` times."""
    peers = [orlop(disk), podman(disk)]
    rows = {
        (image, peer.name): Row(image=image, peer=peer.name, durable=peer.durable)
        for image in images
        for peer in peers
    }
    for image in images:
        for _ in range(rounds):
            for peer in peers:
                lab.settle()
                cost = measure.run(peer.pull(image))
                row = rows[image, peer.name]
                row.walls.append(cost.wall)
                row.cpus.append(cost.cpu)
                if not row.disk:
                    os.sync()
                    row.disk = measure.disk_usage(peer.store)
                peer.forget()
                say(f"{image} {peer.name} {cost.wall:.2f} s, CPU {cost.cpu:.2f} s")
            lab.settle()
            ours = rows[image, peers[0].name]
            ours.writes.append(lab.sequential_write(disk, ours.disk))
        for peer in peers:
            lab.settle()
            rows[image, peer.name].peak = measure.peak_pss(peer.pull(image))
            peer.forget()
    return list(rows.values())


def table(rows: list[Row]) -> str:
    """The rows as Markdown; ratios are against podman, in the same run."""
    base = {row.image: row for row in rows if row.peer == "podman"}
    lines = [
        "| image | tool | durable on return | wall s | ratio | CPU s | ratio | peak memory MB | disk MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        other = base[row.image]
        lines.append(
            f"| {row.image} | {row.peer} | {row.durable} | {row.wall:.2f} | {row.wall / other.wall:.2f} "
            f"| {row.cpu:.2f} | {row.cpu / other.cpu:.2f} | {row.peak / 1e6:.0f} | {row.disk / 1e6:.0f} |"
        )
    lines += ["", "One durable sequential write of what orlop stores, in the same turns:", ""]
    lines += [
        f"- {row.image}: {statistics.median(row.writes):.2f} s; orlop took "
        f"{row.wall / statistics.median(row.writes):.2f} times as long"
        for row in rows
        if row.writes
    ]
    return "\n".join(lines) + "\n"
