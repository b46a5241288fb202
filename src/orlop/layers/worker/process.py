"""The worker's side: a template that forks, and the work of one layer.

Nothing here runs in the process of a user: `main` is the entry point of a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from orlop.config import Limits
from orlop.errors import Error, InvalidArgument
from orlop.layers import compression
from orlop.layers.builder import IndexBuilder
from orlop.layers.index import over_limit
from orlop.layers.tarread import TarReader
from orlop.layers.worker import COMPLETE, MAX_JOB
from orlop.linux import confine

__all__ = ["main"]

READ = 1 << 18
RATIO_GRACE = 64 << 20  # a short run of zeros may compress as well as it likes


def main(control: int) -> None:
    """The template: wait for jobs on a socket, fork a worker for each.  Ends when the socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; our parent decides
    compression.preload()
    gc.disable()  # the index has no cycles
    with socket.socket(fileno=control) as jobs:
        while True:
            message, descriptors, _, _ = socket.recv_fds(jobs, MAX_JOB, 4)
            _reap(os.WNOHANG)
            if not message:
                break
            if os.fork() == 0:
                jobs.close()
                code = 1
                try:
                    code = _work(message, descriptors)
                finally:
                    os._exit(code)
            for descriptor in descriptors:
                os.close(descriptor)
    _reap(0)


def _reap(options: int) -> None:
    """Wait for workers that ended, so that their times count as ours and so as our parent's."""
    with contextlib.suppress(ChildProcessError):  # there are none
        while os.waitpid(-1, options)[0]:
            pass


def _work(message: bytes, descriptors: list[int]) -> int:
    """One layer, from confinement to answer.  Returns the exit status."""
    source, control, tar, answer = descriptors
    job = json.loads(message)
    limits = Limits(**{field.name: job["limits"][field.name] for field in fields(Limits)})
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: end
    confine.confine_worker(
        descriptors,
        memory=limits.worker_memory,
        cpu_seconds=limits.worker_cpu,
        file_size=0,  # it writes to pipes alone
    )
    try:
        read = _Read()
        packed = read.count(_available(source, control, job))
        plain = _limited(packed if job["plain"] else compression.decompress(packed), read, limits)
        reader = TarReader(_copied(plain, tar) if job["copy"] else plain, limits=limits)
        builder = IndexBuilder(limits=limits)
        add = builder.add
        for entry in reader:
            add(entry)
        result = b"+" + builder.finish(reader.size).encode()
    except Error as exc:
        result = b"-" + _describe(exc)
    except MemoryError:
        result = b"-" + _describe(over_limit("worker_memory", limits.worker_memory, limits.worker_memory))
    os.close(tar)
    _write(answer, result)
    return 0


def _describe(exc: Error) -> bytes:
    answer = {
        "code": exc.code,
        "attempted": exc.attempted,
        "reason": exc.reason,
        "hint": exc.hint,
        "details": exc.details,
    }
    return json.dumps(answer).encode()


def _available(source: int, control: int, job: dict[str, Any]) -> Iterator[bytes]:
    """The source's bytes, as far as the control pipe says that they are there."""
    at: int = job["offset"]
    end = at
    complete = False
    while True:
        if at < end:
            chunk = os.pread(source, min(READ, end - at), at)
            if not chunk:
                raise InvalidArgument("read layer", "the source is shorter than announced")
            at += len(chunk)
            yield chunk
            continue
        if complete:
            return
        news = os.read(control, 8 * 4096)
        if not news:
            os._exit(1)  # our parent gave up
        value = struct.unpack("<Q", news[-8:])[0]
        complete = bool(value & COMPLETE)
        end = job["offset"] + (value & ~COMPLETE)


class _Read:
    """How many compressed bytes were taken so far."""

    total = 0

    def count(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.total += len(chunk)
            yield chunk


def _limited(chunks: Iterator[bytes], read: _Read, limits: Limits) -> Iterator[bytes]:
    """Stop a layer that grows past its size, or far past what went in (a bomb)."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limits.layer_size:
            raise over_limit("layer_size", total, limits.layer_size)
        if total > RATIO_GRACE and total > read.total * limits.compression_ratio:
            raise over_limit("compression_ratio", total // read.total, limits.compression_ratio)
        yield chunk


def _copied(chunks: Iterator[bytes], tar: int) -> Iterator[bytes]:
    """Hand every chunk to our parent before looking at it."""
    for chunk in chunks:
        _write(tar, chunk)
        yield chunk


def _write(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(data):
            written += os.write(descriptor, view[written:])


if __name__ == "__main__":
    main(int(sys.argv[1]))
