"""Where the benchmark happens: a fresh loop-mounted ext4 with a journal, and the images' registry.

An ext4 without a journal makes creating files after a mass delete ten times slower, whoever does it; the
image file is written in full once, so that the first to run does not pay for its allocation.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_GB = int(os.environ.get("BENCH_DISK_GB", "12"))
REGISTRY = os.environ.get("BENCH_REGISTRY", "127.0.0.1:5000")


@contextmanager
def disk() -> Iterator[Path]:
    """The mount point of a fresh disk, gone at the end."""
    parent = Path(os.environ.get("BENCH_DIR", "/var/tmp"))
    with tempfile.TemporaryDirectory(prefix="orlop-bench-", dir=parent) as folder:
        image, mount = Path(folder, "disk.img"), Path(folder, "mnt")
        mount.mkdir()
        with image.open("wb") as file:
            block = bytes(16 << 20)
            for _ in range(SIZE_GB * 64):
                file.write(block)
            os.fsync(file.fileno())
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True
        )
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", "-R", mount], check=False)


def sequential_write(disk: Path, size: int) -> float:
    """Seconds that one durable sequential write of ``size`` bytes takes now."""
    import time

    path = disk / "sequential"
    block = os.urandom(1 << 20)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range((size >> 20) + 1):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def settle() -> None:
    """Let earlier writes reach the disk, so that nobody pays for another's."""
    os.sync()


def noise() -> float:
    """How long a fixed piece of arithmetic takes now, in milliseconds: the machine's own mood."""
    import time

    start = time.perf_counter()
    total = 0
    for number in range(2_000_000):
        total += number & 7
    return (time.perf_counter() - start) * 1000
