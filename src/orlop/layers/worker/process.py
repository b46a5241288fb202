"""What a worker does: give up all rights, then decompress, copy and index as its job says.

Nothing here runs in the process of a user.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any

from orlop.config import Limits, over_limit
from orlop.errors import Error, FailedPrecondition, Internal, InvalidArgument
from orlop.layers import compression
from orlop.layers.builder import IndexBuilder
from orlop.layers.tarread import TarReader
from orlop.layers.worker import BEAT, COMPLETE, READ
from orlop.linux import confine
from orlop.values import asdict

__all__ = ["work_on"]

RATIO_GRACE = 64 << 20  # a short run of zeros may compress as well as it likes
BEAT_EVERY = 1.0  # seconds


def work_on(message: bytes, descriptors: list[int], parent: int) -> int:
    """One job, from confinement to answer.  Returns the exit status."""
    source, control, tar, answer = descriptors
    job = json.loads(message)
    limits = Limits(**job["limits"])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: end
    try:
        try:
            confined = confine.confine_worker(
                descriptors,
                memory=limits.worker_memory,
                cpu_seconds=limits.worker_cpu,
                file_size=0,  # it writes to pipes alone
                parent=parent,
            )
        except OSError as exc:
            raise FailedPrecondition("start worker", f"it cannot give up its rights: {exc.strerror}") from exc
        if job["probe"]:
            result = b"+" + json.dumps(asdict(confined)).encode()
        else:
            result = b"+" + _layer(job, source, control, tar, answer, limits)
    except Error as exc:
        result = b"-" + _describe(exc)
    except MemoryError:
        result = b"-" + _describe(over_limit("worker_memory", limits.worker_memory, limits.worker_memory))
    except Exception as exc:  # noqa: BLE001 - a fault of the parser's is an answer, too
        result = b"-" + _describe(Internal("read layer", f"the parser failed: {type(exc).__name__}: {exc}"))
    os.close(tar)
    _write(answer, result)
    return 0


def _layer(job: dict[str, Any], source: int, control: int, tar: int, answer: int, limits: Limits) -> bytes:
    """The encoded index of a layer, or nothing where none was asked for."""
    read = _Read()
    packed = read.count(_available(source, control, answer, job["offset"]))
    chunks = _limited(packed if job["plain"] else compression.decompress(packed), read, limits)
    if job["copy"]:
        chunks = _copied(chunks, tar)
    if not job["index"]:
        for _ in chunks:
            pass
        return b""
    reader = TarReader(chunks, limits=limits)
    builder = IndexBuilder(limits=limits)
    add = builder.add
    for entry in reader:
        add(entry)
    return builder.finish(reader.size).encode()


def _describe(exc: Error) -> bytes:
    answer = {
        "code": exc.code,
        "attempted": exc.attempted,
        "reason": exc.reason,
        "hint": exc.hint,
        "details": exc.details,
    }
    return json.dumps(answer).encode()


def _available(source: int, control: int, answer: int, offset: int) -> Iterator[bytes]:
    """The source's bytes, as far as the control pipe says that they are there."""
    at = end = offset
    complete = False
    beaten, beaten_at = time.monotonic(), at
    while True:
        if at < end:
            chunk = os.pread(source, min(READ, end - at), at)
            if not chunk:
                raise InvalidArgument("read layer", "the source is shorter than announced")
            at += len(chunk)
            if at - beaten_at >= READ and (now := time.monotonic()) - beaten >= BEAT_EVERY:
                beaten, beaten_at = now, at
                os.write(answer, BEAT)
            yield chunk
            continue
        if complete:
            return
        news = os.read(control, 8 * 4096)
        if not news:
            os._exit(1)  # our parent gave up
        value = struct.unpack("<Q", news[-8:])[0]
        complete = bool(value & COMPLETE)
        end = offset + (value & ~COMPLETE)


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
