"""What the registry's pages answer: tokens, manifests, blobs, lists; uploads are next door."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode, urlsplit

from orlop.spec.digest import Digest
from orlop.spec.documents import OCI_INDEX
from orlop.testing.registry.uploads import upload

if TYPE_CHECKING:
    from orlop.testing.registry.exchange import Exchange

__all__ = ["serve"]

_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([^/]*)")
_BLOB = re.compile(r"/v2/(.+)/blobs/([^/]+)")
_TAGS = re.compile(r"/v2/(.+)/tags/list")
_REFERRERS = re.compile(r"/v2/(.+)/referrers/([^/]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

_ACTIONS = {"PUT": "push", "DELETE": "delete"}


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
    elif match := _TAGS.fullmatch(path):
        tags(exchange, match[1], query)
    elif (match := _REFERRERS.fullmatch(path)) and exchange.registry.referrers_api:
        referrers(exchange, match[1], match[2], query)
    else:
        exchange.error(404, "NAME_UNKNOWN", "no such page")


def token(exchange: Exchange, query: Mapping[str, list[str]], body: bytes) -> None:
    registry = exchange.registry
    user: str | None = None
    if exchange.command == "POST":
        query = parse_qs(body.decode())
        presented_token = query.get("refresh_token", [""])[0]
        user = registry.refresh_tokens.get(presented_token)
    elif sent := exchange.headers.get("Authorization"):
        user = registry.user_of(sent)
    presented = exchange.command == "POST" or "Authorization" in exchange.headers
    if user is None and (presented or not registry.anonymous):
        exchange.error(401, "UNAUTHORIZED", "incorrect username or password")
        return
    scopes = [scope for value in query.get("scope", []) for scope in value.split(" ")]
    document: dict[str, object] = {
        "token": registry.grant(user, scopes),
        "expires_in": registry.token_life,
    }
    if user is not None and exchange.command == "POST" and registry.rotates:
        del registry.refresh_tokens[presented_token]
        document["refresh_token"] = registry.new_refresh_token(user)
    elif user is not None and registry.offline and query.get("offline_token") == ["true"]:
        document["refresh_token"] = registry.new_refresh_token(user)
    exchange.answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def manifest(exchange: Exchange, repository: str, target: str, body: bytes) -> None:
    registry = exchange.registry
    if not exchange.allowed(repository, _ACTIONS.get(exchange.command, "pull")):
        return
    if exchange.command == "PUT":
        digest = registry.add_manifest(repository, target, body, exchange.headers.get("Content-Type", ""))
        about = {"Location": f"/v2/{repository}/manifests/{digest}", "Docker-Content-Digest": digest}
        if registry.referrers_api and (subject := _subject_of(body)):
            about["OCI-Subject"] = subject
        exchange.answer(201, b"", about)
    elif exchange.command == "DELETE":
        delete(exchange, repository, target)
    elif (found := registry.manifests.get((repository, target))) is None:
        exchange.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
    else:
        media_type, data = found
        about = {"Content-Type": media_type, "Docker-Content-Digest": Digest.of(data)}
        exchange.answer(200, data, about)


def delete(exchange: Exchange, repository: str, target: str) -> None:
    registry = exchange.registry
    found = registry.manifests.get((repository, target))
    if not registry.deletes or (registry.deletes != "all" and ":" not in target):
        exchange.error(405, "UNSUPPORTED", "the operation is unsupported")
    elif found is None:
        exchange.error(404, "MANIFEST_UNKNOWN", "manifest unknown")
    else:
        gone = [key for key, value in registry.manifests.items() if key[0] == repository and value == found]
        for key in gone if ":" in target else [(repository, target)]:
            del registry.manifests[key]
        exchange.answer(202)


def tags(exchange: Exchange, repository: str, query: Mapping[str, list[str]]) -> None:
    registry = exchange.registry
    if not exchange.allowed(repository, "pull"):
        return
    targets = [target for owner, target in list(registry.manifests) if owner == repository]
    if not targets:
        exchange.error(404, "NAME_UNKNOWN", "repository name not known to registry")
        return
    names = sorted(target for target in targets if ":" not in target)
    last = query.get("last", [""])[0]
    names = [name for name in names if name > last]
    asked = int(query.get("n", ["0"])[0]) or len(names)
    most = min(asked, registry.tags_page or asked)
    page, about = names[:most], {"Content-Type": "application/json"}
    if most < len(names):
        following = urlencode({"last": page[-1] if page else last, "n": asked})
        about["Link"] = f'</v2/{repository}/tags/list?{following}>; rel="next"'
    exchange.answer(200, json.dumps({"name": repository, "tags": page}).encode(), about)


def referrers(exchange: Exchange, repository: str, digest: str, query: Mapping[str, list[str]]) -> None:
    registry = exchange.registry
    if not exchange.allowed(repository, "pull"):
        return
    found = [
        _descriptor_of(media_type, data)
        for (owner, target), (media_type, data) in list(registry.manifests.items())
        if owner == repository and ":" in target and _subject_of(data) == digest
    ]
    about = {"Content-Type": OCI_INDEX}
    wanted = query.get("artifactType", [""])[0]
    if wanted and registry.filters:
        found = [entry for entry in found if entry["artifactType"] == wanted]
        about["OCI-Filters-Applied"] = "artifactType"
    at = int(query.get("at", ["0"])[0])
    most = registry.tags_page or len(found)
    if at + most < len(found):
        further = {"at": at + most, **({"artifactType": wanted} if wanted else {})}
        about["Link"] = f'</v2/{repository}/referrers/{digest}?{urlencode(further)}>; rel="next"'
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found[at : at + most]}
    exchange.answer(200, json.dumps(document).encode(), about)


def _subject_of(data: bytes) -> str:
    """The digest of a manifest's subject; empty where it has none."""
    try:
        document = json.loads(data)
    except ValueError:
        return ""
    subject = document.get("subject") if isinstance(document, dict) else None
    return str(subject.get("digest", "")) if isinstance(subject, dict) else ""


def _descriptor_of(media_type: str, data: bytes) -> dict[str, object]:
    document = json.loads(data)
    kind = document.get("artifactType") or document.get("config", {}).get("mediaType", "")
    entry = {
        "mediaType": media_type,
        "digest": Digest.of(data),
        "size": len(data),
        "artifactType": kind,
    }
    return entry if not document.get("annotations") else {**entry, "annotations": document["annotations"]}


def blob(exchange: Exchange, repository: str, digest: str) -> None:
    registry = exchange.registry
    if not exchange.allowed(repository, "pull"):
        return
    data = registry.blobs.get(digest)
    if data is None or repository not in registry.blob_owners.get(digest, {repository}):
        exchange.error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        return
    about = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
    about["ETag"] = etag = exchange.fault.headers.get("ETag", f'"{digest}"')
    asked = _RANGE.fullmatch(exchange.headers.get("Range", ""))
    other = exchange.headers.get("If-Range", etag) != etag  # RFC 9110, 13.1.5
    if asked is None or exchange.fault.ignore_range or other:
        exchange.answer(200, data, about)
        return
    first = int(asked[1])
    last = min(int(asked[2] or len(data) - 1), len(data) - 1)
    if first >= len(data):
        exchange.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return
    about["Content-Range"] = exchange.fault.content_range or f"bytes {first}-{last}/{len(data)}"
    lies = exchange.fault.shift
    exchange.answer(206, data[max(0, first + lies) : max(0, last + 1 + lies)], about)
