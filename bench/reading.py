"""The work that `bench.reads` has done inside a root: real programs, and files read in some order."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["File", "Work", "file_works", "programs", "read_all"]

File = tuple[str, int]
"""A path inside the root, and its size."""

SMALL, BIG = 4096, 65536
SEED = 9
_PAGE = 4096
_BUFFER = bytearray(1 << 20)
# Modules whose loading reads many files; what is not in the image's list is not asked for
_MODULES = ("webpack", "typescript", "eslint", "jest", "rxjs", "lodash", "googleapis", "express", "react-dom")
_REQUIRE = f"for (const name of {list(_MODULES)!r}) require(name)"
_CHROOTED: dict[str, tuple[tuple[str, ...], ...]] = {
    "debian-min": (("perl", "-MPOSIX", "-e", "1"), ("dpkg", "-l")),
    "python-app": (("python3", "-c", "import numpy, pandas"),),
    "ml": (("python3", "-c", "import torch"),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """``run`` does it in the root mounted at a place; ``before`` warms what it takes from elsewhere."""

    name: str
    run: Callable[[Path], object]
    before: Callable[[], object] | None = None
    program: bool = False
    goal: bool = False  # whether something was asked of it

    def ready(self) -> None:
        if self.before is not None:
            self.before()


def programs(image: str) -> list[Work]:
    """Real programs: those of the image, chrooted, and a node of this machine with the image's modules."""
    found = [
        Work(
            name=" ".join(words),
            run=lambda root, words=words: _quiet([shutil.which("chroot") or "chroot", str(root), *words]),
            before=lambda: _quiet(["chroot", "/", "true"]),
            program=True,
            goal=True,
        )
        for words in _CHROOTED.get(image, ())
    ]
    node = shutil.which("node")
    if image == "node-many" and node is not None:
        found.append(
            Work(
                name="node loads nine packages",
                run=lambda root: _quiet([node, "-e", _REQUIRE], inside=root / "app"),
                before=lambda: _quiet([node, "-e", "0"]),
                program=True,
                goal=True,
            )
        )
    return found


def file_works(files: Sequence[File], *, quick: bool) -> list[Work]:
    """Reading files, given in the order of the tars."""
    number = 300 if quick else 5000
    chance = random.Random(SEED)
    shuffled = chance.sample(files, min(number, len(files)))
    small = [file for file in files if file[1] <= SMALL][:number]
    big = [file for file in files if file[1] >= BIG]
    picked = chance.choices(big, weights=[size for _, size in big], k=number)
    places = [(name, chance.randrange(size // _PAGE) * _PAGE) for name, size in picked]
    return [
        Work(name="all files in tar order", run=lambda root: read_all(root, files)),
        Work(name=f"{len(shuffled):,} files in no order", run=lambda root: read_all(root, shuffled)),
        Work(name=f"{len(small):,} small files", run=lambda root: read_all(root, small)),
        Work(name=f"random {number:,} reads of 4 KiB", run=lambda root: _read_at(root, places), goal=True),
        Work(
            name="find with stat",
            run=lambda root: _quiet(["find", str(root), "-xdev", "-printf", "%s"]),
            before=lambda: _quiet(["find", "/dev/null"]),
        ),
    ]


def read_all(root: Path, files: Sequence[File]) -> None:
    """Read files from their beginning to their end."""
    for name, _ in files:
        fd = os.open(f"{root}/{name}", os.O_RDONLY)
        try:
            while os.readv(fd, [_BUFFER]):
                pass
        finally:
            os.close(fd)


def _read_at(root: Path, places: Sequence[tuple[str, int]]) -> None:
    page = memoryview(_BUFFER)[:_PAGE]
    for name, offset in places:
        fd = os.open(f"{root}/{name}", os.O_RDONLY)
        try:
            os.preadv(fd, [page], offset)
        finally:
            os.close(fd)


def _quiet(words: Sequence[str], inside: Path | None = None) -> None:
    subprocess.run(words, cwd=inside, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
