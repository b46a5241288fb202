"""Our side of the worker: start the template, hand it a layer, take what comes back.

`Template` is one process, shared by all threads; `Feed` tells a worker how much of a growing file it may
read; `unpack` runs one layer to its end and returns an index that was validated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import Error, FailedPrecondition, Internal, ResourceExhausted, Unavailable, by_code
from orlop.layers.index import LayerIndex
from orlop.layers.worker import COMPLETE
from orlop.observe import Call
from orlop.spec.digest import DiffID

__all__ = ["Feed", "Template", "Unpacked", "unpack"]

PIPE_SIZE = 1 << 20
ANSWER_BASE = 64 << 20  # bytes of an answer that need no justification
ANSWER_PER_ENTRY = 1_024  # columns, a long name, some xattrs
# glibc would map and unmap every chunk anew; kept on the heap they cost a tenth of the worker's time less.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
}
POLL_MS = 200  # how soon a cancelled call stops waiting for a silent worker
_START = "import sys; sys.path[:] = {path!r}; from orlop.layers.worker.process import main; main({fd})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What became of a layer: its diff ID, computed here, and its index, validated."""

    diff_id: DiffID
    index: LayerIndex
    encoded: bytes
    tar_size: int


class Feed:
    """Tells a worker how far it may read a source that is still growing.

    Used by one writer thread; closing without `finish` makes the worker end.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._lock = threading.Lock()  # guards _writer against a close from the other thread
        self._taking = threading.Lock()  # guards _reader likewise; `advance` may wait with the other held

    def advance(self, total: int, *, complete: bool = False) -> None:
        """The first ``total`` bytes of the source are there (and no more will come)."""
        with self._lock:
            if self._writer >= 0:
                with contextlib.suppress(BrokenPipeError):  # the worker ended; `unpack` says why
                    os.write(self._writer, struct.pack("<Q", total | (COMPLETE if complete else 0)))

    def take_reader(self) -> int:
        """The worker's end, now the caller's: once no worker has it, `advance` waits for nobody.

        Raises `Unavailable` if the feed was closed before.
        """
        with self._taking:
            reader, self._reader = self._reader, -1
        if reader < 0:
            raise Unavailable("unpack layer", "its source was given up")
        return reader

    def close(self) -> None:
        """Let go of both ends.  Idempotent."""
        with self._taking:
            if self._reader >= 0:
                os.close(self._reader)
                self._reader = -1
        with self._lock:
            if self._writer >= 0:
                os.close(self._writer)
                self._writer = -1

    @classmethod
    def whole(cls, size: int) -> Feed:
        """A feed for a source that is complete already."""
        feed = cls()
        feed.advance(size, complete=True)
        return feed


class Template:
    """The process that forks workers.  Started by the first job; thread-safe; restarted if it dies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the process and its socket
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Start the process now, so that it is ready when the first layer arrives."""
        with self._lock:
            self._ensure()

    def _ensure(self) -> socket.socket:
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._stop()
        if not sys.executable:
            raise FailedPrecondition("start worker", "this Python does not know its own executable")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [os.path.abspath(entry) for entry in sys.path]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START.format(path=path, fd=theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8", **_MALLOC},
                cwd="/",
            )
        except OSError as exc:
            ours.close()
            raise Unavailable("start worker", f"{sys.executable}: {exc.strerror}") from exc
        finally:
            theirs.close()
        self._socket = ours
        return ours

    def submit(self, job: dict[str, object], descriptors: list[int]) -> None:
        """Fork a worker for one job.  The descriptors are duplicated into it."""
        message = json.dumps(job).encode()
        with self._lock:
            for attempt in (1, 2):
                try:
                    socket.send_fds(self._ensure(), [message], descriptors)
                    return
                except (BrokenPipeError, ConnectionResetError) as exc:
                    self._stop()
                    if attempt == 2:
                        raise Unavailable("start worker", "the worker's template ended at once") from exc

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._socket = self._process = None

    def close(self) -> None:
        """End the process.  Idempotent."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def unpack(
    template: Template,
    source: int,
    feed: Feed,
    *,
    offset: int = 0,
    tar: int | None = None,
    plain: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    call: Call,
    written: Callable[[int], None] = lambda total: None,
) -> Unpacked:
    """Run one layer through a worker: decompress, copy to ``tar``, hash, index, validate.

    ``source`` is a readable file whose layer starts at byte ``offset``; ``tar`` is a file to write
    from its start, or None to index only.  ``plain`` says that the source is a tar, whatever its first
    bytes look like.  ``written`` is told the bytes of tar so far; it may start
    write-back.  Raises what the worker found, `InvalidArgument` if its answer is not a proper index,
    `Unavailable` if it died, `Cancelled` and `DeadlineExceeded` as ``call`` says.
    """
    tar_out, tar_in = os.pipe2(os.O_CLOEXEC)
    answer_out, answer_in = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, tar_out)
        stack.callback(os.close, answer_out)
        with contextlib.ExitStack() as theirs:
            theirs.callback(os.close, tar_in)
            theirs.callback(os.close, answer_in)
            reader = feed.take_reader()
            theirs.callback(os.close, reader)
            with contextlib.suppress(PermissionError):  # over the user's share of pipe memory: slower
                fcntl.fcntl(tar_out, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            job: dict[str, object] = {
                "limits": dataclasses.asdict(limits),
                "offset": offset,
                "copy": tar is not None,
                "plain": plain,
            }
            template.submit(job, [source, reader, tar_in, answer_in])
        hasher = hashlib.sha256()
        total = _drain(tar_out, tar, hasher.update, limits=limits, call=call, written=written)
        answer = _read_answer(answer_out, limits, call)
        index = LayerIndex.decode(answer)
        index.validate(tar_size=total if tar is not None else index.tar_size, limits=limits)
        return Unpacked(
            diff_id=DiffID(f"sha256:{hasher.hexdigest()}"), index=index, encoded=answer, tar_size=total
        )


def _wait(descriptor: int, call: Call) -> None:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while not poller.poll(POLL_MS):
        call.check("unpack layer")


def _drain(
    pipe: int,
    tar: int | None,
    update: Callable[[memoryview], None],
    *,
    limits: Limits,
    call: Call,
    written: Callable[[int], None],
) -> int:
    """Move the tar from the worker's pipe to the file, hashing on the way; returns its size."""
    buffer = bytearray(PIPE_SIZE)
    view = memoryview(buffer)
    total = 0
    while True:
        _wait(pipe, call)
        count = os.readv(pipe, [buffer])
        if not count:
            return total
        call.check("unpack layer")
        total += count
        if total > limits.layer_size:
            raise ResourceExhausted("unpack layer", "the worker wrote more than it may")
        chunk = view[:count]
        update(chunk)
        if tar is not None:
            done = os.write(tar, chunk)
            while done < count:
                done += os.write(tar, chunk[done:])
        written(total)


def _read_answer(pipe: int, limits: Limits, call: Call) -> bytes:
    most = ANSWER_BASE + ANSWER_PER_ENTRY * limits.layer_entries
    parts: list[bytes] = []
    total = 0
    while True:
        _wait(pipe, call)
        part = os.read(pipe, PIPE_SIZE)
        if not part:
            break
        parts.append(part)
        total += len(part)
        if total > most:
            raise ResourceExhausted("unpack layer", "the worker answered more than it may")
        call.check("unpack layer")
    answer = b"".join(parts)
    if answer[:1] == b"+":
        return answer[1:]
    if answer[:1] == b"-":
        raise _their_error(answer[1:])
    raise Unavailable(
        "unpack layer",
        "the worker that reads the layer ended without an answer",
        hint="it was killed, crashed, or reached limits.worker_memory or limits.worker_cpu",
    )


def _their_error(data: bytes) -> Error:
    try:
        said = json.loads(data)
        return by_code(str(said["code"]))(
            _plain(said["attempted"], 500),
            _plain(said["reason"], 1000),
            hint=_plain(said["hint"], 500),
            details={_plain(key, 100): _plain(value, 500) for key, value in said["details"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Internal("unpack layer", "the worker answered what no worker says") from exc


def _plain(said: object, most: int) -> str:
    """A text that may go to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(said)[:most])
