"""Syncing, and not syncing: what is asked of the kernel, and what is left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import orlop
from orlop.linux.sync import DURABLE, Sync

SCRIPT = """
import os, sys
from pathlib import Path
from orlop.linux.files import write_durably
from orlop.linux.sync import Sync
folder, durable = Path(sys.argv[1]), sys.argv[2] == "True"
sync = Sync(durable)
fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
sync.file(fd)
sync.folder(folder)
place = os.open(folder, os.O_RDONLY)
sync.folder(place)
write_durably(folder / "whole", b"whole", sync=sync)
"""


def synced(folder: Path, *, durable: bool) -> list[str]:
    """The calls that sync, with what they sync, that the script makes."""
    log = folder.with_name("strace")
    watch = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-o",
        str(log),
        "-e",
        "trace=fsync,fdatasync,sync,syncfs,sync_file_range",
    ]
    command = [*watch, sys.executable, "-c", SCRIPT, str(folder), str(durable)]
    subprocess.run(command, check=True, timeout=60)
    return [
        re.sub(r"\.tmp-\w+", ".tmp", line) for line in re.findall(r"\w+\(\d*<?[^>)]*>?\)", log.read_text())
    ]


def test_files_and_folders_are_synced_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    found = [re.sub(r"\d+<(.*)>", r"\1", call) for call in synced(folder, durable=True)]
    assert found == [
        f"fsync({folder}/file)", f"fsync({folder})", f"fsync({folder})", f"fsync({folder}/.tmp)", f"fsync({folder})",
    ]  # fmt: skip


def test_without_durability_nothing_is_synced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert synced(folder, durable=False) == []
    assert (folder / "whole").read_bytes() == b"whole"


def test_failures_are_the_kernels(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        DURABLE.folder(__file__)
    with pytest.raises(FileNotFoundError):
        DURABLE.folder(tmp_path / "missing")
    with pytest.raises(OSError, match="Bad file descriptor"):
        DURABLE.file(1 << 20)
    Sync(False).folder(tmp_path / "missing")


def test_no_module_syncs_a_whole_disk() -> None:
    package = Path(orlop.__file__).parent
    calls = re.compile(r'\bos\.sync\(|\bcall\(\s*"(?:sync|syncfs)"')
    assert [path for path in package.rglob("*.py") if calls.search(path.read_text())] == []
