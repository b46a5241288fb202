"""Where the benchmark happens: a fresh loop-mounted ext4 with a journal, the images, and their registry.

An ext4 without a journal makes creating files after a mass delete ten times slower, whoever does it; the
disk's file is written in full once, so that the first to run does not pay for its allocation, and is made
anew for each part.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from isal import igzip

LAB = Path(os.environ.get("LAB", "/var/tmp/orlop-lab"))
LAYOUTS = LAB / "images"
REGISTRY = os.environ.get("BENCH_REGISTRY", "127.0.0.1:5000")
IMAGES = ("debian-min", "python-app", "node-many", "ml", "deep")
QUICK_IMAGES = ("debian-min",)
_MAKE_IMAGES = Path(__file__).with_name("make_images.sh")
_UP = 20.0
_PATIENCE = 10.0


# ------------------------------------------------------------------ the disk


class Disk:
    """The file, and the mount point that each part finds empty."""

    def __init__(self, folder: Path, *, gigabytes: int) -> None:
        self._image = folder / "disk.img"
        self._gigabytes = gigabytes
        self.mount_point = folder / "mnt"
        self.mount_point.mkdir()
        self._write()

    def _write(self) -> None:
        block = bytes(16 << 20)
        with self._image.open("wb") as file:
            for _ in range(self._gigabytes * 64):
                file.write(block)
            os.fsync(file.fileno())

    def _unmounted(self) -> bool:
        """Whether it could be unmounted, with some patience for processes that were killed just now."""
        until = time.monotonic() + _PATIENCE
        while subprocess.run(
            ["umount", "-R", self.mount_point], stderr=subprocess.DEVNULL, check=False
        ).returncode:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """A new file system, mounted; whatever is mounted in it at the end goes with it."""
        # nodiscard: else the file would be full of holes again
        options = ["-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]
        subprocess.run(["mkfs.ext4", "-q", "-F", *options, self._image], check=True)
        subprocess.run(["mount", "-o", "loop", self._image, self.mount_point], check=True)
        try:
            yield self.mount_point
        finally:
            if not self._unmounted():
                # Somebody holds on to it: it goes when they do, and the next part gets another.
                subprocess.run(["umount", "-R", "-l", self.mount_point], check=True)
                self._image.unlink()
                self._write()


@contextmanager
def disk(*, quick: bool = False) -> Iterator[Disk]:
    """A disk for one run, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="orlop-bench-", dir=_parent()) as folder:
        yield Disk(Path(folder), gigabytes=_gigabytes(quick=quick))


def describe(*, quick: bool) -> str:
    """The disk in words."""
    device = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE,FSTYPE", "-T", _parent()], capture_output=True, text=True, check=False
    ).stdout.split()
    below = " on ".join(reversed(device)) or str(_parent())
    return f"ext4 with a journal, {_gigabytes(quick=quick)} GB, loop-mounted from a file on {below}"


def _parent() -> Path:
    return Path(os.environ.get("BENCH_DIR", "/var/tmp"))


def _gigabytes(*, quick: bool) -> int:
    return int(os.environ.get("BENCH_DISK_GB") or (4 if quick else 12))


def sequential_write(disk: Path, size: int) -> float:
    """Seconds that one durable sequential write of ``size`` bytes takes now."""
    path = disk / "sequential"
    block = os.urandom(1 << 20)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(-(-size // (1 << 20))):
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
    start = time.perf_counter()
    total = 0
    for number in range(2_000_000):
        total += number & 7
    return (time.perf_counter() - start) * 1000


# ------------------------------------------------------------------ images and their registry


def choose(asked: Sequence[str], *, quick: bool, default: Sequence[str] = IMAGES) -> list[str]:
    """The images that a part takes: those asked for, or its own choice; `QUICK_IMAGES` if in haste."""
    return list(asked) or list(QUICK_IMAGES if quick else default)


def layout(image: str) -> Path:
    """An image's OCI layout."""
    path = LAYOUTS / image
    if not (path / "index.json").exists():
        raise FileNotFoundError(f"{path}: make it with: make images IMAGES={image}")
    return path


def manifest(image: str) -> dict:
    """Its manifest."""
    index = json.loads((layout(image) / "index.json").read_text())
    return json.loads(_blob(image, index["manifests"][0]["digest"]).read_text())


def diff_ids(image: str) -> list[str]:
    """What its config says of its layers."""
    config = json.loads(_blob(image, manifest(image)["config"]["digest"]).read_text())
    return list(config["rootfs"]["diff_ids"])


def tars(image: str) -> int:
    """Bytes of its layers' tars."""
    total = 0
    for layer in manifest(image)["layers"]:
        with igzip.open(_blob(image, layer["digest"])) as file:
            while chunk := file.read(1 << 20):
                total += len(chunk)
    return total


def make_images(images: Sequence[str]) -> None:
    """Those that are missing, in the registry and as layouts; a minute for the first, 20 for all."""
    environment = os.environ | {"LAB": str(LAB), "PORT": REGISTRY.rpartition(":")[2], "TLSPORT": ""}
    subprocess.run([_MAKE_IMAGES, *images], env=environment, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def registry() -> Iterator[None]:
    """The images' registry: the one that answers, or one that runs only meanwhile."""
    if _answers():
        yield
        return
    config = LAB / "registry-bench.yml"
    (LAB / "registry").mkdir(parents=True, exist_ok=True)
    config.write_text(
        "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
        f"storage:\n  filesystem: {{rootdirectory: {LAB}/registry, maxthreads: 100}}\n"
        f"http: {{addr: '{REGISTRY}', secret: bench}}\n"
    )
    with (LAB / "registry-bench.log").open("ab") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _UP
        while not _answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"docker-registry does not come up at {REGISTRY}: see {LAB}/registry-bench.log"
                )
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def warm(image: str) -> None:
    """Read an image from the registry once: whoever comes first is not to pay for its disk."""
    found = manifest(image)
    for each in (found["config"], *found["layers"]):
        with urllib.request.urlopen(f"http://{REGISTRY}/v2/{image}/blobs/{each['digest']}") as answer:
            shutil.copyfileobj(answer, _Nowhere(), 1 << 20)


def _answers() -> bool:
    try:
        urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=5).close()
    except OSError:
        return False
    return True


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)


def _blob(image: str, digest: str) -> Path:
    return layout(image) / "blobs" / digest.replace(":", "/")
