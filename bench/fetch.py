"""Pull without preparing: orlop beside ``skopeo copy`` to a folder, in turn, each with an empty target.

skopeo stores the blobs as they come, verified and not synced.  orlop does more: it also decompresses each
layer, hashes its tar, indexes it, and returns when all is durable.  So there is a row for the like of
skopeo's work as well, the blobs alone, fetched and verified by the same code into files that are not
synced.  What hashing takes is measured apart, over the same bytes, so that the rest can be seen per byte:
for orlop's pull the tars are hashed, too.  CPU is that of the command and all its descendants.

As a program: ``python bench/fetch.py NAME FOLDER`` fetches the blobs alone.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import lab, measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to fetch: how, where to, what it hashes."""

    name: str
    durable: str
    fetch: Callable[[str], list[str]]
    folders: tuple[Path, ...]
    hashed: tuple[str, ...]  # files below the folders that it had to hash, as patterns


@dataclass(slots=True, kw_only=True)
class Row:
    """What one way cost for one image, over all rounds."""

    image: str
    peer: str
    durable: str
    size: int  # bytes of the blobs
    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    hashing: float = 0.0  # CPU seconds that hashing alone takes of it

    @property
    def wall(self) -> float:
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        return statistics.median(self.cpus)

    @property
    def beyond(self) -> float:
        """CPU seconds per GB of blobs beyond hashing."""
        return (self.cpu - self.hashing) / (self.size / 1e9)


def peers(disk: Path) -> list[Peer]:
    copied, root, run, alone = disk / "skopeo", disk / "fetch", disk / "fetch-run", disk / "blobs"
    where = ["--root", str(root), "--run", str(run), "--insecure-registry", lab.REGISTRY]
    return [
        Peer(
            name="skopeo copy to dir",
            durable="no",
            fetch=lambda name: [
                "skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{copied}"
            ],
            folders=(copied,),
            hashed=("*",),
        ),
        Peer(
            name="orlop, blobs alone",
            durable="no",
            fetch=lambda name: [sys.executable, str(Path(__file__).resolve()), name, str(alone)],
            folders=(alone,),
            hashed=("*/data",),
        ),
        Peer(
            name="orlop pull",
            durable="yes",
            fetch=lambda name: [sys.executable, "-m", "orlop", *where, "pull", "-q", name],
            folders=(root, run),
            hashed=("layers/*/layer.tar",),
        ),
    ]  # fmt: skip


def compare(disk: Path, images: list[str], rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Measure every way with every image, in turn, ``rounds`` times."""
    ways = peers(disk)
    rows: list[Row] = []
    for image in images:
        name = f"{lab.REGISTRY}/{image}"
        hashing: dict[str, float] = {}
        size = 0
        mine = {peer.name: Row(image=image, peer=peer.name, durable=peer.durable, size=0) for peer in ways}
        for _ in range(rounds):
            for peer in ways:
                lab.settle()
                cost = measure.run(peer.fetch(name))
                mine[peer.name].walls.append(cost.wall)
                mine[peer.name].cpus.append(cost.cpu)
                if peer.name not in hashing:
                    files = [
                        path for folder in peer.folders for glob in peer.hashed for path in folder.glob(glob)
                    ]
                    hashing[peer.name] = hash_seconds(files)
                    size = size or sum(path.stat().st_size for path in files)
                for folder in peer.folders:
                    shutil.rmtree(folder, ignore_errors=True)
                say(f"{image} {peer.name}: {cost.wall:.2f} s, CPU {cost.cpu:.2f} s")
        blobs = hashing[ways[0].name]
        for row, peer in zip(mine.values(), ways, strict=True):
            row.size = size
            row.hashing = hashing[peer.name] + (blobs if peer.durable == "yes" else 0.0)
        rows += mine.values()
    return rows


def hash_seconds(files: Iterable[Path]) -> float:
    """CPU seconds that sha256 takes over the bytes of some files, without reading them."""
    total = 0.0
    for path in files:
        with path.open("rb", buffering=0) as file:
            hasher, buffer = hashlib.sha256(), memoryview(bytearray(256 << 10))
            while count := file.readinto(buffer):
                start = time.thread_time()
                hasher.update(buffer[:count])
                total += time.thread_time() - start
    return total


def table(rows: list[Row]) -> str:
    """The rows as Markdown; ratios are against skopeo, in the same run."""
    base = {row.image: row for row in rows if row.peer.startswith("skopeo")}
    lines = [
        "| image | MB | what | durable | wall s | ratio | CPU s | ratio | hashing | beyond, per GB | ratio |",
        "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        other = base[row.image]
        lines.append(
            f"| {row.image} | {row.size / 1e6:.0f} | {row.peer} | {row.durable} | {row.wall:.2f} "
            f"| {row.wall / other.wall:.2f} | {row.cpu:.2f} | {row.cpu / other.cpu:.2f} | {row.hashing:.2f} "
            f"| {row.beyond:.2f} | {row.beyond / other.beyond:.2f} |"
        )
    return "\n".join(lines) + "\n"


def fetch_blobs(name: str, folder: Path) -> None:
    """Fetch an image's layers into ingests, as a pull does, verified; three at a time."""
    from orlop.config import Settings
    from orlop.content.ingests import Ingest
    from orlop.images.fetching.download import Download, Wanted
    from orlop.observe import Call
    from orlop.registry.access.credentials import CredentialSources
    from orlop.registry.blobs.ranges import Traffic
    from orlop.registry.client import Registry
    from orlop.spec.documents import Manifest, parse_manifest
    from orlop.spec.reference import Reference

    ref = Reference.parse(name)
    settings = Settings(insecure_registries=(ref.registry,))
    registry = Registry(settings, CredentialSources())
    traffic, call = Traffic(2 * (settings.streams - 1)), Call()
    found = registry.resolve(ref, call=call)
    manifest = parse_manifest(found.data, found.descriptor.media_type, name)
    assert isinstance(manifest, Manifest)
    folder.mkdir()

    def one(number: int) -> None:
        layer = manifest.layers[number]
        digest = layer.checked_digest()
        ingest = Ingest(folder / str(number), digest, folder / "never")
        wanted = Wanted(ref=ref, digest=digest, size=layer.size)
        download = Download(registry, wanted, ingest, settings=settings, traffic=traffic, call=call)
        download.start()
        download.join()
        ingest.close()

    with ThreadPoolExecutor(settings.downloads) as pool:
        list(pool.map(one, range(len(manifest.layers))))
    registry.close()


if __name__ == "__main__":
    fetch_blobs(sys.argv[1], Path(sys.argv[2]))
