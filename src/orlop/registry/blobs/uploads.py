"""Uploads of blobs: mounted, in one request, as a stream or in chunks, and on after a cut.

An upload is a session at the registry, named by a `Location` that changes with every answer and may be on
another host (which then gets no credentials).  What to send next, and what an answer means, is decided by
`orlop.registry.blobs.offsets`; this module makes the requests.  Invariants: a source that can be opened again
at an offset is sent on from where the registry says it is, one that cannot is sent once; a session that is
not finished is cancelled, whatever ended it; what the source itself raises is never taken for the network's.
Source: distribution-spec, "Pushing blobs" and "Mounting a blob from another repository".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from orlop.errors import DataLoss, Error, PermissionDenied, Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.blobs.offsets import Course, Part, Verdict, judge
from orlop.registry.blobs.sessions import BYTES, Session, with_query
from orlop.registry.blobs.sources import Blob, Reader
from orlop.registry.faults import from_status, scrub
from orlop.registry.finding.hosts import Origin
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.registry.net.retry import RETRY_STATUS, Backoff, parse_retry_after
from orlop.spec.digest import Digest
from orlop.values import replace

__all__ = ["Uploader"]

SINGLE = 16 << 10  # bytes of a blob that goes with the POST; most registries take none so, and lose no more
MAX_BUFFER = 64 << 20  # bytes of a chunk whose length has to be known before it is sent


class Uploader:
    """Uploads blobs to repositories, and remembers what it learns of registries.  Thread-safe.

    ``chunk`` is the most bytes to a request, 0 for no bound; ``retries`` as in `Course`.
    """

    def __init__(self, send: Sender, *, retries: int, backoff: Backoff, chunk: int = 0) -> None:
        self.send = send
        self.retries = retries
        self.backoff = backoff
        self._chunk = chunk
        self._lock = threading.Lock()  # guards the two below
        self._multiple: set[Origin] = set()  # where a POST with a digest only opened a session
        self._chunks: dict[Origin, int] = {}  # bytes to a request, where more were too many

    def upload(
        self,
        request: Request,
        blob: Blob,
        *,
        mounts: Sequence[str],
        there: Callable[[Digest], bool],
        call: Call,
    ) -> bool:
        """Get a blob to the registry; True if it was mounted and nothing was sent.

        ``request`` is a POST to ``…/blobs/uploads/``.  ``mounts`` are repositories of the registry that may
        have the blob, "" for any; they need a known digest.  ``there`` tells whether the registry has it.
        """
        return _Upload(self, request, blob, there, call).run(mounts)

    def mount(self, request: Request, digest: Digest, source: str, call: Call) -> bool:
        """Ask for a blob of another repository ("": of any); True if it is there now.

        False where the registry refuses, for whatever reason: uploading the blob then tells.  Raises
        `Unavailable` where it does not answer.
        """
        session = self.ask_for(request, digest, source, call)
        if session is not None:
            session.cancel(call)
        return session is None

    def ask_for(self, request: Request, digest: Digest, source: str, call: Call) -> Session | None:
        """A mount: None if it was granted, else the session that was opened instead, which may be none."""
        query = f"mount={quote(digest, safe=':')}"
        scopes = request.scopes
        if source:
            query += f"&from={quote(source, safe='/')}"
            scopes = (*scopes, f"repository:{source}:pull")
        response = self.send(replace(request, url=with_query(request.url, query), scopes=scopes), call)
        if response.status == 201:
            _compare(request, response, digest)
            return None
        if response.status == 202:
            return Session(self.send, request, response)
        if response.status >= 500 or response.status in RETRY_STATUS:
            raise from_status(request.endpoint, response, request.attempted)
        return Session(self.send, request, None)

    def takes_single(self, origin: Origin) -> bool:
        """Whether a registry may store the body of a POST."""
        with self._lock:
            return origin not in self._multiple

    def takes_no_single(self, origin: Origin) -> None:
        """It does not."""
        with self._lock:
            self._multiple.add(origin)

    def chunk(self, origin: Origin) -> int:
        """The most bytes to a request; 0 for no bound."""
        with self._lock:
            return self._chunks.get(origin, self._chunk)

    def learn_chunk(self, origin: Origin, size: int) -> None:
        """More than this was too much."""
        with self._lock:
            self._chunks[origin] = size


class _Upload:
    """One upload on its way, over as many sessions as it takes.  Used by one thread."""

    def __init__(
        self, tools: Uploader, request: Request, blob: Blob, there: Callable[[Digest], bool], call: Call
    ) -> None:
        self._tools = tools
        self._request = request
        self._blob = blob
        self._there = there
        self._call = call
        self._reader = Reader(blob.source)
        self._origin = request.endpoint.origin
        self._course = Course(size=blob.size, retries=tools.retries, chunk=tools.chunk(self._origin))
        self._session = Session(tools.send, request, None)
        self._naming = False  # whether a request that names the blob was made
        self._complete = False  # whether all bytes are there and only the name is missing
        self._done = False

    def run(self, mounts: Sequence[str]) -> bool:
        """Do it all; True where the blob was mounted."""
        try:
            digest = self._blob.digest
            if isinstance(digest, Digest) and any(self._mount(digest, source) for source in mounts):
                return True
            if not self._session.open:
                self._post()
            self._course.least = self._session.least
            while not self._done:
                self._turn()
        finally:
            self._session.cancel(self._call)
        return False

    # -- beginning ------------------------------------------------------------------------------

    def _mount(self, digest: Digest, source: str) -> bool:
        """Whether a mount was granted; of those that were not, the first session is the one to go on with."""
        try:
            session = self._tools.ask_for(self._request, digest, source, self._call)
        except (Unauthenticated, PermissionDenied):
            return False  # of the source, perhaps: the upload itself will tell
        if session is None:
            return True
        if self._session.open:
            session.cancel(self._call)
        elif session.open:
            self._session = session
        return False

    def _post(self) -> None:
        """Open a session; a small blob may be stored by that alone."""
        tools, request, blob = self._tools, self._request, self._blob
        size, digest = blob.size, blob.digest
        small = size is not None and size <= SINGLE and not self._course.starts
        if small and isinstance(digest, Digest) and tools.takes_single(self._origin):
            self._post_whole(digest, size)
        if not (self._session.open or self._done):
            if isinstance(digest, Digest) and digest.algorithm != "sha256":
                request = replace(
                    request, url=with_query(request.url, f"digest-algorithm={digest.algorithm}")
                )
            self._session = Session(tools.send, request, tools.send(request, self._call))

    def _post_whole(self, digest: Digest, size: int | None) -> None:
        """A POST with everything in it; where it opened a session, that is gone on with."""
        request, reader = self._request, self._reader
        data = b"".join(reader.take(SINGLE + 1))
        reader.unread(data)
        if len(data) != size:
            return  # the usual way has the words for it
        url = with_query(request.url, f"digest={quote(digest, safe=':')}")
        headers = BYTES
        response = self._tools.send(replace(request, url=url, headers=headers, body=data), self._call)
        if response.status == 201:
            _compare(request, response, digest)
            self._done = True
            return
        if response.status in (401, 403) or response.status in RETRY_STATUS:
            raise from_status(request.endpoint, response, request.attempted)
        self._tools.takes_no_single(self._origin)
        if response.status == 202:
            self._session = Session(self._tools.send, request, response)
            self._course.resumed = True  # one that took the body for a beginning refuses what follows

    # -- going on -------------------------------------------------------------------------------

    def _turn(self) -> None:
        """One request, and what follows from its answer."""
        course, reader = self._course, self._reader
        if self._complete:
            self._sent(Part(first=course.at, length=0, last=True), "PUT", None, self._blob.named())
            return
        if course.at != reader.at and not reader.again:
            reason = f"{self._request.endpoint.host} took {course.at} of {reader.at} bytes"
            raise Unavailable(self._request.attempted, f"{reason}, which cannot be sent again")
        reader.seek(course.at)
        part, body = self._body(course.next())
        digest = self._blob.digest
        if isinstance(digest, Digest) and course.chunk == 0 and part.first == 0 and part.length is not None:
            self._sent(part, "PUT", body, digest)
        elif part.length == 0 and part.first > 0:
            self._complete = True  # the source ended where the chunk before this one did
        else:
            self._sent(part, "PATCH", body, None)

    def _body(self, part: Part) -> tuple[Part, Outgoing]:
        """The bytes of a part, and the part as it turns out to be."""
        course, reader = self._course, self._reader
        if course.size is None and part.length is not None and part.length <= MAX_BUFFER:
            chunks = list(reader.take(part.length))
            length = sum(map(len, chunks))
            if reader.ended:
                course.size = part.first + length
            return replace(part, length=length, last=reader.ended), self._outgoing(chunks, length)
        if course.size is None:
            return replace(part, length=None, last=True), self._outgoing(reader.take(None), None)
        # The last part takes all there is, so that a source of more than it promised is found out.
        return part, self._outgoing(reader.take(None if part.last else part.length), part.length)

    def _outgoing(self, chunks: Iterable[bytes], size: int | None) -> Outgoing:
        return Outgoing(chunks, size=size, call=self._call, attempted=self._request.attempted)

    def _sent(self, part: Part, method: str, body: Outgoing | None, digest: Digest | None) -> None:
        """Make a request, and act on its verdict."""
        course, session = self._course, self._session
        self._naming = self._naming or digest is not None
        extent = part.extent if method == "PATCH" else None
        try:
            response = session.send(method, body, self._call, extent=extent, digest=digest)
        except Unavailable as exc:
            if body is not None and body.failure is not None:
                raise  # the source's own
            course.sending(part.first + (body.sent if body is not None else 0))
            self._trouble(exc, None)
            return
        left = body is not None and body.sent > 0
        upto = part.first + (body.sent if body is not None else 0)
        course.sending(upto)
        verdict = judge(response.status, method, resumed=course.resumed, left=left)
        if verdict is Verdict.NAMED:
            session.forget()
            self._done = True
            _compare(self._request, response, digest)
        elif verdict is Verdict.TAKEN:
            self._taken(part, response, upto)
        else:
            self._refused(part, verdict, response)

    def _taken(self, part: Part, response: Response, upto: int) -> None:
        course = self._course
        self._session.move(response)
        if course.size is None and self._reader.ended:
            course.size = upto
        if not course.took(response.headers.get("range"), upto):
            self._again(self._odd(response, "which is more than it got"))
            return
        if course.at < upto and self._reader.again and not course.troubled():
            raise self._odd(response, "again and again less than it got")
        self._complete = part.last and course.at == upto

    def _refused(self, part: Part, verdict: Verdict, response: Response) -> None:
        error = from_status(self._request.endpoint, response, self._request.attempted)
        if verdict is Verdict.REFUSED or not self._reader.again:
            raise error
        if verdict is Verdict.AGAIN:
            if response.status in (404, 410):
                self._session.forget()
            self._again(error)
        elif verdict is Verdict.SMALLER:
            if not self._course.shrink(part.length):
                raise error
            self._tools.learn_chunk(self._origin, self._course.chunk)
            self._ask(error)
        else:
            self._trouble(error, response.headers.get("retry-after"))

    def _trouble(self, error: Error, after: str | None) -> None:
        """Wait, then find out where to go on.  Raises ``error`` where that is no use."""
        if not self._reader.again or not self._course.troubled():
            raise error
        delay = self._tools.backoff.delay(self._course.idle, parse_retry_after(after, datetime.now(UTC)))
        if delay is None:
            raise error
        self._call.pause(delay, self._request.attempted, why=error.reason)
        self._ask(error)

    def _ask(self, error: Error) -> None:
        """Ask the registry how far it is, and go on from there, in a new session where this one is lost."""
        session, course = self._session, self._course
        response = session.ask(self._call)
        if response.ok:
            session.move(response)
            if course.holds(response.headers.get("range")):
                self._complete = course.size is not None and course.at == course.size
                return
        elif response.status in (401, 403) or response.status in RETRY_STATUS:
            raise from_status(self._request.endpoint, response, self._request.attempted)
        elif response.status in (404, 410):
            session.forget()
        self._again(error)

    def _again(self, error: Error) -> None:
        """Begin anew, unless it was only the last answer that was lost."""
        if self._naming and self._there(self._blob.named()):
            self._session.forget()
            self._done = True
            return
        if not self._reader.again or not self._course.restart():
            raise error
        self._session.cancel(self._call)
        self._naming = self._complete = False
        self._post()

    def _odd(self, response: Response, why: str) -> Error:
        said = scrub(response.headers.get("range", ""))[:60]
        reason = f"{self._request.endpoint.host} says that it has {said!r}, {why}"
        return Unavailable(self._request.attempted, reason)


def _compare(request: Request, response: Response, digest: Digest | None) -> None:
    """Raise `DataLoss` where a registry says that it keeps a blob under another digest."""
    kept = response.headers.get("docker-content-digest")
    if digest is None or not kept or kept.partition(":")[0] != digest.algorithm or kept == digest:
        return
    host = request.endpoint.host
    raise DataLoss(request.attempted, f"{host} kept it as {kept[:150]}, not as {digest}")
