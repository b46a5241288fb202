"""What is uploaded: a blob, and where its bytes come from, once or again from any offset.

No I/O of its own.  Invariant: a source that can be opened again is read on from where the reader is, and
opened again only to be read from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from orlop.spec.digest import Digest
from orlop.values import dataclass

__all__ = ["Blob", "Opener", "Reader", "Source"]

Opener = Callable[[int], Iterable[bytes]]
"""Gives a blob's bytes from an offset on; may be called again, with any offset up to where it once came."""

Source = Iterable[bytes] | Opener


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """What to upload.

    ``digest`` is a function where it is known only behind the last byte; ``size`` is None where that is not
    known before.
    """

    source: Source
    digest: Digest | Callable[[], Digest]
    size: int | None

    def named(self) -> Digest:
        """The digest; to be asked behind the last byte."""
        return self.digest if isinstance(self.digest, Digest) else self.digest()


class Reader:
    """A source, read in parts; again from an offset where it can be."""

    def __init__(self, source: Source) -> None:
        self._open = source if callable(source) else None
        self._chunks: Iterator[bytes] | None = None if callable(source) else iter(source)
        self._held = b""
        self.at = 0  # bytes handed out so far, from the blob's start
        self.ended = False

    @property
    def again(self) -> bool:
        """Whether it can be read more than once."""
        return self._open is not None

    def seek(self, offset: int) -> None:
        """Be at an offset, by opening the source again where it is at another."""
        if self._open is not None and (self._chunks is None or offset != self.at):
            self._close()
            self._chunks, self._held = iter(self._open(offset)), b""
            self.at, self.ended = offset, False

    def take(self, length: int | None) -> Iterator[bytes]:
        """The next ``length`` bytes, None for all; fewer where the source ends."""
        self.seek(self.at)
        assert self._chunks is not None
        while length is None or length > 0:
            chunk, self._held = self._held or next(self._chunks, None), b""
            if chunk is None:
                self.ended = True
                return
            if length is not None:
                chunk, self._held = chunk[:length], chunk[length:]
                length -= len(chunk)
            self.at += len(chunk)
            if chunk:
                yield chunk

    def unread(self, data: bytes) -> None:
        """Put back what was taken last."""
        self._held = data + self._held
        self.at -= len(data)
        self.ended = False

    def _close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
