"""Where a `Store` comes from, and what needs none: registries, credentials, restoring a backup."""

from __future__ import annotations

import os
from pathlib import Path

from orlop.config.places import DEFAULT_ROOT, DEFAULT_RUN, DEFAULT_SOCKET
from orlop.facade.store import Store
from orlop.hints import TYPE_CHECKING
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.config import Settings
    from orlop.images.backups.restore import Restored
    from orlop.registry.access.login import LoggedIn, LoggedOut
    from orlop.remote.verbs import Remote

__all__ = [
    "DEFAULT_ROOT",
    "DEFAULT_RUN",
    "DEFAULT_SOCKET",
    "connect",
    "login",
    "logins",
    "logout",
    "open",
    "registries",
    "restore",
]

StrPath = str | os.PathLike[str]


def open(  # noqa: A001 - the library's verb
    root: StrPath = DEFAULT_ROOT, run: StrPath = DEFAULT_RUN, *, settings: Settings | None = None
) -> Store:
    """Open the store at ``root`` in this process, making it if it is not there.

    ``run`` holds mount points and does not outlive a reboot.  Other processes may use the same store
    at the same time.  Raises `FailedPrecondition` where the folder cannot serve as a store or was
    written by a newer orlop, `PermissionDenied` without the privileges that mounting needs.
    """
    from orlop.images.store import LocalStore

    return Store(LocalStore.open(Path(root), Path(run), settings=settings))


def connect(
    address: str = f"unix://{DEFAULT_SOCKET}",
    *,
    tls_cert: StrPath | None = None,
    tls_key: StrPath | None = None,
    tls_ca: StrPath | None = None,
) -> Store:
    """A store served by a daemon at ``unix:///path/to/orlop.sock``, or at ``tcp://host:port``.

    Over TCP there is mutual TLS only: ``tls_cert`` and ``tls_key`` are the caller's own, ``tls_ca`` is the
    authority that the daemon's certificate is signed by; paths of PEM files, all three.

    Raises `Unavailable` when nothing answers there.  Needs the extra ``daemon``.
    """
    from orlop.client import RemoteStore

    cert, key, ca = (None if path is None else os.fspath(path) for path in (tls_cert, tls_key, tls_ca))
    return Store(RemoteStore.connect(address, tls_cert=cert, tls_key=key, tls_ca=ca))


def registries(settings: Settings | None = None) -> Remote:
    """Registries, without a store: list tags, look at manifests, copy, delete, push and pull files.

    A context manager, as cheap to open as it is thread-safe.
    """
    from orlop.remote.verbs import Remote

    return Remote(settings)


def restore(
    source: StrPath,
    root: StrPath = DEFAULT_ROOT,
    run: StrPath = DEFAULT_RUN,
    *,
    settings: Settings | None = None,
    force: bool = False,
    pull: bool = False,
    call: Call | None = None,
) -> Restored:
    """Read what `Store.backup` wrote into the store at ``root``, making it if it is not there.

    All images get their names, or none does; what is in the store stays.  ``force`` moves names that mean
    other images; ``pull`` fetches layers that are not in the backup.  See `orlop.images.backups.restore`.
    """
    from orlop.images.backups.restore import restore as read

    return read(source, root, run, settings=settings, force=force, pull=pull, call=call or Call())


def login(
    registry: str,
    username: str,
    password: str,
    *,
    settings: Settings | None = None,
    file: StrPath | None = None,
    call: Call | None = None,
) -> LoggedIn:
    """Try a name and a password at a registry, and keep them where `open` with these ``settings`` finds them.

    ``registry`` is a host (``registry.lan:5000``), a part of its repositories (``registry.lan:5000/team``)
    or empty for Docker Hub.  They are given to the credential helper that a file of ``settings.auth_files``
    names; else they are written to one of these files in plain text, with a warning through the call's
    observer.  ``file`` stands for the settings' files.  Where the token server gives an identity token, that
    is kept in the password's place.

    Raises `Unauthenticated` where the registry refuses them; `InvalidArgument` where no file is named.
    """
    from orlop.config import Settings
    from orlop.registry.access.credentials import Credential
    from orlop.registry.access.login import login as log_in

    credential = Credential(username=username, password=password)
    path = None if file is None else os.path.abspath(file)
    return log_in(registry, credential, settings=settings or Settings(), file=path, call=call or Call())


def logout(
    registry: str | None,
    *,
    settings: Settings | None = None,
    file: StrPath | None = None,
    call: Call | None = None,
) -> list[LoggedOut]:
    """Forget what is kept for a registry or a part of one, in all files and helpers; None: for all.

    Raises `NotFound` where nothing was kept.  The registry is not told.
    """
    from orlop.config import Settings
    from orlop.registry.access.login import logout as log_out

    path = None if file is None else os.path.abspath(file)
    return log_out(registry, settings=settings or Settings(), file=path, call=call or Call())


def logins(
    *, settings: Settings | None = None, file: StrPath | None = None, call: Call | None = None
) -> list[LoggedIn]:
    """The registries that credentials are kept for, and the users; never a secret."""
    from orlop.config import Settings
    from orlop.registry.access.login import logins as list_all

    path = None if file is None else os.path.abspath(file)
    return list_all(settings=settings or Settings(), file=path, call=call or Call())
