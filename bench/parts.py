"""Which parts the benchmark has: each a module with ``measure(bench) -> Section``, in the order they run.

``share`` is how many seconds a part may take with ``QUICK=1``: all of them together, the images and the disk
must stay below five minutes.  What a part leaves out or makes smaller then is said here, too.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from bench.section import Bench, Section

__all__ = ["PARTS", "QUICK_SECONDS", "Part"]

QUICK_SECONDS = 240  # of all parts; the rest of the five minutes is for the disk, and to see how noisy it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: its module has its name."""

    what: str
    share: int
    quick: str

    def measure(self, name: str) -> Callable[[Bench], Section]:
        """What measures it; a module that cannot be imported is that part's failure."""
        module = importlib.import_module(f"bench.{name}")
        found: Callable[[Bench], Section] = module.measure
        return found


PARTS: dict[str, Part] = {
    "pull": Part(
        what="pull to the first prepared root, beside all other tools",
        share=30,
        quick="debian-min, one round, only orlop's memory",
    ),
    "fetch": Part(what="pull without preparing, beside skopeo", share=8, quick="debian-min, one round"),
    "lifecycle": Part(
        what="prepare, mount, unmount, cleanup by library, gRPC and command line",
        share=25,
        quick="fewer roots, layers and lives",
    ),
    "scale": Part(what="a store with very much in it", share=25, quick="a smaller store"),
    "upkeep": Part(
        what="delete, import, check, list", share=35, quick="debian-min, fewer peers, only orlop's memory"
    ),
    "startup": Part(what="start of the command line", share=10, quick="fewer starts"),
    "reads": Part(what="reads inside a root, beside overlayfs", share=30, quick="debian-min"),
    "commit": Part(
        what="commit, push and fork, beside podman and buildah", share=30, quick="few files, no podman"
    ),
    "drivers": Part(
        what="the drivers beside one another", share=10, quick="debian-min, fewer lives, no native driver"
    ),
    "durable": Part(what="what durability costs", share=8, quick="one round"),
    "confinement": Part(what="what confining the workers costs", share=8, quick="one round"),
    "snapshots": Part(what="containerd's snapshots, one client and eight", share=20, quick="1.5 s each time"),
}
