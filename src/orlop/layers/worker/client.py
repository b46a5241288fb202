"""Our side of the workers: hand them a layer, take what comes back, believe nothing of it.

`unpack` runs one layer to its end and returns an index that was validated; `confinement` asks a worker what
it is kept from on this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import (
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    limit_hint,
)
from orlop.layers.index import LayerIndex
from orlop.layers.nocycles import no_cycles
from orlop.layers.worker import BEAT
from orlop.layers.worker.feed import Feed
from orlop.layers.worker.template import Lifeline, Template
from orlop.linux.confine import Confinement
from orlop.observe import Call
from orlop.spec.digest import DiffID
from orlop.values import asdict, dataclass

__all__ = ["Feed", "Forker", "Stall", "Template", "Unpacked", "confinement", "unpack"]

PIPE_SIZE = 1 << 20
ANSWER_BASE = 64 << 20  # bytes of an answer that need no justification
ANSWER_PER_ENTRY = 64  # columns; limits.metadata_size bounds the rest
MOST_SAID = 64 << 10  # bytes of an error, which is decoded before anything is known of its shape
LOOK = 0.2  # seconds; how soon a cancelled call stops waiting for a silent worker
_WHAT = "unpack layer"
_SAYABLE: dict[str, type[Error]] = {  # what a worker may raise: about the layer, or itself
    cls.code: cls for cls in (FailedPrecondition, InvalidArgument, Internal, ResourceExhausted)
}


class Forker(Protocol):
    """What `unpack` needs of a `Template`."""

    def submit(self, job: dict[str, object], descriptors: list[int]) -> Lifeline:
        """Fork a worker for one job.  The descriptors are duplicated into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What became of a layer: its diff ID, computed here, and its index, validated."""

    diff_id: DiffID
    index: LayerIndex
    encoded: bytes
    tar_size: int


def unpack(
    template: Forker,
    source: int,
    feed: Feed,
    *,
    offset: int = 0,
    tar: int | None = None,
    plain: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    call: Call,
    written: Callable[[int], None] = lambda total: None,
    whole: Callable[[], None] = lambda: None,
) -> Unpacked:
    """Run one layer through its workers: decompress, copy to ``tar``, hash, index, validate.

    ``source`` is a readable file whose layer starts at byte ``offset``; ``tar`` is a file to write
    from its start, or None to index only.  ``plain`` says that the source is a tar, whatever its first
    bytes look like.  ``written`` is told the bytes of tar so far; ``whole`` is called when
    that is all of it: the index may be a while still.  Raises what a worker found, `InvalidArgument` if its
    answer is not a proper index, `Unavailable` if it died or hangs, `ResourceExhausted` for a limit that is
    named, `Cancelled` and `DeadlineExceeded` as ``call`` says.  No worker lives on.
    """
    with contextlib.ExitStack() as stack:
        if tar is None:
            indexer = _Worker(template, source, feed, limits, offset=offset, plain=plain, index=True)
            _run([stack.enter_context(indexer)], call)
            index = _believed(indexer.result, feed.total if plain else None, limits)
            return Unpacked(
                diff_id=DiffID(f"sha256:{hashlib.sha256().hexdigest()}"),
                index=index,
                encoded=indexer.result,
                tar_size=0,
            )
        progress = Feed()
        stack.callback(progress.close)
        writer = _Worker(template, source, feed, limits, offset=offset, plain=plain, copy=True)
        stack.enter_context(writer)
        drain = writer.drain = _Drain(writer.tar, tar, progress, limits, written, whole)
        indexer = _Worker(template, tar, progress, limits, plain=True, index=True)
        _run([writer, stack.enter_context(indexer)], call)
        if writer.result:
            raise _nonsense()
        index = _believed(indexer.result, drain.total, limits)
        return Unpacked(
            diff_id=DiffID(f"sha256:{drain.hasher.hexdigest()}"),
            index=index,
            encoded=indexer.result,
            tar_size=drain.total,
        )


def _believed(answer: bytes, tar_size: int | None, limits: Limits) -> LayerIndex:
    """The index that a worker answered, validated."""
    with no_cycles():
        index = LayerIndex.decode(answer)
        index.validate(tar_size=index.tar_size if tar_size is None else tar_size, limits=limits)
    return index


def confinement(template: Forker, *, limits: Limits = DEFAULT_LIMITS, call: Call) -> Confinement:
    """What took effect of a worker's confinement here, as a worker says that does nothing else."""
    with contextlib.ExitStack() as stack:
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, nothing)
        feed = Feed.whole(0)
        stack.callback(feed.close)
        worker = stack.enter_context(_Worker(template, nothing, feed, limits, probe=True))
        _run([worker], call)
        try:
            return Confinement(**json.loads(worker.result))
        except (ValueError, TypeError) as exc:
            raise _nonsense() from exc


class Stall:
    """How long a worker that should do something did nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle = 0.0

    def watch(self, seconds: float, *, moved: bool, expects: bool) -> None:
        """Some time went by, in which the worker gave a sign of life or not, and it was its turn or not.

        Raises `Unavailable` when it has been too long.
        """
        self._idle = self._idle + seconds if expects and not moved else 0.0
        if self._idle >= self._limit:
            raise Unavailable(
                _WHAT,
                f"the worker that reads the layer did nothing for {self._limit} seconds (worker_stall)",
                hint=limit_hint("worker_stall"),
                details={"limit": "worker_stall"},
            )


class _Drain:
    """Moves the tar from a worker's pipe to the file, hashing on the way."""

    def __init__(
        self,
        pipe: int,
        tar: int,
        progress: Feed,
        limits: Limits,
        written: Callable[[int], None],
        whole: Callable[[], None],
    ) -> None:
        self._pipe, self._tar, self._progress = pipe, tar, progress
        self._most, self._written, self._whole = limits.layer_size, written, whole
        self._buffer = bytearray(PIPE_SIZE)
        self._view = memoryview(self._buffer)
        self.hasher = hashlib.sha256()
        self.total = 0

    def take(self) -> bool:
        """Take what is there; False at the end."""
        count = os.readv(self._pipe, [self._buffer])
        if not count:
            return False
        self.total += count
        if self.total > self._most:
            raise ResourceExhausted(_WHAT, "the worker wrote more than it may", hint=limit_hint("layer_size"))
        chunk = self._view[:count]
        self.hasher.update(chunk)
        done = os.write(self._tar, chunk)
        while done < count:
            done += os.write(self._tar, chunk[done:])
        if not self._progress.told:  # else the worker will hear of it later; and never is the pipe full
            self._progress.advance(self.total)
        self._written(self.total)
        return True

    def complete(self) -> None:
        """The tar is all there."""
        self._progress.advance(self.total, complete=True)
        self._whole()


class _Worker:
    """One worker, seen from here.  A context manager: it has ended when that ends."""

    def __init__(
        self,
        template: Forker,
        source: int,
        feed: Feed,
        limits: Limits,
        *,
        offset: int = 0,
        plain: bool = False,
        copy: bool = False,
        index: bool = False,
        probe: bool = False,
    ) -> None:
        self._feed, self._limits = feed, limits
        self._stall = Stall(limits.worker_stall)
        columns = ANSWER_PER_ENTRY * limits.layer_entries
        self._most = ANSWER_BASE + (columns + limits.metadata_size if index else 0)
        self._parts: list[bytes] = []
        self._answered = 0
        self._moved = False
        self.drain: _Drain | None = None
        self.result = b""
        self.tar = -1
        job: dict[str, object] = {
            "limits": asdict(limits),
            "offset": offset,
            "plain": plain,
            "copy": copy,
            "index": index,
            "probe": probe,
        }
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

            def pipe() -> tuple[int, int]:
                out, into = os.pipe2(os.O_CLOEXEC)
                ours.callback(os.close, out)
                theirs.callback(os.close, into)
                return out, into

            self.answer, answer_in = pipe()
            tar_in = answer_in  # where there is no tar to write
            if copy:
                self.tar, tar_in = pipe()
                with contextlib.suppress(PermissionError):  # over the user's share of pipe memory: slower
                    fcntl.fcntl(self.tar, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            given = _to_read(source)
            theirs.callback(os.close, given)
            reader = feed.take_reader()
            theirs.callback(os.close, reader)
            self._lifeline = template.submit(job, [given, reader, tar_in, answer_in])
            ours.callback(self._lifeline.close)
            self._exit = ours.pop_all()

    def take_answer(self) -> bool:
        """Take what is there of the answer; False at its end.  Raises what the worker found."""
        part = os.read(self.answer, PIPE_SIZE)
        if not part:
            self._conclude()
            return False
        self._moved = True
        self._answered += len(part)
        if self._answered > self._most:
            raise ResourceExhausted(_WHAT, "the worker answered more than it may")
        if not self._parts:
            part = part.lstrip(BEAT)
        if part:
            self._parts.append(part)
        return True

    def take_tar(self) -> bool:
        """Take what is there of the tar; False at its end."""
        self._moved = True
        return self.drain is not None and self.drain.take()

    def _conclude(self) -> None:
        answer = b"".join(self._parts)
        self._parts.clear()
        if answer[:1] == b"-":
            raise _their_error(answer[1:]) if len(answer) <= MOST_SAID else _nonsense()
        if answer[:1] != b"+":
            if self._feed.given_up:
                raise Unavailable(_WHAT, "its source was given up")
            raise self._lifeline.end().error(self._limits)
        if not self._feed.complete:
            raise _nonsense()  # of a layer that it has not seen whole
        self.result = answer[1:]

    def watch(self, seconds: float) -> None:
        """Some time went by.  Raises `Unavailable` if this worker hangs, or has nothing more to come."""
        if self._feed.given_up:
            raise Unavailable(_WHAT, "its source was given up")
        moved, self._moved = self._moved, False
        self._stall.watch(seconds, moved=moved, expects=self._feed.expects)

    def close(self) -> None:
        """End the worker, and let go of its pipes."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _run(workers: list[_Worker], call: Call) -> None:
    """Take what the workers give until all have answered."""
    poller = select.poll()
    pipes: dict[int, Callable[[], bool]] = {}
    open_pipes = dict.fromkeys(workers, 0)
    owner: dict[int, _Worker] = {}
    for worker in workers:
        for pipe, take in ((worker.tar, worker.take_tar), (worker.answer, worker.take_answer)):
            if pipe >= 0:
                poller.register(pipe, select.POLLIN)
                pipes[pipe], owner[pipe] = take, worker
                open_pipes[worker] += 1
    last = time.monotonic()
    while pipes:
        for pipe, _ in poller.poll(LOOK * 1000):
            if not pipes[pipe]():
                poller.unregister(pipe)
                del pipes[pipe]
                worker = owner[pipe]
                open_pipes[worker] -= 1
                if not open_pipes[worker] and worker.drain is not None:
                    worker.drain.complete()
        call.check(_WHAT)
        now = time.monotonic()
        if now - last >= LOOK:
            for worker, count in open_pipes.items():
                if count:
                    worker.watch(min(now - last, 1.0))  # what stops us, or the machine, is not its fault
            last = now


def _to_read(source: int) -> int:
    """A descriptor for a worker, which can be read and nothing else, whatever ours can."""
    if fcntl.fcntl(source, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return os.dup(source)
    return os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)


def _their_error(data: bytes) -> Error:
    try:
        said = json.loads(data)
        details = said["details"]
        return _SAYABLE[said["code"]](
            _plain(said["attempted"], 500),
            _plain(said["reason"], 1000),
            hint=_plain(said["hint"], 500),
            details={"limit": _plain(details["limit"], 100)} if "limit" in details else {},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _nonsense() from exc


def _nonsense() -> Internal:
    return Internal(_WHAT, "the worker answered what no worker says")


def _plain(said: object, most: int) -> str:
    """A text that may go to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in str(said)[:most])
