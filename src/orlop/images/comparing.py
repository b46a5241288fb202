"""Comparing what is in images, layers and prepared roots, and asking where it came from: contract and values.

Nothing is mounted.  A *thing* is what `orlop.images.contents` says, and so are paths.  Layers are numbered as
people count them: 1 is the lowest.
"""

from __future__ import annotations

from collections.abc import Generator

from orlop.hints import Literal, Protocol
from orlop.images.contents import FileInfo
from orlop.observe import Call
from orlop.values import dataclass

__all__ = [
    "Blame",
    "BlameStep",
    "Comparing",
    "Difference",
    "HistoryLine",
    "How",
    "LayerWaste",
    "TreeLine",
    "Waste",
    "WastedFile",
    "What",
]

What = Literal["added", "changed", "deleted"]
How = Literal["entry", "link", "implied", "whiteout", "opaque", "replaced", "written"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One path at which two things differ.

    ``old`` is what the first has there, ``new`` what the second has, None for nothing.  ``fields`` say in
    what the two differ where both have something: ``type``, ``mode``, ``owner``, ``mtime``, ``xattrs``,
    ``target`` (of a symlink), ``device`` (its numbers), ``content``; the last three only where the type is
    the same.
    """

    path: bytes
    what: What
    fields: tuple[str, ...] = ()
    old: FileInfo | None = None
    new: FileInfo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """One line of an image's history, and the layer that it is about.

    ``layer`` is 0 for a line without a layer.  ``created`` is RFC 3339.  ``size`` counts the bytes of the
    layer's tar, ``entries`` what is in it.
    """

    layer: int = 0
    diff_id: str = ""
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    size: int = 0
    entries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlameStep:
    """What one layer did to a path.

    ``line`` is the layer, and the line of the history that is about it; where the changes of a prepared root
    did it, its layer is 0.  ``file`` is what shows at the path from there on, None once it is deleted.

    ``how`` says what in the layer did it: an ``entry`` of its own; a hard ``link``; ``implied``, a folder
    that is there because of what is in it; gone by a ``whiteout``, by an ``opaque`` mark, or since something
    else ``replaced`` a folder above; ``written`` in a prepared root.  ``at`` is the path that this is about:
    that of the whiteout, of the marked folder, of what replaced one.  For a hard link ``source`` is the path
    that the file has in the layer that brought it, whose number is ``source_layer``.
    """

    what: What
    how: How
    line: HistoryLine
    at: bytes = b""
    file: FileInfo | None = None
    source: bytes = b""
    source_layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """What became of one path, from the lowest layer to the highest; those that left it alone are not listed.

    ``path`` is what was asked for with the symlinks above its last name followed.
    """

    path: bytes
    steps: tuple[BlameStep, ...]

    @property
    def file(self) -> FileInfo | None:
        """What shows at the path; None if it is gone."""
        return self.steps[-1].file if self.steps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeLine:
    """One name of a tree, and what is below it.

    ``total`` counts the bytes of the regular files at and below it, each once however many names it has,
    and ``entries`` the names below it.  ``layer`` is the one that brought it, 0 if that was not asked for, or
    if a prepared root's changes did.  ``depth`` counts the folders between it and where the listing begins.
    """

    file: FileInfo
    total: int
    entries: int = 0
    layer: int = 0
    depth: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWaste:
    """What of one layer nothing shows any more, since layers above it hide or delete it.

    ``size`` counts the bytes of all its regular files, without holes, ``wasted`` those of the files that are
    hidden.  ``entries`` are the files, folders, symlinks and devices that are hidden, ``files`` the regular
    files among them; a file is one, however many names it has, and is hidden when all of them are.
    """

    line: HistoryLine
    size: int
    wasted: int
    entries: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WastedFile:
    """A regular file of ``layer`` that nothing shows any more; ``hidden_by`` is the layer that hid it.

    ``what`` tells whether that layer has something else in its place, or deleted it.
    """

    path: bytes
    size: int
    layer: int
    hidden_by: int
    what: What


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What of an image's layers nothing shows any more: by layer, lowest first, and the largest files."""

    layers: tuple[LayerWaste, ...]
    files: tuple[WastedFile, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of all regular files of all layers, without holes."""
        return sum(layer.size for layer in self.layers)

    @property
    def wasted(self) -> int:
        """Those of them that nothing shows."""
        return sum(layer.wasted for layer in self.layers)

    @property
    def efficiency(self) -> float:
        """The share of the bytes that shows: 1.0 for an image of which nothing is hidden."""
        return 1 - self.wasted / self.size if self.size else 1.0


class Comparing(Protocol):
    """What differs, and where it came from.  Thread-safe.

    Generators are as `orlop.images.contents.Contents` has them.
    """

    def diff(
        self,
        old: str,
        new: str | None = None,
        *,
        path: bytes = b"",
        times: bool = True,
        platform: str | None = None,
        call: Call = ...,
    ) -> Generator[Difference]:
        """What of ``new`` differs from ``old`` at and below a path: each folder before what is in it.

        Names stand in byte order.
        With a prepared root alone: what changed there since its image.  Without ``times`` a difference of
        mtimes alone is none.  All that was below a folder that is gone is listed, too.  Which names share an
        inode is not compared.  Raises `InvalidArgument` for an image or a layer alone.
        """
        ...

    def blame(self, thing: str, path: bytes, *, platform: str | None = None, call: Call = ...) -> Blame:
        """Which layers brought, changed and deleted a path.

        Raises `NotFound` for a path that no layer ever had.
        """
        ...

    def history(self, thing: str, *, platform: str | None = None, call: Call = ...) -> list[HistoryLine]:
        """The history of an image, oldest first, each line with its layer.

        Layers that no line is about have one of their own at the end.  Of a prepared root that of its image.
        """
        ...

    def tree(
        self,
        thing: str,
        path: bytes = b"",
        *,
        depth: int | None = None,
        layers: bool = False,
        platform: str | None = None,
        call: Call = ...,
    ) -> Generator[TreeLine]:
        """What is at and below a path, ``depth`` folders deep, depth first, names in byte order.

        Sizes count all that is below, whatever the depth.  With ``layers`` each line tells its layer.
        """
        ...

    def waste(self, thing: str, *, files: int = 10, platform: str | None = None, call: Call = ...) -> Waste:
        """What of an image's layers nothing shows any more, and the largest ``files`` of it."""
        ...
