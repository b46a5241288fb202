"""What roots of one image have in memory: one copy for EROFS, one of the layers or none.

Others may take pages away from us at any moment, so what is to be there is locked while we look.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import orlop
from conftest import StoreDirs
from orlop.linux.mount import umount
from orlop.snapshots.pagecache import reads_sectors
from support import images
from support.layers import Layer

pytestmark = pytest.mark.root

CONTENT = os.urandom(300_000)
SMALL = [os.urandom(700 + number) for number in range(40)]  # each begins in another sector of the tar
ROOTS = 10
PATIENCE = 60.0  # seconds, for what the kernel does behind us

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
for function in (libc.munmap, libc.mlock):
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[tuple[int, int]]:
    """Where all of a file is mapped, and its size."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    try:
        yield address, size
    finally:
        libc.munmap(address, size)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Have all of a file in memory, and nobody take it away."""
    with mapped(path) as (address, size):
        assert libc.mlock(address, size) == 0, os.strerror(ctypes.get_errno())
        yield


def cached(path: Path) -> int:
    """How many of a file's pages are in the page cache."""
    with mapped(path) as (address, size):
        found = (ctypes.c_ubyte * pages(size))()
        assert libc.mincore(address, size, found) == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in found)


def forget(path: Path) -> None:
    """Have a file leave the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # EROFS has nothing to write
            os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


@pytest.fixture
def layout(workdir: Path) -> Path:
    layer = Layer().folder("etc").file("etc/big", CONTENT)
    for number, data in enumerate(SMALL):
        layer.file(f"etc/{number}", data)
    return images.write_layout(workdir / "layout", {"latest": images.make_image([layer.tar()])})


def opened(dirs: StoreDirs, *, directio: bool) -> Iterator[orlop.Store]:
    settings = orlop.Settings(driver="erofs", directio=directio)
    with orlop.open(dirs.root, dirs.run, settings=settings) as store:
        yield store
        for root in store.prepared():
            store.get(root.path).cleanup()


@pytest.fixture
def store(store_dirs: StoreDirs) -> Iterator[orlop.Store]:
    """A store that reads as it does by default."""
    yield from opened(store_dirs, directio=False)


@pytest.fixture
def direct(store_dirs: StoreDirs) -> Iterator[orlop.Store]:
    """A store that reads past the page cache."""
    yield from opened(store_dirs, directio=True)


def tar_of(store: orlop.Store) -> Path:
    (tar,) = Path(store.info().root).glob("layers/*/layer.tar")
    return tar


def chain_of(store: orlop.Store) -> Path:
    """Where the one image of the store is mounted."""
    (point,) = (Path(store.info().run) / "chains").iterdir()
    return point


def options_of(point: Path) -> list[str]:
    """What the kernel says of the file system at a mount point."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (options,) = [words[3] for words in lines if words[1] == str(point)]
    return options.split(",")


def mounted(store: orlop.Store, layout: Path, path: Path) -> Path:
    name = store.load(layout).pop().name
    store.prepare(name, path).mount()
    return path


def test_ten_roots_of_one_image_share_one_copy(store: orlop.Store, layout: Path, workdir: Path) -> None:
    """What one has read is there for all before they read it, and goes once for all."""
    roots = [mounted(store, layout, workdir / f"tree{number}") for number in range(ROOTS)]
    shared = chain_of(store) / "root/etc/big"
    with held(roots[0] / "etc/big"):
        assert [cached(root / "etc/big") for root in roots] == [pages(len(CONTENT))] * ROOTS
        assert cached(shared) == pages(len(CONTENT))
    assert [(root / "etc/big").read_bytes() == CONTENT for root in roots] == [True] * ROOTS
    forget(shared)
    assert [cached(root / "etc/big") for root in roots] == [0] * ROOTS, "one has a copy of its own"
    assert len({(root / "etc/big").stat().st_ino for root in roots}) == 1
    lowers = {option for root in roots for option in options_of(root) if option.startswith("lowerdir")}
    assert len(lowers) == 1


def test_an_image_is_fetched_ahead_when_it_is_mounted(
    store: orlop.Store, layout: Path, workdir: Path
) -> None:
    """Nobody reads it but who mounts it, and EROFS itself reads a page at a time."""
    name = store.load(layout).pop().name
    root = store.prepare(name, workdir / "tree")
    (image,) = Path(store.info().root).glob("chains/*.erofs")
    whole = pages(image.stat().st_size)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:  # once is enough, but where others drop what was fetched
        root.unmount()
        for point in (Path(store.info().run) / "chains").iterdir():
            umount(point, detach=True)
        forget(image)
        root.mount()
        soon = time.monotonic() + PATIENCE / 10
        while time.monotonic() < soon:
            if cached(image) == whole:
                return
    pytest.fail("nobody fetched it")


def test_read_directly_the_bytes_are_the_same_and_the_tar_is_not_held(
    direct: orlop.Store, layout: Path, workdir: Path
) -> None:
    """One copy in memory in place of two; files begin at any sector of the tar."""
    root = mounted(direct, layout, workdir / "tree")
    tar = tar_of(direct)
    assert reads_sectors([tar]), "the test's own disk has sectors of 512 bytes"
    assert "directio" in options_of(chain_of(direct))
    forget(tar)
    for number, data in enumerate(SMALL):
        assert (root / f"etc/{number}").read_bytes() == data
    assert (root / "etc/big").read_bytes() == CONTENT
    forget(root / "etc/big")
    with (root / "etc/big").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as shown:
        assert shown[:] == CONTENT
    assert cached(tar) == 0


def test_a_disk_that_cannot_is_read_through_the_page_cache(
    direct: orlop.Store, layout: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``directio`` a disk with sectors of 4,096 bytes would give EIO."""
    monkeypatch.setattr("orlop.snapshots.erofs.reads_sectors", lambda devices: False)
    root = mounted(direct, layout, workdir / "tree")
    assert "directio" not in options_of(chain_of(direct))
    assert (root / "etc/big").read_bytes() == CONTENT


def test_what_has_no_sectors_of_512_bytes_is_told_apart(workdir: Path) -> None:
    file = workdir / "file"
    file.write_bytes(bytes(8192))
    assert reads_sectors([file])
    assert not reads_sectors([file, workdir / "missing"])
    assert not reads_sectors([])
