"""One image in the ways in which `bench.reads` has roots of it, each mounted and unmounted at will."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import orlop
from bench import lab
from bench.reading import File, read_all
from orlop.config import Driver

__all__ = ["DIRECT", "DROPPED", "FOLDERS", "ORLOP", "Ways", "drop_caches", "patiently"]

ORLOP, DIRECT, DROPPED = "orlop", "orlop, directio", "orlop, tar dropped"
FOLDERS = "overlayfs over folders"
_PATIENCE = 30.0  # seconds


class Ways:
    """Roots of one image: EROFS as it is, with ``directio`` (in a store of its own), and over folders."""

    def __init__(self, folder: Path, image: str) -> None:
        self._folder = folder
        self._image = image
        folder.mkdir()
        _read_directly(folder)
        self._closing = contextlib.ExitStack()
        try:
            plain = self._store("plain", directio=False)
            self._stores = {ORLOP: plain, FOLDERS: plain, DIRECT: self._store("direct", directio=True)}
            self._roots = {
                way: self._prepare(way, f"root-{number}") for number, way in enumerate(self._stores)
            }
        except BaseException:
            self.close()
            raise
        self._roots[DROPPED] = self._roots[ORLOP]

    def __enter__(self) -> Ways:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing mounted, and no file."""
        self._closing.close()
        for way in (ORLOP, DIRECT):
            self._deactivate(way)
        subprocess.run(["rm", "-rf", "--one-file-system", self._folder], check=True)

    def _store(self, name: str, *, directio: bool) -> orlop.Store:
        settings = orlop.Settings(driver="erofs", directio=directio)
        store = orlop.open(self._folder / name, self._folder / f"{name}-run", settings=settings)
        self._closing.callback(store.close)
        self._closing.callback(self._empty, store)
        self._name = store.load(lab.layout(self._image)).pop().name
        return store

    @staticmethod
    def _empty(store: orlop.Store) -> None:
        for root in store.prepared():
            patiently(store.get(root.path).cleanup)

    def _prepare(self, way: str, name: str) -> orlop.Prepared:
        driver: Driver = "overlay" if way == FOLDERS else "erofs"
        return self._stores[way].prepare(self._name, self._folder / name, driver=driver)

    def _deactivate(self, way: str) -> None:
        run = self._folder / ("direct-run" if way == DIRECT else "plain-run")
        for point in (run / "chains").iterdir():
            if point.is_mount():
                subprocess.run(["umount", "--lazy", point], check=True)

    # -- roots ----------------------------------------------------------------------------------

    def mount(self, way: str) -> Path:
        """Where a root is, mounted now unless it was."""
        root = self._roots[way]
        root.mount()
        return Path(root.path)

    def cold(self, way: str) -> None:
        """As after a boot: neither root nor chain of this way is mounted, and nothing is cached."""
        patiently(self._roots[way].unmount)
        if way != FOLDERS:
            self._deactivate(way)
        drop_caches(self._folder)

    def as_pulled(self, way: str) -> None:
        """Have in memory what the pull would have left there."""
        if way == FOLDERS:
            for folder in (self._folder / "plain" / "folders").iterdir():
                read_all(folder, list(_files_below(folder)))
            return
        for file in self.behind(DIRECT if way == DIRECT else ORLOP):
            if way != DROPPED or file.suffix == ".erofs":
                with file.open("rb") as opened:
                    while opened.read(1 << 20):
                        pass

    def more(self, way: str, number: int) -> list[orlop.Prepared]:
        """Further roots of the same image, mounted; the caller's to clean up."""
        made = []
        for each in range(number):
            made.append(self._prepare(way, f"more-{each}"))
            made[-1].mount()
        return made

    # -- files ----------------------------------------------------------------------------------

    def behind(self, way: str) -> list[Path]:
        """The files that EROFS reads from; none for folders."""
        if way == FOLDERS:
            return []
        store = self._folder / ("direct" if way == DIRECT else "plain")
        return [
            *store.glob("layers/*/layer.tar"),
            *store.glob("layers/*/layer.data"),
            *store.glob("chains/*.erofs"),
        ]

    def files(self) -> list[File]:
        """The regular files of the root, in the order in which the layers' tars have them."""
        root = self.mount(FOLDERS)
        found: dict[str, int] = {}
        for diff_id in lab.diff_ids(self._image):
            tar = self._folder / "plain" / "layers" / diff_id.partition(":")[2] / "layer.tar"
            with tarfile.open(tar) as opened:
                for member in opened:
                    name = os.path.normpath(member.name)
                    found.pop(name, None)  # the layer above has it, if it has one at all
                    with contextlib.suppress(OSError):
                        about = os.lstat(root / name)
                        if member.isreg() and stat.S_ISREG(about.st_mode):
                            found[name] = about.st_size
        return list(found.items())


def _files_below(folder: Path) -> Iterator[File]:
    for place, _, names in os.walk(folder):
        for name in names:
            about = os.lstat(f"{place}/{name}")
            if stat.S_ISREG(about.st_mode):
                yield os.path.relpath(f"{place}/{name}", folder), about.st_size


def patiently(undo: Callable[[], object]) -> None:
    """Undo a mount.  A process with a mount namespace of its own keeps what was mounted when it began."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            undo()
        except orlop.FailedPrecondition:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def _read_directly(disk: Path) -> None:
    """Have a disk's loop device read past the page cache; if it cannot, `drop_caches` drops that, too."""
    device = subprocess.check_output(["findmnt", "-n", "-o", "SOURCE", "-T", disk], text=True).strip()
    subprocess.run(["losetup", "--direct-io=on", device], check=False, stderr=subprocess.DEVNULL)


def drop_caches(disk: Path) -> None:
    """Have nothing cached, of this disk or any other; what is dirty must be written before."""
    subprocess.run(["sync", "-f", disk], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")
