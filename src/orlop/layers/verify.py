"""Whether a layer's files are what they should be: the tar by its diff ID, the rest by the tar.

The tar is hashed here, in this process, and parsed once more by the confined worker, which follows the hash
as it goes, so the disk is read once.  An index is right if its bytes are those that the worker answers now;
``layer.data`` is right if it has the tar's bytes where the index says, and zeros everywhere else.

Nothing here writes, and nothing knows what a damage means.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import DataLoss, Error, InvalidArgument, ResourceExhausted
from orlop.layers.datalayout import DataLayout
from orlop.layers.index import LayerIndex
from orlop.layers.store import copies
from orlop.layers.worker.client import Feed, Template, Unpacked, unpack
from orlop.observe import Call
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = ["CHUNK", "TarReading", "data_problem", "read_bytes", "read_tar"]

CHUNK = 1 << 20

Spend = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TarReading:
    """What a tar was found to be.

    ``unpacked`` is None where the worker refused it, and ``refusal`` says why: no wonder where the digest
    is wrong, too.
    """

    diff_id: DiffID
    size: int
    unpacked: Unpacked | None
    refusal: Error | None = None


def read_tar(
    template: Template,
    tar: int,
    *,
    limits: Limits = DEFAULT_LIMITS,
    chunk: int = CHUNK,
    spend: Spend = lambda count: None,
    call: Call,
) -> TarReading:
    """Hash and index a tar that lies in an open file.

    ``spend`` is told the bytes before each of them is read, in a thread of its own, and may wait.  Raises
    `DataLoss` where the disk does not give the bytes, `Unavailable` if the worker died, `Cancelled` and
    `DeadlineExceeded` as ``call`` says.
    """
    feed = Feed()
    hashing = _Hashing(tar, feed, chunk, spend, call)
    hashing.start()
    unpacked: Unpacked | None = None
    refusal: Error | None = None
    try:
        unpacked = unpack(template, tar, feed, plain=True, limits=limits, call=call)
    except (InvalidArgument, ResourceExhausted) as exc:
        refusal = exc
    except Error:
        hashing.end()  # the bytes could not be had: that is the reason, and no fault of the worker's
        raise
    except BaseException:
        hashing.stop()
        raise
    finally:
        if unpacked is not None or refusal is not None:
            hashing.end()
        feed.close()
    diff_id = DiffID(f"sha256:{hashing.digest}")
    return TarReading(diff_id=diff_id, size=hashing.size, unpacked=unpacked, refusal=refusal)


class _Hashing:
    """The thread that reads and hashes a tar, and tells the worker how far it came."""

    def __init__(self, tar: int, feed: Feed, chunk: int, spend: Spend, call: Call) -> None:
        self._tar, self._feed, self._chunk, self._spend, self._call = tar, feed, chunk, spend, call
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._stopped = False
        self._failure: BaseException | None = None
        self.digest = ""
        self.size = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Make the thread end soon, and wait for it."""
        self._stopped = True
        self._feed.close()
        self._thread.join()

    def end(self) -> None:
        """Wait for the end; raises what went wrong."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._hash()
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            self._failure = exc
            self._feed.close()  # the worker ends

    def _hash(self) -> None:
        hasher = hashlib.sha256()
        size = os.fstat(self._tar).st_size
        while self.size < size and not self._stopped:
            self._call.check("check layer")
            want = min(self._chunk, size - self.size)
            self._spend(want)
            data = read_bytes(self._tar, want, self.size, "check layer")
            if not data:
                raise DataLoss("check layer", "the tar became shorter while it was read")
            hasher.update(data)
            self.size += len(data)
            self._feed.advance(self.size)
        self._feed.advance(self.size, complete=True)
        self.digest = hasher.hexdigest()


def read_bytes(fd: int, count: int, at: int, attempted: str) -> bytes:
    """Bytes of an open file.  Raises `DataLoss` where the disk cannot read them."""
    try:
        return os.pread(fd, count, at)
    except OSError as exc:
        if exc.errno == errno.EIO:
            raise DataLoss(attempted, f"the disk cannot read it, at byte {at}") from exc
        raise


def data_problem(
    index: LayerIndex, tar: int, data: int, *, spend: Spend = lambda count: None, call: Call
) -> str:
    """What is wrong with ``layer.data``, both files open; an empty text if nothing is."""
    layout = DataLayout(index)
    size = os.fstat(data).st_size
    if size != layout.size:
        return f"layer.data has {size} bytes, the index asks for {layout.size}"
    at = 0
    for source, target, length in sorted(copies(index, layout), key=lambda piece: piece[1]):
        if not _zeros(data, at, target, spend, call):
            return f"layer.data has bytes before {target} that should be zeros"
        done = 0
        while done < length:
            call.check("check layer")
            count = min(CHUNK, length - done)
            spend(count)
            ours = read_bytes(data, count, target + done, "check layer")
            if not ours or ours != read_bytes(tar, len(ours), source + done, "check layer"):
                return f"layer.data has other bytes than the tar, from {target + done}"
            done += len(ours)
        at = target + length
    return (
        "" if _zeros(data, at, size, spend, call) else "layer.data has bytes at its end that should be zeros"
    )


def _zeros(fd: int, start: int, end: int, spend: Spend, call: Call) -> bool:
    """Whether a range of a file is all zeros; holes are not read."""
    while start < end:
        call.check("check layer")
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return True  # a hole up to the end
            raise
        count = min(CHUNK, end - start)
        if count <= 0:
            return True
        spend(count)
        data = read_bytes(fd, count, start, "check layer")
        if data.count(0) != len(data):
            return False
        start += len(data)
    return True
