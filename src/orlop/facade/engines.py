"""Images out of other engines' stores: what their own ``save`` writes, read as it comes.

Their stores are never read past them: each engine knows its own, locks it, and may change its form.  The
layers come uncompressed, so they have the diff IDs that they have there, and what this store has is not
written again.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.linux.programs import find_helper
from orlop.linux.userns import privilege
from orlop.observe import Call

__all__ = ["ENGINES", "engine_of", "saved"]

# What stands before the colon -> the command that writes an archive to standard output.
ENGINES = {
    "podman": ("podman", "save", "--quiet", "--"),
    "docker": ("docker", "save", "--"),
}
_CHUNK = 1 << 20
_LOOK = 100  # milliseconds between looks at whether the call was cancelled
_MAX_WORDS = 4000  # bytes of what a program says when it fails


def engine_of(source: str) -> tuple[str, str] | None:
    """The engine and the image that ``podman:alpine`` names; None for anything else, which is a path."""
    engine, colon, image = source.partition(":")
    if not colon or engine not in ENGINES:
        return None
    if not image or image.startswith(("-", "/", "//")):
        raise InvalidArgument(f"import {source}", "no image is named", hint=f"write {engine}:alpine")
    return engine, image


def saved(engine: str, image: str, call: Call) -> Iterator[bytes]:
    """The archive that the engine saves of an image.

    Raises `FailedPrecondition` where it is not installed, or with its words where it fails.
    """
    what = f"import {engine}:{image}"
    program, *words = ENGINES[engine]
    found = find_helper(program)
    if found is None:
        raise FailedPrecondition(what, f"{program} is not installed")
    if privilege() in {"user-namespace", "single-id"}:
        raise FailedPrecondition(
            what,
            f"{program} has its images in a user namespace of its own",
            hint=f"{program} save {image} | orlop import -",
        )
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [found, *words, image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield from _read(process.stdout.fileno(), what, call)
        except BaseException:
            process.kill()
            raise
        if process.wait():
            raise FailedPrecondition(what, _words(said) or f"{program} ended with {process.returncode}")


def _read(fd: int, what: str, call: Call) -> Iterator[bytes]:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while True:
        call.check(what)
        if poller.poll(_LOOK):
            if not (chunk := os.read(fd, _CHUNK)):
                return
            yield chunk


def _words(said: IO[bytes]) -> str:
    """What the program said last."""
    said.seek(0)
    lines = said.read(_MAX_WORDS).decode("utf-8", "replace").split("\n")
    spoken = [line.strip() for line in lines if line.strip()]
    return spoken[-1] if spoken else ""
