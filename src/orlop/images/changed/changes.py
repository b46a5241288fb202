"""Dockerfile instructions that edit an image's config: what ``commit --change`` takes.

Source: Docker's ``docker commit --change`` (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME,
WORKDIR); the fields are those of the image spec's config.md.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from orlop.errors import InvalidArgument

__all__ = ["apply_change", "is_text"]

_KNOWN = ("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")


def apply_change(config: dict[str, Any], instruction: str) -> None:
    """Apply one instruction to the ``config`` object of an image, in place.

    Raises `InvalidArgument` for an instruction that is not understood or not UTF-8.
    """
    word, _, rest = instruction.strip().partition(" ")
    word, rest = word.upper(), rest.strip()
    what = f"change config by {instruction[:100]!r}"
    if not is_text(instruction):
        raise InvalidArgument(what, "it is not UTF-8")
    if word not in _KNOWN:
        raise InvalidArgument(what, f"unknown instruction {word!r}", hint=f"one of {', '.join(_KNOWN)}")
    if not rest:
        raise InvalidArgument(what, "it says nothing")
    if word in ("CMD", "ENTRYPOINT"):
        config[word.capitalize()] = _command(rest, what)
        if word == "ENTRYPOINT":
            config.pop("Cmd", None)
    elif word == "ENV":
        pairs = _pairs(rest, what)
        kept = [entry for entry in config.get("Env") or [] if entry.partition("=")[0] not in pairs]
        config["Env"] = kept + [f"{key}={value}" for key, value in pairs.items()]
    elif word == "LABEL":
        config["Labels"] = {**(config.get("Labels") or {}), **_pairs(rest, what)}
    elif word == "EXPOSE":
        ports: dict[str, Any] = {port if "/" in port else f"{port}/tcp": {} for port in rest.split()}
        config["ExposedPorts"] = {**(config.get("ExposedPorts") or {}), **ports}
    elif word == "VOLUME":
        volumes = _strings(rest, what) if rest.startswith("[") else rest.split()
        config["Volumes"] = {**(config.get("Volumes") or {}), **{path: {} for path in volumes}}
    else:
        config[{"STOPSIGNAL": "StopSignal", "USER": "User", "WORKDIR": "WorkingDir"}[word]] = rest


def is_text(text: str) -> bool:
    """Whether a text can stand in a document: arguments may hold bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _command(text: str, what: str) -> list[str]:
    """A command in its JSON form, or a line for the shell."""
    return _strings(text, what) if text.startswith("[") else ["/bin/sh", "-c", text]


def _strings(text: str, what: str) -> list[str]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(what, f"not a JSON list: {exc}") from exc
    if not isinstance(parsed, list) or not all(isinstance(part, str) for part in parsed):
        raise InvalidArgument(what, "not a list of strings")
    return parsed


def _pairs(text: str, what: str) -> dict[str, str]:
    """``a=b c="d e"``, or the old form ``a b``."""
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise InvalidArgument(what, str(exc)) from exc
    if words[0] and "=" not in words[0] and not text.startswith(("'", '"')):
        key, _, value = text.partition(" ")
        return {key: value.strip()}
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidArgument(what, f"not KEY=VALUE: {word!r}")
        pairs[key] = value
    return pairs
