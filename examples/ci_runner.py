"""A CI runner: steps in an image, each cached as an image of its own; logs, exit codes, artifacts.

    python examples/ci_runner.py examples/ci.toml --sources . --out build/ci
    python examples/ci_runner.py pipeline.toml --forget

The pipeline is a TOML file: examples/ci.toml.  After each step that went well the root is committed, under a
name that is a hash of all that led there: the image, the variables, the sources once they are in, and each
step's text.  So a second run begins behind the last step that nothing has changed for, and a commit costs
what the step wrote.  The steps run isolated; with `--network` they may use the machine's network.

Ends with the exit code of the step that failed; its log is printed, and artifacts are copied out all the
same.  Needs root, or user namespaces.  `--forget` gives the cache back.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import orlop
import orlop.rootless

STORE = str(Path.home() / ".cache/orlop-examples")
CACHE = "localhost/ci-cache"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step: a shell script; ``sources`` puts them into /src before it."""

    name: str
    run: str
    sources: bool = False


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What the file says."""

    image: str
    steps: list[Step]
    env: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Pipeline:
        """Read a file; what it says too much is an error."""
        said = tomllib.loads(path.read_text())
        steps = [Step(**step) for step in said.pop("step", [])]
        return cls(steps=steps, **said)


def hash_of(*parts: str) -> str:
    """One text for several, which no others give."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def hash_of_tree(folder: Path) -> str:
    """What the files of a folder are called, hold, and whether they may be run."""
    digests = [
        f"{path.relative_to(folder)} {path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.parts
    ]
    return hash_of(*digests)


def names_of(store: orlop.Store, pipeline: Pipeline, sources: Path) -> Iterator[str]:
    """What the image behind each step is called."""
    key = hash_of(store.inspect(pipeline.image).info.id, *(f"{k}={v}" for k, v in pipeline.env.items()))
    for step in pipeline.steps:
        key = hash_of(key, step.run, hash_of_tree(sources) if step.sources else "")
        yield f"{CACHE}:{key}"


def run(store: orlop.Store, pipeline: Pipeline, args: argparse.Namespace, root_path: Path) -> int:
    """Run what is not cached; the exit code."""
    names = list(names_of(store, pipeline, args.sources))
    known = {image.name for image in store.images()}
    cached = next((n for n in range(len(names), 0, -1) if names[n - 1] in known), 0)
    for step in pipeline.steps[:cached]:
        print(f"{step.name:12} cached")
    start = names[cached - 1] if cached else pipeline.image
    code = 0
    with store.prepare(start, root_path, mount=True, pull="missing") as root:
        in_sources = any(step.sources for step in pipeline.steps[:cached])
        for number, (step, name) in enumerate(zip(pipeline.steps, names, strict=True)):
            if number < cached:
                continue
            if step.sources:
                root.copy_in(f"{args.sources}/.", "/src/")
                in_sources = True
            begin = time.perf_counter()
            ran = root.run(
                ["sh", "-euc", step.run],
                env=pipeline.env,
                cwd="/src" if in_sources else "/",
                net="host" if args.network else "none",
                isolate=True,
            )
            (args.out / f"{number + 1:02}-{step.name}.log").write_text(ran.stdout + ran.stderr)
            print(f"{step.name:12} exit {ran.code:<3} {(time.perf_counter() - begin) * 1000:6.0f} ms")
            if code := ran.code:
                print(ran.stdout + ran.stderr, file=sys.stderr)
                break
            root.commit(name, message=f"ci: {step.name}")
        for path in pipeline.artifacts:
            try:
                root.copy_out(path, str(args.out / PurePosixPath(path).name))
            except orlop.NotFound:
                print(f"there is no {path}", file=sys.stderr)
    return code


def main() -> int:
    """Read the command line, and go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--sources", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("build/ci"), help="for logs and artifacts")
    parser.add_argument("--forget", action="store_true", help="empty the cache first")
    parser.add_argument("--network", action="store_true", help="let steps use the machine's network")
    parser.add_argument("--image", help="instead of the pipeline's")
    parser.add_argument("--store", default=STORE, help="the store's folder (default: %(default)s)")
    parser.add_argument("--insecure-registry", action="append", default=[], metavar="HOST")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.read(args.pipeline)
    if args.image:
        pipeline = replace(pipeline, image=args.image)
    settings = orlop.Settings(insecure_registries=tuple(args.insecure_registry))
    with (
        orlop.open(args.store, f"{args.store}.run", settings=settings) as store,
        tempfile.TemporaryDirectory(prefix="ci-") as work,
    ):
        if args.forget:
            for image in store.images():
                if image.name.startswith(f"{CACHE}:"):
                    store.remove(image.name)
        try:
            store.inspect(pipeline.image)
        except orlop.NotFound:
            store.pull(pipeline.image)
        return run(store, pipeline, args, Path(work) / "root")


if __name__ == "__main__":
    orlop.rootless.unshare()  # returns at once for root
    sys.exit(main())
