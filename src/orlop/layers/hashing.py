"""SHA-256 of a stream, beside whoever reads and writes it.

Large pieces are hashed by a thread while the caller goes on to the next: hashing, reading and writing of a
gigabyte take two cores then instead of one.  Small ones are hashed at once.  No more than one piece is on its
way, so memory does not grow; its thread ends with it, so there is nothing to close.  Used by one thread.
"""

from __future__ import annotations

import hashlib
import threading

__all__ = ["LARGE", "SideHash"]

LARGE = 512 << 10  # bytes of a piece that is worth a thread


class SideHash:
    """SHA-256 of all pieces, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._busy: threading.Thread | None = None

    def update(self, data: bytes) -> None:
        """Take the next piece, which must stay as it is."""
        digest = self.settled()
        if len(data) < LARGE:
            digest.update(data)
            return
        busy = threading.Thread(target=digest.update, args=(data,), name="hash")
        try:
            busy.start()
        except RuntimeError:  # no more threads are allowed here: it only takes longer
            digest.update(data)
            return
        self._busy = busy

    def settled(self) -> hashlib._Hash:
        """The hash of all that was given."""
        if self._busy is not None:
            self._busy.join()
            self._busy = None
        return self._hash

    def go_back(self, digest: hashlib._Hash) -> None:
        """Go on from an earlier state: a copy of what `settled` gave then."""
        self.settled()
        self._hash = digest
