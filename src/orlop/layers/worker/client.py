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
from orlop.errors import InvalidArgument, ResourceExhausted, Unavailable
from orlop.layers.index import LayerIndex
from orlop.layers.nocycles import no_cycles
from orlop.layers.worker import APPENDING, BEAT, DISK_ERRORS
from orlop.layers.worker.drain import Drain
from orlop.layers.worker.feed import Feed
from orlop.layers.worker.said import LOOK, MOST_SAID, PART, Stall, nonsense, their_error
from orlop.layers.worker.small import SmallLayers
from orlop.layers.worker.template import End, Lifeline, Template
from orlop.linux.confine import Confinement
from orlop.observe import Call
from orlop.spec.digest import DiffID
from orlop.values import asdict, dataclass

__all__ = ["Feed", "Forker", "Stall", "Template", "Unpacked", "confinement", "unpack"]

ANSWER_BASE = 64 << 20  # bytes of an answer that need no justification
ANSWER_PER_ENTRY = 64  # columns; limits.metadata_size bounds the rest
_WHAT = "unpack layer"


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
    small: SmallLayers | None = None,
) -> Unpacked:
    """Run one layer through its workers: decompress into ``tar``, hash, index, validate.

    ``source`` is a readable file whose layer starts at byte ``offset``; ``tar`` is an empty file that can be
    read and written, or None to index only.  ``plain`` says that the source is a tar, whatever its first
    bytes look like.  ``written`` is told the bytes of tar so far; ``whole`` is called when
    that is all of it: the index may be a while still.  ``small`` is given for a layer of which it is known
    that its blob is small: it is waited for, and decompressed there.

    Raises what a worker found, `InvalidArgument` if its answer is not a proper index, `Unavailable` if it
    died or hangs, `ResourceExhausted` for a limit that is named, `Cancelled` and `DeadlineExceeded` as
    ``call`` says, OSError as the disk does.  No worker of this layer lives on, and none that could write to
    ``tar`` is there any more on return.
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
        if small is not None:
            size = _all_of(feed, call)
            packed = os.pread(source, size, offset)
            if len(packed) < size:
                raise InvalidArgument(_WHAT, "the source is shorter than announced")
            feed = Feed.whole(len(packed))
            stack.callback(feed.close)
            data = small.decompress(packed, call=call)
            if data is not None:
                return _small(template, data, tar, limits, call, written, whole)
        progress = Feed()
        stack.callback(progress.close)
        drain = Drain(tar, progress, limits, written, whole)
        writer = _Writer(template, source, feed, limits, drain, offset=offset, plain=plain, tar=tar)
        stack.enter_context(writer)
        indexer = _Worker(template, tar, progress, limits, plain=True, index=True)
        _run([writer, stack.enter_context(indexer)], call)
        if writer.result:
            raise nonsense()
        index = _believed(indexer.result, drain.total, limits)
        return Unpacked(
            diff_id=DiffID(f"sha256:{drain.hasher.hexdigest()}"),
            index=index,
            encoded=indexer.result,
            tar_size=drain.total,
        )


def _small(
    template: Forker,
    data: bytes,
    tar: int,
    limits: Limits,
    call: Call,
    written: Callable[[int], None],
    whole: Callable[[], None],
) -> Unpacked:
    """Write a tar that is all there, and have it indexed from its file."""
    view = memoryview(data)
    while view:
        view = view[os.write(tar, view) :]
    written(len(data))
    whole()
    with contextlib.closing(Feed.whole(len(data))) as feed:
        indexed = unpack(template, tar, feed, plain=True, limits=limits, call=call)
    return Unpacked(
        diff_id=DiffID(f"sha256:{hashlib.sha256(data).hexdigest()}"),
        index=indexed.index,
        encoded=indexed.encoded,
        tar_size=len(data),
    )


def _all_of(feed: Feed, call: Call) -> int:
    """Wait until a source is complete; its size."""
    reader = feed.take_reader()
    try:
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        while not feed.complete:
            if feed.given_up:
                raise Unavailable(_WHAT, "its source was given up")
            if poller.poll(LOOK * 1000):
                os.read(reader, 4096)
            call.check(_WHAT)
    finally:
        os.close(reader)
    return feed.total


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
            raise nonsense() from exc


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
        tar: int | None = None,
        index: bool = False,
        probe: bool = False,
    ) -> None:
        self._feed, self._limits = feed, limits
        self._stall = Stall(limits.worker_stall)
        columns = ANSWER_PER_ENTRY * limits.layer_entries
        self._most = ANSWER_BASE + (columns + limits.metadata_size if index else 0)
        self._parts: list[bytes] = []
        self._answered = 0
        self.ended = False
        self._moved = False
        self.result = b""
        job: dict[str, object] = {
            "limits": asdict(limits),
            "offset": offset,
            "plain": plain,
            "copy": tar is not None,
            "index": index,
            "probe": probe,
        }
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self.answer, answer_in = os.pipe2(os.O_CLOEXEC)
            ours.callback(os.close, self.answer)
            theirs.callback(os.close, answer_in)
            tar_in = answer_in  # where there is no tar to write
            if tar is not None:
                tar_in = os.open(f"/proc/self/fd/{tar}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                theirs.callback(os.close, tar_in)
            given = _to_read(source)
            theirs.callback(os.close, given)
            reader = feed.take_reader()
            theirs.callback(os.close, reader)
            self._lifeline = template.submit(job, [given, reader, tar_in, answer_in])
            ours.callback(self._lifeline.close)
            self._exit = ours.pop_all()

    def take_answer(self) -> bool:
        """Take what is there of the answer; False at its end.  Raises what the worker found."""
        part = os.read(self.answer, PART)
        if not part:
            self._conclude()
            return False
        self._moved = True
        self._answered += len(part)
        if self._answered > self._most:
            raise ResourceExhausted(_WHAT, "the worker answered more than it may")
        self._take(part)
        return True

    def _take(self, part: bytes) -> None:
        if not self._parts:
            part = part.lstrip(BEAT)
        if part:
            self._parts.append(part)

    def _conclude(self) -> None:
        answer = b"".join(self._parts)
        self._parts.clear()
        if answer[:1] == b"!":
            raise self._their_disk(answer[1:])
        if answer[:1] == b"-":
            raise their_error(answer[1:]) if len(answer) <= MOST_SAID else nonsense()
        if answer[:1] != b"+":
            if self._feed.given_up:
                raise Unavailable(_WHAT, "its source was given up")
            raise self._end().error(self._limits)
        if not self._feed.complete:
            raise nonsense()  # of a layer that it has not seen whole
        self.result = answer[1:]

    def _their_disk(self, said: bytes) -> Exception:
        return nonsense()  # it has none

    def _end(self) -> End:
        """End the process, and say how it ended; once."""
        self.ended = True
        return self._lifeline.end()

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


class _Writer(_Worker):
    """The worker that decompresses, and the hash that follows it."""

    def __init__(
        self,
        template: Forker,
        source: int,
        feed: Feed,
        limits: Limits,
        drain: Drain,
        *,
        offset: int,
        plain: bool,
        tar: int,
    ) -> None:
        super().__init__(template, source, feed, limits, offset=offset, plain=plain, tar=tar)
        self._drain = drain
        self._heard = self._appending = self._answered_all = False

    def take_answer(self) -> bool:
        """Take what is there of the answer, and look how far the tar is."""
        self._answered_all = not super().take_answer()
        if self._appending:
            self._drain.look()
        return not self._answered_all

    def _take(self, part: bytes) -> None:
        if not self._heard:
            self._heard = True
            self._appending = part.startswith(APPENDING)
            part = part.removeprefix(APPENDING)
        super()._take(part)

    def _their_disk(self, said: bytes) -> Exception:
        number = int(said) if said.isdigit() and len(said) < 4 else 0
        return OSError(number, os.strerror(number)) if number in DISK_ERRORS else nonsense()

    @property
    def busy(self) -> bool:
        """Whether there is something to do that nobody has to be waited for."""
        return self._drain.behind or (self._answered_all and not self._drain.complete)

    def go_on(self) -> None:
        """Do some of that.  The tar is whole when the worker is no more, and all it wrote is hashed."""
        if self._drain.behind:
            self._drain.step()
        elif self._answered_all and not self.ended:
            end = self._end()
            if end.lost:
                raise end.error(self._limits)
            self._drain.look()
        elif self._answered_all and not self._drain.complete:
            self._drain.finish()

    def close(self) -> None:
        """End the worker, and wait for its end: it can write to a file that others will read."""
        if not self.ended:
            self._end()
        super().close()


def _run(workers: list[_Worker], call: Call) -> None:
    """Take what the workers give until all have answered."""
    poller = select.poll()
    silent = {worker.answer: worker for worker in workers}  # those that have not answered yet
    writers = [worker for worker in workers if isinstance(worker, _Writer)]
    for answer in silent:
        poller.register(answer, select.POLLIN)
    last = time.monotonic()
    while silent or any(writer.busy for writer in writers):
        for answer, _ in poller.poll(0 if any(writer.busy for writer in writers) else LOOK * 1000):
            if not silent[answer].take_answer():
                poller.unregister(answer)
                del silent[answer]
        for writer in writers:
            writer.go_on()
        call.check(_WHAT)
        now = time.monotonic()
        if now - last >= LOOK:
            for worker in silent.values():
                worker.watch(min(now - last, 1.0))  # what stops us, or the machine, is not its fault
            last = now


def _to_read(source: int) -> int:
    """A descriptor for a worker, which can be read and nothing else, whatever ours can."""
    if fcntl.fcntl(source, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return os.dup(source)
    return os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)
