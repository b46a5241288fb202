"""EROFS images read whole by the kernel, in a mount namespace that is thrown away.

`Reader` is the test's side.  The module run as a program is the other: a process in a mount
namespace of its own that mounts what it is told of, reads every name, byte, target and xattr, and answers with the tree
and with what the kernel said meanwhile.  When it ends, however it does, its mounts are gone.
The namespace is a slave of ours, not private: else it would keep what other tests unmount.
"""

from __future__ import annotations

import os
import pickle
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from orlop.linux.mount import mount_erofs, move_mount, umount
from orlop.testing.conformance.model import Tree
from orlop.testing.conformance.trees import snapshot

__all__ = ["Reader", "Reading"]

PATIENCE = 120  # seconds for one image; a few milliseconds are usual
_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the kernel shows of an image, why it refuses it or a part, and what it wrote to its log."""

    tree: Tree
    trouble: str
    log: list[str]


class Reader:
    """Mounts images below ``folder``, one after the other.  A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._said = (folder / "said").open("w+b")
        self._process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "slave",
                sys.executable,
                "-m",
                __name__,
                os.fspath(folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def read(self, image: bytes, devices: Sequence[bytes]) -> Reading:
        """The tree of an image."""
        (self._folder / "image").write_bytes(image)
        for number, data in enumerate(devices):
            (self._folder / f"device-{number}").write_bytes(data)
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % len(devices))
        self._process.stdin.flush()
        (size,) = _SIZE.unpack(self._answer(_SIZE.size))
        return Reading(*pickle.loads(self._answer(size)))

    def _answer(self, count: int) -> bytes:
        assert self._process.stdout is not None
        fd, data, deadline = self._process.stdout.fileno(), b"", time.monotonic() + PATIENCE
        while len(data) < count:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(fd, min(count - len(data), 1 << 16)) if ready else b""
            if not part:
                self._said.seek(0)
                raise RuntimeError(
                    f"the reader is silent or gone: {self._said.read().decode(errors='replace')}"
                )
            data += part
        return data


# ------------------------------------------------------------------ the other side


def _serve(folder: Path, asked: BinaryIO, answers: BinaryIO) -> None:
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    target = folder / "mounted"
    target.mkdir()
    for line in asked:
        os.lseek(log, 0, os.SEEK_END)
        tree, trouble = _read(folder, target, int(line))
        data = pickle.dumps((tree, trouble, _complaints(log)))
        answers.write(_SIZE.pack(len(data)) + data)
        answers.flush()


def _read(folder: Path, target: Path, devices: int) -> tuple[Tree, str]:
    try:
        fd = mount_erofs(folder / "image", [folder / f"device-{number}" for number in range(devices)])
        try:
            move_mount(fd, target)
        finally:
            os.close(fd)
        try:
            return snapshot(target / "root"), ""
        finally:
            umount(target)
    except Exception as exc:  # noqa: BLE001 - the answer, whatever it is
        return {}, f"{type(exc).__name__}: {exc}"


def _complaints(log: int) -> list[str]:
    """What the kernel said of EROFS since, at warning level or worse: warnings, BUGs and their traces, too."""
    found: list[str] = []
    while True:
        try:
            record = os.read(log, 8192).decode(errors="replace")
        except BlockingIOError:
            return found
        except BrokenPipeError:
            continue  # overtaken: the next read goes on with what is still there
        if int(record.split(",", 1)[0]) & 7 <= 4 and "erofs" in record:
            found.append(record.strip())


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
