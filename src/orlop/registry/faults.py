"""The one place that turns HTTP statuses and network exceptions into orlop's errors.

Nothing here prints a query, a password or a token: URLs are shown without user info and query
(HOSTILE.md 25), also where a registry's own message contains one.
"""

from __future__ import annotations

import re
import socket
import ssl
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import msgspec
import urllib3.exceptions as u3

from orlop.errors import Error, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unavailable
from orlop.registry.finding.hosts import Endpoint
from orlop.registry.messages import Response
from orlop.registry.net.ratelimits import in_words, limit_of
from orlop.registry.net.sockets import Stalled

__all__ = [
    "NetworkFault",
    "from_network",
    "from_status",
    "lacks_scope",
    "redact",
    "registry_message",
    "scrub",
]

MAX_MESSAGE = 300  # characters of a registry's own words that an error repeats

# Compiled when a failure is told of.
_URL = r"(?i)https?://[^\s\"'<>]+"
_CONFIDENTIAL = (
    r"(?i)\b(basic|bearer)(\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|\b(authorization|(?:set-)?cookie2?)(\\?[\"']?\s*[=:]\s*\\?[\"']?)[^\"\\]+"
    r"|((?:[a-z0-9_.-]*[_.-])?(?:token|passwd|password|pwd|signature|sig|secret|session|(?:api|private)[_-]?key))"
    r"(\\?[\"']?\s*[=:]\s*\\?[\"']?)[^\s\"'\\&,;]+"
    r"|\b(eyJ)()[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,2}"
)
_USERINFO = r"(?<=//)[^/\s\"'@]+@"


class NetworkFault(Unavailable):
    """The network failed, not the registry: no answer, or a cut one.

    ``retry`` says whether the same request may do better in a moment.
    """

    def __init__(self, attempted: str, reason: str, *, retry: bool = True, hint: str = "") -> None:
        super().__init__(attempted, reason, hint=hint)
        self.retry = retry


def redact(url: str) -> str:
    """A URL that is fit to print: without user info, query and fragment.

    >>> redact("https://u:p@cdn.example/blob?X-Amz-Signature=1")
    'https://cdn.example/blob?…'
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a malformed URL)"
    netloc = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{netloc}{parts.path}" + ("?…" if parts.query else "")


def scrub(text: str) -> str:
    """Words from outside, on one line, short, without URLs' queries and what looks like a secret."""
    text = "".join(char if char.isprintable() else " " for char in text[: 4 * MAX_MESSAGE])
    text = re.sub(_URL, lambda match: redact(match[0]), text)
    text = re.sub(_USERINFO, "", text)
    text = re.sub(_CONFIDENTIAL, lambda match: "".join(part for part in match.groups() if part) + "…", text)
    text = " ".join(text.split())
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"


def registry_message(data: bytes) -> str:
    """What a registry says went wrong (distribution-spec, "Error Codes"), or an empty string."""
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    entries: list[Any] = [document]
    if isinstance(document.get("errors"), list):
        entries = [entry for entry in document["errors"] if isinstance(entry, dict)]
    said = []
    for entry in entries[:3]:
        words = entry.get("message") or entry.get("details") or entry.get("error_description")
        words = words or entry.get("code") or entry.get("error")
        if isinstance(words, str) and words:
            said.append(words)
    return scrub("; ".join(said))


def lacks_scope(response: Response) -> bool:
    """Whether a registry says that a token is good, but not for this (RFC 6750, section 3.1)."""
    return "insufficient_scope" in response.headers.get("www-authenticate", "")


def from_status(
    endpoint: Endpoint, response: Response, attempted: str, *, now: datetime | None = None
) -> Error:
    """The error for a status that is not success.  ``now`` is when it came."""
    now = now or datetime.now(UTC)
    known = response.authenticated
    endpoint = response.endpoint or endpoint
    said = registry_message(response.data)
    host = _answerer(endpoint, response)
    text = response.reason or _phrase(response.status)
    reason = f"{host} answered {response.status} {scrub(text)}".rstrip() + (f": {said}" if said else "")
    reason += response.before
    details = {"host": host, "status": str(response.status)}
    registry = endpoint.registry
    login = f"log in with `orlop login {registry}`"
    if response.tries > 1:
        reason += f" ({response.tries} tries)"
    if response.status == 403 and limit_of(403, response.headers, now).used_up:
        return Unavailable(attempted, f"{reason}; {_until(response, now)}", details=details)
    match response.status:
        case 401 if lacks_scope(response) and known:
            hint = f"these credentials for {registry} may not do this, or there is no such repository"
            return PermissionDenied(attempted, reason, hint=hint, details=details)
        case 401:
            hint = f"the credentials for {registry} were refused; {login} again" if known else login
            return Unauthenticated(attempted, reason, hint=hint, details=details)
        case 403:
            hint = f"these credentials for {registry} may not do this" if known else login
            return PermissionDenied(attempted, reason, hint=hint, details=details)
        case 404:
            return NotFound(attempted, reason, details=details)
        case 408 | 429 | 500 | 502 | 503 | 504:
            if after := response.headers.get("retry-after"):
                reason += f"; it asks to wait: Retry-After: {scrub(after)}"
            if until := _until(response, now):
                reason += f"; {until}"
            return Unavailable(attempted, reason, details=details)
        case _ if response.status >= 500:
            return Unavailable(attempted, reason, details=details)
        case _:
            return InvalidArgument(attempted, reason, details=details)


def from_network(exc: Exception, host: str, attempted: str) -> NetworkFault:
    """The error for an exception of urllib3, ssl or the socket; the caller raises it ``from exc``."""
    if (stalled := _stalled(exc)) is not None:
        return NetworkFault(attempted, f"{host} {stalled}")
    if isinstance(exc, u3.NameResolutionError):
        cause = exc.__cause__
        gone = isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
        return NetworkFault(attempted, f"cannot resolve {host}", retry=not gone)
    if isinstance(exc, u3.NewConnectionError):  # a subclass of ConnectTimeoutError since urllib3 2.0
        cause = exc.__cause__
        said = cause.strerror if isinstance(cause, OSError) else None
        return NetworkFault(attempted, f"cannot connect to {host}: {said or 'failed'}")
    if isinstance(exc, u3.ConnectTimeoutError):
        return NetworkFault(attempted, f"{host} does not accept a connection (timed out)")
    if isinstance(exc, (u3.ReadTimeoutError, TimeoutError)):
        return NetworkFault(attempted, f"{host} is silent (timed out)")
    if isinstance(exc, (u3.SSLError, ssl.SSLError, ssl.CertificateError)):
        return _from_tls(exc, host, attempted)
    return NetworkFault(attempted, f"{host} cut the connection{_why(exc)}")


def _stalled(exc: BaseException) -> Stalled | None:
    """The stall that an exception of urllib3 wraps, where it is one."""
    for inner in (exc, *exc.args, exc.__cause__, exc.__context__):
        if isinstance(inner, Stalled):
            return inner
    return None


def _from_tls(exc: Exception, host: str, attempted: str) -> NetworkFault:
    inner: BaseException = exc
    if exc.args and isinstance(exc.args[0], BaseException):
        inner = exc.args[0]
    if isinstance(inner, ssl.SSLCertVerificationError):
        return NetworkFault(
            attempted,
            f"the certificate of {host} is not valid: {inner.verify_message}",
            retry=False,
            hint="install its CA, or name the registry in insecure_registries",
        )
    said = getattr(inner, "reason", None) or type(inner).__name__
    return NetworkFault(
        attempted, f"TLS with {host} failed: {said}", retry=isinstance(inner, ssl.SSLEOFError)
    )


def _why(exc: BaseException | None) -> str:
    """The operating system's words for a cut, where the chain of causes holds some."""
    while exc is not None:
        if isinstance(exc, OSError) and exc.strerror:
            return f": {exc.strerror}"
        exc = exc.__cause__ or exc.__context__
    return ""


def _until(response: Response, now: datetime) -> str:
    return in_words(limit_of(response.status, response.headers, now), now)


def _answerer(endpoint: Endpoint, response: Response) -> str:
    """The host that answered, and the registry that sent us there where that is another."""
    try:
        parts = urlsplit(response.url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return endpoint.host
    return host if host == endpoint.host else f"{host} (sent there by {endpoint.host})"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
