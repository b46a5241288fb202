"""What `orlop run` is told, as docker's users write it: variables, volumes, entrypoints, names.

Texts in, values out; nothing is started.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping

from orlop.errors import InvalidArgument, NotFound, from_oserror
from orlop.images.running.bundle import Volume

__all__ = ["container_name", "entrypoint_of", "environment", "volume_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ATTEMPTED = "run container"


def environment(
    variables: Iterable[str], files: Iterable[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """``NAME=value`` texts out of ``--env-file`` and ``-e``; what comes later wins.

    A bare NAME takes this process's value, or is left out where there is none.
    """
    lines = [line for file in files for line in _env_file(file)]
    found = []
    for text in [*lines, *variables]:
        name, equals, _ = text.partition("=")
        if not name:
            raise InvalidArgument(_ATTEMPTED, f"a variable without a name: {text!r}", hint="write NAME=value")
        if equals:
            found.append(text)
        elif name in environ:
            found.append(f"{name}={environ[name]}")
    return tuple(found)


def _env_file(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"read {path}", "the file is not UTF-8") from exc
    except OSError as exc:
        raise from_oserror(f"read {path}", exc) from exc
    return [line.lstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def volume_of(text: str) -> Volume:
    """A volume out of ``SOURCE:TARGET[:ro]``.

    SOURCE exists and is absolute or begins with a dot; docker's volumes with a name are not known here.
    """
    parts = text.split(":")
    attempted = f"mount volume {text!r}"
    if len(parts) not in {2, 3} or not parts[0] or not parts[1]:
        raise InvalidArgument(attempted, "not a volume", hint="write it as SOURCE:TARGET or SOURCE:TARGET:ro")
    options = parts[2].split(",") if len(parts) == 3 else []
    unknown = [option for option in options if option not in {"ro", "rw"}]
    if unknown:
        raise InvalidArgument(attempted, f"no such option: {unknown[0]!r}", hint="ro and rw are known")
    if not parts[0].startswith(("/", ".")):
        raise InvalidArgument(attempted, "the source is not a path", hint=f"for a folder here write ./{text}")
    source = os.path.abspath(parts[0])
    if not os.path.exists(source):
        raise NotFound(attempted, f"{source} does not exist")
    return Volume(source=source, target=parts[1], read_only="ro" in options)


def entrypoint_of(text: str | None) -> tuple[str, ...] | None:
    """An entrypoint out of a program's name or a JSON list; an empty text clears the image's."""
    if text is None:
        return None
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"use entrypoint {text[:100]!r}", f"not JSON: {exc}") from exc
    if not all(isinstance(word, str) for word in words):
        raise InvalidArgument(f"use entrypoint {text!r}", "not a list of texts")
    return tuple(words)


def container_name(text: str) -> str:
    """A name that is also a folder's and a container's.  Raises `InvalidArgument`."""
    if not _NAME.fullmatch(text):
        raise InvalidArgument(
            f"use name {text!r}", "not a container's name", hint="letters, digits, '_', '.' and '-'"
        )
    return text
