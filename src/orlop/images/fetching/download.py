"""One blob from a registry into an ingest, over as many connections as help; verified when it ends well.

What to fetch next is the plan's to say (`orlop.registry.blobs.ranges`), what is there the ingest's.  One
thread watches: it hashes what the connections could not, starts the first connection and another in its place
when it is cut, and has the last word on the digest.  Invariants: no more than one chunk per connection is in
memory; bytes go to the ingest before anybody is told of them; bytes of two entities are not mixed knowingly,
and where it happened all the same the digest is wrong and `DataLoss` says so.

What is there with one answer has no threads: it is fetched where it is started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from orlop.config import Settings
from orlop.content.ingests import Ingest
from orlop.errors import DataLoss, Error, InvalidArgument, NotFound, Unauthenticated, Unavailable
from orlop.images.fetching.front import Front
from orlop.layers.worker.feed import Feed
from orlop.observe import Call, Progress, Rate, reached
from orlop.observe import count as tally
from orlop.registry.blobs.downloads import BlobStream, RangeRefused
from orlop.registry.blobs.ranges import PACE, Pace, Piece, Ranges, Traffic
from orlop.registry.client import Registry
from orlop.registry.finding.hosts import Endpoint, Origin
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["Download", "Wanted"]

LIFE = 16 << 10  # bytes that a connection must bring to count as a try that got on
SWIFT = 64 << 10  # bytes after which a cut connection is replaced without a pause
AT_ONCE = 32 << 10  # bytes of a blob for which two threads cost more than they gain
BUFFER = 256 << 10  # bytes of memory for each connection; more would not stay in the processor's cache
LOOK = 0.1  # seconds between two looks at the front
STILL = 1.0  # seconds without bytes after which it is said that none come


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A blob of a repository.  ``urls`` are where else it may lie."""

    ref: Reference
    digest: Digest
    size: int
    urls: Sequence[str] = ()

    @property
    def attempted(self) -> str:
        """How errors begin."""
        return f"fetch layer {self.digest}"


class Download:
    """Fetches one blob in the background; start it once, and `stop` it in the end, whatever happened.

    A small one is there, or has failed, when `start` returns.
    It uses up to ``settings.streams`` connections.  With ``settle`` it uses one, and takes what the registry
    gives, though that may be another entity than it gave before.
    """

    def __init__(
        self,
        registry: Registry,
        wanted: Wanted,
        ingest: Ingest,
        *,
        settings: Settings,
        traffic: Traffic | None = None,
        pace: Pace = PACE,
        settle: bool = False,
        call: Call,
    ) -> None:
        self._registry, self._wanted, self._ingest = registry, wanted, ingest
        self._retries = settings.retries
        self._feed: Feed | None = None
        self._settle = settle
        self._observer = call.observer
        self._call = call.child()  # cancelled when this download is given up
        self._front = Front(ingest, wanted.digest)
        self._moved = threading.Condition()  # guards what follows, and is told when a connection ends
        self._plan = Ranges(
            size=wanted.size,
            gaps=ingest.gaps(wanted.size),
            most=1 if settle else settings.streams,
            pace=pace,
            traffic=traffic,
            now=time.monotonic(),
        )
        small = wanted.size <= AT_ONCE and wanted.size < pace.split
        self._watcher = None if small else threading.Thread(target=self._run, name="fetch", daemon=True)
        self._threads: list[threading.Thread] = []
        self._connected = 0
        self._opened = 0
        self._tries = 0
        self._pause = 0.0
        self._why = ""  # of that pause
        self._failure: BaseException | None = None
        self._etags: dict[Origin, str] = {}
        self._mirrors: dict[Endpoint, None] = {}  # that bytes came from
        self._stopped = False
        self._rate = Rate()
        self._told = time.monotonic()
        self.failure: BaseException | None = None
        self.done = False

    @property
    def mixed(self) -> bool:
        """Whether bytes came from more than one answer, so that a wrong digest may be nobody's lie."""
        return self._opened > 1

    def doubt(self, why: Error) -> bool:
        """What came was bad: if a mirror may have sent it, have others asked, and say that they will be."""
        with self._moved:
            mirrors = () if self.done else tuple(self._mirrors)
        told = [self._registry.distrust(one, why, call=self._call) for one in mirrors]  # each of them
        return any(told)

    def start(self, feed: Feed | None = None) -> None:
        """Begin; ``feed`` hears how far the front is, and is closed where the download fails."""
        self._feed = feed
        if self._watcher is None:  # nobody reads the feed meanwhile, and it could fill up
            self._run()
        else:
            self._front.feed = feed
            self._watcher.start()

    def stop(self) -> None:
        """Make it end soon, and wait for that.  Idempotent."""
        self._stopped = True
        self._call.cancel.cancel()
        if self._watcher is not None:
            self._watcher.join()

    def join(self) -> None:
        """Wait for the end; raises what went wrong."""
        if self._watcher is not None:
            self._watcher.join()
        if self.failure is not None:
            raise self.failure

    # -- the thread that watches, or that of a small one's caller ---------------------------------

    def _run(self) -> None:
        try:
            try:
                self._tell(0.0)
                self._watch()
            finally:
                self._end_connections()
            self._verify()
            self.done = True
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
            if not self._stopped:
                self.failure = exc
            if self._feed is not None:
                self._feed.close()  # the worker ends, and with it the reader of its pipe

    def _watch(self) -> None:
        """Until all has come."""
        while True:
            self._check()
            self._front.catch_up(self._check)
            with self._moved:
                if self._failure is not None:
                    raise self._failure
                running = self._connected > 0
                if running:
                    self._moved.wait(LOOK)
                    still = time.monotonic() - self._told >= STILL and self._rate.add(0)
                else:
                    if self._plan.complete:
                        return
                    pause, self._pause = self._pause, 0.0
            if running:
                if still:
                    self._tell(self._rate.rate)
                continue
            if pause:
                self._call.pause(pause, self._wanted.attempted, why=self._why)
            self._connect()

    def _end_connections(self) -> None:
        failed = self._failure is not None or not self._plan.complete
        if failed:
            self._call.cancel.cancel()
        with self._moved:
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()
        self._plan.close()

    def _verify(self) -> None:
        wanted = self._wanted
        self._front.catch_up(self._check)
        found = self._front.hexdigest()
        if self._front.hashed != wanted.size or found != wanted.digest.hex:
            raise DataLoss(wanted.attempted, f"the bytes have the digest {wanted.digest.algorithm}:{found}")
        reached("ingest.complete")
        self._tell(self._rate.rate)
        if self._feed is not None:
            self._feed.advance(wanted.size, complete=True)

    def _check(self) -> None:
        self._call.check(self._wanted.attempted)

    # -- connections ----------------------------------------------------------------------------

    def _connect(self) -> None:
        """Start one connection more; of a small blob it is the only one, and has ended on return."""
        if self._watcher is None:
            self._connected += 1
            self._connection()
            return
        with self._moved:
            self._connected += 1
            thread = threading.Thread(target=self._connection, name="fetch-range", daemon=True)
            self._threads = [one for one in self._threads if one.is_alive() or one.ident is None]
            self._threads.append(thread)
        try:
            thread.start()
        except BaseException:  # no more threads
            with self._moved:
                self._connected -= 1
                self._threads.remove(thread)
            raise

    def _connection(self) -> None:
        """Fetch pieces as long as there are some."""
        buffer = memoryview(bytearray(BUFFER))
        try:
            while (piece := self._next_piece()) is not None:
                if not self._fetch(piece, buffer):
                    return
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that watches
            with self._moved:
                self._failure = self._failure or exc
        finally:
            with self._moved:
                self._connected -= 1
                self._moved.notify_all()

    def _next_piece(self) -> Piece | None:
        with self._moved:
            while (piece := self._plan.take(self._ingest.size)) is None and self._plan.wait:
                if self._failure is not None:
                    return None
                self._moved.wait(LOOK)
                self._check()
            return piece

    def _fetch(self, piece: Piece, buffer: memoryview) -> bool:
        """Fetch one piece; False where this connection should end."""
        begin = piece.at
        try:
            with self._open(piece) as stream:
                self._read(piece, stream, buffer)
            if piece.left and piece.at == begin:
                raise Unavailable(self._wanted.attempted, "the registry sends nothing more")
        except (RangeRefused, NotFound, Unauthenticated) as exc:
            with self._moved:
                self._plan.give_back(piece)
                if not self._plan.running and not isinstance(exc, RangeRefused):
                    raise
                self._plan.refuse()
            return False
        except Unavailable as exc:
            with self._moved:
                self._plan.give_back(piece)
                self._cut(piece.at - begin, exc)
            return False
        except BaseException:
            with self._moved:
                self._plan.give_back(piece)
            raise
        with self._moved:
            if piece.left:  # the answer was shorter than asked for, as it may be (RFC 9110, 15.3.7)
                self._plan.give_back(piece)
            else:
                self._plan.finish(piece)
        return True

    def _cut(self, brought: int, exc: Unavailable) -> None:
        """A connection failed; whether another may be tried.  Called with the lock held."""
        if self._plan.running:
            self._plan.shrink(time.monotonic())
            return
        self._tries = 0 if brought >= LIFE else self._tries + 1
        if self._tries > self._retries:
            self._failure = self._failure or exc
        self._pause, self._why = 0.0 if brought >= SWIFT else 0.1 * 2**self._tries, exc.reason

    def _open(self, piece: Piece) -> BlobStream:
        """The answer for a piece, which begins where the piece does or, for the only one, before it."""
        with self._moved:
            alone = self._plan.running == 1
            etag = next(iter(self._etags.values())) if len(self._etags) == 1 and not self._mirrors else ""
            self._opened += 1
        stream = self._checked(self._answer(piece, etag, alone=alone))
        if not stream.ranged and not (piece.open and piece.at == 0):
            with self._moved:
                piece.open = True
                self._plan.refuse()
        return stream

    def _answer(self, piece: Piece, etag: str, *, alone: bool) -> BlobStream:
        wanted, call = self._wanted, self._call
        end = None if piece.open else piece.end
        offset = piece.at
        if (offset or end is not None) and not self._settle:
            try:
                stream = self._registry.open_blob_range(
                    wanted.ref, wanted.digest, offset=offset, end=end, etag=etag, spare=not alone, call=call
                )
                if not stream.ranged or stream.size in (None, wanted.size):
                    return stream
                stream.close()
                raise RangeRefused(f"{stream.host} says that it is {stream.size} bytes long")
            except (RangeRefused, NotFound) as exc:
                if not alone or (isinstance(exc, NotFound) and not wanted.urls):
                    raise
            offset = offset if wanted.urls else 0
        return self._registry.open_blob(wanted.ref, wanted.digest, offset=offset, urls=wanted.urls, call=call)

    def _checked(self, stream: BlobStream) -> BlobStream:
        """A stream of the entity that was had so far."""
        wanted = self._wanted
        if stream.endpoint.mirror:
            with self._moved:
                self._mirrors[stream.endpoint] = None
        try:
            if stream.size not in (None, wanted.size):
                raise DataLoss(
                    wanted.attempted,
                    f"the registry has {stream.size} bytes, the manifest says {wanted.size}",
                )
            if stream.etag and not self._settle:
                with self._moved:
                    known = self._etags.setdefault(stream.origin, stream.etag)
                if known != stream.etag:
                    raise DataLoss(wanted.attempted, f"{stream.host} changed it on the way (another ETag)")
        except BaseException:
            stream.close()
            raise
        return stream

    def _read(self, piece: Piece, stream: BlobStream, buffer: memoryview) -> None:
        """Take the bytes of a stream as far as the piece goes."""
        wanted, ingest = self._wanted, self._ingest
        if stream.offset > piece.at:
            raise InvalidArgument(wanted.attempted, "the registry answered another range than was asked for")
        known = piece.at - stream.offset
        while count := stream.fill(buffer):
            if known >= count:
                known -= count
                continue
            chunk = buffer[known:count]
            known = 0
            room = piece.left
            if len(chunk) > room:
                if piece.end >= wanted.size:
                    raise DataLoss(
                        wanted.attempted,
                        f"the registry sent more than the {wanted.size} bytes that the manifest says",
                    )
                chunk = chunk[:room]
            if room:
                ingest.write_at(piece.at, chunk)
                self._front.came(piece.at, chunk)
                self._advance(piece, len(chunk))
            if piece.at >= piece.end and piece.end < wanted.size:
                return  # what follows is another's
            self._check()

    def _advance(self, piece: Piece, count: int) -> None:
        tally("fetched_bytes", count)
        with self._moved:
            more = self._plan.advance(piece, count, time.monotonic())
            due, rate = self._rate.add(count), self._rate.rate
        if more:
            self._connect()
        if due:
            self._tell(rate)

    def _tell(self, rate: float) -> None:
        """Report what is there."""
        self._told = time.monotonic()
        done, total = self._ingest.held, self._wanted.size
        self._observer.progress(
            Progress(item=self._wanted.digest, phase="fetching", done=done, total=total, rate=rate)
        )
