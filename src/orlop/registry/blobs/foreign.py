"""Layers that lie elsewhere: the ``urls`` of a descriptor (image-spec, descriptor.md).

Whoever wrote the manifest chose these URLs, so they are off unless the settings allow them, and then get
nothing of ours (HOSTILE.md 20): no credentials, not even those for the same host; no address that the
registry itself could not send us to; no more than a few tries.  The bytes must have the descriptor's digest
and size, as from anywhere.  The registry is asked first.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, urlsplit, urlunsplit

from orlop.errors import Error, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.blobs.downloads import BlobStream, asking, open_stream
from orlop.registry.faults import redact
from orlop.registry.finding.hosts import URL_SAFE, Endpoint, origin_of
from orlop.registry.messages import Request, Sender
from orlop.values import replace

__all__ = ["MAX_URLS", "foreign_requests", "is_foreign", "open_foreign"]

MAX_URLS = 8  # of one layer that are tried
_MAX_URL = 4_096  # characters
_KINDS = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)


def is_foreign(media_type: str) -> bool:
    """Whether a media type says that a layer is not to be distributed.

    >>> is_foreign("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    True
    """
    return media_type.startswith(_KINDS)


def foreign_requests(
    urls: Iterable[str], endpoint: Endpoint, attempted: str
) -> tuple[list[Request], list[str]]:
    """The requests to make for a layer in turn, and why some URLs are none.  No I/O.

    ``endpoint`` is the registry that sends us there.
    """
    requests: list[Request] = []
    refused: list[str] = []
    for url in urls:
        if len(requests) + len(refused) >= MAX_URLS:
            break
        try:
            requests.append(_request(url, endpoint, attempted))
        except Error as exc:
            refused.append(f"{redact(url[:200])}: {exc.reason}")
    return requests, refused


def open_foreign(
    send: Sender,
    urls: Iterable[str],
    *,
    endpoint: Endpoint,
    offset: int,
    attempted: str,
    call: Call,
) -> BlobStream:
    """Start a download from the first of some URLs that gives one; ``send`` must add no credentials.

    Raises `NotFound`, with what each of them said, where none does.
    """
    requests, said = foreign_requests(urls, endpoint, attempted)
    for request in requests:
        try:
            return open_stream(asking(send, request, call), offset=offset, call=call)
        except (InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable) as exc:
            call.check(attempted)
            said.append(f"{redact(request.url)}: {exc.reason}")
    raise NotFound(attempted, f"nor is it where its manifest says: {'; '.join(said) or 'it names no URL'}")


def _request(url: str, endpoint: Endpoint, attempted: str) -> Request:
    if len(url) > _MAX_URL:
        raise InvalidArgument(attempted, f"a URL of more than {_MAX_URL} characters")
    origin = origin_of(url, attempted)
    if origin.scheme == "http" and endpoint.origin.scheme == "https":
        raise InvalidArgument(attempted, "it is plain http, and the registry is not")
    parts = urlsplit(url)  # without user info: what an author wrote there is not ours to send
    path, query = quote(parts.path or "/", safe=URL_SAFE), quote(parts.query, safe=URL_SAFE)
    return Request(
        method="GET",
        url=urlunsplit((origin.scheme, origin.netloc, path, query, "")),
        endpoint=replace(endpoint, headers=(), client=()),
        attempted=attempted,
        read=None,
    )
