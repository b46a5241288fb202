"""The registry itself: what it holds, whom it lets in, and how it was told to misbehave."""

from __future__ import annotations

import base64
import itertools
import re
import secrets
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Literal, Self

from orlop.spec.digest import Digest
from orlop.testing.registry.exchange import Exchange, Server
from orlop.testing.registry.faults import Fault, Seen
from orlop.values import dataclass

__all__ = ["MemoryRegistry"]


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
        self.offline = False  # whether who asks for an identity token is given one
        self.rotates = False  # whether an identity token serves once, and another comes with the answer
        self.token_life = token_life
        self.realm = ""
        self.mounts = True  # whether cross-repository mounts are granted
        self.upload_location = ""  # a prefix for Location, such as another host's URL
        self.single_post = False  # whether a POST with a digest stores its body
        self.post_begins = False  # whether the body of a POST that only opens a session is its beginning
        self.chunk_min = 0  # the OCI-Chunk-Min-Length that is told, and held to
        self.body_max = 0  # bytes of a request's body above which it is 413; 0: no bound
        self.moving = False  # every answer about an upload names another Location, and the last is gone
        self.keeps_partial = True  # whether what came of a request that was cut counts
        self.received = 0  # bytes of requests' bodies so far
        self.tags_page = 0  # the most tags, or referrers, of one page; 0: no bound
        self.referrers_api = True  # whether it keeps lists of referrers, or clients do under a tag
        self.filters = True  # whether it chooses among referrers itself
        self.deletes: Literal["", "manifests", "all"] = "all"  # what it deletes: nothing, not tags, all
        self.blobs: dict[str, bytes] = {}
        self.blob_owners: dict[str, set[str]] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.chunks: dict[str, list[int]] = {}  # how long each PATCH of an upload was
        self.tokens: dict[str, _Token] = {}
        self.requests: list[Seen] = []
        self.lock = threading.Lock()  # guards the faults' counts, and that of bytes
        self._faults: list[tuple[Fault, Iterator[int]]] = []
        self._tls = tls
        registry = self

        class Handler(Exchange):
            """The handler of this very registry."""

        Handler.registry = registry
        self._server = Server((address, 0), Handler, tls)
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

    def count(self, received: int) -> None:
        """Count bytes of a request's body."""
        with self.lock:
            self.received += received

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

    def new_refresh_token(self, user: str) -> str:
        """A new identity token of a user."""
        token = secrets.token_urlsafe(24)
        self.refresh_tokens[token] = user
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
