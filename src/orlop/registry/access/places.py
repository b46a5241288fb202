"""Where users keep credentials for registries: podman's files, then Docker's.

Apart from `orlop.registry.access.credentials`, which reads them: every command asks where they are, and few
what is in them.  Imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["usual_files"]


def usual_files(environment: Mapping[str, str], *, uid: int) -> tuple[str, ...]:
    """The files that count, the first match wins; they need not exist.

    ``$REGISTRY_AUTH_FILE``, where set, is the only one.  Else ``$XDG_RUNTIME_DIR/containers/auth.json``
    (``/run/containers/<uid>`` without it), ``$XDG_CONFIG_HOME/containers/auth.json`` (``~/.config``
    without it), and ``$DOCKER_CONFIG/config.json`` (``~/.docker`` without it).
    """
    if only := environment.get("REGISTRY_AUTH_FILE"):
        return (only,)
    runtime = environment.get("XDG_RUNTIME_DIR")
    files = [f"{runtime}/containers/auth.json" if runtime else f"/run/containers/{uid}/auth.json"]
    home = environment.get("HOME", "")
    if config := environment.get("XDG_CONFIG_HOME") or (home and f"{home}/.config"):
        files.append(f"{config}/containers/auth.json")
    if docker := environment.get("DOCKER_CONFIG") or (home and f"{home}/.docker"):
        files.append(f"{docker}/config.json")
    return tuple(files)
