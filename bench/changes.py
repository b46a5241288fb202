"""What the commit benchmark does to a root: the same for every tool, and half of it can be compressed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["CHANGES", "change"]

TEXT = b"".join(b"line %d of a file that says little, and says it again\n" % n for n in range(20_000))


def ten_files(root: Path) -> None:
    """Ten files of 400 bytes."""
    for number in range(10):
        (root / "etc" / f"bench-{number}").write_bytes(TEXT[number * 400 : number * 400 + 400])


def many_files(root: Path) -> None:
    """20,000 files of 5,000 bytes in 100 folders."""
    for folder in range(100):
        at = root / "opt" / "many" / f"{folder:03}"
        at.mkdir(parents=True)
        for number in range(200):
            (at / f"file-{number:03}.txt").write_bytes(os.urandom(2_500) + TEXT[:2_500])


def one_file(root: Path) -> None:
    """One file of 1 GiB."""
    with (root / "opt" / "big").open("wb", buffering=0) as file:
        for _ in range(1024):
            file.write(os.urandom(512 << 10))
            file.write(TEXT[: 512 << 10])


def deletions(root: Path) -> None:
    """2,000 files of the image are gone."""
    for path, _ in zip(_files(root / "usr"), range(2_000), strict=False):
        path.unlink()


def _files(folder: Path) -> Iterator[Path]:
    """Regular files that no program needs, in a fixed order."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("bin", "sbin", "lib64"))
        yield from (Path(at, name) for name in sorted(names))


CHANGES: dict[str, Callable[[Path], None]] = {
    "10 files": ten_files,
    "20,000 files": many_files,
    "1 GiB": one_file,
    "2,000 deletions": deletions,
}


def change(name: str, root: Path) -> None:
    """Make a change below a mounted root, and let it reach the disk: nobody is to pay for another's."""
    CHANGES[name](root)
    os.sync()
