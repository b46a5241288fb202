"""The credentials that users already have: Docker's `config.json` and containers' `auth.json`.

Both are one format: ``auths`` by registry (containers: also by repository, the longest match wins),
``credHelpers`` by registry, ``credsStore`` for all.  Keys may carry a scheme, as Docker's do; one
that does is for that scheme alone.  Sources: Docker's "docker login" reference; containers-auth.json(5).

The environment is not read here: `usual_sources` turns a mapping of it into the usual list of files.
Helper programs are run by `orlop.registry.helpers`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orlop.config import DEFAULT_LIMITS, over_limit
from orlop.errors import Error, from_oserror
from orlop.observe import Call
from orlop.spec.documents import parse_json

__all__ = ["Credential", "CredentialSources", "Helper", "Keychain", "find", "usual_sources"]

DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # Docker's own name for Docker Hub, kept since 2013


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user's name and password, or a token in their place.  Secrets are not shown by ``repr``.

    ``identity_token`` is an OAuth 2 refresh token; ``registry_token`` a bearer token to use as it is.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSources:
    """Where to look: files in order, and the folders (as in PATH) that hold helper programs."""

    files: tuple[str, ...] = ()
    helper_path: str = os.defpath
    file_size: int = DEFAULT_LIMITS.auth_file_size  # bytes that a file may have


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A program ``docker-credential-<name>`` to ask about a server."""

    name: str
    server: str


class AsksHelper(Protocol):
    """Runs a helper program."""

    def __call__(self, helper: Helper, path: str, call: Call) -> Credential | None:
        """The credential it holds, or None.  Raises `orlop.errors.Error` where it fails."""
        ...


def usual_sources(environment: Mapping[str, str], *, uid: int) -> CredentialSources:
    """The usual places, given the environment: podman's order, then Docker's.

    ``$REGISTRY_AUTH_FILE``, where set, is the only one.  Else ``$XDG_RUNTIME_DIR/containers/auth.json``
    (``/run/containers/<uid>`` without it), ``$XDG_CONFIG_HOME/containers/auth.json`` (``~/.config``
    without it), and ``$DOCKER_CONFIG/config.json`` (``~/.docker`` without it).
    """
    path = environment.get("PATH", os.defpath)
    if only := environment.get("REGISTRY_AUTH_FILE"):
        return CredentialSources(files=(only,), helper_path=path)
    runtime = environment.get("XDG_RUNTIME_DIR")
    files = [f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{uid}/auth.json"]
    home = environment.get("HOME", "")
    if config := environment.get("XDG_CONFIG_HOME") or (home and f"{home}/.config"):
        files.append(f"{config}/containers/auth.json")
    if docker := environment.get("DOCKER_CONFIG") or (home and f"{home}/.docker"):
        files.append(f"{docker}/config.json")
    return CredentialSources(files=tuple(files), helper_path=path)


def find(
    document: Mapping[str, Any], registry: str, repository: str, *, scheme: str
) -> Iterator[Credential | Helper]:
    """What one file offers for a repository, best first: helpers of the registry, the store, auths.

    No I/O.  ``scheme`` is the one the registry is spoken to with; entries for another are left out.
    """
    helpers = _section(document, "credHelpers")
    for key in _keys(registry, "", scheme):
        if isinstance(name := helpers.get(key), str) and name:
            yield Helper(name=name, server=_server(registry))
            break
    if isinstance(store := document.get("credsStore"), str) and store:
        yield Helper(name=store, server=_server(registry))
    auths = _section(document, "auths")
    for key in _keys(registry, repository, scheme):
        entry = auths.get(key)
        if isinstance(entry, dict) and (credential := _entry(entry)):
            yield credential


class Keychain:
    """Looks a credential up in files and helper programs, each time anew.  Thread-safe.

    What is missing is passed over; what is broken is warned of through the call's observer and
    passed over, so that a broken helper does not stop an anonymous pull.
    """

    def __init__(self, sources: CredentialSources, ask: AsksHelper) -> None:
        self._sources = sources
        self._ask = ask

    def __call__(self, registry: str, repository: str, *, scheme: str, call: Call) -> Credential | None:
        """The credential for a repository, or None."""
        for path in self._sources.files:
            try:
                document = _read(path, self._sources.file_size)
            except Error as exc:
                call.observer.warning(str(exc))
                continue
            for found in find(document, registry, repository, scheme=scheme):
                if isinstance(found, Credential):
                    return found
                try:
                    credential = self._ask(found, self._sources.helper_path, call)
                except Error as exc:
                    call.check(exc.attempted)
                    call.observer.warning(str(exc))
                    continue
                if credential:
                    return credential
        return None


def _read(path: str, limit: int) -> dict[str, Any]:
    attempted = f"read credentials {path}"
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    if len(data) > limit:
        raise over_limit("auth_file_size", f"more than {limit}", limit, attempted=attempted)
    return parse_json(data, attempted, limit=limit) if data.strip() else {}


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name)
    return section if isinstance(section, dict) else {}


def _server(registry: str) -> str:
    """The server's name as `docker login` gives it to helpers."""
    return DOCKER_HUB_KEY if registry == "docker.io" else registry


def _keys(registry: str, repository: str, scheme: str) -> Iterator[str]:
    """The keys that fit, from the most particular on."""
    names = (
        [registry] if registry != "docker.io" else ["docker.io", "index.docker.io", "registry-1.docker.io"]
    )
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        yield "/".join((registry, *parts[:count]))
    for name in names:
        yield name
        for suffix in ("", "/", "/v1", "/v1/", "/v2", "/v2/"):
            yield f"{scheme}://{name}{suffix}"


def _entry(entry: Mapping[str, Any]) -> Credential | None:
    """The credential of one ``auths`` entry; None for an empty or garbled one."""

    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    username, password = text("username"), text("password")
    try:
        decoded = base64.b64decode(text("auth"), validate=True).decode()
    except ValueError:  # binascii's, UTF-8's, and b64decode's own for what is not ASCII
        decoded = ""
    if ":" in decoded:
        username, _, password = decoded.partition(":")
        password = password.rstrip("\0")  # Docker pads with NULs and trims them on reading
    return Credential(
        username=username,
        password=password,
        identity_token=text("identitytoken"),
        registry_token=text("registrytoken"),
    )
