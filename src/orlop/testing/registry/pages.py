"""What the registry's pages answer: tokens, manifests, blobs; uploads are next door."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from orlop.spec.digest import Digest
from orlop.testing.registry.uploads import upload

if TYPE_CHECKING:
    from orlop.testing.registry.exchange import Exchange

__all__ = ["serve"]

_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([^/]*)")
_BLOB = re.compile(r"/v2/(.+)/blobs/([^/]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def serve(exchange: Exchange, body: bytes) -> None:
    """Answer one request."""
    path, query = urlsplit(exchange.path).path, parse_qs(urlsplit(exchange.path).query)
    if path == "/token":
        token(exchange, query, body)
    elif path == "/v2/":
        if exchange.allowed("", ""):
            exchange.answer(200, b"{}")
    elif match := _MANIFEST.fullmatch(path):
        manifest(exchange, match[1], match[2], body)
    elif match := _UPLOAD.fullmatch(path):
        upload(exchange, match[1], match[2], query, body)
    elif match := _BLOB.fullmatch(path):
        blob(exchange, match[1], match[2])
    else:
        exchange.error(404, "NAME_UNKNOWN", "no such page")


def token(exchange: Exchange, query: Mapping[str, list[str]], body: bytes) -> None:
    registry = exchange.registry
    user: str | None = None
    if exchange.command == "POST":
        query = parse_qs(body.decode())
        user = registry.refresh_tokens.get(query.get("refresh_token", [""])[0])
    elif sent := exchange.headers.get("Authorization"):
        user = registry.user_of(sent)
    presented = exchange.command == "POST" or "Authorization" in exchange.headers
    if user is None and (presented or not registry.anonymous):
        exchange.error(401, "UNAUTHORIZED", "incorrect username or password")
        return
    scopes = [scope for value in query.get("scope", []) for scope in value.split(" ")]
    document = {"token": registry.grant(user, scopes), "expires_in": registry.token_life}
    exchange.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def manifest(exchange: Exchange, repository: str, target: str, body: bytes) -> None:
    registry = exchange.registry
    if not exchange.allowed(repository, "push" if exchange.command == "PUT" else "pull"):
        return
    if exchange.command == "PUT":
        digest = registry.add_manifest(repository, target, body, exchange.headers.get("Content-Type", ""))
        location = f"/v2/{repository}/manifests/{digest}"
        exchange.answer(201, b"", {"Location": location, "Docker-Content-Digest": digest})
    elif (found := registry.manifests.get((repository, target))) is None:
        exchange.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
    else:
        media_type, data = found
        about = {"Content-Type": media_type, "Docker-Content-Digest": Digest.of(data)}
        exchange.answer(200, data, about)


def blob(exchange: Exchange, repository: str, digest: str) -> None:
    registry = exchange.registry
    if not exchange.allowed(repository, "pull"):
        return
    data = registry.blobs.get(digest)
    if data is None or repository not in registry.blob_owners.get(digest, {repository}):
        exchange.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return
    about = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
    asked = _RANGE.fullmatch(exchange.headers.get("Range", ""))
    if asked is None or exchange.fault.ignore_range:
        exchange.answer(200, data, about)
        return
    first = int(asked[1])
    last = min(int(asked[2] or len(data) - 1), len(data) - 1)
    if first >= len(data):
        exchange.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return
    about["Content-Range"] = exchange.fault.content_range or f"bytes {first}-{last}/{len(data)}"
    exchange.answer(206, data[first : last + 1], about)
