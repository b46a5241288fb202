"""Uploads of blobs to the registry of tests: sessions, mounts, chunks, and what ends them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orlop.spec.digest import Digest

if TYPE_CHECKING:
    from orlop.testing.registry.exchange import Exchange

__all__ = ["interrupted", "upload"]

_SESSION = re.compile(r"/v2/(.+)/blobs/uploads/([^/?]+)")
_EXTENT = re.compile(r"(\d+)-(\d+)")


def upload(
    exchange: Exchange, repository: str, session: str, query: Mapping[str, list[str]], body: bytes
) -> None:
    """Answer a request to an upload: a new session, or one that goes on, ends or is given up."""
    registry = exchange.registry
    if not exchange.allowed(repository, "push", query.get("from", [""])[0]):
        return
    if registry.body_max and len(body) > registry.body_max:
        exchange.error(413, "SIZE_INVALID", "the request is too large")
        return
    if exchange.command == "POST":
        _begin(exchange, repository, query, body)
        return
    data = registry.uploads.get(session)
    if data is None:
        exchange.error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
    elif exchange.command == "DELETE":
        del registry.uploads[session]
        exchange.answer(204)
    elif exchange.command == "GET":
        _tell(exchange, 204, repository, session)
    elif not _in_order(exchange.headers.get("Content-Range"), len(data), len(body)):
        _tell(exchange, 416, repository, session)
    elif exchange.command == "PUT":
        _finish(exchange, repository, session, bytes(data + body), query.get("digest", [""])[0])
    elif registry.chunk_min and any(size < registry.chunk_min for size in registry.chunks.get(session, ())):
        exchange.error(400, "BLOB_UPLOAD_INVALID", "the chunk before this one was too short")
    else:
        data += body
        registry.chunks.setdefault(session, []).append(len(body))
        _tell(exchange, 202, repository, session)


def interrupted(exchange: Exchange, body: bytes) -> None:
    """A request was cut: keep what came of its body, as registries do that let uploads resume."""
    registry = exchange.registry
    match = _SESSION.match(exchange.path)
    if registry.keeps_partial and match and exchange.command in ("PATCH", "PUT"):
        data = registry.uploads.get(match[2])
        if data is not None and _in_order(exchange.headers.get("Content-Range"), len(data), None):
            data += body


def _begin(exchange: Exchange, repository: str, query: Mapping[str, list[str]], body: bytes) -> None:
    registry = exchange.registry
    source, mounted, whole = (query.get(name, [""])[0] for name in ("from", "mount", "digest"))
    owners = registry.blob_owners.get(mounted, set())
    if registry.mounts and (source in owners if source else owners):
        owners.add(repository)
        exchange.answer(
            201, b"", {"Location": f"/v2/{repository}/blobs/{mounted}", "Docker-Content-Digest": mounted}
        )
        return
    session = secrets.token_hex(8)
    registry.uploads[session] = bytearray(body if registry.post_begins else b"")
    if whole and registry.single_post:
        _finish(exchange, repository, session, body, whole)
        return
    _tell(exchange, 202, repository, session)


def _tell(exchange: Exchange, status: int, repository: str, session: str) -> None:
    """Answer with where a session is, and how far."""
    registry = exchange.registry
    if registry.moving:
        moved = secrets.token_hex(8)
        registry.uploads[moved] = registry.uploads.pop(session)
        registry.chunks[moved] = registry.chunks.pop(session, [])
        session = moved
    size = len(registry.uploads[session])
    headers = {
        "Location": f"{registry.upload_location}/v2/{repository}/blobs/uploads/{session}?state=1",
        "Range": f"0-{max(size - 1, 0)}",
    }
    if registry.chunk_min:
        headers["OCI-Chunk-Min-Length"] = str(registry.chunk_min)
    exchange.answer(status, b"", headers)


def _in_order(extent: str | None, at: int, length: int | None) -> bool:
    """Whether a chunk goes on where the session is, and is as long as it says."""
    if extent is None:
        return True
    match = _EXTENT.fullmatch(extent)
    if match is None or int(match[1]) != at:
        return False
    return length is None or int(match[2]) - int(match[1]) + 1 == length


def _finish(exchange: Exchange, repository: str, session: str, data: bytes, digest: str) -> None:
    registry = exchange.registry
    if not Digest(digest).verifies(data):
        exchange.error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        return
    del registry.uploads[session]
    registry.blobs[digest] = data
    registry.blob_owners.setdefault(digest, set()).add(repository)
    exchange.answer(
        201, b"", {"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest}
    )
