"""What a worker does: give up all rights, then decompress, copy and index as its job says.

Nothing here runs in the process of a user.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from orlop.config import Limits, over_limit
from orlop.errors import Error, FailedPrecondition, Internal, InvalidArgument
from orlop.layers import compression
from orlop.layers.builder import IndexBuilder
from orlop.layers.tarread import TarReader
from orlop.layers.worker import APPENDING, BEAT, COMPLETE, DISK_ERRORS, READ, SMALL_TAR
from orlop.linux import confine
from orlop.values import asdict

__all__ = ["work_on"]

RATIO_GRACE = 64 << 20  # a short run of zeros may compress as well as it likes
BEAT_EVERY = 1.0  # seconds
WRITTEN = 1 << 20  # bytes of tar that it is worth waking somebody for
_FOREVER = 1 << 63


def work_on(message: bytes, descriptors: list[int], parent: int) -> int:
    """One job, from confinement to answer.  Returns the exit status."""
    source, control, tar, answer = descriptors
    job = json.loads(message)
    limits = Limits(**job["limits"])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody listens any more: end
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file too large is an error

    def work() -> bytes:
        try:
            confined = confine.confine_worker(
                descriptors,
                memory=limits.worker_memory,
                cpu_seconds=limits.worker_cpu,
                file_size=limits.layer_size if job["copy"] else 0,  # the others write to pipes alone
                parent=parent,
            )
        except OSError as exc:
            raise FailedPrecondition("start worker", f"it cannot give up its rights: {exc.strerror}") from exc
        if job["copy"]:  # the first word, said before the first byte is read: so it is ours
            _write(answer, APPENDING if confined.seccomp else BEAT)
        if job.get("probe"):
            return json.dumps(asdict(confined)).encode()
        if job.get("serve"):
            _serve(control, answer, limits)
        return _layer(job, source, control, tar, answer, limits)

    result = _answer(work, limits)
    os.close(tar)
    _write(answer, result)
    return 0


def _answer(work: Callable[[], bytes], limits: Limits) -> bytes:
    """What came of some work, as it is answered: a status byte, and what goes with it."""
    try:
        return b"+" + work()
    except Error as exc:
        return b"-" + _describe(exc)
    except _NotWrittenError as exc:
        return b"!%d" % exc.number
    except MemoryError:
        return b"-" + _describe(over_limit("worker_memory", limits.worker_memory, limits.worker_memory))
    except Exception as exc:  # noqa: BLE001 - a fault of the parser's is an answer, too
        return b"-" + _describe(Internal("read layer", f"the parser failed: {type(exc).__name__}: {exc}"))


def _serve(control: int, answer: int, limits: Limits) -> NoReturn:
    """Decompress small layers until nobody asks for one any more (`orlop.layers.worker.small`)."""
    while True:
        (size,) = struct.unpack("<Q", _exactly(control, 8))
        packed = _exactly(control, size)
        result = _answer(lambda packed=packed: _decompressed(packed, limits), limits)  # type: ignore[misc]
        if len(result) > 1 + SMALL_TAR:
            result = b"?"
        _write(answer, result[:1] + struct.pack("<Q", len(result) - 1))
        _write(answer, result[1:])


def _decompressed(packed: bytes, limits: Limits) -> bytes:
    """The whole tar, or a little more than a small one would be."""
    read, tar = _Read(), bytearray()
    for chunk in _limited(compression.decompress(read.count(iter([packed]))), read, limits):
        tar += chunk
        if len(tar) > SMALL_TAR:
            break
    return bytes(tar)


def _exactly(pipe: int, size: int) -> bytes:
    """So many bytes of a pipe; ends the process if nobody sends them."""
    data = bytearray()
    while len(data) < size:
        part = os.read(pipe, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


def _layer(job: dict[str, Any], source: int, control: int, tar: int, answer: int, limits: Limits) -> bytes:
    """The encoded index of a layer, or nothing where none was asked for."""
    available = _Source(source, control, answer, job["offset"])
    if job["plain"] and job["index"]:
        available.most = limits.layer_size
        return _index(available, limits)
    read = _Read()
    packed = read.count(available)
    chunks = _limited(packed if job["plain"] else compression.decompress(packed), read, limits)
    if job["copy"]:
        unsaid = 0
        for chunk in chunks:
            _append(tar, chunk)
            unsaid += len(chunk)
            if unsaid >= WRITTEN:
                unsaid = 0
                _write(answer, BEAT)
        return b""
    return _index(chunks, limits)


def _index(chunks: Iterable[bytes], limits: Limits) -> bytes:
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


class _Source:
    """The source's bytes, as far as the control pipe says that they are there: an iterator of chunks.

    `skip` goes past some that nobody needs.
    """

    def __init__(self, source: int, control: int, answer: int, offset: int) -> None:
        self._source, self._control, self._answer = source, control, answer
        self._first = self._at = self._end = offset
        self._complete = False
        self._unseen = False  # whether what was gone past last was not read
        self._beaten, self._beaten_at = time.monotonic(), offset
        self.most = _FOREVER

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._more():
            raise StopIteration
        chunk = self._read(min(READ, self._end - self._at), self._at)
        self._unseen = False
        self._pass(len(chunk))
        return chunk

    def skip(self, count: int) -> int:
        """Go past ``count`` bytes, or as many as there are; how many it were."""
        left = count
        while left and self._more():
            part = min(left, self._end - self._at)
            left -= part
            self._unseen = True
            self._pass(part)
        return count - left

    def _more(self) -> bool:
        """Wait until there is something; False at the end."""
        while self._at == self._end:
            if self._complete:
                if self._unseen:
                    self._read(1, self._at - 1)  # it is there
                return False
            news = os.read(self._control, 8 * 4096)
            if not news:
                os._exit(1)  # our parent gave up
            value = struct.unpack("<Q", news[-8:])[0]
            self._complete = bool(value & COMPLETE)
            self._end = self._first + (value & ~COMPLETE)
        return True

    def _read(self, count: int, at: int) -> bytes:
        chunk = os.pread(self._source, count, at)
        if not chunk:
            raise InvalidArgument("read layer", "the source is shorter than announced")
        return chunk

    def _pass(self, count: int) -> None:
        self._at += count
        if (total := self._at - self._first) > self.most:
            raise over_limit("layer_size", total, self.most)
        if self._at - self._beaten_at >= READ and (now := time.monotonic()) - self._beaten >= BEAT_EVERY:
            self._beaten, self._beaten_at = now, self._at
            _write(self._answer, BEAT)


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


class _NotWrittenError(Exception):
    """The disk did not take the tar."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _append(tar: int, chunk: bytes) -> None:
    try:
        _write(tar, chunk)
    except OSError as exc:
        if exc.errno in DISK_ERRORS:
            raise _NotWrittenError(exc.errno) from exc
        raise


def _write(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(data):
            written += os.write(descriptor, view[written:])
