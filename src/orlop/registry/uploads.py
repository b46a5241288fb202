"""Uploads of blobs: mount from another repository, in one PUT, or as a stream.

An upload is a session at the registry, named by a `Location` that may be on another host (which then
gets no credentials).  A session that is not finished is cancelled, whatever ended it.
Source: distribution-spec, "Pushing blobs" and "Mounting a blob from another repository".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import quote

from orlop.errors import DataLoss, Error, Unavailable
from orlop.observe import Call
from orlop.registry.faults import from_status
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.registry.redirects import settle
from orlop.spec.digest import Digest

__all__ = ["Upload", "mount"]

PATIENCE = 10.0  # a registry may hash the whole blob before it answers the last request
CANCEL_SECONDS = 5.0  # a session left open costs the registry, not us
_BYTES = "application/octet-stream"


def mount(send: Sender, request: Request, *, digest: Digest, source: str, call: Call) -> bool:
    """Ask for a blob of another repository; True if it is there now.

    ``request`` is a POST to ``…/blobs/uploads/``.  False where the registry refuses, for whatever
    reason: uploading the blob then tells.  Raises `Unavailable` where it does not answer.
    """
    query = f"mount={quote(digest, safe=':')}&from={quote(source, safe='/')}"
    response = send(replace(request, url=f"{request.url}?{query}"), call)
    if response.status == 201:
        return True
    if response.status == 202:
        Upload(send, request, response).cancel()
        return False
    if response.status >= 500 or response.status in (408, 429):
        raise from_status(request.endpoint, response, request.attempted)
    return False


class Upload:
    """One upload session.  Used by one thread; a context manager that cancels what is not finished."""

    def __init__(self, send: Sender, request: Request, response: Response) -> None:
        self._send = send
        self._request = request
        self._location = ""
        if response.status != 202:
            raise from_status(request.endpoint, response, request.attempted)
        self._move(response)

    @classmethod
    def start(cls, send: Sender, request: Request, call: Call) -> Upload:
        """Open a session.  ``request`` is a POST to ``…/blobs/uploads/``."""
        return cls(send, request, send(request, call))

    def send_whole(self, chunks: Iterable[bytes], *, digest: Digest, size: int, call: Call) -> None:
        """Send everything in one PUT."""
        body = Outgoing(chunks, size=size, call=call, attempted=self._request.attempted)
        headers = {"Content-Type": _BYTES}
        self._finish(self._with_digest(digest), body=body, headers=headers, digest=digest, call=call)

    def send_stream(
        self, chunks: Iterable[bytes], *, digest: Callable[[], Digest], size: int | None, call: Call
    ) -> None:
        """Send everything in one PATCH, then name it; ``digest`` is asked after the last chunk."""
        body = Outgoing(chunks, size=size, call=call, attempted=self._request.attempted)
        headers = {"Content-Type": _BYTES}
        response = self._part("PATCH", self._location, body=body, headers=headers, call=call)
        # The specification says 202; 204 and 201 are seen in the field.
        if response.status not in (201, 202, 204):
            raise from_status(self._request.endpoint, response, self._request.attempted)
        self._move(response)
        named = digest()
        self._finish(self._with_digest(named), body=None, headers={}, digest=named, call=call)

    def cancel(self) -> None:
        """Give the session up.  Best effort, for a few seconds, though the call itself was cancelled."""
        if not self._location:
            return
        location, self._location = self._location, ""
        attempted = f"cancel the session to {self._request.attempted}"
        request = replace(self._request, method="DELETE", url=location, attempted=attempted)
        try:
            self._send(request, Call(deadline=time.monotonic() + CANCEL_SECONDS))
        except Error:
            return  # the registry sweeps old sessions itself; what ended this one matters more

    def _finish(
        self,
        url: str,
        *,
        body: Outgoing | None,
        headers: dict[str, str],
        digest: Digest,
        call: Call,
    ) -> None:
        response = self._part("PUT", url, body=body, headers=headers, call=call)
        if response.status not in (201, 204):
            raise from_status(self._request.endpoint, response, self._request.attempted)
        self._location = ""
        kept = response.headers.get("docker-content-digest")
        if kept and kept.partition(":")[0] == digest.algorithm and kept != digest:
            host = self._request.endpoint.host
            raise DataLoss(self._request.attempted, f"{host} kept it as {kept[:150]}, not as {digest}")

    def _part(
        self, method: str, url: str, *, body: Outgoing | None, headers: dict[str, str], call: Call
    ) -> Response:
        return self._send(
            replace(self._request, method=method, url=url, body=body, headers=headers, patience=PATIENCE),
            call,
        )

    def _move(self, response: Response) -> None:
        """Take the session's new address."""
        location = response.headers.get("location")
        if location:
            request = self._request
            self._location = settle(request.endpoint, response.url, location, request.attempted)
        elif not self._location:
            raise Unavailable(
                self._request.attempted, f"{self._request.endpoint.host} names no place to upload to"
            )

    def _with_digest(self, digest: Digest) -> str:
        return f"{self._location}{'&' if '?' in self._location else '?'}digest={quote(digest, safe=':')}"
