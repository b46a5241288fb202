"""Token authentication without I/O: which challenge to answer, what to ask for, what came back.

Sources: distribution's "Token Authentication Specification" and "OAuth2 Token Authentication".
A realm must be https, unless the registry itself is spoken to in the clear or is on this machine
(HOSTILE.md 21).  It may be another host than the registry's, as Docker Hub's is, and it alone gets
the credentials that the user keeps for that registry.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import msgspec

from orlop.errors import Error, Unauthenticated, Unavailable
from orlop.registry.access.challenge import Challenge
from orlop.registry.access.credentials import Credential
from orlop.registry.finding.hosts import URL_SAFE, Endpoint, origin_of
from orlop.registry.messages import Request, Response
from orlop.registry.net.addresses import is_loopback_host
from orlop.values import dataclass, field, replace

__all__ = [
    "CLIENT_ID",
    "Token",
    "basic",
    "bearer",
    "hide",
    "mask",
    "parse_token",
    "pick",
    "secrets_of",
    "token_request",
]

CLIENT_ID = "orlop"
DEFAULT_LIFE = 60.0  # seconds; token.md: "expires_in ... defaults to 60 seconds"
MAX_LIFE = 86_400.0
MIN_SECRET = 4  # characters of a secret that is looked for in answers; shorter ones are in every word
MAX_ANSWER = 256 << 10
_PRINTABLE = re.compile(r"[!-~]{1,60000}")  # what a header line can hold (http.client: 65,536)


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None
    refresh_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A value for the Authorization header, good until ``expires`` (of the caller's clock).

    A request that takes long rather begins with a new one from ``renew`` on.  ``personal`` tells that it
    came from a user's credentials; ``identity_token`` is the refresh token that came along, where one did.
    """

    header: str = field(repr=False)
    expires: float
    personal: bool
    renew: float = math.inf
    identity_token: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)  # what must not be read back to us


def pick(challenges: Iterable[Challenge]) -> Challenge | None:
    """The challenge to answer: bearer before basic; None where neither is offered."""
    best: Challenge | None = None
    for challenge in challenges:
        if challenge.scheme == "bearer":
            return challenge
        if challenge.scheme == "basic" and best is None:
            best = challenge
    return best


def basic(credential: Credential) -> str:
    """The Authorization header of the Basic scheme (RFC 7617, UTF-8)."""
    text = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(text.encode()).decode()


def secrets_of(header: str, credential: Credential | None) -> tuple[str, ...]:
    """The texts that an answer to a request with this header must not be quoted with."""
    known = [header.partition(" ")[2]]
    if credential is not None:
        known += [credential.password, credential.identity_token, credential.registry_token]
    # The longest first, as one may hold another.
    return tuple(
        sorted({text for text in known if len(text) >= MIN_SECRET}, key=lambda text: (-len(text), text))
    )


def hide(response: Response, secrets: Iterable[str]) -> Response:
    """An answer that is no success, without secrets that it repeats, as it will be quoted (HOSTILE.md 25)."""
    if response.ok:
        return response
    data, secrets = response.data, tuple(secrets)
    for secret in secrets:
        for form in _forms(secret):
            data = data.replace(form.encode(errors="replace"), b"*****")
    return replace(response, data=data, reason=mask(response.reason, secrets))


def mask(text: str, secrets: Iterable[str]) -> str:
    """Words of a server without secrets that they repeat."""
    for secret in secrets:
        for form in _forms(secret):
            text = text.replace(form, "*****")
    return text


def _forms(secret: str) -> set[str]:
    """How a secret may be repeated: as it is, in JSON, in a URL."""
    plain = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    return plain | {quote(secret, safe=URL_SAFE), quote(secret, safe="")}


def bearer(token: str, attempted: str) -> str:
    """The Authorization header of a bearer token, refused where it cannot stand in a header."""
    if not _PRINTABLE.fullmatch(token):
        raise Unauthenticated(attempted, "the bearer token cannot stand in a header")
    return f"Bearer {token}"


def token_request(
    challenge: Challenge,
    credential: Credential | None,
    *,
    endpoint: Endpoint,
    scopes: Iterable[str],
    attempted: str,
) -> Request:
    """The request to the challenge's realm for a token that allows ``scopes``.

    A refresh token is posted (OAuth 2); everything else is a GET, which every token server knows.
    Raises `Unauthenticated` for a realm that is missing or may not be trusted with credentials.
    """
    realm = challenge.params.get("realm", "")
    service = challenge.params.get("service", "")
    try:
        origin = origin_of(realm, attempted)
    except Error as exc:
        raise Unauthenticated(
            attempted, f"{endpoint.host} asks for a token from an impossible place: {exc.reason}"
        ) from exc
    clear = endpoint.origin.scheme == "http" or is_loopback_host(endpoint.origin.host)
    if origin.scheme != "https" and not clear:
        raise Unauthenticated(
            attempted, f"{endpoint.host} asks for a token over plain http, from {origin.netloc}: not sent"
        )
    parts = urlsplit(realm)
    path = quote(parts.path or "/", safe=URL_SAFE)
    asked: list[tuple[str, str]] = [("service", service)] if service else []
    if credential is not None and credential.identity_token:
        form = [("grant_type", "refresh_token"), *asked, ("client_id", CLIENT_ID)]
        form += [("scope", " ".join(scopes)), ("refresh_token", credential.identity_token)]
        return Request(
            method="POST",
            url=urlunsplit((origin.scheme, origin.netloc, path, quote(parts.query, safe=URL_SAFE), "")),
            endpoint=endpoint,
            attempted=attempted,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
            body=urlencode(form).encode(),
            read=MAX_ANSWER,
        )
    asked += [("scope", scope) for scope in scopes]
    headers: dict[str, str] = {}
    if credential is not None and credential.username:
        asked.append(("account", credential.username))
        if credential.offline:
            asked += [("client_id", CLIENT_ID), ("offline_token", "true")]
        headers["Authorization"] = basic(credential)
    query = urlencode(parse_qsl(parts.query, keep_blank_values=True) + asked)
    return Request(
        method="GET",
        url=urlunsplit((origin.scheme, origin.netloc, path, query, "")),
        endpoint=endpoint,
        attempted=attempted,
        headers=headers,
        read=MAX_ANSWER,
    )


def parse_token(data: bytes, *, now: float, personal: bool, attempted: str) -> Token:
    """The token in a token server's answer.

    It counts as expired a tenth of its life early, so that it does not expire on the way.
    """
    try:
        answer = msgspec.json.decode(data, type=_Answer, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Unavailable(attempted, "the token server's answer is not the JSON it should be") from None
    text = answer.token or answer.access_token
    if not text:
        raise Unauthenticated(attempted, "the token server's answer holds no token")
    life = DEFAULT_LIFE
    if answer.expires_in is not None and not math.isnan(answer.expires_in):  # "nan" counts as a number
        life = min(max(answer.expires_in, 0.0), MAX_LIFE)
    return Token(
        header=bearer(text, attempted),
        expires=now + 0.9 * life,
        renew=now + 0.5 * life,
        personal=personal,
        identity_token=answer.refresh_token or "",
    )
