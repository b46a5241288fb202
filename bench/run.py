"""Run the benchmark's parts and write what they find to build/bench: README.md is the index.

    python bench/run.py [PART ...] [--image NAME ...] [--rounds N] [--quick]

Each part runs in a process of its own on a fresh disk.  A part that fails says so in the index, and the
others run on; the exit code is 1 then.  ``QUICK=1`` and ``ROUNDS=N`` are the same as the options; `parts`
says what a quick run leaves out.  Registry and disk are gone at the end; missing images are made with
``--make-images``.

Absolute times mean nothing outside one run: read the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import lab, machine, measure, report
from bench.parts import PARTS
from bench.section import Bench, Section

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "build" / "bench"
PLOTTER = HERE.parent / ".cache" / "venv-bench" / "bin" / "python"
_LIMIT = 3 * 3600  # seconds for one part: none takes as long, and a run is to end
_LIMIT_QUICK = 600


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Run the benchmark.", epilog=f"parts: {', '.join(PARTS)}")
    parser.add_argument("parts", nargs="*", metavar="PART", help="all, if none is named")
    parser.add_argument("--image", action="append", default=[], help="instead of the part's own choice")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("ROUNDS", "0")))
    parser.add_argument("--quick", action="store_true", default=os.environ.get("QUICK") == "1")
    parser.add_argument("--make-images", action="store_true", help="those that are missing")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--on", type=Path, help=argparse.SUPPRESS)  # the disk: run the one part here
    asked = parser.parse_args(words)
    asked.rounds = asked.rounds or (1 if asked.quick else 3)
    for each in (signal.SIGTERM, signal.SIGHUP):  # as by Ctrl-C: nothing is left
        signal.signal(each, _stop)
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if asked.on is not None:
        return _one(asked.parts[0], asked)
    if os.geteuid() != 0:
        parser.error("it mounts file systems: run it as root")
    newer = os.environ.get("CONTAINERD", "")
    if newer and not all(os.access(f"{newer}/{name}", os.X_OK) for name in ("containerd", "ctr")):
        parser.error(f"CONTAINERD={newer}: containerd and ctr are not in that folder")
    return _all(asked)


def _stop(signum: int, _: object) -> None:
    _no_more_signals()
    raise SystemExit(128 + signum)


def _no_more_signals() -> None:
    """Tidying up takes some seconds, and is not to be cut short."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


def _all(asked: argparse.Namespace) -> int:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode, too
    begun = time.monotonic()
    settings = machine.settings(rounds=asked.rounds, quick=asked.quick)
    with lab.registry():
        if asked.make_images:
            lab.make_images(lab.choose(asked.image, quick=asked.quick))
        with lab.disk(quick=asked.quick) as disk:
            say(f"images and disk are there after {time.monotonic() - begun:.0f} s")
            failed = [name for name in asked.parts or PARTS if not _part(name, asked, disk, settings)]
    _draw(asked.out)
    report.write_index(asked.out)
    print((asked.out / report.INDEX).read_text())
    say(f"{time.monotonic() - begun:.0f} s in all; read {asked.out / report.INDEX}")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _part(name: str, asked: argparse.Namespace, disk: lab.Disk, settings: dict[str, Any]) -> bool:
    """Run a part in a process of its own; whether it came to its end."""
    say(f"== {name}: {PARTS[name].what}")
    result = asked.out / f"{name}.json"
    result.unlink(missing_ok=True)
    options = [word for image in asked.image for word in ("--image", image)]
    if asked.quick:
        options.append("--quick")
    begun = time.monotonic()
    about = dict(settings)
    failure = ""
    try:
        with disk.fresh() as on:
            before = machine.mood(on, quick=asked.quick)
            failure = _child(
                [name, *options, "--rounds", str(asked.rounds), "--out", asked.out, "--on", on],
                limit=_LIMIT_QUICK if asked.quick else _LIMIT,
            )
            after = machine.mood(on, quick=asked.quick)
            about |= {key: [before[key], after[key]] for key in before}
    except (OSError, subprocess.CalledProcessError) as error:
        failure = failure or f"the disk: {error}"
    took = time.monotonic() - begun
    about["took_s"] = round(took, 1)
    found = report.read(result) if result.exists() else report.Result(name=name, about={})
    failure = found.failure or failure
    section = None if failure else found.section
    report.write(asked.out, report.Result(name=name, about=about, section=section, failure=failure))
    late = f", and may take {PARTS[name].share}" if asked.quick and took > PARTS[name].share else ""
    say(f"== {name} {'FAILED' if failure else 'is done'} after {took:.0f} s{late}")
    return not failure


def _child(words: list[str | Path], *, limit: float) -> str:
    """This program for one part, in a process group of its own; why it came to no good end."""
    command = [sys.executable, __file__, *map(os.fspath, words)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} s"
    except KeyboardInterrupt:
        _no_more_signals()
        raise
    else:
        return "" if code == 0 else f"it exits with {code}"
    finally:
        if process.poll() is None:  # give it the time to take its own mounts away
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        # Nothing that it started outlives it, however it ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        measure.clear_groups(process.pid)


def _one(name: str, asked: argparse.Namespace) -> int:
    """Measure one part on a disk that is there, and write its findings."""
    temporary = asked.on / "tmp"  # or podman would write what it fetches to another disk than is measured
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = os.fspath(temporary)
    bench = Bench(disk=asked.on, images=tuple(asked.image), rounds=asked.rounds, quick=asked.quick, say=say)
    section: Section | None = None
    failure = ""
    try:
        section = PARTS[name].measure(name)(bench)
    except Exception:  # noqa: BLE001 - one part's failure is not to lose the others
        failure = traceback.format_exc()
        say(failure)
    report.write(asked.out, report.Result(name=name, about={}, section=section, failure=failure))
    return 1 if failure else 0


def _draw(out: Path) -> None:
    """The plots, by a Python that has matplotlib; without one there are none."""
    python = PLOTTER if PLOTTER.exists() else sys.executable
    if python == sys.executable and importlib.util.find_spec("matplotlib") is None:
        say("no plots: there is no matplotlib; `make bench` installs it in an environment of its own")
    elif subprocess.run([python, HERE / "plots.py", out], check=False).returncode:
        say("not all plots could be drawn")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
