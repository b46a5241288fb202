"""Where the bytes of a blob come from when it is sent or fetched: a file, a recipe, a registry.

Each source is an `orlop.registry.blobs.sources.Opener`: it gives the bytes from an offset on, and may be
opened again.  `Hashed` looks at the bytes as they go by for the first time, so that what is sent has the
digest it should have, however often it is opened again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from orlop.errors import (
    DataLoss,
    Error,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from orlop.layers.packing.packer import pack
from orlop.layers.packing.parallel import Pool
from orlop.layers.packing.recipes import Unlisted
from orlop.layers.store import LayerStore
from orlop.observe import Call
from orlop.registry.blobs.sources import Opener
from orlop.registry.client import Registry
from orlop.spec.digest import DiffID, Digest
from orlop.spec.reference import Reference

__all__ = ["CHUNK", "Hashed", "SourceGone", "derived", "from_bytes", "from_file", "from_registry", "packed"]

CHUNK = 1 << 20
LIFE = 16 << 10  # bytes that a connection must bring to count as a try that got on


class SourceGone(Exception):
    """A source does not give the blob; another one may.  ``error`` says why."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error


def file_chunks(path: Path, offset: int = 0) -> Iterator[bytes]:
    """A file's bytes from an offset on."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            yield chunk


def from_file(path: Path) -> Opener:
    """A file."""
    return lambda offset: file_chunks(path, offset)


def derived(make: Callable[[], Iterable[bytes]]) -> Opener:
    """What is computed, and comes out the same each time: made again to be had from an offset on."""

    def open_at(offset: int) -> Iterator[bytes]:
        for chunk in make():
            if offset < len(chunk):
                yield chunk[offset:] if offset else chunk
            offset = max(0, offset - len(chunk))

    return open_at


def from_bytes(data: bytes) -> Opener:
    """Bytes that are at hand."""
    return lambda offset: iter((data[offset:],))


def packed(layers: LayerStore, diff_id: DiffID, recipe: str, pool: Pool | None = None) -> Opener:
    """A layer's tar, compressed by a recipe that keeps it."""

    def make() -> Iterator[bytes]:
        try:
            yield from pack(layers, diff_id, recipe, pool)
        except Unlisted as exc:  # another version of the index could say more
            raise SourceGone(FailedPrecondition(f"compress layer {diff_id}", str(exc))) from exc

    return derived(make)


def home_of(name: str) -> tuple[tuple[str, str], ...]:
    """The registry and repository that an image's name says, where blobs may be that nobody has seen there.

    Such are those of layers that were here in another form when the image was pulled.

    >>> home_of("r.lan:5000/app:1"), home_of("localhost/mine:1")
    ((('r.lan:5000', 'app'),), ())
    """
    ref = Reference.parse(name)
    return () if ref.registry == "localhost" else ((ref.registry, ref.repository),)  # a name for here alone


def from_registry(
    registry: Registry, ref: Reference, digest: Digest, *, size: int, retries: int, call: Call
) -> Opener:
    """A blob of a registry, read on over as many connections as it takes.

    Raises `SourceGone` where the registry does not give it; what it gives is not verified here.
    """
    what = f"fetch blob {digest} of {ref.name}"

    def once(at: int) -> Iterator[bytes]:
        with registry.open_blob(ref, digest, offset=at, call=call) as stream:
            if stream.size not in (None, size) or stream.offset > at:
                raise DataLoss(what, f"{ref.registry} has {stream.size} bytes, and it should have {size}")
            behind = at - stream.offset  # without ranges a registry begins at the beginning
            for chunk in stream:
                if behind < len(chunk):
                    yield chunk[behind:] if behind else chunk
                behind = max(0, behind - len(chunk))

    def open_at(offset: int) -> Iterator[bytes]:
        at, tries = offset, 0
        while at < size:
            before = at
            try:
                for chunk in once(at):
                    at += len(chunk)
                    yield chunk
                if at == before:
                    raise Unavailable(what, f"{ref.registry} sends nothing more")
            except Unavailable as exc:
                tries = 0 if at - before >= LIFE else tries + 1
                if tries > retries:
                    raise SourceGone(exc) from exc
                call.pause(0.1 * 2**tries, what)
            except (NotFound, Unauthenticated, PermissionDenied, DataLoss) as exc:
                raise SourceGone(exc) from exc

    return open_at


class Hashed:
    """A source whose bytes are hashed and counted as they first go by.  Used by one thread.

    With a ``digest`` the end of the source is `DataLoss` where they are others.
    """

    def __init__(self, source: Opener, *, attempted: str, digest: Digest | None = None) -> None:
        self._source = source
        self._attempted = attempted
        self._digest = digest
        self._hasher = digest.hasher() if digest is not None else hashlib.sha256()
        self.size = 0  # bytes that have gone by

    def __call__(self, offset: int) -> Iterator[bytes]:
        """The bytes from an offset on, which is at most where they once came."""
        at = offset
        for chunk in self._source(offset):
            fresh = chunk[self.size - at :] if self.size > at else chunk
            at += len(chunk)
            if at > self.size:
                self._hasher.update(fresh)
                self.size = at
            yield chunk
        if self._digest is not None and at == self.size and self._hasher.hexdigest() != self._digest.hex:
            raise DataLoss(self._attempted, f"blob {self._digest} has other bytes")

    def digest(self) -> Digest:
        """Of all that went by."""
        return self._digest or Digest(f"sha256:{self._hasher.hexdigest()}")
