"""A registry in memory that speaks the real protocol over loopback, and misbehaves on demand.

It is for tests, of orlop and of programs that use it: blobs, manifests, uploads, mounts, basic and
token authentication, served by threads of `http.server`.  A `Fault` makes the requests it matches go
wrong.  What was asked is kept in ``requests``, so that a test can say what did *not* go over the wire.
It is not a registry to keep images in: nothing is stored, nothing is fast, nothing is safe from its
users.  Source of the protocol: OCI distribution-spec 1.1; distribution's token specification.

    with MemoryRegistry() as registry:
        registry.blobs[digest] = data
        registry.misbehave(Fault(path="/blobs/", cut_after=1000, times=1))
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType, TracebackType
from typing import Literal, Self
from urllib.parse import parse_qs, urlsplit

from orlop.spec.digest import Digest

__all__ = ["Fault", "MemoryRegistry", "Seen"]

_PIECE = 65_536
_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([^/]*)")
_BLOB = re.compile(r"/v2/(.+)/blobs/([^/]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_TLS_HELLO = b"\x16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A way to misbehave, for the first ``times`` requests (None: all) that match method and path.

    ``path`` is a regular expression, searched in path and query.  The rest says what goes wrong; what
    is left alone goes right.
    """

    method: str = ""
    path: str = ""
    times: int | None = None
    status: int | None = None  # answer with this, ``headers`` and ``body``, instead
    headers: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({})
    )  # also with right answers
    body: bytes = b""
    drop: bool = False  # cut the connection instead of answering
    cut_after: int | None = None  # bytes of the body, after which the connection is cut
    hold_after: int | None = None  # bytes of the body, after which it waits for ``release`` or the end
    release: threading.Event = field(default_factory=threading.Event)
    trickle: float | None = None  # seconds between one byte of the body and the next
    ignore_range: bool = False  # 200 and everything, whatever range was asked for
    content_range: str | None = None  # the lie to tell in a 206
    corrupt: bool = False  # the body's first byte is wrong
    no_length: bool = False  # neither Content-Length nor chunks: the body ends with the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A request as it came in.  Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Token:
    scopes: frozenset[str]
    expires: float


class MemoryRegistry:
    """The registry.  A context manager; all attributes may be read and changed while it runs.

    ``host`` is ``address:port``.  ``blobs`` are by digest (in all repositories of ``blob_owners``),
    ``manifests`` by (repository, tag or digest).  With ``auth``, ``users`` maps names to passwords and
    ``refresh_tokens`` identity tokens to names; ``anonymous`` lets anybody pull (bearer only);
    ``realm`` overrides the URL of the token server, which is ``/token`` here.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        auth: Literal["", "basic", "bearer"] = "",
        users: Mapping[str, str] = MappingProxyType({}),
        anonymous: bool = False,
        token_life: float = 300.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.auth = auth
        self.users = dict(users)
        self.refresh_tokens: dict[str, str] = {}
        self.anonymous = anonymous
        self.token_life = token_life
        self.realm = ""
        self.mounts = True  # whether cross-repository mounts are granted
        self.upload_location = ""  # a prefix for Location, such as another host's URL
        self.blobs: dict[str, bytes] = {}
        self.blob_owners: dict[str, set[str]] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.tokens: dict[str, _Token] = {}
        self.requests: list[Seen] = []
        self.lock = threading.Lock()  # guards the faults' counts
        self._faults: list[tuple[Fault, Iterator[int]]] = []
        self._tls = tls
        registry = self

        class Handler(_Handler):
            """The handler of this very registry."""

        Handler.registry = registry
        self._server = _Server((address, 0), Handler, tls)
        self.host = f"{address}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Scheme and host."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def connections(self) -> int:
        """How many connections have been served, those for a TLS greeting not counted."""
        return self._server.served

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fault, _ in self._faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.sever()
        self._thread.join()

    def misbehave(self, *faults: Fault) -> None:
        """Add faults; of those that match a request, the first that is not used up acts."""
        with self.lock:
            self._faults += [(fault, itertools.count(1)) for fault in faults]

    def behave(self) -> None:
        """Forget all faults."""
        with self.lock:
            self._faults.clear()

    def add_blob(self, repository: str, data: bytes) -> Digest:
        """Store a blob in a repository."""
        digest = Digest.of(data)
        self.blobs[digest] = data
        self.blob_owners.setdefault(digest, set()).add(repository)
        return digest

    def add_manifest(self, repository: str, tag: str, data: bytes, media_type: str) -> Digest:
        """Store a manifest under a tag and its digest."""
        digest = Digest.of(data)
        self.manifests[repository, tag] = self.manifests[repository, digest] = (media_type, data)
        return digest

    def seen(self, method: str = "", path: str = "") -> list[Seen]:
        """The requests so far whose method is ``method`` and whose path holds ``path``."""
        return [one for one in self.requests if method in ("", one.method) and path in one.path]

    def fault_for(self, method: str, path: str) -> Fault:
        """The fault to commit for a request; one that does nothing where none matches."""
        with self.lock:
            for fault, counter in self._faults:
                matches = fault.method in ("", method) and re.search(fault.path, path)
                if matches and (fault.times is None or next(counter) <= fault.times):
                    return fault
        return Fault()

    def grant(self, user: str | None, scopes: list[str]) -> str:
        """A new token for a user (None: anybody)."""
        allowed = {scope if user is not None else re.sub(r":[^:]*$", ":pull", scope) for scope in scopes}
        token = secrets.token_urlsafe(24)
        self.tokens[token] = _Token(frozenset(allowed), time.monotonic() + self.token_life)
        return token

    def allows(self, authorization: str, repository: str, action: str) -> bool:
        """Whether an Authorization header allows an action (``pull``, ``push`` or empty)."""
        if not self.auth:
            return True
        scheme, _, value = authorization.partition(" ")
        if scheme == "Basic" and self.auth == "basic":
            return self.user_of(authorization) is not None
        token = self.tokens.get(value) if scheme == "Bearer" and self.auth == "bearer" else None
        if token is None or token.expires < time.monotonic():
            return False
        wanted = f"repository:{repository}:"
        granted = [scope.removeprefix(wanted) for scope in token.scopes if scope.startswith(wanted)]
        return not action or any(action in actions.split(",") for actions in granted)

    def user_of(self, authorization: str) -> str | None:
        """The user of a Basic header whose password is right."""
        scheme, _, value = authorization.partition(" ")
        if scheme != "Basic":
            return None
        name, _, password = base64.b64decode(value).decode().partition(":")
        return name if self.users.get(name) == password and name in self.users else None


class _Server(ThreadingHTTPServer):
    """A server that can cut what is open when it ends."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[_Handler], tls: ssl.SSLContext | None) -> None:
        super().__init__(address, handler)
        self._tls = tls
        self._open: set[socket.socket] = set()
        self.served = 0

    def finish_request(self, request: object, client_address: object) -> None:
        """Serve one connection, in its own thread; what goes wrong in it ends it."""
        sock = request
        assert isinstance(sock, socket.socket)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            elif sock.recv(1, socket.MSG_PEEK) == _TLS_HELLO:
                return
            self._open.add(sock)
            self.served += 1
            super().finish_request(sock, client_address)
        except OSError:
            return  # the client went away, or was cut off: what the tests are about
        finally:
            self._open.discard(sock)
            if sock is not request:
                sock.close()

    def sever(self) -> None:
        """Cut all open connections."""
        for sock in list(self._open):
            _shut(sock)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # already gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    registry: MemoryRegistry
    fault: Fault

    def handle_one_request(self) -> None:
        self.fault = Fault()
        super().handle_one_request()

    def _serve(self) -> None:
        registry = self.registry
        headers = {name.lower(): value for name, value in self.headers.items()}
        registry.requests.append(Seen(method=self.command, path=self.path, headers=headers))
        self.fault = fault = registry.fault_for(self.command, self.path)
        if fault.drop:
            self.close_connection = True
            _shut(self.connection)
            return
        body = self._body()
        if fault.status is not None:
            self._answer(fault.status, fault.body)
            return
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path == "/token":
            self._token(query, body)
        elif path == "/v2/":
            if self._allowed("", ""):
                self._answer(200, b"{}")
        elif match := _MANIFEST.fullmatch(path):
            self._manifest(match[1], match[2], body)
        elif match := _UPLOAD.fullmatch(path):
            self._upload(match[1], match[2], query, body)
        elif match := _BLOB.fullmatch(path):
            self._blob(match[1], match[2])
        else:
            self._error(404, "NAME_UNKNOWN", "no such page")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._exactly(int(self.headers.get("Content-Length", "0")))
        data = bytearray()
        while size := self._chunk_size():
            data += self._exactly(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(data)

    def _chunk_size(self) -> int:
        line = self.rfile.readline().split(b";")[0]
        if not line:
            raise ConnectionResetError
        return int(line, 16)

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) != size:
            raise ConnectionResetError
        return data

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        fault = self.fault
        self.send_response(status)
        merged = {**(headers or {}), **fault.headers}
        if fault.no_length:
            merged.pop("Content-Length", None)
            self.close_connection = True
        elif status != 204:
            merged.setdefault("Content-Length", str(len(body)))
        for name, value in merged.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(body)

    def _send_body(self, body: bytes) -> None:
        fault = self.fault
        if fault.corrupt and body:
            body = bytes([body[0] ^ 0xFF]) + body[1:]
        if fault.cut_after is not None:
            self.wfile.write(body[: fault.cut_after])
            self.close_connection = True
            _shut(self.connection)
            return
        if fault.hold_after is not None:
            self.wfile.write(body[: fault.hold_after])
            fault.release.wait()
            body = body[fault.hold_after :]
        if fault.trickle is not None:
            for byte in body:
                self.wfile.write(bytes([byte]))
                if fault.release.wait(fault.trickle):
                    break
            return
        for at in range(0, len(body), _PIECE):
            self.wfile.write(memoryview(body)[at : at + _PIECE])

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        document = {"errors": [{"code": code, "message": message}]}
        self._answer(
            status, json.dumps(document).encode(), {"Content-Type": "application/json", **(headers or {})}
        )

    def _allowed(self, repository: str, action: str, source: str = "") -> bool:
        """Whether the request may go on; answered with a challenge if not."""
        registry = self.registry
        sent = self.headers.get("Authorization", "")
        if registry.allows(sent, repository, action) and (
            not source or registry.allows(sent, source, "pull")
        ):
            return True
        challenge = 'Basic realm="registry"'
        if registry.auth == "bearer":
            challenge = (
                f'Bearer realm="{registry.realm or registry.url + "/token"}",service="{registry.host}"'
            )
            if repository:
                actions = "pull,push" if action == "push" else "pull"
                challenge += f',scope="repository:{repository}:{actions}"'
        self._error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return False

    def _token(self, query: Mapping[str, list[str]], body: bytes) -> None:
        registry = self.registry
        user: str | None = None
        if self.command == "POST":
            query = parse_qs(body.decode())
            user = registry.refresh_tokens.get(query.get("refresh_token", [""])[0])
        elif sent := self.headers.get("Authorization"):
            user = registry.user_of(sent)
        presented = self.command == "POST" or "Authorization" in self.headers
        if user is None and (presented or not registry.anonymous):
            self._error(401, "UNAUTHORIZED", "incorrect username or password")
            return
        scopes = [scope for value in query.get("scope", []) for scope in value.split(" ")]
        document = {"token": registry.grant(user, scopes), "expires_in": registry.token_life}
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _manifest(self, repository: str, target: str, body: bytes) -> None:
        registry = self.registry
        if not self._allowed(repository, "push" if self.command == "PUT" else "pull"):
            return
        if self.command == "PUT":
            digest = registry.add_manifest(repository, target, body, self.headers.get("Content-Type", ""))
            location = f"/v2/{repository}/manifests/{digest}"
            self._answer(201, b"", {"Location": location, "Docker-Content-Digest": digest})
        elif (found := registry.manifests.get((repository, target))) is None:
            self._error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        else:
            media_type, data = found
            about = {"Content-Type": media_type, "Docker-Content-Digest": Digest.of(data)}
            self._answer(200, data, about)

    def _blob(self, repository: str, digest: str) -> None:
        registry = self.registry
        if not self._allowed(repository, "pull"):
            return
        data = registry.blobs.get(digest)
        if data is None or repository not in registry.blob_owners.get(digest, {repository}):
            self._error(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        about = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest}
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or self.fault.ignore_range:
            self._answer(200, data, about)
            return
        first = int(asked[1])
        last = min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        about["Content-Range"] = self.fault.content_range or f"bytes {first}-{last}/{len(data)}"
        self._answer(206, data[first : last + 1], about)

    def _upload(self, repository: str, session: str, query: Mapping[str, list[str]], body: bytes) -> None:
        registry = self.registry
        source, mounted = query.get("from", [""])[0], query.get("mount", [""])[0]
        if not self._allowed(repository, "push", source):
            return
        if self.command == "POST":
            if registry.mounts and source in registry.blob_owners.get(mounted, ()):
                registry.blob_owners[mounted].add(repository)
                self._answer(201, b"", {"Location": f"/v2/{repository}/blobs/{mounted}"})
                return
            session = secrets.token_hex(8)
            registry.uploads[session] = bytearray()
        data = registry.uploads.get(session)
        if data is None:
            self._error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
            return
        data += body
        if self.command == "DELETE":
            del registry.uploads[session]
            self._answer(204)
        elif self.command == "PUT":
            self._finish(repository, session, bytes(data), query.get("digest", [""])[0])
        else:
            location = f"{registry.upload_location}/v2/{repository}/blobs/uploads/{session}?state=1"
            self._answer(202, b"", {"Location": location, "Range": f"0-{max(len(data) - 1, 0)}"})

    def _finish(self, repository: str, session: str, data: bytes, digest: str) -> None:
        registry = self.registry
        if not Digest(digest).verifies(data):
            self._error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        del registry.uploads[session]
        registry.blobs[digest] = data
        registry.blob_owners.setdefault(digest, set()).add(repository)
        self._answer(
            201, b"", {"Location": f"/v2/{repository}/blobs/{digest}", "Docker-Content-Digest": digest}
        )
