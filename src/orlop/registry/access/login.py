"""Logging in and out: credentials are tried at the registry, and then kept where they will be found.

A helper program is given them where one is configured for the registry (``credHelpers``, ``credsStore``);
else they stand in a file in plain text, as docker and podman keep them, and whoever asked is warned.  What
would speak over a new credential (an older entry in a file that is read before) is taken away, so that a
login always has its effect.

Here files are changed and programs run, but nobody is asked anything: that is the command line's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing

from orlop.config import Settings
from orlop.errors import Error, InvalidArgument, NotFound, Unauthenticated
from orlop.observe import Call
from orlop.registry.access.authfile import can_be_written, changing, entry_of, section
from orlop.registry.access.credentials import (
    DOCKER_HUB,
    DOCKER_HUB_KEY,
    Credential,
    CredentialSources,
    Helper,
    Keychain,
    helper_names,
    keys_of,
    of_entry,
    read_document,
)
from orlop.registry.access.helpers import ask_helper, erase_helper, list_helper, store_helper
from orlop.registry.client import Registry
from orlop.spec.reference import Reference
from orlop.values import dataclass, replace

__all__ = ["LoggedIn", "LoggedOut", "Subject", "login", "login_of", "logins", "logout", "subject_of"]

_NO_FILE = "no file is named that could keep it"
_NAME_A_FILE = "name one: auth_files in the settings, or file="


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedIn:
    """A kept credential, without its secrets.

    ``registry`` is a host, perhaps with a part of its repositories; ``place`` the file, or ``helper NAME``.
    ``kind`` is ``password``, ``identity token``, ``registry token``, or ``unknown`` for a helper's.
    """

    registry: str
    username: str
    place: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedOut:
    """A credential that was kept, and is no more."""

    registry: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What one logs in to: a registry, or a part of its repositories (``team/app``)."""

    registry: str
    namespace: str = ""

    @property
    def key(self) -> str:
        """As podman's files have it: ``registry.example/team``."""
        return f"{self.registry}/{self.namespace}" if self.namespace else self.registry

    def key_in(self, path: str) -> str:
        """The key in a file: Docker's own file has Docker Hub under its old address."""
        if self.registry == DOCKER_HUB and not self.namespace and path.endswith("config.json"):
            return DOCKER_HUB_KEY
        return self.key

    def spellings(self) -> tuple[str, ...]:
        """All keys of files that mean it."""
        if self.namespace:
            return (self.key,)
        return tuple(dict.fromkeys((*keys_of(self.registry, "https"), *keys_of(self.registry, "http"))))

    @property
    def server(self) -> str:
        """What helpers call it."""
        return DOCKER_HUB_KEY if self.key == DOCKER_HUB else self.key


def subject_of(text: str) -> Subject:
    """What a user typed: ``registry.example[:port][/part]``, empty for Docker Hub; a scheme is dropped.

    Raises `InvalidArgument` for what is neither.

    >>> subject_of("https://index.docker.io/v1/").key, subject_of("registry.lan:5000/team").key
    ('docker.io', 'registry.lan:5000/team')
    """
    attempted = f"use registry {text.rpartition('@')[2][:300]!r}"  # a password before it is not repeated
    name = text
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme not in ("http", "https"):
            raise InvalidArgument(attempted, "not the name of a registry")
        name = rest.partition("/")[0]  # Docker's rule: an address is a host, whatever follows
    host, _, namespace = name.rstrip("/").partition("/")
    host = host if text else DOCKER_HUB
    if not (namespace or "." in host or ":" in host or host == "localhost"):
        # A bare word is no host in an image's name either (Docker's rules).
        raise InvalidArgument(
            attempted, "not a registry's host", hint=f"write {host}:443 for a host without a dot"
        )
    if "@" in name or ":" in namespace:
        raise InvalidArgument(attempted, "not the name of a registry or of a part of one")
    parsed = Reference.parse(f"{host}/{namespace or 'any'}")
    if not namespace:
        return Subject(registry=parsed.registry)
    if parsed.registry != host and host not in ("index.docker.io", "registry-1.docker.io"):
        raise InvalidArgument(attempted, f"{host!r} is not a registry's host")
    return Subject(registry=parsed.registry, namespace=namespace)


class _Given:
    """A keychain with one credential, of one registry; it takes the identity token that is given for it."""

    def __init__(self, registry: str, credential: Credential) -> None:
        self._registry = registry
        self._credential = credential
        self.token = ""

    def __call__(self, registry: str, repository: str, *, scheme: str, call: Call) -> Credential | None:
        """The credential, but for no mirror."""
        return self._credential if registry == self._registry else None

    def renewed(self, credential: Credential, token: str, *, call: Call) -> None:
        """Take the token."""
        self.token = token


def login(
    registry: str, credential: Credential, *, settings: Settings, file: str | None = None, call: Call
) -> LoggedIn:
    """Try a credential at a registry, and keep it; see `orlop.login`.

    Raises `Unauthenticated` where the registry refuses it, and keeps nothing then.
    """
    subject = subject_of(registry)
    attempted = f"log in to {subject.key}"
    if not credential:
        raise InvalidArgument(attempted, "the user name is empty")
    if ":" in credential.username:
        raise InvalidArgument(attempted, "a user name holds no colon (RFC 7617)")
    files = _files(settings, file, attempted)
    given = _Given(subject.registry, replace(credential, offline=not credential.identity_token))
    with closing(Registry(settings, CredentialSources(), credentials=given)) as client:
        try:
            asked = client.ping(subject.registry, call=call)
        except Unauthenticated as exc:
            # The hint of a pull would be to log in.
            raise Unauthenticated(
                attempted, exc.reason, hint="is the name right, and the password?", details=exc.details
            ) from exc
    if not asked:
        call.observer.warning(f"{subject.registry} asked for no credentials: they are kept untried")
    kept = credential
    if given.token:  # as docker does: what can be taken back is kept in the password's place
        kept = replace(credential, password="", identity_token=given.token)
    done = _keep(subject, kept, files, settings, call)
    given_whole = Keychain(CredentialSources(document=settings.auth_config), ask_helper)
    if given_whole(subject.registry, subject.namespace, scheme="https", call=call):
        call.observer.warning("pulls go by other credentials for it: those of DOCKER_AUTH_CONFIG")
    return done


def logout(
    registry: str | None, *, settings: Settings, file: str | None = None, call: Call
) -> list[LoggedOut]:
    """Forget what is kept for a registry, or for all (None); see `orlop.logout`."""
    attempted = "log out" if registry is None else f"log out of {subject_of(registry).key}"
    gone: list[LoggedOut] = []
    for path in _files(settings, file, attempted):
        gone += _forget(path, None if registry is None else subject_of(registry), settings, attempted, call)
    if registry is not None and not gone:
        raise NotFound(attempted, "not logged in", hint="`orlop login --list` shows where you are")
    return gone


def logins(*, settings: Settings, file: str | None = None, call: Call) -> list[LoggedIn]:
    """What is kept, by file in their order; see `orlop.logins`."""
    found: list[LoggedIn] = []
    for path in _files(settings, file, "list logins"):
        document = read_document(path, settings.limits.auth_file_size)
        auths, helpers = _table(document, "auths"), _table(document, "credHelpers")
        for key, entry in auths.items():
            if (credential := of_entry(entry)) is not None:
                found.append(
                    LoggedIn(registry=key, username=credential.username, place=path, kind=_kind(credential))
                )
        for key, name in helpers.items():
            if isinstance(name, str) and name:
                wanted = (DOCKER_HUB_KEY, DOCKER_HUB) if key in (DOCKER_HUB_KEY, DOCKER_HUB) else (key,)
                found += [one for one in _listed(name, settings, call) if one.registry in wanted]
        if isinstance(store := document.get("credsStore"), str) and store:
            own = {key for key in helpers if isinstance(helpers[key], str)}
            found += [one for one in _listed(store, settings, call) if one.registry not in own]
    return list(dict.fromkeys(found))


def login_of(registry: str, *, settings: Settings, file: str | None = None, call: Call) -> str:
    """The user that pulls and pushes go by, ``<token>`` where it is only a token.  Raises `NotFound`."""
    subject = subject_of(registry)
    attempted = f"look for the login to {subject.key}"
    sources = CredentialSources(
        files=_files(settings, file, attempted),
        helper_path=settings.helper_path,
        file_size=settings.limits.auth_file_size,
        document=settings.auth_config,
    )
    found = Keychain(sources, ask_helper)(subject.registry, subject.namespace, scheme="https", call=call)
    if found is None:
        raise NotFound(attempted, "not logged in", hint=f"orlop login {subject.key}")
    return found.username or "<token>"


def _files(settings: Settings, file: str | None, attempted: str) -> tuple[str, ...]:
    files = (file,) if file else settings.auth_files
    if not files:
        raise InvalidArgument(attempted, _NO_FILE, hint=_NAME_A_FILE)
    return files


def _keep(
    subject: Subject, credential: Credential, files: tuple[str, ...], settings: Settings, call: Call
) -> LoggedIn:
    limit = settings.limits.auth_file_size
    attempted = f"log in to {subject.key}"
    at, name = _home(subject, files, limit)
    path = files[at]
    if name:
        store_helper(Helper(name=name, server=subject.server), credential, settings.helper_path, call)
    with changing(path, limit=limit, call=call) as document:
        auths = section(document, "auths", attempted)
        key = subject.key_in(path)
        for other in subject.spellings():
            if other != key:
                auths.pop(other, None)
        auths[key] = {} if name else entry_of(credential)  # the empty one is how docker marks a helper's
    for earlier in files[:at]:
        _take_away(earlier, subject, limit, call)
    if not name:
        call.observer.warning(
            f"the credentials are in plain text in {path}: a credential helper keeps them better "
            "(docs/credentials.md)"
        )
    return LoggedIn(
        registry=subject.key,
        username=credential.username,
        place=f"helper {name}" if name else path,
        kind=_kind(credential),
    )


def _home(subject: Subject, files: tuple[str, ...], limit: int) -> tuple[int, str]:
    """Which file is to keep a credential, and the helper that keeps it in its place, or an empty text.

    A file that names a helper for it; else the one that has it already; else the first that is there; else
    the first that can be made.
    """
    documents = [read_document(path, limit) for path in files]
    if not subject.namespace:
        for at, document in enumerate(documents):
            if names := helper_names(document, subject.registry):
                return at, names[0]
    else:
        for at, document in enumerate(documents):
            name = _table(document, "credHelpers").get(subject.key)
            if isinstance(name, str) and name:
                return at, name
    writable = [at for at, path in enumerate(files) if can_be_written(path)]
    for at in writable:
        if any(key in _table(documents[at], "auths") for key in subject.spellings()):
            return at, ""
    for at in writable:
        if documents[at]:
            return at, ""
    return (writable or [0])[0], ""


def _take_away(path: str, subject: Subject, limit: int, call: Call) -> bool:
    """Remove a subject's entries from a file; whether there were any with something in them."""
    if not any(key in _table(read_document(path, limit), "auths") for key in subject.spellings()):
        return False
    with changing(path, limit=limit, call=call) as document:
        auths = section(document, "auths", f"change credentials {path}")
        gone = [auths.pop(key, None) for key in subject.spellings()]
        return any(gone)


def _forget(
    path: str, subject: Subject | None, settings: Settings, attempted: str, call: Call
) -> Iterator[LoggedOut]:
    limit = settings.limits.auth_file_size
    document = read_document(path, limit)
    failure: Error | None = None
    for name, server in _held(document, subject):
        try:
            if erase_helper(Helper(name=name, server=server), settings.helper_path, call):
                yield LoggedOut(registry=server, place=f"helper {name}")
        except Error as exc:
            call.check(attempted)
            failure = failure or exc  # the rest goes all the same
    auths = _table(document, "auths")
    wanted = auths.keys() if subject is None else auths.keys() & set(subject.spellings())
    if wanted:
        with changing(path, limit=limit, call=call) as changed:
            present = section(changed, "auths", attempted)
            for key in [key for key in present if key in wanted]:
                if present.pop(key):
                    yield LoggedOut(registry=key, place=path)
    if failure is not None:
        raise failure


def _held(document: Mapping[str, object], subject: Subject | None) -> list[tuple[str, str]]:
    """The helpers of a document, and the servers, that a logout is to ask."""
    auths, helpers = _table(document, "auths"), _table(document, "credHelpers")
    held: list[tuple[str, str]] = []
    if subject is None:
        held += [(name, key) for key, name in helpers.items() if isinstance(name, str) and name]
        if isinstance(store := document.get("credsStore"), str) and store:
            held += [(store, key) for key in auths if key not in helpers]
    elif subject.namespace:
        name = helpers.get(subject.key)
        held += [(name, subject.key)] if isinstance(name, str) and name else []
    else:
        servers = (DOCKER_HUB_KEY, DOCKER_HUB) if subject.registry == DOCKER_HUB else (subject.server,)
        held += [(name, server) for name in helper_names(document, subject.registry) for server in servers]
    return held


def _listed(name: str, settings: Settings, call: Call) -> list[LoggedIn]:
    try:
        kept = list_helper(name, settings.helper_path, call)
    except Error as exc:
        call.check("list logins")
        call.observer.warning(str(exc))
        return []
    return [
        LoggedIn(registry=server, username=user, place=f"helper {name}", kind="unknown")
        for server, user in sorted(kept.items())
    ]


def _kind(credential: Credential) -> str:
    if credential.registry_token:
        return "registry token"
    return "identity token" if credential.identity_token else "password"


def _table(document: Mapping[str, object], name: str) -> dict[str, object]:
    found = document.get(name)
    return found if isinstance(found, dict) else {}
