"""Blobs by digest: verified documents and kept layers, and downloads in flight.

::

    content/blobs/<algorithm>/<hex>     whole, verified, durable, never changed
    content/ingest/<hex>/               a download as far as it came (`orlop.content.ingests`)
    content/ingest/ref-<key>/           a client's write, likewise (`orlop.content.writes`)

A file under ``blobs`` is whole because it is renamed there after it was verified and synced.  Whether
it counts is the metadata's to say: a blob that no row names is garbage.
An ingest belongs to whoever holds the digest's lock; it stays when its owner dies, so that the next one
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import DataLoss, NotFound, ResourceExhausted, from_oserror
from orlop.hints import TYPE_CHECKING
from orlop.linux.files import write_durably
from orlop.linux.sync import DURABLE, Sync
from orlop.spec.digest import Digest

if TYPE_CHECKING:
    from orlop.content.ingests import Ingest
    from orlop.content.writes import Writes

__all__ = ["BlobStore"]

MAX_READ = 64 << 20  # bytes of a document; a kept layer is none, whatever a manifest calls it


class BlobStore:
    """The folder ``content`` of a store.  Thread-safe; locking by digest is the caller's."""

    def __init__(self, folder: Path, *, sync: Sync = DURABLE) -> None:
        self._sync = sync
        self._blobs = folder / "blobs"
        self._ingests = folder / "ingest"

    def folders(self) -> tuple[Path, ...]:
        """The folders it needs, in the order to make them."""
        return (self._blobs, self._blobs / "sha256", self._blobs / "sha512", self._ingests)

    def path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return self._blobs / digest.algorithm / digest.hex

    def has(self, digest: Digest) -> bool:
        """Whether the blob's file is there."""
        return self.path(digest).exists()

    def read(self, digest: Digest) -> bytes:
        """A small blob's bytes, verified again.

        Raises `NotFound` if it is not there, `DataLoss` if it is not what its name says,
        `ResourceExhausted` if it is no document by its size.
        """
        try:
            with open(self.path(digest), "rb") as file:
                data = file.read(MAX_READ + 1)
        except FileNotFoundError as exc:
            raise NotFound(f"read blob {digest}", "the store does not have it") from exc
        except OSError as exc:
            raise from_oserror(f"read blob {digest}", exc) from exc
        if len(data) > MAX_READ:
            raise ResourceExhausted(f"read blob {digest}", f"it has more than {MAX_READ} bytes")
        if not digest.verifies(data):
            raise DataLoss(f"read blob {digest}", "the file on disk has another digest")
        return data

    def write(self, digest: Digest, data: bytes) -> None:
        """Add a document; durable on return.  Idempotent.  Raises `DataLoss` for wrong bytes.

        A file that is there may be another's who died before it was durable, or may have gone bad.
        """
        if not digest.verifies(data):
            raise DataLoss(f"write blob {digest}", "the bytes have another digest")
        path = self.path(digest)
        try:
            if path.exists() and path.read_bytes() == data:
                self._sync.folder(path.parent)
            else:
                write_durably(path, data, sync=self._sync)
        except OSError as exc:
            raise from_oserror(f"write blob {digest}", exc) from exc

    @contextlib.contextmanager
    def ingest(self, digest: Digest) -> Iterator[Ingest]:
        """The download of one blob, new or left by an earlier try.  Needs the digest's lock."""
        from orlop.content.ingests import Ingest  # late: few commands download

        ingest = Ingest(self._ingests / digest.hex, self.path(digest), self._sync)
        try:
            yield ingest
        finally:
            ingest.close()

    def writes(self) -> Writes:
        """The writes under names that clients chose."""
        from orlop.content.writes import Writes  # few stores are containerd's

        return Writes(self._ingests, sync=self._sync)

    def ingests(self) -> list[Path]:
        """The folders of all downloads and writes in flight."""
        return sorted(self._ingests.iterdir())

    def bytes_of_ingest(self, digest: Digest) -> int:
        """How many bytes of a download are there; 0 for none.  Needs no lock; soon out of date."""
        from orlop.content.ingests import bytes_there

        return bytes_there(self._ingests / digest.hex)

    def ingest_changed(self, folder: Path) -> float:
        """When a download last grew, in seconds since 1970.  Raises FileNotFoundError."""
        try:
            return (folder / "data").stat().st_mtime
        except FileNotFoundError:
            return folder.stat().st_mtime  # its owner died before the first byte
