"""Cuts of power: the verbs run on a recorded disk, then what a store looks like after a cut anywhere in it.

    recording = record(folder, "erofs")              # a process works on a recorded disk
    for verdict in judge(folder, "erofs", choose(recording, 12, seed=1)):   # another replays and looks
        assert not verdict.findings

Both parts run in processes of their own, in mount namespaces of their own, and are killed when their time
is over: whatever the disk does, the tests' own process never touches it.

After a cut the disk has all writes before the last flush, and of the later ones whatever luck has it: each
write, or each block of 4 KiB of each write, by itself, is there or is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from orlop.linux import loop
from orlop.linux.mount import perform
from support.fusedisk import FLUSH, MARK, WRITE, Recording, die_with_parent, private_mounts, recorded
from support.powerwork import Court, State, Work, mounts_below

SIZE = 64 << 20
BLOCK = 4096  # what a disk writes whole or not at all
WORK_SECONDS = 60.0
CUT_SECONDS = 5.0
MKFS = (
    "mkfs.ext4",
    "-q",
    "-F",
    "-m",
    "0",
    "-b",
    "4096",
    "-N",
    "8192",
    "-E",
    "nodiscard,lazy_itable_init=0",
    "-J",
    "size=4",
)
TESTS = Path(__file__).resolve().parents[1]
CANNOT = 77  # how a process says that the machine cannot do it

Luck = Literal["none", "all", "some", "torn"]
How = Literal["work", "forget", "break"]


class CannotRecord(Exception):
    """The machine has no FUSE, or no loop devices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A cut after so many records of the log; ``luck`` is what became of the writes since the last flush."""

    position: int
    luck: Luck
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found wrong after a cut; ``during`` is the verb that was under way."""

    cut: Cut
    during: str
    findings: tuple[str, ...]


# ------------------------------------------------------------------ for the tests' own process


def record(folder: Path, driver: str, *, how: How = "work") -> Recording:
    """Let a process do every verb on a recorded disk, or `Work.break_disk`.

    ``forget`` is a process that soon stops to sync.
    """
    base = folder / "base.img"
    with base.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run([*MKFS, os.fspath(base)], check=True, timeout=60)
    _run(folder, how, driver, seconds=WORK_SECONDS)
    return Recording.load(base, folder / "log")


def choose(recording: Recording, count: int, seed: int) -> list[Cut]:
    """Cuts drawn by a seed.

    A third fall right after a verb has returned, and nothing that was not flushed is there; the others are
    spread evenly over the log.
    """
    luck = random.Random(seed)
    records = recording.records
    marks = [at for at, record in enumerate(records) if record.kind == MARK]
    ends = [at + 1 for at in marks if "end" in records[at].note]
    moments = [at + 1 for at in range(marks[0], marks[-1]) if records[at].kind != MARK]
    cuts = []
    for number in range(count):
        if number % 3 == 0:
            position, how = luck.choice(ends), "none"
        else:
            position = moments[int((number + luck.random()) * len(moments) / count)]
            how = luck.choice(["none", "all", "some", "some", "torn", "torn"])
        cuts.append(Cut(position=position, luck=how, seed=luck.getrandbits(32)))  # type: ignore[arg-type]  # of the list above
    return cuts


def judge(folder: Path, driver: str, cuts: Sequence[Cut]) -> list[Verdict]:
    """Have a process replay each cut of what was recorded in a folder, and say what it finds."""
    (folder / "cuts").write_text(json.dumps([asdict(cut) for cut in cuts]))
    _run(folder, "judge", driver, seconds=WORK_SECONDS + CUT_SECONDS * len(cuts))
    lines = map(json.loads, (folder / "verdicts").read_text().splitlines())
    return [
        Verdict(cut=Cut(**line["cut"]), during=line["during"], findings=tuple(line["findings"]))
        for line in lines
    ]


def _run(folder: Path, part: str, driver: str, *, seconds: float) -> None:
    """Run a part of this module in a process of its own, and leave nothing of it behind."""
    output = folder / f"{part}.txt"
    code: int | None = None
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "support.powercuts", os.fspath(folder), part, driver],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.fspath(TESTS)},
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:
            # The disk's server is in this group: without it the kernel answers all that waits for the disk.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    text = output.read_text()[-4000:]
    if code == CANNOT:
        raise CannotRecord(text.strip().rpartition("\n")[2])
    if code != 0:
        what = "was not done in time" if code is None else f"ends with {code}"
        raise AssertionError(f"{part} {driver} {what}:\n{text}")


# ------------------------------------------------------------------ the disk


def replay(recording: Recording, cut: Cut, image: Path) -> None:
    """Make the disk as it is after a cut."""
    luck = random.Random(cut.seed)
    share = luck.choice([0.1, 0.5, 0.9])
    subprocess.run(["cp", "--sparse=always", os.fspath(recording.base), os.fspath(image)], check=True)
    records = recording.records[: cut.position]
    safe = max((at for at, record in enumerate(records) if record.kind == FLUSH), default=0)
    with image.open("r+b", buffering=0) as disk:
        for at, record in enumerate(records):
            if record.kind != WRITE:
                continue
            if at < safe or cut.luck == "all" or (cut.luck == "some" and luck.random() < share):
                os.pwrite(disk.fileno(), record.data, record.offset)
            elif cut.luck == "torn":
                for start in range(0, len(record.data), BLOCK):
                    if luck.random() < share:
                        block = record.data[start : start + BLOCK]
                        os.pwrite(disk.fileno(), block, record.offset + start)


def _work(folder: Path, driver: str, how: str) -> None:
    mounted = folder / "disk"
    mounted.mkdir()
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(
                recorded(folder / "base.img", folder / "recorded", folder / "log", seconds=WORK_SECONDS - 10)
            )
            with loop.attached(disk.file) as device:
                perform("ext4", device, os.fspath(mounted), [])
        except OSError as exc:
            sys.stdout.write(f"a disk on FUSE with a loop device over it: {exc}\n")
            sys.exit(CANNOT)
        Work(folder, mounted, driver, disk).run(how)
        for point in mounts_below(folder):  # what the store keeps mounted in RUN, and the disk
            if point != disk.file:
                subprocess.run(["umount", os.fspath(point)], check=True, timeout=30)


def _judge(folder: Path, driver: str) -> None:
    recording = Recording.load(folder / "base.img", folder / "log")
    cuts = [Cut(**cut) for cut in json.loads((folder / "cuts").read_text())]
    with (folder / "verdicts").open("w") as out:
        for number, cut in enumerate(cuts):
            sys.stdout.write(f"{number}: {cut}\n")
            sys.stdout.flush()
            place = folder / f"cut{number}"
            place.mkdir()
            before, after, during = expected(recording, cut.position)
            replay(recording, cut, place / "disk.img")
            court = Court(folder, place, driver, before=before, after=after, during=during)
            line = {"cut": asdict(cut), "during": during, "findings": court.findings(place / "disk.img")}
            out.write(json.dumps(line) + "\n")
            out.flush()
            shutil.rmtree(place)


def expected(recording: Recording, position: int) -> tuple[State, State, str]:
    """What was promised at a moment, what the verb under way is about to promise, and its name."""
    before, during = State({}, {}), "nothing"
    for record in recording.records[:position]:
        if record.kind == MARK:
            during = record.note.get("begin", "nothing")
            if "end" in record.note:
                before = State.of(record.note)
    if during != "nothing":
        for record in recording.records[position:]:
            if record.kind == MARK and "end" in record.note:
                return before, State.of(record.note), during
    return before, before, during


if __name__ == "__main__":
    die_with_parent()
    private_mounts()
    if sys.argv[2] == "judge":
        _judge(Path(sys.argv[1]), sys.argv[3])
    else:
        _work(Path(sys.argv[1]), sys.argv[3], sys.argv[2])
