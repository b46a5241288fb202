"""Debian's docker-registry on a free loopback port, for tests."""

from __future__ import annotations

import base64
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.certificates import Certificate
from support.tokenserver import TokenServer

USER, PASSWORD = "orlop", "a secret"
_HTPASSWD = "orlop:$2b$05$abcdefghijklmnopqrstuuIAEipimVgSTxGS2VyWH9AhzRz3iJI3.\n"  # bcrypt of PASSWORD


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running registry.  ``storage`` is its folder; ``user`` is empty where anybody may read and write."""

    host: str
    storage: Path
    log: Path
    user: str = ""
    password: str = ""
    scheme: str = "http"
    unauthorized: bool = False  # 401 is how it answers us

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def request(
        self,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """One HTTP request; any status is an answer.  Header names come in lower case."""
        url = path if path.startswith(("http:", "https:")) else self.url + path
        request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
        if self.user:
            secret = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {secret}")
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, {k.lower(): v for k, v in answer.headers.items()}, answer.read()


@contextmanager
def serve(
    folder: Path,
    *,
    auth: bool = False,
    token: TokenServer | None = None,
    tls: Certificate | None = None,
    storage: Path | None = None,
) -> Iterator[Registry]:
    """Run a registry with its storage under ``folder`` until the context ends.

    With ``token``, it takes tokens of that server, and `Registry.request` cannot log in.  Several may share one
    ``storage``.
    """
    folder.mkdir(parents=True)
    host = f"127.0.0.1:{_free_port()}"
    registry = Registry(
        host=host,
        storage=storage or folder / "storage",
        log=folder / "log",
        user=USER if auth else "",
        password=PASSWORD if auth else "",
        scheme="https" if tls else "http",
        unauthorized=token is not None,
    )
    config = folder / "config.yml"
    how = _config(host, registry.storage, folder / "htpasswd" if auth else None, tls)
    config.write_text(how + (token.config if token else ""))
    if auth:
        (folder / "htpasswd").write_text(_HTPASSWD)
    # setpriv: the registry ends with us, however we end
    command = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", os.fspath(config)]
    with registry.log.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait(registry, process)
        yield registry
    finally:
        process.kill()
        process.wait()


def _config(host: str, storage: Path, htpasswd: Path | None, tls: Certificate | None) -> str:
    secure = f", tls: {{certificate: '{tls.cert}', key: '{tls.key}'}}" if tls else ""
    auth = f"auth: {{htpasswd: {{realm: test, path: {htpasswd}}}}}\n" if htpasswd else ""
    return (
        "version: 0.1\n"
        "log: {level: info, accesslog: {disabled: false}}\n"
        f"storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host}', secret: test{secure}}}\n"
        f"{auth}"
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(registry: Registry, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            status, _, _ = registry.request("/v2/")
        except OSError:
            time.sleep(0.02)
            continue
        if status == (401 if registry.unauthorized else 200):
            return
        raise RuntimeError(f"docker-registry answers {status}: {registry.log.read_text()[-2000:]}")
    raise RuntimeError(f"docker-registry does not come up: {registry.log.read_text()[-2000:]}")


_UNVERIFIED = ssl.create_default_context()
_UNVERIFIED.check_hostname, _UNVERIFIED.verify_mode = False, ssl.CERT_NONE
_OPENER = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),  # loopback, whatever the environment says
    urllib.request.HTTPSHandler(context=_UNVERIFIED),
)
