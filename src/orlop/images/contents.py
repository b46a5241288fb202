"""Asking what is in images, layers and prepared roots, without mounting them: the contract and its values.

A *thing* is an image's name or ID, the diff ID of a layer, or the absolute path of a prepared root.  Behind
an image's name or ID, ``#N`` says that its lowest N layers are meant: what the image was when it had no
more (``#0`` is an empty root).  Paths in a thing are bytes, from its root, with or without slashes around
them; names inside images need be no Unicode.  No path leads out of a thing: ``..`` stops at its root, and
symlinks on the way begin there.
"""

from __future__ import annotations

import stat
from collections.abc import Generator, Iterable, Sequence

from orlop.hints import Literal, Protocol
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["KINDS", "Contents", "FileInfo", "FileKind", "FindOptions", "Found", "kind_of"]

FileKind = Literal["file", "folder", "symlink", "char", "block", "fifo"]
_KINDS: dict[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One name of a tree, and the file that it means.

    ``path`` has no leading slash, and is empty for the root.  ``mode`` is a whole st_mode; ``mtime`` is in
    seconds since 1970, ``nsec`` its nanoseconds.  ``size`` counts the bytes of a file or of a symlink's
    ``target``; ``links`` a file's names (1 for folders); ``device`` is a device's major and minor number.
    ``xattrs`` are names and values, sorted.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    nsec: int = 0
    links: int = 1
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def kind(self) -> FileKind:
        """What it is."""
        return kind_of(self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file that `Contents.find_files` found.

    ``names`` are those of the thing: of an image, if all were looked into, all that mean these layers, and
    ``image_id`` is its ID then.
    """

    names: tuple[str, ...]
    file: FileInfo
    image_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindOptions:
    """What beside its name a file must be: of one of these kinds (none: of any), and so large.

    ``least`` and ``most`` are bytes; with either only files are found.  ``platform`` is for one image.
    """

    kinds: tuple[FileKind, ...] = ()
    least: int | None = None
    most: int | None = None
    platform: str | None = None


def kind_of(mode: int) -> FileKind:
    """What a whole st_mode says that a file is."""
    return _KINDS.get(stat.S_IFMT(mode), "file")


KINDS: tuple[FileKind, ...] = tuple(_KINDS.values())
"""All kinds that there are."""


class Contents(Protocol):
    """What is in things.  Thread-safe.

    Results that may be long are generators: nothing is read before it is asked for, and an error may come
    late.  Close one that is not read to its end (`contextlib.closing`).  Raises `NotFound` for a thing or a
    path that is not there.
    """

    def list_files(
        self,
        thing: str,
        path: bytes = b"",
        *,
        recursive: bool = False,
        itself: bool = False,
        platform: str | None = None,
        call: Call = ...,
    ) -> Generator[FileInfo]:
        """The entries of a folder, names in byte order; with ``recursive`` all below it, depth first.

        Of what is no folder, and with ``itself`` of a folder too, that alone.  A symlink to a folder is
        followed, unless ``itself``.
        """
        ...

    def read_files(
        self, thing: str, paths: Sequence[bytes], *, platform: str | None = None, call: Call = ...
    ) -> Generator[bytes]:
        """The bytes of regular files, one after the other, holes as zeros, at most 1 MiB at a time.

        Symlinks are followed.  Raises `InvalidArgument` before the first byte where one is no regular file.
        """
        ...

    def find_files(
        self, thing: str | None, pattern: bytes, *, options: FindOptions = ..., call: Call = ...
    ) -> Generator[Found]:
        """The files whose name matches a glob pattern, or whose whole path does if there is a slash in it.

        `orlop.images.browsing.globs` has the rules.  In one thing, depth first, or with None in all images,
        by name: there images of the same layers are one, and a layer is read once however many have it.
        """
        ...

    def read_archive(
        self,
        thing: str,
        path: bytes,
        *,
        follow: bool = False,
        platform: str | None = None,
        call: Call = ...,
    ) -> Generator[bytes]:
        """A file or a folder with all below it, as a tar, in chunks of at most some MiB.

        Names in it begin with the last part of ``path``; those of the content of a folder (``/etc/.``, ``/``)
        with ``./``.  A symlink at the path itself is one, unless ``follow`` or a slash behind it.  Sparse
        files stay so (GNU's form 1.0).  The thing is kept meanwhile.
        """
        ...

    def write_archive(
        self,
        root: str,
        path: bytes,
        data: Iterable[bytes],
        *,
        archive: bool = False,
        content: bool = False,
        call: Call = ...,
    ) -> None:
        """Unpack a tar at a path inside a prepared root, as `read_archive` made it.

        ``path`` is a folder that the copy is put into, or the new name of what is copied, in a folder that is
        there.  With ``content`` it is a folder, and the tar any.  Symlinks in ``path`` are followed within
        the root, those in the way of the tar's own names never.  With ``archive`` owners, devices and all
        xattrs are kept; else all belongs to the root's own root user, without setuid and setgid bits.

        Raises `FailedPrecondition` for a view, where something else is in the way, and for a root that is in
        use but not mounted where the service sees it; what was written before an error stays.
        """
        ...
