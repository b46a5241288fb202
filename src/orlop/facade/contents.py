"""What is in images, layers and prepared roots, in Python's terms: a part of `orlop.Store`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable

from orlop.hints import TYPE_CHECKING
from orlop.observe import Call

if TYPE_CHECKING:
    from orlop.images.api import PreparedInfo
    from orlop.images.api import Store as StoreVerbs
    from orlop.images.contents import FileInfo, FileKind, Found

__all__ = ["PreparedContents", "StoreContents"]

StrPath = str | bytes | os.PathLike[str]


class StoreContents:
    """Looking into things without mounting them.

    A thing is an image's name or ID, with ``#N`` behind it its lowest N layers, a layer's diff ID, or the
    path of a prepared root.  Paths inside of it are from its root, as text or bytes.
    `orlop.images.contents` has each verb's contract.
    """

    verbs: StoreVerbs

    def ls(
        self,
        thing: str | os.PathLike[str],
        path: StrPath = "/",
        *,
        recursive: bool = False,
        itself: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[FileInfo]:
        """The entries of a folder, or of anything else that alone; as they are found.

        Raises `NotFound` for a thing or a path that is not there.

        >>> [(file.path, file.kind, file.size) for file in store.ls("alpine", "/etc")]
        [(b'etc/motd', 'file', 6)]
        """
        return self.verbs.list_files(
            os.fspath(thing),
            os.fsencode(path),
            recursive=recursive,
            itself=itself,
            platform=platform,
            call=call or Call(),
        )

    def cat(
        self,
        thing: str | os.PathLike[str],
        *paths: StrPath,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[bytes]:
        r"""The bytes of files, one after the other, in chunks of at most 1 MiB.

        >>> b"".join(store.cat("alpine", "/etc/motd"))
        b'hello\n'
        """
        names = [os.fsencode(path) for path in paths]
        return self.verbs.read_files(os.fspath(thing), names, platform=platform, call=call or Call())

    def find(
        self,
        pattern: StrPath,
        thing: str | os.PathLike[str] | None = None,
        *,
        kinds: Iterable[FileKind] = (),
        least: int | None = None,
        most: int | None = None,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[Found]:
        """The files whose name matches a glob pattern, or whose path if it has a slash.

        In one thing, or in all images.  ``kinds`` are those wanted (none: all), ``least`` and ``most`` sizes
        of files in bytes.

        >>> [(found.names[0], found.file.path) for found in store.find("mot*", kinds=["file"])]
        [('docker.io/library/alpine:latest', b'etc/motd')]
        """
        from orlop.images.contents import FindOptions

        options = FindOptions(kinds=tuple(kinds), least=least, most=most, platform=platform)
        where = None if thing is None else os.fspath(thing)
        return self.verbs.find_files(where, os.fsencode(pattern), options=options, call=call or Call())

    def copy_out(
        self,
        thing: str | os.PathLike[str],
        path: StrPath,
        dest: StrPath,
        *,
        archive: bool = False,
        follow: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> None:
        r"""Copy a file or a folder of a thing to a path of this machine, as cp(1) and ``docker cp`` do.

        Into ``dest`` if that is a folder, else to that name; of ``/etc/.`` what is in it.  With ``archive``
        owners, devices, setuid bits and all xattrs are kept, as far as the caller may.  ``follow`` a symlink
        at ``path`` itself.

        Raises `NotFound`, and `FailedPrecondition` where a file is in a folder's way.

        >>> store.copy_out("alpine", "/etc/motd", "/srv/motd")
        >>> open("/srv/motd").read()
        'hello\n'
        """
        from orlop.images.browsing.hostcopy import copy_out

        copy_out(
            self.verbs,
            os.fspath(thing),
            os.fsencode(path),
            os.fsencode(dest),
            archive=archive,
            follow=follow,
            platform=platform,
            call=call or Call(),
        )

    def copy_in(
        self,
        source: StrPath,
        root: str | os.PathLike[str],
        path: StrPath,
        *,
        archive: bool = False,
        follow: bool = False,
        call: Call | None = None,
    ) -> None:
        r"""Copy a file or a folder of this machine into a prepared root; the inverse of `copy_out`.

        Without ``archive`` all belongs to the root's own root user.

        >>> _ = open("/srv/file", "w").write("new\n")
        >>> store.copy_in("/srv/file", "/srv/root", "/etc/motd")
        >>> b"".join(store.cat("/srv/root", "/etc/motd"))
        b'new\n'
        """
        from orlop.images.browsing.hostcopy import copy_in

        copy_in(
            self.verbs,
            os.fsencode(source),
            os.fspath(root),
            os.fsencode(path),
            archive=archive,
            follow=follow,
            call=call or Call(),
        )

    def read_tar(
        self,
        thing: str | os.PathLike[str],
        path: StrPath = "/",
        *,
        follow: bool = False,
        platform: str | None = None,
        call: Call | None = None,
    ) -> Generator[bytes]:
        """A file or a folder of a thing as a tar, in chunks.

        >>> import io, tarfile
        >>> data = io.BytesIO(b"".join(store.read_tar("alpine", "/etc/motd")))
        >>> tarfile.open(fileobj=data).getnames()
        ['motd']
        """
        return self.verbs.read_archive(
            os.fspath(thing), os.fsencode(path), follow=follow, platform=platform, call=call or Call()
        )

    def write_tar(
        self,
        data: Iterable[bytes],
        root: str | os.PathLike[str],
        path: StrPath = "/",
        *,
        archive: bool = False,
        call: Call | None = None,
    ) -> None:
        r"""Unpack a tar in a folder of a prepared root.

        >>> store.write_tar(store.read_tar("alpine", "/etc"), "/srv/root", "/bin")
        >>> b"".join(store.cat("/srv/root", "/bin/etc/motd"))
        b'hello\n'
        """
        self.verbs.write_archive(
            os.fspath(root), os.fsencode(path), data, archive=archive, content=True, call=call or Call()
        )


class PreparedContents:
    """What is in one prepared root, mounted or not."""

    info: PreparedInfo
    _verbs: StoreVerbs

    def copy_out(
        self,
        path: StrPath,
        dest: StrPath,
        *,
        archive: bool = False,
        follow: bool = False,
        call: Call | None = None,
    ) -> None:
        r"""Copy a file or a folder of the root to a path of this machine; see `StoreContents.copy_out`.

        >>> root.copy_out("/etc/motd", "/srv/out")
        >>> open("/srv/out").read()
        'hello\n'
        """
        files = StoreContents()
        files.verbs = self._verbs
        files.copy_out(self.info.path, path, dest, archive=archive, follow=follow, call=call)

    def copy_in(
        self,
        source: StrPath,
        path: StrPath,
        *,
        archive: bool = False,
        follow: bool = False,
        call: Call | None = None,
    ) -> None:
        """Copy a file or a folder of this machine into the root; see `StoreContents.copy_in`.

        >>> root.copy_in("/srv/layout/oci-layout", "/etc/")
        >>> [file.path for file in store.ls("/srv/root", "/etc")]
        [b'etc/motd', b'etc/oci-layout']
        """
        files = StoreContents()
        files.verbs = self._verbs
        files.copy_in(source, self.info.path, path, archive=archive, follow=follow, call=call)
