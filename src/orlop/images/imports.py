"""What an import takes, and how: the values of `orlop.images.api.Images.load`.

A source is a path, or an iterable of bytes (an open file's chunks, a pipe's, a socket's), which is read once
and to its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import IO, Literal, get_args

from orlop.errors import InvalidArgument
from orlop.values import dataclass

__all__ = [
    "FORMATS",
    "ImportFormat",
    "ImportOptions",
    "ImportSource",
    "Named",
    "chunks_of",
    "said_of",
    "stem_of",
]

ImportFormat = Literal["oci", "docker", "rootfs"]
FORMATS: tuple[ImportFormat, ...] = get_args(ImportFormat)
ImportSource = str | Iterable[bytes]
CHUNK = 1 << 20
MAX_ID = 2**32 - 2  # user_namespaces(7): the last one means none


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """How to import.

    ``format`` says what the source is, instead of its content: an OCI layout, what ``docker save`` wrote, or
    a root file system.  ``replace`` moves names that mean other images.

    The rest is for a root file system alone, which has no config of its own: ``changes`` are Dockerfile
    instructions that make it (``CMD ["sh"]``), ``author``, ``message`` and ``created`` (seconds since 1970;
    None for now; not heeded of images, which have a time) go on record.  ``owner`` are the ids that
    everything of a folder gets, instead of its own; times in it later than ``newest`` (seconds since 1970)
    become that.
    """

    format: ImportFormat | None = None
    replace: bool = False
    changes: tuple[str, ...] = ()
    author: str = ""
    message: str = ""
    created: int | None = None
    owner: tuple[int, int] | None = None
    newest: int | None = None

    def check(self, attempted: str) -> None:
        """Raise `InvalidArgument` for what no import takes."""
        if self.format is not None and self.format not in FORMATS:
            raise InvalidArgument(
                attempted, f"no such format: {self.format!r}", hint=f"one of {', '.join(FORMATS)}"
            )
        if self.owner is not None and not all(0 <= number <= MAX_ID for number in self.owner):
            raise InvalidArgument(attempted, f"no ids: {self.owner[0]}:{self.owner[1]}")
        if self.format in ("oci", "docker"):
            self.check_plain(attempted)

    def check_plain(self, attempted: str) -> None:
        """Raise `InvalidArgument` for what only a root file system takes: images have a config already."""
        for name in ("changes", "author", "message", "owner"):
            if getattr(self, name):
                raise InvalidArgument(
                    attempted,
                    f"'{name}' is for root file systems, and this has images",
                    hint="import it, and commit the change",
                )


class Named:
    """A stream that has a file's name; images without names of their own get theirs from it."""

    def __init__(self, chunks: Iterable[bytes], stem: str) -> None:
        self._chunks = chunks
        self.stem = os.path.basename(stem)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


def chunks_of(source: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of an open file or a pipe, as they come, from where it stands; or of any iterable.

    Raises `InvalidArgument` where what comes is text.
    """
    read = getattr(source, "read1", None) or getattr(source, "read", None)
    for chunk in iter(partial(read, CHUNK), b"") if read is not None else source:
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise InvalidArgument("import -", "the source gives no bytes", hint="open it in binary mode")
        yield bytes(chunk)


def said_of(source: ImportSource) -> str:
    """A source in an error's words."""
    if isinstance(source, str):
        return f"import {source}"
    return f"import {stem_of(source) or '-'}"


def stem_of(source: ImportSource) -> str:
    """A source's own name, where it has one."""
    if isinstance(source, str):
        return os.path.basename(source)
    return source.stem if isinstance(source, Named) else ""
