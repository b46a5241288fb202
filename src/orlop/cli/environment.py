"""What the command line takes from the environment: folders, credentials files, insecure registries.

Functions of a mapping and a user id, so that nothing below reads the environment.  Folders are those
of the XDG Base Directory Specification; in a user namespace, where everybody is root, those of the user
outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

from orlop.errors import FailedPrecondition, InvalidArgument

__all__ = [
    "auth_files",
    "config_files",
    "default_root",
    "default_run",
    "registries",
    "source_date_epoch",
    "whose",
]

SYSTEM_CONFIG = "/etc/orlop/config.toml"
# What `orlop.rootless` and `podman unshare` leave there: who one is outside.
_OUTER_UIDS = ("_ORLOP_UID", "_CONTAINERS_ROOTLESS_UID")


def whose(environ: Mapping[str, str], uid: int, *, initial: Callable[[], bool] | None = None) -> int:
    """The user whose folders are meant: for root of a user's namespace that user, else ``uid``.

    ``initial`` says whether we are in the machine's first user namespace.  There the environment is not
    asked, as sudo may have handed it on.
    """
    if uid != 0:
        return uid
    from orlop.linux.userns import in_initial_namespace

    for name in _OUTER_UIDS:
        outer = environ.get(name, "")
        if outer.isascii() and outer.isdigit() and int(outer) != 0:
            return uid if (initial or in_initial_namespace)() else int(outer)
    return uid


def default_root(environ: Mapping[str, str], uid: int) -> str:
    """Where images are kept: /var/lib/orlop for root, else below ``$XDG_DATA_HOME``."""
    if whose(environ, uid) == 0:
        from orlop.facade import DEFAULT_ROOT

        return DEFAULT_ROOT
    base = _absolute(environ.get("XDG_DATA_HOME")) or os.path.join(_home(environ), ".local", "share")
    return os.path.join(base, "orlop")


def default_run(environ: Mapping[str, str], uid: int) -> str:
    """Where mount points are kept: /run/orlop for root, else below ``$XDG_RUNTIME_DIR``.

    Raises `FailedPrecondition` where that is not set: a folder of a guessable name in /tmp would be
    anybody's to make.
    """
    if whose(environ, uid) == 0:
        from orlop.facade import DEFAULT_RUN

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

    `orlop.registry.credentials.usual_sources` has the order: podman's files, then docker's.
    """
    from orlop.registry.credentials import usual_sources

    return usual_sources(environ, uid=whose(environ, uid)).files


def config_files(environ: Mapping[str, str]) -> tuple[str, str]:
    """The system's configuration file and the user's; neither need exist."""
    base = _absolute(environ.get("XDG_CONFIG_HOME")) or os.path.join(_home(environ), ".config")
    return SYSTEM_CONFIG, os.path.join(base, "orlop", "config.toml")


def registries(values: Iterable[str]) -> tuple[str, ...]:
    """Registry hosts out of options and of a list with commas or spaces, each once, in order."""
    hosts = (host for value in values for host in re.split(r"[,\s]+", value) if host)
    return tuple(dict.fromkeys(hosts))


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
    if not text.isdigit() or len(text) > 12:
        raise InvalidArgument("read SOURCE_DATE_EPOCH", f"not a number of seconds: {text[:40]!r}")
    return int(text)
