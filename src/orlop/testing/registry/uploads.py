"""Uploads of blobs to the registry of tests: sessions, mounts, and what ends them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orlop.spec.digest import Digest

if TYPE_CHECKING:
    from orlop.testing.registry.exchange import Exchange

__all__ = ["upload"]


def upload(
    exchange: Exchange, repository: str, session: str, query: Mapping[str, list[str]], body: bytes
) -> None:
    """Answer a request to an upload: a new session, or one that goes on, ends or is given up."""
    registry = exchange.registry
    source, mounted = query.get("from", [""])[0], query.get("mount", [""])[0]
    if not exchange.allowed(repository, "push", source):
        return
    if exchange.command == "POST":
        if registry.mounts and source in registry.blob_owners.get(mounted, ()):
            registry.blob_owners[mounted].add(repository)
            exchange.answer(201, b"", {"Location": f"/v2/{repository}/blobs/{mounted}"})
            return
        session = secrets.token_hex(8)
        registry.uploads[session] = bytearray()
    data = registry.uploads.get(session)
    if data is None:
        exchange.error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        return
    data += body
    if exchange.command == "DELETE":
        del registry.uploads[session]
        exchange.answer(204)
    elif exchange.command == "PUT":
        _finish(exchange, repository, session, bytes(data), query.get("digest", [""])[0])
    else:
        location = f"{registry.upload_location}/v2/{repository}/blobs/uploads/{session}?state=1"
        exchange.answer(202, b"", {"Location": location, "Range": f"0-{max(len(data) - 1, 0)}"})


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
