"""The driver protocol: how a root that stands on a chain becomes mounts.

A driver is told what a root stands on (`Ground`), which others have made ready: chains' EROFS images, layers'
folders.  It makes the writable part, says which mounts assemble the root, recognises its own mounts, and
knows whether the root is in use.  Drivers do not see each other, and none of them knows an image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from orlop.config import Driver as DriverName
from orlop.errors import InvalidArgument
from orlop.hints import Protocol
from orlop.linux.mountinfo import MountEntry
from orlop.linux.sync import Sync
from orlop.values import dataclass

__all__ = ["ChainImage", "Driver", "Fill", "Ground", "MountSpec", "Root", "Table", "check_self_contained"]

Table = Mapping[int, MountEntry]  # our mounts by ID

_ODD = re.compile(r"[,:\\\"\s]")  # what a mount option would need to escape


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainImage:
    """One EROFS image of a chain: its file, and the data its device numbers mean, in order."""

    id: str
    file: Path
    uuid: bytes
    devices: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """One mount to perform, in mount(2)'s terms."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a root stands on, top first: the chain's images, or folders that are stacked.

    Images are active and folders whole as long as whoever made the ground holds it.
    """

    images: tuple[ChainImage, ...] = ()
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One root in a driver's terms.

    ``folder`` is its own under ``prepared``, as the mounts are to name it (through an id-mapped mount
    where ids are mapped); ``marks`` the prefix of overlayfs's xattrs; ``mapping`` names its id mapping.
    """

    id: str
    target: str
    folder: Path
    view: bool = False
    self_contained: bool = False
    marks: str = "trusted.overlay."
    mapping: str = ""


class Fill(Protocol):
    """Makes a new folder what the image's root is: a copy of the whole tree, or the root's own metadata."""

    def __call__(self, folder: Path, *, whole: bool) -> None:
        """Fill a folder; durable on return."""
        ...


class Driver(Protocol):
    """How roots of one kind are assembled.  Thread-safe; locking by path is the caller's.

    Every method raises the classes of `orlop.errors`.
    """

    name: DriverName

    def create(self, root: Root, fill: Fill, *, sync: Sync | None = None) -> None:
        """Make the writable part of a root that is no view, in ``root.folder``; durable on return.

        ``sync`` is used in place of the store's own: who makes many roots has them durable together.
        On failure the caller discards the folder.
        """
        ...

    def mounts(self, root: Root, ground: Ground) -> list[MountSpec]:
        """The mounts that assemble the root at its target, in order.

        Raises `FailedPrecondition` where they cannot be expressed.
        """
        ...

    def shows(self, root: Root, ground: Ground, place: str, *, table: Table | None = None) -> bool:
        """Whether the mount on top at a place, in this mount namespace, is one of the root's own.

        Told by what is mounted, so that nobody else's mount is taken for ours, whatever a row says.
        ``table`` is what a caller who asks about many roots has read; without it the kernel is asked.
        """
        ...

    def in_use(self, root: Root) -> bool:
        """Whether anybody on this machine uses the root's writable part, as far as can be known.

        Two of these for one root must not overlap.
        """
        ...

    def untouched(self, root: Root) -> bool:
        """Whether nobody has mounted the root since it was made, and nothing was written to it.

        Cheap, and no where it is not known: then `in_use` is to be asked before the folder goes.
        """
        ...

    def upper(self, root: Root) -> Path:
        """The folder that holds what was written: an overlay's upper, or the whole tree."""
        ...


def check_self_contained(root: Root) -> None:
    """Refuse a target that could not stand in a mount option.  Raises `InvalidArgument`."""
    if _ODD.search(root.target):
        raise InvalidArgument(
            f"prepare {root.target}",
            "the path of a self-contained root may hold no comma, colon, backslash, quote or white space",
            hint="choose another path, or prepare it without self_contained",
        )
