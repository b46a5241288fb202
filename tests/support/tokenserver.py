"""A token server for Debian's docker-registry (`auth: token`), which can be short-lived, strict and slow to trust.

    with TokenServer(make_certificate(folder), users={"me": "pw"}) as tokens:
        with registries.serve(folder / "registry", token=tokens) as registry: ...

Tokens are JWTs signed with ES256; the certificate goes along in ``x5c`` and is the registry's rootcertbundle.
Sources: distribution's "Token Authentication Specification", "OAuth2 Token Authentication" and "JWT
implementation"; RFC 7515, 7518.  It keeps nothing, and is not to be used for anything but tests.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from support.certificates import Certificate

LEEWAY = 60.0  # seconds that docker-registry 2.8 adds to a token's life


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """One answer: how it was asked for, for whom (empty: anybody), and for what."""

    method: str
    user: str
    scopes: tuple[str, ...]
    granted: tuple[str, ...]


class TokenServer:
    """The server.  A context manager; all attributes may be changed while it runs.

    ``life`` is how many seconds docker-registry takes a token for; ``told_life`` what the client is told
    (None: nothing).  ``anonymous`` lets anybody pull.  ``may`` says for each user which scopes
    (`repository:a/b:push`) are granted; who is not in it may do everything.  A registry that was started with
    another ``certificate`` takes no token of this one's: all that are out have ended, for it.
    """

    issuer, service = "orlop tests", "registry of tests"

    def __init__(
        self,
        certificate: Certificate,
        *,
        users: Mapping[str, str],
        anonymous: bool = False,
        life: float = 300.0,
        told_life: float | None = 300.0,
        tls: bool = False,
    ) -> None:
        self.certificate = certificate
        self.users = dict(users)
        self.refresh_tokens: dict[str, str] = {}
        self.may: dict[str, set[str]] = {}
        self.anonymous = anonymous
        self.life = life
        self.told_life = told_life
        self.issued: list[Issued] = []
        self.refused = 0
        self.lock = threading.Lock()  # guards the two above
        server = self

        class Handler(_Handler):
            """The handler of this very server."""

        Handler.server_of_tokens = server
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        if tls:
            self._server.socket = certificate.context().wrap_socket(self._server.socket, server_side=True)
        self.realm = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)

    @property
    def config(self) -> str:
        """The section of docker-registry's configuration."""
        return (
            f"auth: {{token: {{realm: '{self.realm}', service: '{self.service}', issuer: '{self.issuer}', "
            f"rootcertbundle: '{self.certificate.cert}'}}}}\n"
        )

    def sign(self, user: str, scopes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """A token for a user, and the scopes that it grants."""
        granted: list[str] = []
        access: list[dict[str, Any]] = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = [one for one in actions.split(",") if self._grants(user, kind, name, one)]
            if allowed:
                granted.append(f"{kind}:{name}:{','.join(allowed)}")
                access.append({"type": kind, "name": name, "actions": allowed})
        now = time.time()
        claims = {
            "iss": self.issuer,
            "sub": user,
            "aud": self.service,
            "exp": int(now + self.life - LEEWAY),
            "nbf": int(now) - 10,
            "iat": int(now) - 10,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        head = _b64(json.dumps({"typ": "JWT", "alg": "ES256", "x5c": [_der(self.certificate)]}).encode())
        signed = f"{head}.{_b64(json.dumps(claims).encode())}"
        return f"{signed}.{_b64(self._signature(signed.encode()))}", tuple(granted)

    def _grants(self, user: str, kind: str, name: str, action: str) -> bool:
        if not user:
            return self.anonymous and action == "pull"
        return user not in self.may or f"{kind}:{name}:{action}" in self.may[user]

    def _signature(self, data: bytes) -> bytes:
        command = ["openssl", "dgst", "-sha256", "-sign", str(self.certificate.key)]
        der = subprocess.run(command, input=data, check=True, capture_output=True, timeout=60).stdout
        return _raw(der)


class _Handler(BaseHTTPRequestHandler):
    """One connection to the server of tokens."""

    protocol_version = "HTTP/1.1"
    server_of_tokens: TokenServer

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        scopes = tuple(scope for value in query.get("scope", []) for scope in value.split())
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        user = ""
        if scheme == "Basic":
            user, _, password = base64.b64decode(value).decode().partition(":")
            if self.server_of_tokens.users.get(user) != password:
                self._refuse()
                return
        elif not self.server_of_tokens.anonymous:
            self._refuse()
            return
        self._give(user, scopes, "token", offline=query.get("offline_token") == ["true"] and user != "")

    def do_POST(self) -> None:
        form = parse_qs(self._body().decode())
        one = {name: values[0] for name, values in form.items()}
        tokens = self.server_of_tokens
        user = ""
        if one.get("grant_type") == "refresh_token":
            user = tokens.refresh_tokens.get(one.get("refresh_token", ""), "")
        elif one.get("grant_type") == "password":
            name = one.get("username", "")
            user = name if tokens.users.get(name) == one.get("password") else ""
        if not user:
            self._refuse()
            return
        self._give(
            user,
            tuple(one.get("scope", "").split()),
            "access_token",
            offline=one.get("access_type") == "offline",
        )

    def _body(self) -> bytes:
        """A body of either kind: skopeo sends its own in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _give(self, user: str, scopes: tuple[str, ...], field: str, *, offline: bool) -> None:
        tokens = self.server_of_tokens
        token, granted = tokens.sign(user, scopes)
        with tokens.lock:
            tokens.issued.append(Issued(method=self.command, user=user, scopes=scopes, granted=granted))
        document: dict[str, Any] = {field: token}
        if tokens.told_life is not None:
            life = float(tokens.told_life)  # others want a whole number
            document["expires_in"] = int(life) if life.is_integer() else life
        if offline:
            document["refresh_token"] = refresh = secrets.token_urlsafe(24)
            tokens.refresh_tokens[refresh] = user
        self._answer(200, document)

    def _refuse(self) -> None:
        with self.server_of_tokens.lock:
            self.server_of_tokens.refused += 1
        self._answer(401, {"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]})

    def _answer(self, status: int, document: Mapping[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""


def _der(certificate: Certificate) -> str:
    """A certificate as it stands in ``x5c``."""
    return "".join(certificate.cert.read_text().split("-----")[2].split())


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _raw(der: bytes) -> bytes:
    """The signature of ES256, two numbers of 32 bytes, from its DER form: SEQUENCE of two INTEGERs."""
    at, numbers = 2, []
    for _ in range(2):
        size = der[at + 1]
        numbers.append(int.from_bytes(der[at + 2 : at + 2 + size], "big"))
        at += 2 + size
    return b"".join(number.to_bytes(32, "big") for number in numbers)
