"""A farm of near-identical images, as for SWE-bench: a hundred instances of one base, kept small.

    python examples/swe_farm.py python:3.12-slim
    python examples/swe_farm.py ubuntu:24.04 --instances 500 --samples 20

Each instance is a commit of a few files upon the base: here a repository at some revision, in place of what
`git checkout` and `pip install` leave.  A layer is stored once, whatever images use it, so the farm costs its
base and the sum of its changes, whereas the sizes that images tell add up to a hundred bases.  And each is
ready in milliseconds: a small layer is stacked on its base's chain, and nothing is unpacked.

Needs root, or user namespaces.  `--remove` takes the farm away again.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import orlop
import orlop.rootless

STORE = str(Path.home() / ".cache/orlop-examples")
FARM = "localhost/farm"
FILES, LINES = 20, 200  # of an instance


def grow(store: orlop.Store, base: str, count: int, work: Path) -> list[str]:
    """Commit the instances; their names."""
    names = [f"{FARM}:instance-{number:03}" for number in range(count)]
    for number, name in enumerate(names):
        with store.prepare(base, work / f"grow-{number}", mount=True) as root:
            repository = Path(root.path) / "testbed"
            repository.mkdir()
            dice = random.Random(number)
            for file in range(FILES):
                text = "".join(f"value_{line} = {dice.random()}\n" for line in range(LINES))
                (repository / f"module_{file}.py").write_text(text)
            (repository / "REVISION").write_text(f"{number}\n")
            root.commit(name, message=f"instance {number}")
    return names


def ready_in(store: orlop.Store, name: str, path: Path) -> float:
    """Milliseconds from a name to a mounted root, from which a file was read."""
    begin = time.perf_counter()
    with store.prepare(name, path, mount=True):
        revision = (path / "testbed/REVISION").read_text()
        took = time.perf_counter() - begin
    assert revision.strip() == str(int(name.rpartition("-")[2]))
    return took * 1000


def mebibytes(size: int) -> str:
    """A size for people."""
    return f"{size / (1 << 20):.1f} MiB"


def report(store: orlop.Store, base: str, names: list[str], times: list[float]) -> None:
    """What it costs, and what it would."""
    images = {image.name: image for image in store.images()}
    naive = sum(images[name].size for name in names)
    usage = store.usage()
    unique = sum(image.unique for image in usage.images if set(image.names) & set(names))
    print(f"{len(names)} instances of {base}")
    print(f"  the base             {mebibytes(images[store.inspect(base).info.name].size):>12}")
    print(f"  sum of their sizes   {mebibytes(naive):>12}")
    print(f"  all of the store     {mebibytes(usage.size):>12}   {naive / usage.size:.0f} times less")
    print(f"  an instance's own    {mebibytes(unique // len(names)):>12}")
    if times:
        middle = statistics.median(times)
        print(
            f"  ready in             {middle:>8.0f} ms    the median of {len(times)}, each for the first time"
        )


def main() -> None:
    """Read the command line, and go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10, help="instances that are prepared, and timed")
    parser.add_argument("--remove", action="store_true", help="take the farm away at the end")
    parser.add_argument("--store", default=STORE, help="the store's folder (default: %(default)s)")
    parser.add_argument("--insecure-registry", action="append", default=[], metavar="HOST")
    args = parser.parse_args()
    settings = orlop.Settings(insecure_registries=tuple(args.insecure_registry))
    with (
        orlop.open(args.store, f"{args.store}.run", settings=settings) as store,
        tempfile.TemporaryDirectory(prefix="farm-") as work,
    ):
        store.prepare(args.image, f"{work}/base").cleanup()  # pulled, if it is missing
        names = grow(store, args.image, args.instances, Path(work))
        chosen = random.Random(1).sample(names, min(args.samples, len(names)))
        times = [ready_in(store, name, Path(work) / f"ready-{at}") for at, name in enumerate(chosen)]
        report(store, args.image, names, times)
        if args.remove:
            for name in names:
                store.remove(name)


if __name__ == "__main__":
    orlop.rootless.unshare()  # returns at once for root
    main()
