"""Layers that are too much, or packed to break the unpacking: bombs, masses, damaged compression, disks for tars,
and folders that somebody swaps while they are written (HOSTILE.md's rows 2, 12, 13, 14, 34).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import lzma
import os
import random
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.erofs.tree import Node
from orlop.erofs.writer import build
from support.breakouts import DRIVERS, Canary, Name, Trial, shape, trial_store
from support.images import Image, compress, make_image, repacked, write_layout
from support.layers import Layer

pytestmark = [pytest.mark.root, pytest.mark.any_kernel]


@pytest.fixture
def canary(workdir: Path) -> Canary:
    return Canary(workdir / "canary")


@pytest.fixture
def trial(store_dirs: StoreDirs, canary: Canary) -> Iterator[Trial]:
    with trial_store(store_dirs, canary) as made:
        yield made


def load(trial: Trial, image: Image, tag: str) -> str:
    return (
        trial.store.load(write_layout(trial.folder / tag, {tag: image}), name=f"localhost/{tag}").pop().name
    )


# ------------------------------------------------------------------ 13: how it is packed

TAR = Layer().file("f", random.Random(1).randbytes(70_000)).file("g", bytes(70_000)).tar()
GZIP, ZSTD, BZIP2, XZ = compress(TAR, "gzip"), compress(TAR, "zstd"), bz2.compress(TAR), lzma.compress(TAR)
ODD_HEADER = b"\x1f\x8b\x08\x1c" + bytes(6) + b"\3\0abc" + b"name\0" + b"comment\0"  # FEXTRA, FNAME, FCOMMENT


def deflated(data: bytes) -> bytes:
    """What follows a gzip member's header."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = packer.compress(data) + packer.flush()
    return packed + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(4, "little")


WELL_PACKED = {
    "bzip2": BZIP2,
    "xz": XZ,
    "several gzip members": b"".join(gzip.compress(TAR[at : at + 9_999]) for at in range(0, len(TAR), 9_999)),
    "an empty gzip member between two": gzip.compress(TAR[:700])
    + gzip.compress(b"")
    + gzip.compress(TAR[700:]),
    "a gzip header with everything in it": ODD_HEADER + deflated(TAR),
    "zeros behind gzip": GZIP + bytes(5_000),
    "several zstd frames": compress(TAR[:4_000], "zstd") + compress(TAR[4_000:], "zstd"),
    "skippable zstd frames": b"\x50\x2a\x4d\x18\4\0\0\0junk" + ZSTD + b"\x5f\x2a\x4d\x18\0\0\0\0",
    "several bzip2 streams": bz2.compress(TAR[:512]) + bz2.compress(TAR[512:]),
    "several xz streams": lzma.compress(TAR[:512]) + lzma.compress(TAR[512:]),
    "nothing, though its media type says gzip": TAR,
}
BADLY_PACKED = {
    **{
        f"{form}, {name}": change(blob)
        for form, blob in (("gzip", GZIP), ("zstd", ZSTD), ("bzip2", BZIP2), ("xz", XZ))
        for name, change in (
            ("cut off", lambda blob: blob[: len(blob) * 2 // 3]),
            ("cut off in its last byte", lambda blob: blob[:-1]),
            ("cut off in its header", lambda blob: blob[:5]),
            ("damaged", lambda blob: blob[:2_000] + bytes(64) + blob[2_064:]),
            ("garbage behind it", lambda blob: blob + b"garbage"),
        )
    },
    "gzip with another form behind it": GZIP + ZSTD,
    "gzip with a wrong checksum": GZIP[:-8] + bytes(8),
    "a gzip header without an end": b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 400_000,
    "gzip in gzip": gzip.compress(GZIP),
    "zstd with a window beyond all": b"\x28\xb5\x2f\xfd\x00\xff" + b"\1\0\0",
}  # fmt: skip


@pytest.mark.hostile(13)
def test_well_packed_layers_are_unpacked_however_odd(trial: Trial) -> None:
    image = make_image([TAR])
    for number, (name, blob) in enumerate(WELL_PACKED.items()):
        image = repacked(make_image([TAR]), [blob])
        tree = trial.show(load(trial, image, f"w{number}"), DRIVERS[number % 3])
        assert shape(tree) == {"f": "70000", "g": "70000"}, name
        trial.store.remove(f"localhost/w{number}")
    trial.leaves_nothing()


@pytest.mark.hostile(13)
def test_badly_packed_layers_are_refused_and_nothing_is_left(trial: Trial) -> None:
    for number, (name, blob) in enumerate(BADLY_PACKED.items()):
        image = repacked(make_image([TAR]), [blob])
        try:
            load(trial, image, f"b{number}")
        except (orlop.InvalidArgument, orlop.DataLoss):
            continue
        pytest.fail(f"{name}: was taken")
    trial.leaves_nothing()


# ------------------------------------------------------------------ 34: a disk for a tar


def disks() -> dict[str, bytes]:
    root = Node(stat.S_IFDIR | 0o755)
    assert root.children is not None
    root.children[b"su"] = Node(stat.S_IFREG | 0o4755)
    erofs = bytes(build(root, devices=[], uuid=bytes(16)))
    return {
        "erofs": erofs,
        "erofs, packed": gzip.compress(erofs),
        "squashfs": b"hsqs" + erofs,
        "ext4": bytes(1080) + b"\x53\xef" + bytes(5_000),
        "a tar of nothing, and a disk behind it": bytes(10_240) + erofs,
    }


@pytest.mark.hostile(34)
def test_the_image_of_a_file_system_is_no_layer(trial: Trial) -> None:
    for name, blob in disks().items():
        plain = gzip.decompress(blob) if blob[:2] == b"\x1f\x8b" else blob
        image = repacked(make_image([plain], compression="none"), [blob])
        with pytest.raises(orlop.InvalidArgument, match="tar"):
            load(trial, image, "disk")
        subprocess.run(["rm", "-r", trial.folder / "disk"], check=True)
        assert not list((trial.store.verbs.root / "chains").iterdir()), name
    trial.leaves_nothing()


# ------------------------------------------------------------------ 12: bombs


def zeros(size: int) -> Iterator[bytes]:
    """A tar of one file of zeros, in pieces."""
    yield Layer().add("f", b"0", size=size).tar(end=b"")
    yield from itertools.repeat(bytes(1 << 20), size >> 20)
    yield bytes(1024)


def bomb(size: int, form: str) -> bytes:
    """A bomb as a blob; its diff ID is not that of anything, for nobody should get as far as that."""
    if form == "gzip":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        return b"".join(map(packer.compress, zeros(size))) + packer.flush()
    program = {"zstd": ["zstd", "-q", "-1"], "xz": ["xz", "-0"]}[form]
    done = subprocess.run(program, input=b"".join(zeros(size)), capture_output=True, check=True)
    return done.stdout


@pytest.mark.hostile(12)
def test_a_bomb_is_stopped_by_its_ratio_and_leaves_no_bytes(trial: Trial) -> None:
    blob = bomb(96 << 20, "zstd")
    assert len(blob) * 1_200 < 96 << 20
    with pytest.raises(orlop.ResourceExhausted, match="compression_ratio"):
        load(trial, repacked(make_image([TAR]), [blob]), "bomb")
    trial.leaves_nothing()


@pytest.mark.hostile(12)
def test_what_a_limit_of_its_size_stops_is_stopped_by_name(store_dirs: StoreDirs, canary: Canary) -> None:
    limits = orlop.Limits(layer_size=8 << 20, file_size=4 << 20)
    settings = orlop.Settings(limits=limits, durable=False)
    cases = {
        "layer_size": bomb(16 << 20, "gzip"),
        "file_size": gzip.compress(Layer().sparse("f", 1 << 40, [], how="gnu-1.0").tar()),
    }
    with orlop.open(store_dirs.root, store_dirs.run, settings=settings) as store:
        trial = Trial(store, store_dirs.work, canary)
        for name, blob in cases.items():
            with pytest.raises(orlop.ResourceExhausted, match=name):
                load(trial, repacked(make_image([TAR]), [blob]), name.replace("_", "-"))
        trial.leaves_nothing()


# ------------------------------------------------------------------ 14: masses


def tiny(scale: int) -> Layer:
    layer = Layer()
    for number in range(20 * scale):
        layer.file(f"{number >> 10:x}/{number:x}")
    return layer


def linked(scale: int) -> Layer:
    layer = Layer().file("first", b"x")
    for number in range(10 * scale):
        layer.hardlink(f"{number >> 10:x}/{number:x}", to="first")
    return layer


def described(scale: int) -> Layer:
    layer = Layer()
    for number in range(scale):
        xattrs = {f"user.{n}.{number:x}": b"%d" % number for n in range(10)}
        layer.file(f"{number >> 10:x}/{number:x}", xattrs=xattrs)
    return layer


@pytest.mark.hostile(14)
@pytest.mark.parametrize(
    ("make", "count", "driver"),
    [(tiny, 20_000, "erofs"), (linked, 10_000, "overlay"), (described, 1_000, "native")],
)
def test_masses_are_kept(trial: Trial, make: Callable[[int], Layer], count: int, driver: Name) -> None:
    place = trial.folder / "shown"
    name = trial.load([Layer().file("below").tar(), make(1_000).tar()])
    trial.store.prepare(name, place, driver=driver, mount=True)
    try:
        files = sum(len(names) for _, _, names in os.walk(place))
        last = place / f"{(count - 1) >> 10:x}/{count - 1:x}"
        found = (files, last.stat().st_nlink, len(os.listxattr(last)))
    finally:
        trial.store.get(place).cleanup()
    if make is linked:
        assert found == (count + 2, count + 1, 0)
    else:
        assert found == (count + 1, 1, 10 if make is described else 0)
    trial.leaves_nothing()


def repeated(records: dict[str, str], count: int, *, link: bool) -> Layer:
    """Entries that say little themselves, because a global header says it for all of them."""
    layer = Layer().pax_global(records)
    for number in range(count):
        layer.add(f"{number:x}", b"1" if link else b"0", link="x" if link else b"")
    return layer


def deep(layer: Layer, levels: int = 15) -> Layer:
    """A folder far down, which a short path reaches by way of symlinks: ``s<levels - 1>``."""
    for level in range(levels):
        below = (f"s{level - 1}/" if level else "") + "/".join(["n" * 200] * 20)
        layer.folder(below).symlink(f"s{level}", below)
    return layer


def many_links(count: int) -> list[Layer]:
    """Files of a lower layer, and their names far down in the next."""
    lower, upper = Layer(), deep(Layer())
    for number in range(count):
        lower.file(f"low/{number:x}", b"x")
        upper.hardlink(f"s14/{number:x}", to=f"low/{number:x}")
    return [lower, upper]


def winding(count: int) -> list[Layer]:
    """Hard links, each of which leads through as many symlinks as may be, as long as may be."""
    lower = Layer().folder("a").file("a/f", b"x")
    for number in range(38):
        lower.symlink(f"k{number}", "a/../" * 810 + (f"k{number + 1}" if number < 37 else "a"))
    upper = Layer()
    for number in range(count):
        upper.hardlink(f"h{number:x}", to="k0/f")
    return [lower, upper]


AMPLIFIED: dict[str, tuple[Callable[[], list[Layer]], str]] = {
    "xattrs that are said once": (
        lambda: [repeated({f"SCHILY.xattr.user.{n}": "v" * 60_000 for n in range(2)}, 2_500, link=False)],
        "metadata_size",
    ),
    "targets that are said once": (
        lambda: [Layer().file("f"), repeated({"linkpath": "/".join(["p" * 250] * 250)}, 4_500, link=True)],
        "metadata_size",
    ),
    "a path that no entry says": (lambda: [deep(Layer(), 20)], "path_size"),
    "links to lower files in a folder far down": (lambda: many_links(60), "bytes"),
    "links that wind": (lambda: winding(150), "too many symlinks"),
}


@pytest.mark.hostile(8, 14)
@pytest.mark.parametrize("case", AMPLIFIED)
def test_a_little_that_stands_for_very_much_is_refused(trial: Trial, case: str) -> None:
    make, words = AMPLIFIED[case]
    tars = [layer.tar() for layer in make()]
    assert sum(len(compress(tar, "gzip")) for tar in tars) < 200_000
    with pytest.raises(orlop.ResourceExhausted, match=words):
        trial.show(trial.load(tars), "overlay")
    trial.leaves_nothing()


LOADED = """
import re, resource, sys
import orlop
root, source, place, driver = sys.argv[1:]
def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1])
with orlop.open(root + "/root", root + "/run", settings=orlop.Settings(durable=False)) as store:
    before = peak()
    try:
        store.prepare(store.load(source).pop().name, place, driver=driver).cleanup()
    except (orlop.ResourceExhausted, orlop.DataLoss) as exc:  # a bomb's diff ID is not that of its tar
        print(exc, file=sys.stderr)
    ours = peak() - before
print(ours, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.soak
@pytest.mark.large
@pytest.mark.timeout(0)
@pytest.mark.hostile(12, 14)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("kind", ["tiny", "linked", "described", "bomb", "amplified"])
def test_memory_is_bounded_whatever_comes(workdir: Path, kind: str, driver: Name) -> None:
    """10^6 entries, 10^6 links, 10^6 xattrs (a tenth where each is a file on a small disk), a bomb of 4 GiB,
    and what stands for 240 MB of xattrs.
    """
    scale = (50_000 if kind == "tiny" else 100_000) // (1 if driver == "erofs" else 10)
    if kind == "bomb":
        image = repacked(make_image([TAR]), [bomb(4 << 30, "gzip")])
    elif kind == "amplified":
        records = {f"SCHILY.xattr.user.{n}": "v" * 60_000 for n in range(2)}
        image = make_image([repeated(records, 2_000, link=False).tar()])
    else:
        make = {"tiny": tiny, "linked": linked, "described": described}[kind]
        image = make_image([make(scale).tar()], compression="zstd")
    source = write_layout(workdir / "layout", {"v1": image})
    command = [sys.executable, "-c", LOADED, workdir, source, workdir / "shown", driver]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3_000)
    assert done.returncode == 0, done.stderr
    ours, workers = (int(number) >> 10 for number in done.stdout.split())
    entries = {"tiny": 20 * scale, "linked": 10 * scale, "described": 11 * scale}.get(kind, 0)
    most = 80 + (500 * entries >> 20) + (4 * 240 if kind == "amplified" else 0)
    print(f"{kind}, {driver}: {ours} MiB here, {workers} MiB in a worker, {most} MiB allowed")  # noqa: T201
    assert max(ours, workers) <= most


# ------------------------------------------------------------------ 2: swapped while it is written

SWAPPED = """
import os, stat, sys
from orlop.errors import Error
from orlop.layers.folder import FolderWriter, Item
from orlop.layers import folder as module

place, outside, kept_open = sys.argv[1], sys.argv[2], int(sys.argv[3])
module._OPEN_FOLDERS = kept_open
KINDS = [
    (0, 0, b"", stat.S_IFDIR), (1, 0, b"d", stat.S_IFDIR), (2, 1, b"e", stat.S_IFDIR),
    (3, 2, b"file", stat.S_IFREG), (4, 2, b"link", stat.S_IFLNK), (5, 2, b"fifo", stat.S_IFIFO),
    (6, 2, b"dev", stat.S_IFCHR), (7, 1, b"f", stat.S_IFDIR), (8, 7, b"file", stat.S_IFREG),
    (9, 2, b"again", 0), (10, 2, b"last", stat.S_IFREG),
]
VICTIMS = {"d": "folder", "d/e": "folder", "d/f": "folder", "d/e/file": "file", "d/e/link": "file",
           "d/e/fifo": "file", "d/e/dev": "su", "d/e/again": "file", "d/f/file": "file"}
at, when, victim, busy = 0, -1, "", False

def items():
    for key, parent, name, kind in KINDS:
        item = Item(key, parent, name, kind | 0o4777 if kind else 0)
        item.uid, item.gid, item.mtime, item.rdev = 5, 6, 7, os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        item.xattrs = ((b"trusted.x", b"y"), (b"trusted.z", b"")) if kind else ()
        item.target = b"file" if kind == stat.S_IFLNK else b""
        item.shared, item.hard = key == 3, 3 if key == 9 else -1
        yield item

def hook(event, args):
    global at, busy
    if busy or not place_open or not event.startswith(("os.", "open", "ctypes.call")):
        return
    at += 1
    if at == when:
        busy = True
        path = os.path.join(top, victim)
        if os.path.lexists(path):
            os.rename(path, top + ".aside")
            os.symlink(os.path.join(outside, VICTIMS[victim]), path)
        busy = False

sys.addaudithook(hook)
place_open = False
runs = refused = most = 0
for victim in VICTIMS:
    when = 0
    while True:
        when, at = when + 1, 0
        top = os.path.join(place, str(runs))
        os.mkdir(top)
        fd = os.open(top, os.O_RDONLY)
        place_open = True
        try:
            FolderWriter(fd, durable=False).write(items())
        except (OSError, Error):
            refused += 1
        place_open = False
        os.close(fd)
        runs += 1
        if at < when:
            break
print(runs, refused)
"""


@pytest.mark.hostile(2, 5)
@pytest.mark.parametrize("kept_open", [1, 256])
def test_whatever_is_swapped_for_a_link_before_any_call_leads_nowhere(
    workdir: Path, canary: Canary, kept_open: int
) -> None:
    """The calls are told by audit hooks (PEP 578); before each, everything that was made is swapped once."""
    (workdir / "places").mkdir()
    command = [sys.executable, "-c", SWAPPED, workdir / "places", canary.top, str(kept_open)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    runs, refused = map(int, done.stdout.split())
    assert runs > 300
    assert refused > 0
    assert canary.changes() == []


@pytest.mark.hostile(2)
@pytest.mark.parametrize("driver", ["overlay", "native"])
def test_folders_swapped_for_links_while_an_image_is_unpacked_lead_nowhere(
    trial: Trial, canary: Canary, driver: Name
) -> None:
    layer = Layer()
    for number in range(300):
        layer.file(f"a/{number % 7}/{number}", b"x", mode=0o4777, uid=5, xattrs={"user.x": b"y"})
        layer.symlink(f"a/{number % 7}/k{number}", "x").fifo(f"a/{number % 5}/p{number}", mode=0o777)
    root = trial.store.verbs.root
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for top in (*root.glob("folders/new-*"), *root.glob("prepared/*/tree")):
                for name in ("a", "a/0", "a/1"):
                    with contextlib.suppress(OSError):
                        os.rename(top / name, top / "aside")
                        os.symlink(canary.top / "folder", top / name)
                        os.rename(top / name, top / "link")
                        os.rename(top / "aside", top / name)
                        os.unlink(top / "link")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for number in range(3):
            name = trial.load([layer.tar(), Layer().file(f"n{number}").tar()])
            place = trial.folder / f"r{number}"
            with contextlib.suppress(orlop.Error):
                trial.store.prepare(name, place, driver=driver)
            assert canary.changes() == []
            for prepared in trial.store.prepared():
                trial.store.get(prepared.path).cleanup()
            for image in trial.store.images():
                trial.store.remove(image.name)
    finally:
        stop.set()
        swapping.join(60)
    trial.leaves_nothing()
