"""Export: images and roots as files that others read.  The contract and its values.

Not where the bytes end up: a verb writes them to a *sink*, and `orlop.images.archives.destination` makes a
file or a folder of them, on the side of whoever asked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, get_args

from orlop.errors import InvalidArgument
from orlop.hints import Protocol
from orlop.observe import Call
from orlop.values import dataclass

__all__ = [
    "EXPORT_FORMATS",
    "IMAGE_FORMATS",
    "ExportFormat",
    "ExportOptions",
    "Exported",
    "Exports",
    "Sink",
    "guess_format",
    "is_root_path",
]

ExportFormat = Literal["oci", "oci-dir", "docker", "tar", "erofs", "squashfs", "ext4"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
IMAGE_FORMATS: tuple[ExportFormat, ...] = ("oci", "oci-dir", "docker")
"""Those that hold images, and many of them; the others hold one file system."""

_SUFFIXES: tuple[tuple[str, ExportFormat], ...] = (
    (".docker.tar", "docker"),
    (".docker", "docker"),
    (".oci.tar", "oci"),
    (".oci", "oci"),
    (".erofs", "erofs"),
    (".squashfs", "squashfs"),
    (".sqfs", "squashfs"),
    (".sqsh", "squashfs"),
    (".ext4", "ext4"),
)
_PACKED = (".gz", ".tgz", ".zst", ".xz", ".bz2")


class Sink(Protocol):
    """Where an export's bytes go, in order.  A file opened for writing is one."""

    def write(self, data: bytes, /) -> object:
        """Take bytes; a number less than there were says that the rest is to be written again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to write.

    ``format``: ``oci`` is an OCI layout as a tar, ``oci-dir`` the same, to be unpacked into a folder,
    ``docker`` what `docker save` writes; these hold any number of images.  ``tar`` is a plain tar of one root
    file system, ``erofs``, ``squashfs`` and ``ext4`` are file system images of one.
    ``platform`` is ``os/arch[/variant]``, of the images that names hold; ``all_platforms`` exports their
    indexes with all that is in them.  ``recompress`` allows a new digest where a blob cannot be had
    otherwise.  ``compression`` (``gzip``, ``zstd``, ``none``) and ``level`` are for layers that orlop
    compresses, as for `push`.
    ``created`` is the time that a file system image says it was made, in seconds since 1970
    (SOURCE_DATE_EPOCH); None takes the image's own.  ``size`` is the bytes of an ext4 image; None makes it as
    large as its files need.
    """

    format: ExportFormat = "oci"
    platform: str | None = None
    all_platforms: bool = False
    recompress: bool = False
    compression: str | None = None
    level: int | None = None
    created: int | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written: names (or a root's path) and for each the digest that it has there.

    That is the manifest's or the index's digest, in a docker archive the image's ID, of a file system
    nothing.  ``size`` is in bytes.  ``path`` is where it was put, empty for a stream.
    """

    format: str
    names: tuple[str, ...]
    digests: tuple[str, ...] = ()
    size: int = 0
    path: str = ""


class Exports(Protocol):
    """The way out."""

    def export(
        self, things: Sequence[str], out: Sink, *, options: ExportOptions = ..., call: Call = ...
    ) -> Exported:
        """Write images, or one image's or prepared root's file system, to ``out``.

        The digest of an image whose manifest is known never changes, unless ``recompress``: raises
        `FailedPrecondition` naming a blob that cannot be had.  An image without a manifest gets one, which
        the store remembers, as `push` does.  The same images give the same bytes.  What was written when
        this raises is not whole and must not be kept.
        """
        ...


def is_root_path(thing: str) -> bool:
    """Whether a thing to export is a prepared root: its path begins with a slash, as no name does."""
    return thing.startswith("/")


def guess_format(things: Sequence[str], destination: str, attempted: str) -> ExportFormat:
    """The format that a file's name asks for; else an OCI layout of images, a tar of a root.

    Raises `InvalidArgument` for a name that promises a compressed file.

    >>> guess_format(["alpine"], "a.tar", ""), guess_format(["/srv/a"], "a.tar", "")
    ('oci', 'tar')
    >>> guess_format(["alpine"], "layout/", ""), guess_format(["alpine"], "rootfs.squashfs", "")
    ('oci-dir', 'squashfs')
    """
    lowered = destination.lower()
    if lowered.endswith(_PACKED):
        raise InvalidArgument(
            attempted,
            "what is written is not compressed as a whole",
            hint="write to standard output (-o -) and through gzip or zstd",
        )
    of_root = any(is_root_path(thing) for thing in things)
    if not of_root and (destination.endswith("/") or os.path.isdir(destination)):
        return "oci-dir"
    for suffix, found in _SUFFIXES:
        if lowered.endswith(suffix):
            return found
    return "tar" if of_root else "oci"
