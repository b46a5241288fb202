"""The sender that answers challenges, and remembers the answers.

Only the registry's own origin ever gets an Authorization header: a request to another (an upload's
`Location` elsewhere) passes through bare, and a 401 from where a redirect led is not answered.
Tokens are kept per endpoint, repository and scopes; of several threads that need one, one fetches
it.  What the rules are is in `orlop.registry.tokens`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from orlop.errors import Unauthenticated
from orlop.observe import Call
from orlop.registry.challenge import Challenge, parse_challenges
from orlop.registry.credentials import Credential
from orlop.registry.faults import from_status
from orlop.registry.hosts import Endpoint, Origin, origin_of
from orlop.registry.messages import Outgoing, Request, Response, Sender
from orlop.registry.tokens import Token, basic, bearer, parse_token, pick, token_request

__all__ = ["Authorizing", "FindsCredential"]

MAX_TOKENS = 4_096  # kept at a time; a daemon may see many repositories


class FindsCredential(Protocol):
    """Finds what a user keeps for a registry (`orlop.registry.credentials.Keychain`)."""

    def __call__(self, registry: str, repository: str, *, scheme: str, call: Call) -> Credential | None:
        """The credential, or None."""
        ...


_Key = tuple[Origin, str, tuple[str, ...]]


@dataclass(slots=True)
class _Slot:
    """One key's token; the lock is held by the thread that fetches it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    token: Token | None = None


class Authorizing:
    """Sends with the right Authorization header.  Thread-safe."""

    def __init__(
        self, inner: Sender, credentials: FindsCredential, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._credentials = credentials
        self._clock = clock
        self._lock = threading.Lock()  # guards the two below
        self._slots: dict[_Key, _Slot] = {}
        self._challenges: dict[Origin, Challenge] = {}  # what each endpoint asked for last

    def __call__(self, request: Request, call: Call) -> Response:
        """Send ``request``; where the registry asks for a token, get one and send it again.

        A 401 that is left is the registry's last word.  Raises `Unauthenticated` where it asks for
        what cannot be given.
        """
        home = request.endpoint.origin
        if origin_of(request.url, request.attempted) != home:
            return self._inner(request, call)
        with self._lock:
            challenge = self._challenges.get(home)
        token = None if challenge is None else self._token(request, challenge, call, stale=None)
        response = self._send(request, token, call)
        if response.status != 401 or origin_of(response.url, request.attempted) != home:
            return response
        if isinstance(request.body, Outgoing) and request.body.sent:
            return response
        challenge = self._asked(request, response)
        fresh = self._token(request, challenge, call, stale=token)
        if fresh is None or (token is not None and fresh.header == token.header):
            return response
        response.close()
        return self._send(request, fresh, call)

    def _send(self, request: Request, token: Token | None, call: Call) -> Response:
        if token is None:
            return self._inner(request, call)
        headers = {**request.headers, "Authorization": token.header}
        response = self._inner(replace(request, headers=headers), call)
        return replace(response, authenticated=token.personal)

    def _asked(self, request: Request, response: Response) -> Challenge:
        challenge = pick(parse_challenges(response.headers.get("www-authenticate", "")))
        if challenge is None:
            raise from_status(request.endpoint, response, request.attempted)
        with self._lock:
            self._challenges[request.endpoint.origin] = challenge
        return challenge

    def _token(
        self, request: Request, challenge: Challenge, call: Call, *, stale: Token | None
    ) -> Token | None:
        """The token for a request: the one that is kept, if it is good and not ``stale``, or a new one."""
        slot = self._slot((request.endpoint.origin, request.repository, request.scopes))
        while not slot.lock.acquire(timeout=0.1):
            call.check(request.attempted)
        try:
            kept = slot.token
            if (
                kept is not None
                and kept.expires > self._clock()
                and (stale is None or kept.header != stale.header)
            ):
                return kept
            slot.token = self._fetch(request, challenge, call)
            return slot.token
        finally:
            slot.lock.release()

    def _slot(self, key: _Key) -> _Slot:
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                while len(self._slots) >= MAX_TOKENS:
                    self._slots.pop(next(iter(self._slots)))
                slot = self._slots[key] = _Slot()
            return slot

    def _fetch(self, request: Request, challenge: Challenge, call: Call) -> Token | None:
        endpoint, attempted = request.endpoint, request.attempted
        credential = self._credentials(
            endpoint.registry, request.repository, scheme=endpoint.origin.scheme, call=call
        )
        forever = float("inf")
        if credential is not None and credential.registry_token:
            header = bearer(credential.registry_token, attempted)
            return Token(header=header, expires=forever, personal=True)
        if challenge.scheme == "basic":
            if credential is None or not credential.username:
                return None
            return Token(header=basic(credential), expires=forever, personal=True)
        asking = token_request(
            challenge,
            credential,
            endpoint=endpoint,
            scopes=_scopes(request, challenge),
            attempted=attempted,
        )
        response = self._inner(asking, call)
        if not response.ok:
            raise _refused(endpoint, response, attempted, credential)
        return parse_token(
            response.data, now=self._clock(), personal=credential is not None, attempted=attempted
        )


def _scopes(request: Request, challenge: Challenge) -> tuple[str, ...]:
    """What the request needs, and what the challenge of this very request adds, in order."""
    named = challenge.params.get("scope", "").split(" ")
    added = [scope for scope in named if _repository(scope) in ("", request.repository)]
    return tuple(dict.fromkeys((*request.scopes, *filter(None, added))))


def _repository(scope: str) -> str:
    """The repository a scope is about; empty for a scope of another kind."""
    kind, _, rest = scope.partition(":")
    return rest.rpartition(":")[0] if kind == "repository" else ""


def _refused(
    endpoint: Endpoint, response: Response, attempted: str, credential: Credential | None
) -> Exception:
    """The error for a token server that gives no token."""
    error = from_status(endpoint, replace(response, authenticated=credential is not None), attempted)
    if response.status in (400, 401, 403):
        return Unauthenticated(attempted, error.reason, hint=error.hint, details=error.details)
    return error
