"""Fuzz all targets one after the other for a while, and say what came of it as a table.

    python fuzz/run.py --seconds 600 [--targets tar,pax] [--keep]

Run by a Python that has atheris (`make fuzz` sees to it).  Each target has an equal share of the time.  What
the fuzzer learns lies in ``.cache/fuzz/TARGET`` and is where the next run begins; with ``--keep`` some of it
goes to ``fuzz/corpus/TARGET``.  An input that broke a promise is written to ``fuzz/findings/TARGET``: it fails
`tests/unit/test_fuzz_corpus.py` until it is fixed, and stays there afterwards.  The exit status is 1 if there
was one.

Always ends: a target is a process group of its own, which is killed when its time is long over, or when this
program ends.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
LEARNED = PROJECT / ".cache" / "fuzz"

GRACE = 60  # seconds past its time after which a target is killed
ONE_INPUT = 30  # seconds after which an input counts as a hang
MEMORY = 2048  # MiB after which an input counts as a memory hog
MAX_INPUT = {"tar": 8192, "index": 4096, "erofs": 4096, "layers": 300}
OTHER_INPUT = 2048
ENOUGH = 5  # findings after which a target is left alone
KEPT = 16 << 10  # bytes beside the seeds that a target may keep
KEPT_COUNT = 25
KEPT_INPUT = 4096  # bytes of the largest input that is kept


@dataclass(slots=True)
class Outcome:
    """What a target did."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    findings: int = 0
    trouble: str = ""


def main() -> int:
    """Fuzz; returns the exit status."""
    options = _options()
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that the target is killed
    sys.path[:0] = [str(HERE), str(PROJECT / "src")]
    from targets import TARGETS

    names = options.targets.split(",") if options.targets else list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        print(
            f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}", file=sys.stderr
        )
        return 2
    outcomes = []
    for name in names:
        outcomes.append(_fuzz(name, options.seconds / len(names)))
        if options.keep:
            _keep(name)
    _print(outcomes)
    return 1 if any(outcome.findings or outcome.trouble for outcome in outcomes) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz orlop's parsers.")
    parser.add_argument("--seconds", type=float, default=600, help="for all targets together")
    parser.add_argument("--targets", default="", help="their names, with commas; all if left out")
    parser.add_argument("--keep", action="store_true", help="put what was learned into fuzz/corpus")
    return parser.parse_args()


def _fuzz(name: str, seconds: float) -> Outcome:
    """Run one target until its time is over, again after each finding."""
    learned, findings = LEARNED / name, HERE / "findings" / name
    learned.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(name)
    started = time.monotonic()
    for attempt in range(ENOUGH):
        if (left := seconds - (time.monotonic() - started)) < 1:
            break
        before = set(findings.glob("*"))
        findings.mkdir(parents=True, exist_ok=True)
        said, status = _drive(
            name,
            f"-max_total_time={int(left)}",
            f"-artifact_prefix={findings}/",
            str(learned),
            *_corpus(name, with_findings=not attempt),  # once: what is not fixed would end each run at once
            seconds=left + GRACE,
        )
        found = re.findall(r"stat::number_of_executed_units:\s+(\d+)", said) or re.findall(r"#(\d+)\s", said)
        outcome.inputs += int(found[-1]) if found else 0
        new = set(findings.glob("*")) - before
        outcome.findings += len(new)
        if new or status:
            print(f"--- {name}: {', '.join(sorted(path.name for path in new)) or f'status {status}'}")
            print(said[max(said.find(" === Uncaught"), said.find("==")) :][-3000:], flush=True)
        if status and not new:
            outcome.trouble = f"ended with status {status}"
        with suppress(OSError):  # there is something in it
            findings.rmdir()
    outcome.seconds = time.monotonic() - started
    print(f"{name}: {outcome.inputs} inputs, {outcome.findings} findings", flush=True)
    return outcome


def _corpus(name: str, *, with_findings: bool) -> list[str]:
    folders = [HERE / "corpus" / name, *([HERE / "findings" / name] if with_findings else [])]
    return [str(path) for path in folders if path.is_dir()]


def _drive(name: str, *arguments: str, seconds: float) -> tuple[str, int]:
    """One process of the fuzzer; returns what it said, and its exit status."""
    command = [
        *(sys.executable, str(HERE / "drive.py"), name),
        f"-max_len={MAX_INPUT.get(name, OTHER_INPUT)}",
        f"-timeout={ONE_INPUT}",
        f"-rss_limit_mb={MEMORY}",
        "-print_final_stats=1",
        "-use_value_profile=1",
        *arguments,
    ]
    path = os.pathsep.join([str(HERE), str(PROJECT / "src")])
    log = LEARNED / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            status = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return log.read_text(errors="replace"), status


def _keep(name: str) -> None:
    """Put some of what was learned into the corpus, small inputs and large ones.

    Each of them reached something that none before it did.
    """
    kept = HERE / "corpus" / name
    kept.mkdir(parents=True, exist_ok=True)
    for path in kept.iterdir():
        if not path.name.startswith("seed-"):
            path.unlink()
    found = sorted((LEARNED / name).iterdir(), key=lambda path: (path.stat().st_size, path.name))
    found = [path for path in found if path.stat().st_size <= KEPT_INPUT]
    size = 0
    for path in found[:: -(-len(found) // KEPT_COUNT) or 1]:
        size += path.stat().st_size
        if size <= KEPT:
            shutil.copyfile(path, kept / path.name)


def _print(outcomes: list[Outcome]) -> None:
    print(f"\n{'target':<12} {'inputs':>12} {'seconds':>8} {'findings':>9}")
    total = Outcome("all")
    for outcome in outcomes:
        print(
            f"{outcome.target:<12} {outcome.inputs:>12,} {outcome.seconds:>8.0f} {outcome.findings:>9}"
            + (f"  {outcome.trouble}" if outcome.trouble else "")
        )
        total.inputs += outcome.inputs
        total.seconds += outcome.seconds
        total.findings += outcome.findings
    print(f"{total.target:<12} {total.inputs:>12,} {total.seconds:>8.0f} {total.findings:>9}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
