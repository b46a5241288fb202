"""Workers that do what they should not, forked by the real template.

    with lying(folder) as (template, orders):
        orders(index="answer", answer=b"+junk")

``index`` and ``copy`` say how the worker that indexes and the one that decompresses behave, ``small`` how the one
for small layers does: a name of `WAYS`.
A worker looks for its orders as it starts, so they may change between layers.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orlop.layers.worker import APPENDING, BEAT, COMPLETE, server
from orlop.layers.worker.client import Template
from orlop.layers.worker.process import work_on
from orlop.linux import confine

Orders = Callable[..., None]


@contextmanager
def lying(folder: Path) -> Iterator[tuple[Template, Orders]]:
    """A template, and a function that tells its workers what to do; honest until told otherwise."""
    folder.mkdir(exist_ok=True)

    def orders(
        *,
        index: str = "honest",
        copy: str = "honest",
        small: str = "honest",
        answer: bytes = b"",
        tar: bytes = b"",
    ) -> None:
        (folder / "answer").write_bytes(answer)
        (folder / "tar").write_bytes(tar)
        (folder / "ways").write_text(json.dumps({"index": index, "copy": copy, "small": small}))

    orders()
    with Template(entry=entry(folder)) as template:
        template.start()
        yield template, orders


def entry(folder: Path) -> str:
    """What a template is started with to obey the orders in a folder."""
    return f"from functools import partial; from support.liars import serve; main = partial(serve, {str(folder)!r})"


def serve(folder: str, control: int) -> None:
    """The template's main."""
    server.main(control, functools.partial(_work, Path(folder)))


def _work(folder: Path, message: bytes, descriptors: list[int], parent: int) -> int:
    job = json.loads(message)
    ways = json.loads((folder / "ways").read_text())
    way = (
        ways["index" if job["index"] else "copy" if job["copy"] else "small"]
        if not job["probe"]
        else "honest"
    )
    return WAYS[way](folder, job, message, descriptors, parent)


def _confine(job: dict[str, Any], descriptors: list[int], parent: int) -> None:
    confine.confine_worker(
        descriptors,
        memory=job["limits"]["worker_memory"],
        cpu_seconds=job["limits"]["worker_cpu"],
        file_size=job["limits"]["layer_size"] if job["copy"] else 0,
        parent=parent,
    )
    if job["copy"]:
        _write(descriptors[3], APPENDING)


def _all_told(control: int) -> None:
    while news := os.read(control, 8 * 4096):
        if struct.unpack("<Q", news[-8:])[0] & COMPLETE:
            return


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _honest(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    return work_on(message, descriptors, parent)


def _answer(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Wait until the source is whole, write the tar that was ordered, then the answer."""
    tar, answer = (folder / "tar").read_bytes(), (folder / "answer").read_bytes()
    _confine(job, descriptors, parent)
    _all_told(descriptors[1])
    if job["copy"]:
        _write(descriptors[2], tar)
    os.close(descriptors[2])
    _write(descriptors[3], answer)
    return 0


def _early(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Answer before anything was read."""
    _write(descriptors[3], (folder / "answer").read_bytes())
    return 0


def _sleep(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    _confine(job, descriptors, parent)
    while True:
        time.sleep(1000)


def _deaf(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Close all pipes, hear no signal, and live on."""
    for number in (signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for descriptor in descriptors:
        os.close(descriptor)
    while True:
        time.sleep(1000)


def _loop(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    _confine(job, descriptors, parent)
    while True:
        pass


def _crash(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    _confine(job, descriptors, parent)
    ctypes.string_at(8)
    return 0


def _exit(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    return 3


def _killed(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _hoard(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Take memory until the limit kills it, and die of that without a word."""
    _confine(job, descriptors, parent)
    kept = []
    while True:
        kept.append(bytearray(1 << 20))


def _scribble(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Try to change the source, before any confinement; say what could be done."""
    import mmap

    _all_told(descriptors[1])
    source, done = descriptors[0], []
    tries: dict[str, Callable[[], object]] = {
        "write": lambda: os.write(source, b"x"),
        "pwrite": lambda: os.pwrite(source, b"x", 0),
        "truncate": lambda: os.ftruncate(source, 0),
        "map": lambda: mmap.mmap(source, 1),
        "close": lambda: None,
    }
    for name, action in tries.items():
        try:
            action()
            done.append(name)
        except OSError:
            continue
    said = {
        "code": "INVALID_ARGUMENT",
        "attempted": "scribble",
        "reason": " ".join(done),
        "hint": "",
        "details": {},
    }
    _write(descriptors[3], b"-" + json.dumps(said).encode())
    return 0


def _rewrite(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Do not say that the tar can only be appended to, for it is not so."""
    tar, answer = (folder / "tar").read_bytes(), (folder / "answer").read_bytes()
    _, control, into, out = descriptors
    _write(out, BEAT)
    _write(into, bytes(len(tar) + 512))
    _write(out, BEAT * 100)
    _all_told(control)
    os.ftruncate(into, 0)
    _write(into, tar)
    os.close(into)
    _write(out, answer)
    return 0


def _unfiltered(
    folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int
) -> int:
    """An honest one, where the kernel has no seccomp."""
    confine.seccomp_allow = lambda names: False
    return work_on(message, descriptors, parent)


def _late(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Answer, and go on writing."""
    tar, answer = (folder / "tar").read_bytes(), (folder / "answer").read_bytes()
    _confine(job, descriptors, parent)
    _all_told(descriptors[1])
    _write(descriptors[2], tar)
    _write(descriptors[3], answer)
    os.close(descriptors[3])
    while True:
        _write(descriptors[2], b"more")


def _full(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """An honest one, on a disk that is full."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), descriptors[2])
    return work_on(message, descriptors, parent)


def _frame(folder: Path, job: dict[str, Any], message: bytes, descriptors: list[int], parent: int) -> int:
    """Read a small layer, and answer as ordered."""
    answer = (folder / "answer").read_bytes()
    _confine(job, descriptors, parent)
    while os.read(descriptors[1], 1 << 16):
        _write(descriptors[3], answer)
    return 0


WAYS = {
    "honest": _honest,
    "answer": _answer,
    "early": _early,
    "sleep": _sleep,
    "deaf": _deaf,
    "loop": _loop,
    "crash": _crash,
    "exit": _exit,
    "killed": _killed,
    "hoard": _hoard,
    "scribble": _scribble,
    "rewrite": _rewrite,
    "unfiltered": _unfiltered,
    "late": _late,
    "full": _full,
    "frame": _frame,
}
