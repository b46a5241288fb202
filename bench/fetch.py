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
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import lab
from bench import measure as measuring
from bench.section import Bench, Row, Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to fetch: how, where to, what it hashes."""

    name: str
    durable: str
    fetch: Callable[[str], list[str]]
    folders: tuple[Path, ...]
    hashed: tuple[str, ...]  # files below the folders that it had to hash, as patterns


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


def measure(bench: Bench) -> Section:
    """Every way with every image, in turn."""
    ways = peers(bench.disk)
    rows = []
    for image in lab.choose(bench.images, quick=bench.quick, default=["node-many", "ml"]):
        lab.warm(image)
        mine = [Row(what=image, tool=way.name, durable=way.durable) for way in ways]
        hashing: dict[str, float] = {}
        size = 0
        for _ in range(bench.rounds):
            for way, row in zip(ways, mine, strict=True):
                lab.settle()
                cost = measuring.run(way.fetch(f"{lab.REGISTRY}/{image}"))
                files = [path for folder in way.folders for glob in way.hashed for path in folder.glob(glob)]
                if way.name not in hashing:
                    hashing[way.name] = hash_seconds(files)
                    size = size or sum(path.stat().st_size for path in files)
                for folder in way.folders:
                    shutil.rmtree(folder, ignore_errors=True)
                hashed = hashing[way.name] + (hashing[ways[0].name] if way.durable == "yes" else 0.0)
                row.add(
                    **{
                        "wall s": cost.wall,
                        "CPU s": cost.cpu,
                        "hashing CPU s": hashed,
                        "beyond hashing CPU s/GB": (cost.cpu - hashed) / (size / 1e9),
                    }
                )
                bench.say(f"{image} {way.name}: {cost.wall:.2f} s, CPU {cost.cpu:.2f} s")
        rows += mine
    return Section(
        name="fetch",
        title="Pull without preparing",
        words=str(__doc__).partition("As a program")[0],
        rows=rows,
        base=ways[0].name,
        ratios=("wall s", "CPU s", "beyond hashing CPU s/GB"),
    )


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
