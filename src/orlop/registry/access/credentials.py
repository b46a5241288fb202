"""The credentials that users already have: Docker's `config.json` and containers' `auth.json`.

Both are one format: ``auths`` and ``credHelpers`` by registry (or by a part of its repositories, the longest
match wins), ``credsStore`` for all registries without a helper of their own.  Keys may carry a scheme, as
Docker's do; one that does is for that scheme alone.  Nothing else of the files is looked at: Docker's
``HttpHeaders`` are for Docker's own daemon and go nowhere.  Sources: Docker's "docker login" reference;
containers-auth.json(5).

The environment is not read here: `usual_sources` turns a mapping of it into the usual list of files. Helper
programs are run by `orlop.registry.access.helpers`; who writes these files is `orlop.registry.access.login`.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from orlop.config import DEFAULT_LIMITS, over_limit
from orlop.errors import Error, InvalidArgument, from_oserror
from orlop.observe import Auth, Call
from orlop.registry.access.places import usual_files
from orlop.values import dataclass, field, replace

__all__ = [
    "DOCKER_HUB",
    "DOCKER_HUB_KEY",
    "Credential",
    "CredentialSources",
    "Helper",
    "KeepsToken",
    "Keychain",
    "find",
    "helper_names",
    "keys_of",
    "of_entry",
    "own",
    "read_document",
    "usual_sources",
]

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # Docker's own name for Docker Hub, kept since 2013
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_SUFFIXES = ("", "/", "/v1", "/v1/", "/v2", "/v2/")  # of keys with a scheme, from times of other rules
_NULL = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt
_MAX_RENEWED = 1_024  # identity tokens whose successors are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user's name and password, or a token in their place.  Secrets are not shown by ``repr``.

    ``identity_token`` is an OAuth 2 refresh token; ``registry_token`` a bearer token to use as it is.
    ``offline`` asks the token server for an identity token, as a login does; ``place`` is the file that it
    was found in, and the key there.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    offline: bool = field(default=False, repr=False)
    place: tuple[str, str] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for what cannot be sent, without repeating it."""
        try:
            f"{self.username}{self.password}{self.identity_token}{self.registry_token}".encode()
        except UnicodeEncodeError:
            raise InvalidArgument("use credentials", "a name or a secret that is not UTF-8") from None

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSources:
    """Where to look: a document that was given whole, then files in order.

    ``helper_path`` are the folders (as in PATH) that hold helper programs.
    """

    files: tuple[str, ...] = ()
    helper_path: str = os.defpath
    file_size: int = DEFAULT_LIMITS.auth_file_size  # bytes that a file may have
    document: str = field(default="", repr=False)  # JSON as in a file; DOCKER_AUTH_CONFIG


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


class KeepsToken(Protocol):
    """Writes an identity token back to where the old one was."""

    def __call__(self, credential: Credential, token: str, *, call: Call) -> None:
        """Replace it in its file.  Raises `orlop.errors.Error` where that cannot be."""
        ...


def usual_sources(environment: Mapping[str, str], *, uid: int) -> CredentialSources:
    """The usual places, given the environment: those of `orlop.registry.access.places`.

    What ``$DOCKER_AUTH_CONFIG`` says goes before them all.
    """
    return CredentialSources(
        files=usual_files(environment, uid=uid),
        helper_path=environment.get("PATH", os.defpath),
        document=environment.get("DOCKER_AUTH_CONFIG", ""),
    )


def find(
    document: Mapping[str, Any], registry: str, repository: str, *, scheme: str
) -> Iterator[Credential | Helper]:
    """What one file offers for a repository, best first: the most particular keys, helpers before entries.

    Where a registry has a helper of its own (an empty name is none), the store of all is not asked, as under
    docker.  No I/O.  ``scheme`` is the one the registry is spoken to with; entries for another are left out.
    """
    helpers, auths = _section(document, "credHelpers"), _section(document, "auths")
    for key in _parts(registry, repository):
        if name := _text(helpers, key):
            yield Helper(name=name, server=key)
        if credential := of_entry(auths.get(key)):
            yield replace(credential, place=("", key))
    for name in helper_names(document, registry, scheme=scheme):
        for server in (DOCKER_HUB_KEY, DOCKER_HUB) if registry == DOCKER_HUB else (registry,):
            yield Helper(name=name, server=server)
    for key in keys_of(registry, scheme):
        if credential := of_entry(auths.get(key)):
            yield replace(credential, place=("", key))


def broken(document: Mapping[str, Any], registry: str, repository: str, *, scheme: str) -> Iterator[str]:
    """The keys whose entry would be for a repository, if it could be understood."""
    auths = _section(document, "auths")
    for key in (*_parts(registry, repository), *keys_of(registry, scheme)):
        entry = auths.get(key)
        garbled = isinstance(entry, Mapping) and entry.get("auth")
        if (garbled or (key in auths and not isinstance(entry, Mapping))) and of_entry(entry) is None:
            yield key


def helper_names(document: Mapping[str, Any], registry: str, *, scheme: str = "https") -> tuple[str, ...]:
    """The helper that a file names for a whole registry, or the store for all; at most one."""
    helpers = _section(document, "credHelpers")
    for key in keys_of(registry, scheme):
        if isinstance(helpers.get(key), str):
            return (helpers[key],) if helpers[key] else ()
    store = _text(document, "credsStore")
    return (store,) if store else ()


def keys_of(registry: str, scheme: str) -> Iterator[str]:
    """The keys that are for a whole registry, the usual ones first."""
    for name in _HUB_NAMES if registry == DOCKER_HUB else (registry,):
        yield name
        for suffix in _SUFFIXES:
            yield f"{scheme}://{name}{suffix}"


def of_entry(entry: object) -> Credential | None:
    """The credential of one ``auths`` entry; None for an empty or garbled one."""
    if not isinstance(entry, Mapping):
        return None
    username, password = _text(entry, "username"), _text(entry, "password")
    try:
        import base64

        decoded = base64.b64decode(_text(entry, "auth"), validate=True).decode()
    except ValueError:  # binascii's, UTF-8's, and b64decode's own for what is not ASCII
        decoded = ""
    if ":" in decoded:
        username, _, password = decoded.partition(":")
        password = password.strip("\0")  # Docker pads with NULs and trims them on reading
    found = Credential(
        username=username,
        password=password,
        identity_token=_text(entry, "identitytoken"),
        registry_token=_text(entry, "registrytoken"),
    )
    return found or None


def own(auth: Auth | None, registry: str) -> Credential | None:
    """The credential that a call brought along, where it is for this registry."""
    if auth is None:
        return None
    named = DOCKER_HUB if auth.registry.lower() in _HUB_NAMES else auth.registry.lower()
    if named != registry.lower():
        return None
    found = Credential(
        username=auth.username,
        password=auth.password,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
    return found or None


class Keychain:
    """Looks a credential up in files and helper programs, each time anew.  Thread-safe.

    What is missing is passed over; what is broken is warned of through the call's observer and
    passed over, so that a broken helper does not stop an anonymous pull.
    """

    def __init__(self, sources: CredentialSources, ask: AsksHelper, keep: KeepsToken | None = None) -> None:
        self._sources = sources
        self._ask = ask
        self._keep = keep
        self._lock = threading.Lock()  # guards the next
        self._renewed: dict[str, str] = {}  # identity tokens that a token server replaced, and by what

    def __call__(self, registry: str, repository: str, *, scheme: str, call: Call) -> Credential | None:
        """The credential for a repository, or None."""
        found = self._find(registry, repository, scheme, call)
        if found is not None and found.identity_token:
            with self._lock:
                newer = self._renewed.get(found.identity_token)
            if newer is not None:
                return replace(found, identity_token=newer)
        return found

    def renewed(self, credential: Credential, token: str, *, call: Call) -> None:
        """A token server gave another identity token in place of the credential's (RFC 6749, section 6).

        It is remembered, and written to the file that held the old one.
        """
        old = credential.identity_token
        if not old or old == token:
            return
        with self._lock:
            while len(self._renewed) >= _MAX_RENEWED:
                del self._renewed[next(iter(self._renewed))]
            for first, last in self._renewed.items():
                if last == old:
                    self._renewed[first] = token
            self._renewed[old] = token
        if self._keep is None or credential.place is None:
            return
        try:
            self._keep(credential, token, call=call)
        except Error as exc:
            call.check(exc.attempted)
            call.observer.warning(str(exc))

    def _find(self, registry: str, repository: str, scheme: str, call: Call) -> Credential | None:
        for path, document in self._documents(call):
            for found in find(document, registry, repository, scheme=scheme):
                if isinstance(found, Credential):
                    key = found.place[1] if found.place else ""
                    return replace(found, place=(path, key) if path else None)
                try:
                    credential = self._ask(found, self._sources.helper_path, call)
                except Error as exc:
                    call.check(exc.attempted)
                    call.observer.warning(str(exc))
                    continue
                if credential:
                    return credential
            for key in broken(document, registry, repository, scheme=scheme):
                where = path or "DOCKER_AUTH_CONFIG"
                call.observer.warning(f"read credentials {where}: the entry {key} cannot be understood")
        return None

    def _documents(self, call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
        limit = self._sources.file_size
        if self._sources.document.strip():
            try:
                from orlop.spec.documents import parse_json

                given = parse_json(self._sources.document.encode(), "read DOCKER_AUTH_CONFIG", limit=limit)
            except Error as exc:
                call.observer.warning(str(exc))
            else:
                yield "", {"auths": given.get("auths")}  # programs are named in files alone, as under docker
        for path in self._sources.files:
            try:
                yield path, read_document(path, limit)
            except Error as exc:
                call.observer.warning(str(exc))


def read_document(path: str, limit: int) -> dict[str, Any]:
    """A file of credentials; empty where there is none, and from the null device.

    Raises `InvalidArgument` for what is not one, `ResourceExhausted` for more than ``limit`` bytes.  Nothing
    but a regular file is read, and none is waited for, as opening a FIFO would.
    """
    attempted = f"read credentials {path}"
    try:
        about = os.stat(path)
        if stat.S_ISCHR(about.st_mode) and about.st_rdev == _NULL:
            return {}
        if not stat.S_ISREG(about.st_mode):  # opening a device or a FIFO does things
            raise InvalidArgument(attempted, "it is not a regular file")
        with open(path, "rb", opener=_without_waiting) as file:
            data = file.read(limit + 1) or b""  # nothing, where a FIFO took its place meanwhile
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    if len(data) > limit:
        raise over_limit("auth_file_size", f"more than {limit}", limit, attempted=attempted)
    from orlop.spec.documents import parse_json

    return parse_json(data, attempted, limit=limit) if data.strip() else {}


def _without_waiting(path: str, flags: int) -> int:
    """Open, even if it is a FIFO by now."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _section(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name)
    return section if isinstance(section, dict) else {}


def _text(section: Mapping[str, Any], key: str) -> str:
    value = section.get(key)
    return value if isinstance(value, str) else ""


def _parts(registry: str, repository: str) -> Iterator[str]:
    """The keys for parts of a registry's repositories that hold this one, the longest first."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        yield "/".join((registry, *parts[:count]))
