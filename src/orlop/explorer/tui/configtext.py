"""An image's configuration as lines to be read, whatever JSON it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from orlop.explorer.tui.text import shown

__all__ = ["config_lines"]

_KNOWN = (  # OCI image-spec, config.md, "Properties"
    ("User", "user"),
    ("WorkingDir", "folder"),
    ("Entrypoint", "entrypoint"),
    ("Cmd", "command"),
    ("Shell", "shell"),
    ("StopSignal", "stop signal"),
    ("ExposedPorts", "ports"),
    ("Volumes", "volumes"),
    ("Env", "environment"),
    ("Labels", "labels"),
    ("Healthcheck", "health check"),
    ("OnBuild", "on build"),
)
_ABOVE = (
    ("os", "system"),
    ("architecture", "architecture"),
    ("variant", "variant"),
    ("os.version", "version"),
    ("created", "created"),
    ("author", "author"),
)
_MOST = 500  # values of one name that are shown
_LONGEST = 4_000  # characters of one value that are shown
_NOT_HERE = {"rootfs", "history"}  # the layers' list and the history's have them


def config_lines(config: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Titles, and what stands under each: what one looks for first at first, what nobody knows at the end."""
    inner = config.get("config")
    inside: dict[str, Any] = inner if isinstance(inner, dict) else {}
    for known, values in ((_KNOWN, inside), (_ABOVE, config)):
        for key, title in known:
            lines = list(_lines(values.get(key)))
            if lines:
                yield title, lines
    for values, known in ((inside, _KNOWN), (config, _ABOVE)):
        names = {name for name, _ in known} | (_NOT_HERE | {"config"} if values is config else set())
        for key, value in values.items():
            lines = list(_lines(value))
            if key not in names and lines:
                yield shown(key)[:_LONGEST], lines


def _lines(value: object) -> Iterator[str]:
    """A value, each part of it on a line."""
    if isinstance(value, dict):
        items = [f"{key}={_one(item)}" if item not in ({}, None) else key for key, item in value.items()]
    elif isinstance(value, list):
        items = [_one(item) for item in value]
    else:
        items = [] if value in (None, "", False) else [_one(value)]
    for item in items[:_MOST]:
        yield shown(item[:_LONGEST]) + (" …" if len(item) > _LONGEST else "")
    if len(items) > _MOST:
        yield f"and {len(items) - _MOST:,} more"


def _one(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except RecursionError:
        return "(too deep to be shown)"
