"""What the command line takes from the environment: folders, credentials files, insecure registries.

Pure functions of a mapping and a user id, so that nothing below reads the environment.  Folders are
those of the XDG Base Directory Specification; credentials files those of containers-auth.json(5), which
podman, buildah and skopeo share, and of docker.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from orlop.errors import FailedPrecondition

__all__ = ["auth_files", "default_root", "default_run", "registries"]


def default_root(environ: Mapping[str, str], uid: int) -> str:
    """Where images are kept: /var/lib/orlop for root, else below ``$XDG_DATA_HOME``."""
    if uid == 0:
        from orlop.facade import DEFAULT_ROOT

        return DEFAULT_ROOT
    base = _absolute(environ.get("XDG_DATA_HOME")) or os.path.join(_home(environ), ".local", "share")
    return os.path.join(base, "orlop")


def default_run(environ: Mapping[str, str], uid: int) -> str:
    """Where mount points are kept: /run/orlop for root, else below ``$XDG_RUNTIME_DIR``.

    Raises `FailedPrecondition` where that is not set: a folder of a guessable name in /tmp would be
    anybody's to make.
    """
    if uid == 0:
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


def auth_files(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Files with registry credentials, the first match wins; they need not exist.

    ``$REGISTRY_AUTH_FILE`` stands alone where it is set.  Otherwise, in containers-auth.json(5)'s
    order: ``$XDG_RUNTIME_DIR/containers/auth.json`` (podman login),
    ``$XDG_CONFIG_HOME/containers/auth.json`` (~/.config), then docker's
    ``$DOCKER_CONFIG/config.json`` (~/.docker).
    """
    only = environ.get("REGISTRY_AUTH_FILE")
    if only:
        return (os.path.abspath(only),)
    home = _home(environ)
    found = []
    runtime = _absolute(environ.get("XDG_RUNTIME_DIR"))
    if runtime is not None:
        found.append(os.path.join(runtime, "containers", "auth.json"))
    config = _absolute(environ.get("XDG_CONFIG_HOME")) or os.path.join(home, ".config")
    found.append(os.path.join(config, "containers", "auth.json"))
    docker = environ.get("DOCKER_CONFIG") or os.path.join(home, ".docker")
    found.append(os.path.join(os.path.abspath(docker), "config.json"))
    return tuple(found)


def registries(values: Iterable[str]) -> tuple[str, ...]:
    """Registry hosts out of options and of a list with commas or spaces, each once, in order."""
    hosts = (host for value in values for host in re.split(r"[,\s]+", value) if host)
    return tuple(dict.fromkeys(hosts))


def _absolute(path: str | None) -> str | None:
    # XDG: "All paths set in these environment variables must be absolute"; others are ignored.
    return path if path and os.path.isabs(path) else None


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")
