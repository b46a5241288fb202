"""The sender that answers challenges, and remembers the answers.

Only the registry's own origin ever gets an Authorization header: a request to another (an upload's
`Location` elsewhere) passes through bare, and a 401 from where a redirect led is not answered.
Tokens are kept per endpoint, repository, scopes and, where a call brought its own, credentials; of several
threads that need one, one fetches it.  What the rules are is in `orlop.registry.access.tokens`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from orlop.errors import Error, Unauthenticated, Unavailable
from orlop.observe import Call
from orlop.registry.access.challenge import Challenge, parse_challenges
from orlop.registry.access.credentials import Credential, own
from orlop.registry.access.tokens import (
    Token,
    basic,
    bearer,
    hide,
    mask,
    parse_token,
    pick,
    secrets_of,
    token_request,
)
from orlop.registry.faults import from_status, lacks_scope
from orlop.registry.finding.hosts import Endpoint, Origin, origin_of
from orlop.registry.messages import Outgoing, Request, Response, Sender, repeatable
from orlop.values import dataclass, field, replace

__all__ = ["Authorizing", "FindsCredential"]

MAX_TOKENS = 4_096  # kept at a time; a daemon may see many repositories
KEPT = 300.0  # seconds that a user's own credentials are used before they are looked for anew


class FindsCredential(Protocol):
    """Finds what a user keeps for a registry (`orlop.registry.access.credentials.Keychain`)."""

    def __call__(self, registry: str, repository: str, *, scheme: str, call: Call) -> Credential | None:
        """The credential, or None."""
        ...

    def renewed(self, credential: Credential, token: str, *, call: Call) -> None:
        """A token server gave a (new) identity token for a credential that was found here."""
        ...


_Key = tuple[Origin, str, tuple[str, ...], Credential | None]


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
        what cannot be given, and `Unavailable` where a token ended under a body that cannot come again.
        """
        home = request.endpoint.origin
        if origin_of(request.url, request.attempted) != home:
            return self._quoting(request, call)
        with self._lock:
            challenge = self._challenges.get(home)
        token = None if challenge is None else self._token(request, challenge, call, stale=None)
        response = self._send(request, token, call)
        if response.status != 401 or origin_of(response.url, request.attempted) != home:
            return response
        if not repeatable(request):
            if token is None or lacks_scope(response):
                return response
            self._forget(request, token, call)
            response.close()
            raise Unavailable(
                request.attempted,
                f"{request.endpoint.host} no longer takes the token that the request began with",
            )
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
        response = self._quoting(replace(request, headers=headers, secrets=token.secrets), call)
        return replace(response, authenticated=token.personal, secrets=token.secrets)

    def _quoting(self, request: Request, call: Call) -> Response:
        """Send what has secrets; neither an answer nor an error repeats them (HOSTILE.md 25)."""
        try:
            return hide(self._inner(request, call), request.secrets)
        except Error as exc:
            exc.reason = mask(exc.reason, request.secrets)
            raise

    def _asked(self, request: Request, response: Response) -> Challenge:
        challenge = pick(parse_challenges(response.headers.get("www-authenticate", "")))
        if challenge is None:
            raise from_status(request.endpoint, response, request.attempted)
        with self._lock:
            while len(self._challenges) >= MAX_TOKENS:
                self._challenges.pop(next(iter(self._challenges)))
            self._challenges[request.endpoint.origin] = challenge
        return challenge

    def _token(
        self, request: Request, challenge: Challenge, call: Call, *, stale: Token | None
    ) -> Token | None:
        """The token for a request: the one that is kept, if it is good and not ``stale``, or a new one."""
        slot = self._slot(_key(request, call))
        now = self._clock()
        while not slot.lock.acquire(timeout=0.1):
            call.check(request.attempted)
        try:
            kept = slot.token
            if (
                kept is not None
                and (kept.renew if isinstance(request.body, Outgoing) else kept.expires) > now
                and (stale is None or kept.header != stale.header)
            ):
                return kept
            slot.token = self._fetch(request, challenge, call)
            return slot.token
        finally:
            slot.lock.release()

    def _forget(self, request: Request, token: Token, call: Call) -> None:
        """Keep a token no longer that was refused, unless there is a newer one."""
        slot = self._slot(_key(request, call))
        kept = slot.token
        if kept is not None and kept.header == token.header:
            slot.token = None

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
        brought = own(call.auth, endpoint.registry)
        credential = brought or self._credentials(
            endpoint.registry, request.repository, scheme=endpoint.origin.scheme, call=call
        )
        until = self._clock() + KEPT
        if credential is not None and credential.registry_token:
            header = bearer(credential.registry_token, attempted)
            secrets = secrets_of(header, credential)
            return Token(header=header, expires=until, renew=until, personal=True, secrets=secrets)
        if challenge.scheme == "basic":
            if credential is None or not credential.username:
                return None
            header = basic(credential)
            secrets = secrets_of(header, credential)
            return Token(header=header, expires=until, renew=until, personal=True, secrets=secrets)
        asking = token_request(
            challenge,
            credential,
            endpoint=endpoint,
            scopes=_scopes(request, challenge),
            attempted=attempted,
        )
        now = self._clock()  # a token's life began before its answer came
        told = secrets_of(asking.headers.get("Authorization", ""), credential)
        response = self._quoting(replace(asking, secrets=told), call)
        if not response.ok:
            raise _refused(endpoint, response, attempted, credential)
        token = parse_token(response.data, now=now, personal=credential is not None, attempted=attempted)
        if token.identity_token and credential is not None and brought is None:
            self._credentials.renewed(credential, token.identity_token, call=call)
        return replace(token, secrets=(*secrets_of(token.header, None), *told))


def _key(request: Request, call: Call) -> _Key:
    brought = own(call.auth, request.endpoint.registry)
    return (request.endpoint.origin, request.repository, request.scopes, brought)


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
