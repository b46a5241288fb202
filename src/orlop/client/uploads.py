"""What a client sends for an import: a file's bytes, a stream's, or a folder's, packed on the way.

The daemon need not see the source, nor be allowed to read it: it is read here, with the caller's rights.

gRPC reads in a thread of its own, which outlives a call that was given up: a descriptor is closed only when
no read of it is under way, and is read no more then, since its number may be another file's.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager

from orlop.errors import Cancelled, InvalidArgument, from_oserror
from orlop.images.archives.foldertar import FolderTar
from orlop.images.imports import ImportOptions, ImportSource
from orlop.observe import Call

__all__ = ["Upload", "can_be_sent", "upload"]

CHUNK = 64 << 10  # bytes of a message; a daemon may allow less than its default of 1 MiB
_PIPE = 1 << 20


class Upload:
    """The chunks of a source, and why they ended early: gRPC reads them in a thread of its own."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._chunks:
                for at in range(0, len(chunk), CHUNK):
                    yield chunk[at : at + CHUNK]
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.failure = exc
            raise


def can_be_sent(path: str) -> bool:
    """Whether there is a file or a folder here that this process may read."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and os.access(path, os.R_OK)


@contextmanager
def upload(source: ImportSource, options: ImportOptions, *, attempted: str, call: Call) -> Iterator[Upload]:
    """Open a source for sending.  Raises `NotFound`, `PermissionDenied`, `InvalidArgument`."""
    if not isinstance(source, str):
        yield Upload(source)
        return
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc
    with closing(_Reading(fd, attempted)) as reading:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            with _packed(fd, options, attempted, call) as chunks:
                yield Upload(chunks)
        elif stat.S_ISREG(mode):
            yield Upload(reading.chunks(CHUNK))
        else:
            raise InvalidArgument(attempted, "it is neither a folder nor a file")


class _Reading:
    """A descriptor that one thread reads, and another closes."""

    def __init__(self, fd: int, attempted: str) -> None:
        self._fd = fd
        self._attempted = attempted
        self._lock = threading.Lock()  # guards the descriptor, which is -1 once it is closed

    def chunks(self, size: int) -> Iterator[bytes]:
        """What is read, to its end; raises `Cancelled` once it is closed."""
        while chunk := self._read(size):
            yield chunk

    def _read(self, size: int) -> bytes:
        with self._lock:
            if self._fd < 0:
                raise Cancelled(self._attempted, "nobody wants it any more")
            return os.read(self._fd, size)

    def close(self) -> None:
        """Close it, once no read is under way."""
        with self._lock:
            fd, self._fd = self._fd, -1
        os.close(fd)


@contextmanager
def _packed(folder: int, options: ImportOptions, attempted: str, call: Call) -> Iterator[Iterator[bytes]]:
    """A folder as a tar, packed by a thread as it is read."""
    out, into = os.pipe2(os.O_CLOEXEC)
    reading = _Reading(out, attempted)
    inner = call.child()
    failure: list[BaseException] = []

    def pack() -> None:
        try:
            FolderTar(into, owner=options.owner, newest=options.newest, call=inner).write(folder)
        except BaseException as exc:  # noqa: BLE001 - raised again by `chunks`: half a tar is never whole
            failure.append(exc)
        finally:
            os.close(into)

    def chunks() -> Iterator[bytes]:
        yield from reading.chunks(_PIPE)
        packer.join()
        if failure:
            raise failure[0]

    packer = threading.Thread(target=pack, name="orlop-pack", daemon=True)
    packer.start()
    try:
        yield chunks()
    finally:
        inner.cancel.cancel()
        reading.close()  # a packer that waits for room gets EPIPE; one that is waited for ends soon
        packer.join()
