"""What the command line takes from the environment: folders, credentials files, insecure registries.

Functions of a mapping and a user id, so that nothing below reads the environment.  Folders are those
of the XDG Base Directory Specification; in a user namespace, where everybody is root, those of the user
outside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from orlop.config import ProxySettings
from orlop.errors import FailedPrecondition, InvalidArgument

__all__ = [
    "auth_files",
    "config_files",
    "default_root",
    "default_run",
    "hosts_dirs",
    "proxies",
    "registries",
    "registries_conf",
    "source_date_epoch",
    "whose",
]

SYSTEM_CONFIG = "/etc/orlop/config.toml"
SYSTEM_HOSTS = (
    "/etc/orlop/certs.d",
    "/etc/containerd/certs.d",
    "/etc/containers/certs.d",
    "/etc/docker/certs.d",
)
_CONTAINERS = "/etc/containers"
# What `orlop.rootless` and `podman unshare` leave there: who one is outside.
_OUTER_UIDS = ("_ORLOP_UID", "_CONTAINERS_ROOTLESS_UID")


def whose(environ: Mapping[str, str], uid: int, *, initial: Callable[[], bool] | None = None) -> int:
    """The user whose folders are meant: for root of a user's namespace that user, else ``uid``.

    ``initial`` says whether we are in the machine's first user namespace.  There the environment is not
    asked, as sudo may have handed it on.
    """
    if uid != 0:
        return uid
    for name in _OUTER_UIDS:
        outer = environ.get(name, "")
        if outer.isascii() and outer.isdigit() and int(outer) != 0:
            from orlop.linux.userns import in_initial_namespace

            return uid if (initial or in_initial_namespace)() else int(outer)
    return uid


def default_root(environ: Mapping[str, str], uid: int) -> str:
    """Where images are kept: /var/lib/orlop for root, else below ``$XDG_DATA_HOME``."""
    if whose(environ, uid) == 0:
        from orlop.config.places import DEFAULT_ROOT

        return DEFAULT_ROOT
    base = _absolute(environ.get("XDG_DATA_HOME")) or os.path.join(_home(environ), ".local", "share")
    return os.path.join(base, "orlop")


def default_run(environ: Mapping[str, str], uid: int) -> str:
    """Where mount points are kept: /run/orlop for root, else below ``$XDG_RUNTIME_DIR``.

    Raises `FailedPrecondition` where that is not set: a folder of a guessable name in /tmp would be
    anybody's to make.
    """
    if whose(environ, uid) == 0:
        from orlop.config.places import DEFAULT_RUN

        return DEFAULT_RUN
    base = _absolute(environ.get("XDG_RUNTIME_DIR"))
    if base is None:
        raise FailedPrecondition(
            "choose the run folder",
            "XDG_RUNTIME_DIR is not set",
            hint="log in through PAM, or name a folder of your own with --run DIR or ORLOP_RUN",
        )
    return os.path.join(base, "orlop")


def auth_files(environ: Mapping[str, str], uid: int) -> tuple[str, ...]:
    """Files with registry credentials, the first match wins; they need not exist.

    `orlop.registry.access.places` has the order: podman's files, then docker's.
    """
    from orlop.registry.access.places import usual_files

    return usual_files(environ, uid=whose(environ, uid))


def hosts_dirs(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Folders with what is said of each registry, the user's first; they need not exist."""
    base = _config_home(environ)
    own = (os.path.join(base, "orlop", "certs.d"), os.path.join(base, "containers", "certs.d"))
    return (*own, *SYSTEM_HOSTS)


def registries_conf(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The `registries.conf` files that count, and the folders of their drop-ins; later ones win.

    ``$CONTAINERS_REGISTRIES_CONF``, else the user's file, counts in place of the system's:
    containers-registries.conf(5).
    """
    own = os.path.join(_config_home(environ), "containers")
    name = "registries.conf"
    main = environ.get("CONTAINERS_REGISTRIES_CONF") or os.path.join(own, name)
    if not environ.get("CONTAINERS_REGISTRIES_CONF") and not os.path.exists(main):
        main = os.path.join(_CONTAINERS, name)
    return (main, os.path.join(_CONTAINERS, f"{name}.d"), os.path.join(own, f"{name}.d"))


def proxies(environ: Mapping[str, str]) -> ProxySettings:
    """The proxies that ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` name, in either case.

    Where a web server runs us, HTTP_PROXY is what a client sent as its header `Proxy`, and does not count
    (CVE-2016-5385); the name in lower case does.
    """

    def find(*names: str) -> str:
        return next((environ[name] for name in names if environ.get(name)), "")

    every = find("ALL_PROXY", "all_proxy")
    plain = find("http_proxy") if environ.get("REQUEST_METHOD") else find("HTTP_PROXY", "http_proxy")
    return ProxySettings(
        http=plain or every,
        https=find("HTTPS_PROXY", "https_proxy") or every,
        no=tuple(find("NO_PROXY", "no_proxy").replace(",", " ").split()),
    )


def config_files(environ: Mapping[str, str]) -> tuple[str, str]:
    """The system's configuration file and the user's; neither need exist."""
    return SYSTEM_CONFIG, os.path.join(_config_home(environ), "orlop", "config.toml")


def registries(values: Iterable[str]) -> tuple[str, ...]:
    """Registry hosts out of options and of a list with commas or spaces, each once, in order."""
    hosts = (host for value in values for host in value.replace(",", " ").split())
    return tuple(dict.fromkeys(hosts))


def _config_home(environ: Mapping[str, str]) -> str:
    return _absolute(environ.get("XDG_CONFIG_HOME")) or os.path.join(_home(environ), ".config")


def _absolute(path: str | None) -> str | None:
    # XDG: "All paths set in these environment variables must be absolute"; others are ignored.
    return path if path and os.path.isabs(path) else None


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")


def source_date_epoch(environ: Mapping[str, str]) -> int | None:
    """The time to write into images, where ``SOURCE_DATE_EPOCH`` gives one (reproducible-builds.org)."""
    text = environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        raise InvalidArgument("read SOURCE_DATE_EPOCH", f"not a number of seconds: {text[:40]!r}")
    return int(text)
