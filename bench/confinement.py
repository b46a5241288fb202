"""What confinement costs: the same layers unpacked in three ways, in turn.

- confined: as orlop does it, in workers that gave up every right;
- forked: the same workers from the same kind of template, which give up nothing;
- in process: decompressed, hashed, written and indexed by one thread of this process.

All have the template ready and write to a file on the bench's disk without syncing it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import lab
from bench.section import Bench, Row, Section
from orlop.layers import compression
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import LayerIndex
from orlop.layers.tarread import TarReader
from orlop.layers.worker import server
from orlop.layers.worker.client import Feed, Template, unpack
from orlop.linux import confine
from orlop.observe import Call

WAYS = ("confined", "forked", "in process")
MADE = 100 << 20  # bytes of files in the layer that is made where there is no image
TINY = 20  # layers of one file, unpacked one after the other


@dataclass(slots=True, kw_only=True)
class Way:
    """Seconds of each round, and the same of a layer of one file."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    tiny: list[float] = field(default_factory=list)


def unconfined(control: int) -> None:
    """A template whose workers give up nothing but other people's descriptors."""

    def nothing(keep: Iterable[int], **_: object) -> confine.Confinement:
        confine.close_fds_except(keep)
        # Else the hash would not follow the worker, as it does a confined one.
        return confine.Confinement(user_changed=False, landlock=0, seccomp=True)

    confine.confine_worker = nothing
    server.main(control)


def measure(bench: Bench) -> Section:
    """Each way with the same layers."""
    (image,) = lab.choose(bench.images, quick=bench.quick, default=["debian-min"])[:1]
    if (lab.LAYOUTS / image).is_dir():
        blobs, what = _blobs(lab.layout(image)), f"the layers of {image}"
    else:
        made = _made(bench.disk / "made.tar.gz")
        blobs, what = [made], f"a layer of files of this machine, {MADE >> 20} MiB"
    tiny = bench.disk / "tiny.tar.gz"
    tiny.write_bytes(gzip.compress(_tiny()))
    found = {name: Way() for name in WAYS}
    for number in range((1 if bench.quick else 3 * bench.rounds) + 1):
        for name in random.sample(WAYS, len(WAYS)):
            way = Way() if number == 0 else found[name]  # the first round warms up
            _round(bench.disk, name, blobs, tiny, way)
            if number:
                walls, cpus = way.walls[-1] * 1000, way.cpus[-1] * 1000
                bench.say(f"round {number}, {name}: {walls:.0f} ms, CPU {cpus:.0f} ms")
    rows = []
    for name, way in found.items():
        for thing, figures in (
            (what, {"ms": way.walls, "CPU ms": way.cpus}),
            ("a tiny layer", {"ms": way.tiny}),
        ):
            row = Row(what=thing, tool=f"orlop, {name}", durable="no")
            row.figures |= {column: [each * 1000 for each in seconds] for column, seconds in figures.items()}
            rows.append(row)
    rows.sort(key=lambda row: row.what != what)
    return Section(
        name="confinement",
        title="What confining the workers costs",
        words=str(__doc__),
        rows=rows,
        base="orlop, forked",
        ratios=("ms", "CPU ms"),
    )


def _round(disk: Path, name: str, blobs: list[Path], tiny: Path, way: Way) -> None:
    children = _cpu(resource.RUSAGE_CHILDREN)
    with ExitStack() as stack:
        template = None
        started = 0.0
        if name != "in process":
            entry = (
                {} if name == "confined" else {"entry": "from bench.confinement import unconfined as main"}
            )
            template = stack.enter_context(Template(**entry))
            _one(template, tiny, disk / "tar")  # it is ready when it has done something
            started = _cpu_of(template)
        for _ in range(TINY):
            start = time.perf_counter()
            _one(template, tiny, disk / "tar")
            way.tiny.append(time.perf_counter() - start)
        before, start = _cpu(resource.RUSAGE_SELF), time.perf_counter()
        if template is not None:
            started = _cpu_of(template)
        for blob in blobs:
            _one(template, blob, disk / "tar")
        way.walls.append(time.perf_counter() - start)
        own = _cpu(resource.RUSAGE_SELF) - before
    way.cpus.append(own + _cpu(resource.RUSAGE_CHILDREN) - children - started)


def _one(template: Template | None, blob: Path, tar: Path) -> None:
    with blob.open("rb") as source, tar.open("wb+", buffering=0) as target:
        if template is None:
            _in_process(source.fileno(), target.fileno())
            return
        feed = Feed.whole(blob.stat().st_size)
        try:
            unpack(template, source.fileno(), feed, tar=target.fileno(), call=Call())
        finally:
            feed.close()


def _in_process(source: int, tar: int) -> None:
    hasher = hashlib.sha256()

    def chunks() -> Iterator[bytes]:
        while chunk := os.read(source, 1 << 18):
            yield chunk

    def copied() -> Iterator[bytes]:
        for chunk in compression.decompress(chunks()):
            hasher.update(chunk)
            done = os.write(tar, chunk)
            assert done == len(chunk)
            yield chunk

    reader = TarReader(copied())
    builder = IndexBuilder()
    for entry in reader:
        builder.add(entry)
    LayerIndex.decode(builder.finish(reader.size).encode()).validate(tar_size=reader.size)


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _cpu_of(template: Template) -> float:
    """What the template and the workers that it has seen end have used."""
    assert template._process is not None
    fields = Path(f"/proc/{template._process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _blobs(layout: Path) -> list[Path]:
    (named,) = json.loads((layout / "index.json").read_text())["manifests"][:1]

    def blob(digest: str) -> Path:
        return layout / "blobs" / digest.replace(":", "/")

    manifest = json.loads(blob(named["digest"]).read_text())
    return [blob(layer["digest"]) for layer in manifest["layers"]]


def _made(path: Path) -> Path:
    """A layer such as distributions have, of what lies under /usr here."""
    left = MADE
    with tarfile.open(path, "w:gz", compresslevel=6, format=tarfile.PAX_FORMAT) as tar:
        for top in ("/usr/lib/python3", "/usr/bin", "/usr/share"):
            for folder, folders, names in os.walk(top):
                folders.sort()
                for name in sorted(names):
                    file = Path(folder, name)
                    if left > 0 and file.is_file() and not file.is_symlink() and file.stat().st_size < left:
                        tar.add(file, recursive=False)
                        left -= file.stat().st_size
    return path


def _tiny() -> bytes:
    from orlop.testing.layers import Layer

    return Layer().file("a", b"x").tar()
