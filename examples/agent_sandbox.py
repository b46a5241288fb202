"""Best of N: an agent's sandbox is forked, a candidate is tried in each fork, the best becomes an image.

    python examples/agent_sandbox.py alpine:3.20
    python examples/agent_sandbox.py debian:stable-slim --candidates my-candidates/ --keep localhost/best:1

The task here is a toy: /task/answer is to hold the sum of the numbers in /task/numbers, and /task/grade says
how good an answer is.  A candidate is a shell script; an agent's patch, command or program takes its place.

One root is prepared, set up once, and captured once; its N forks cost milliseconds, and each candidate sees
nothing of the others: they run isolated, with no network, and are killed when their time is over.
Needs root, or user namespaces; nothing is left but the image that is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import orlop
import orlop.aio
import orlop.rootless

STORE = str(Path.home() / ".cache/orlop-examples")
NUMBERS = "3\n5\n8\n13\n"
GRADE = """
answer=$(cat /task/answer 2>/dev/null) || { echo 0; exit; }
case $answer in 29) echo 100;; *[!0-9]*|'') echo 1;; *) echo 10;; esac
"""
TOYS = {
    "lazy": "echo 42 > /task/answer",
    "wrong": "wc -l < /task/numbers > /task/answer",
    "right": "sum=0; while read n; do sum=$((sum + n)); done < /task/numbers; echo $sum > /task/answer",
    "vandal": "rm -rf /task/numbers; echo broken > /task/answer",
    "sleeper": "sleep 1000",
}


@dataclass(frozen=True)
class Attempt:
    """What a candidate came to."""

    name: str
    root: orlop.aio.AsyncPrepared
    score: int
    seconds: float
    end: str


async def attempt(name: str, script: str, root: orlop.aio.AsyncPrepared, seconds: float) -> Attempt:
    """Run a candidate in its fork, and grade what it leaves."""
    begin = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):  # its end kills what runs
            end = f"exit {(await root.run(['sh', '-c', script], isolate=True)).code}"
    except TimeoutError:
        end = "timeout"
    took = time.perf_counter() - begin
    grade = await root.run(["sh", "/task/grade"], isolate=True)
    return Attempt(name=name, root=root, score=int(grade.stdout or 0), seconds=took, end=end)


async def best_of(args: argparse.Namespace, candidates: dict[str, str]) -> orlop.ImageInfo:
    """Try all candidates side by side, and commit the best one's root."""
    settings = orlop.Settings(insecure_registries=tuple(args.insecure_registry))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(
            orlop.aio.open(args.store, f"{args.store}.run", settings=settings)
        )
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="best-of-")))
        base = await stack.enter_async_context(store.prepare(args.image, work / "base", mount=True))
        (work / "base/task").mkdir()
        (work / "base/task/numbers").write_text(NUMBERS)
        (work / "base/task/grade").write_text(GRADE)

        begin = time.perf_counter()
        forks = await base.fork(*(work / name for name in candidates), mount=True)
        for fork in forks:
            await stack.enter_async_context(fork)
        print(f"{len(forks)} forks in {(time.perf_counter() - begin) * 1000:.0f} ms")

        scripts = zip(candidates.items(), forks, strict=True)
        attempts = await asyncio.gather(
            *(attempt(name, script, fork, args.seconds) for (name, script), fork in scripts)
        )
        for one in sorted(attempts, key=lambda one: -one.score):
            print(f"{one.score:4}  {one.name:10} {one.end:8} {one.seconds * 1000:6.0f} ms")
        best = max(attempts, key=lambda one: one.score)
        return await best.root.commit(args.keep, message=f"best of {len(attempts)}: {best.name}")


def main() -> None:
    """Read the command line, and go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("image")
    parser.add_argument("--candidates", type=Path, help="a folder of shell scripts (default: five toys)")
    parser.add_argument("--keep", default="localhost/best:1", help="what the best one's image is called")
    parser.add_argument("--seconds", type=float, default=10, help="what a candidate may take")
    parser.add_argument("--store", default=STORE, help="the store's folder (default: %(default)s)")
    parser.add_argument("--insecure-registry", action="append", default=[], metavar="HOST")
    args = parser.parse_args()
    candidates = TOYS
    if args.candidates:
        candidates = {path.stem: path.read_text() for path in sorted(args.candidates.iterdir())}
    image = asyncio.run(best_of(args, candidates))
    print(f"kept as {image.name}")


if __name__ == "__main__":
    orlop.rootless.unshare()  # returns at once for root
    main()
