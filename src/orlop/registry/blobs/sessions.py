"""One session of an upload at a registry: its requests, its moving `Location`, its end.

What is sent when, and what answers mean, is `orlop.registry.blobs.uploads`' to say.  A `Location` may be
relative, and may be on another host, which then gets no credentials. Source: distribution-spec, "Pushing
blobs".
"""

from __future__ import annotations

import time
from urllib.parse import quote

from orlop.errors import Error, Unavailable
from orlop.observe import Call, CancelToken, Tally
from orlop.registry.access.tokens import mask
from orlop.registry.blobs.offsets import parse_length
from orlop.registry.faults import from_status
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.registry.net.redirects import settle
from orlop.spec.digest import Digest
from orlop.values import replace

__all__ = ["BYTES", "Session", "with_query"]

PATIENCE = 10.0  # a registry may hash the whole blob before it answers the last request
_SECRETS = 16  # of a session's tokens, the newest, that are looked for in what it says
CANCEL_SECONDS = 5.0  # a session left open costs the registry, not us
HURRIED_SECONDS = 2.0  # the same where somebody waits for the call to stop
BYTES = {"Content-Type": "application/octet-stream"}


class Session:
    """One session of a registry.  Used by one thread."""

    def __init__(self, send: Sender, request: Request, response: Response | None) -> None:
        self._send = send
        self._request = request
        self._location = ""
        self.least = 0  # the registry's OCI-Chunk-Min-Length
        if response is not None:
            if response.status != 202:
                raise from_status(request.endpoint, response, request.attempted)
            self.move(response)
            self.least = parse_length(response.headers.get("oci-chunk-min-length"))

    @property
    def open(self) -> bool:
        """Whether there is one."""
        return bool(self._location)

    def send(
        self,
        method: str,
        body: Outgoing | None,
        call: Call,
        *,
        extent: str | None = None,
        digest: Digest | None = None,
    ) -> Response:
        """A PATCH, or with the blob's ``digest`` the PUT that ends the session; any status is a response."""
        url = self._location
        if digest is not None:
            url = with_query(url, f"digest={quote(digest, safe=':')}")
        headers = {} if body is None else dict(BYTES)
        if extent is not None:
            headers["Content-Range"] = extent
        request = replace(
            self._request, method=method, url=url, body=body, headers=headers, patience=PATIENCE
        )
        return self._send(request, call)

    def ask(self, call: Call) -> Response:
        """Ask how far it is; any status is a response."""
        attempted = f"go on to {self._request.attempted}"
        return self._send(replace(self._request, method="GET", url=self._location, attempted=attempted), call)

    def move(self, response: Response) -> None:
        """Take the session's new address."""
        location = response.headers.get("location")
        if location:
            # Where it leads may repeat what the registry was told, and is told in errors.
            secrets = (*response.secrets, *self._request.secrets)
            request = self._request = replace(self._request, secrets=tuple(dict.fromkeys(secrets))[:_SECRETS])
            try:
                self._location = settle(request.endpoint, response.url, location, request.attempted)
            except Error as exc:
                exc.reason = mask(exc.reason, request.secrets)
                raise
        elif not self._location:
            raise Unavailable(
                self._request.attempted, f"{self._request.endpoint.host} names no place to upload to"
            )

    def forget(self) -> None:
        """It is over: there is nothing to cancel."""
        self._location = ""

    def cancel(self, call: Call) -> None:
        """Give it up.  Best effort and soon, though the call itself was cancelled.  Idempotent."""
        if not self._location:
            return
        location, self._location = self._location, ""
        attempted = f"cancel the session to {self._request.attempted}"
        # A second try, for without one a registry that wants a pause, however short, is not asked at all.
        request = replace(self._request, method="DELETE", url=location, attempted=attempted, retries=1)
        seconds = HURRIED_SECONDS if call.cancel.cancelled else CANCEL_SECONDS
        # Its seconds are its own, however many the call has spent waiting.
        last = replace(call, cancel=CancelToken(), deadline=time.monotonic() + seconds, tally=Tally())
        try:
            self._send(request, last)
        except Error:
            return  # the registry sweeps old sessions itself; what ended this one matters more


def with_query(url: str, query: str) -> str:
    """A URL with more in its query."""
    return f"{url}{'&' if '?' in url else '?'}{query}"
