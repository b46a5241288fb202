"""The front of a download: the bytes from the start on without a gap, hashed in order and told to the worker.

The connection whose bytes come next at the front hashes them from memory, while they are warm.  What it
cannot have hashed (bytes that came ahead of the front, or lay on the disk from an earlier try) is read
again by whoever calls `catch_up`, while the connections go on.  The worker is told of bytes before they are
hashed: what it makes of them counts for nothing before the digest is right.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from orlop.content.ingests import Ingest
from orlop.layers.worker.feed import Feed
from orlop.spec.digest import Digest

__all__ = ["Front"]

_READ = 1 << 20


class Front:
    """Hashes one download.  Thread-safe.  Set ``feed``, where there is one, before the first byte comes."""

    def __init__(self, ingest: Ingest, digest: Digest) -> None:
        self._ingest = ingest
        self.feed: Feed | None = None
        self._hasher = digest.hasher()
        self._lock = threading.Lock()  # guards the hasher and how far it is
        self.hashed = 0

    def came(self, offset: int, chunk: bytes | memoryview) -> None:
        """Bytes were written; hash them if they are next and nobody else is at it."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if offset == self.hashed:
                self._take(chunk)
        finally:
            self._lock.release()

    def catch_up(self, check: Callable[[], None]) -> None:
        """Hash what is there and was not hashed yet; ``check`` is called between chunks, and may raise."""
        buffer: memoryview | None = None
        while self._ingest.size > self.hashed:
            check()
            with self._lock:
                count = min(self._ingest.size - self.hashed, _READ)
                if count <= 0:
                    return
                buffer = buffer or memoryview(bytearray(_READ))
                got = os.preadv(self._ingest.fd, [buffer[:count]], self.hashed)
                if not got:
                    return  # somebody cut the file: it will have another digest
                self._take(buffer[:got])

    def _take(self, chunk: bytes | memoryview) -> None:
        if self.feed is not None:
            self.feed.advance(self.hashed + len(chunk))
        self._hasher.update(chunk)
        self.hashed += len(chunk)

    def hexdigest(self) -> str:
        """The digest of all that was hashed."""
        with self._lock:
            return self._hasher.hexdigest()
