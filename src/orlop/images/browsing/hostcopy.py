"""Copies between a thing and the files of the machine that asks: the half of ``cp`` that is not the store's.

The store, here or behind a daemon, gives and takes tars; files are read and written here, with the rights of
the caller.  What destinations mean is `orlop.images.browsing.unpack`'s.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial

from orlop.errors import Cancelled
from orlop.images.browsing.localtar import tar_of_path
from orlop.images.browsing.unpack import Place, place, unpack
from orlop.images.contents import Contents
from orlop.layers.changes import text_of
from orlop.layers.entry import Entry
from orlop.observe import Call

__all__ = ["Handed", "copy_in", "copy_out", "put"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def copy_out(
    verbs: Contents,
    thing: str,
    path: bytes,
    dest: bytes,
    *,
    archive: bool,
    follow: bool,
    platform: str | None,
    call: Call,
) -> None:
    """Write a file or a folder of a thing to a path of this machine."""
    chunks = verbs.read_archive(thing, path, follow=follow, platform=platform, call=call)
    with closing(chunks):
        put(chunks, dest, archive=archive, attempted=f"copy to {text_of(dest)}", call=call)


def put(chunks: Iterable[bytes], dest: bytes, *, archive: bool, attempted: str, call: Call) -> None:
    """Unpack what `orlop.images.contents.Contents.read_archive` gives at a path of this machine."""
    unpack(
        chunks,
        partial(_where, dest=dest, attempted=attempted),
        archive=archive,
        attempted=attempted,
        call=call,
    )


def copy_in(
    verbs: Contents, source: bytes, root: str, path: bytes, *, archive: bool, follow: bool, call: Call
) -> None:
    """Write a file or a folder of this machine into a prepared root."""
    with closing(Handed(tar_of_path(source, follow=follow, call=call))) as chunks:
        verbs.write_archive(root, path, chunks, archive=archive, call=call)


class Handed(Iterator[bytes]):
    """A generator handed to another thread, such as gRPC's, that still reads when the call has failed.

    >>> chunks = Handed(chunk for chunk in [b"a", b"b"])
    >>> next(chunks)
    b'a'
    >>> chunks.close()
    >>> next(chunks)
    Traceback (most recent call last):
    orlop.errors.Cancelled: read on: nobody wants it any more
    """

    def __init__(self, chunks: Generator[bytes]) -> None:
        self._chunks = chunks
        self._closed = False
        self._lock = threading.Lock()  # held while the generator runs, which may not be closed meanwhile

    def __next__(self) -> bytes:
        """The next chunk; raises `Cancelled` once it is closed."""
        with self._lock:
            if self._closed:
                raise Cancelled("read on", "nobody wants it any more")
            return next(self._chunks)

    def close(self) -> None:
        """Close the generator, once no read of it is under way.  Idempotent."""
        with self._lock:
            self._closed = True
            self._chunks.close()


def _where(first: Entry, *, dest: bytes, attempted: str) -> Place:
    if os.path.islink(dest) and not os.path.isdir(dest):
        dest = os.path.realpath(dest)  # it is the user's own, and not to be replaced
    return place(dest, first=first, open_folder=_folder, attempted=attempted)


def _folder(path: bytes) -> int | None:
    try:
        return os.open(path, _FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return None
