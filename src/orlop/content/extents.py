"""Which bytes of a file that grows in several places are there, and the record of it on disk.

`Extents` is arithmetic alone.  The record is a file of entries of 20 bytes that are only ever appended, each
after its bytes were written: first byte, end, and a checksum of both.  What comes behind a damaged entry, or
behind the file's end, is not believed.  Nothing here is durable, and a record that is false costs no more
than a second download: who uses the bytes verifies their digest.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

__all__ = ["ENTRY_SIZE", "Extents", "decode_entries", "encode_entry"]

_RANGE = struct.Struct("<QQ")
_SUM = struct.Struct("<I")
ENTRY_SIZE = _RANGE.size + _SUM.size


class Extents:
    """Half-open ranges of bytes, in order and apart from each other.

    >>> there = Extents()
    >>> there.add(0, 10); there.add(20, 30); there.add(8, 12)
    >>> list(there), there.front, there.total
    ([(0, 12), (20, 30)], 12, 22)
    """

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """These bytes are there, too."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)  # the first that ends where this begins, or later
        last = bisect_right(self._starts, end)  # behind the last that begins where this ends, or earlier
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    @property
    def front(self) -> int:
        """How many bytes are there from the file's start on, without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    @property
    def total(self) -> int:
        """How many bytes are there in all."""
        return sum(self._ends) - sum(self._starts)

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """What is missing of a file of ``size`` bytes.

        >>> there = Extents()
        >>> there.add(2, 4)
        >>> there.gaps(10)
        [(0, 2), (4, 10)]
        """
        found = []
        at = 0
        for start, end in self:
            if start >= size:
                break
            if at < start:
                found.append((at, start))
            at = end
        if at < size:
            found.append((at, size))
        return found

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)


def encode_entry(start: int, end: int) -> bytes:
    """One entry of a record."""
    packed = _RANGE.pack(start, end)
    return packed + _SUM.pack(zlib.crc32(packed))


def decode_entries(data: bytes, size: int) -> tuple[Extents, int]:
    """What a record says of a file of ``size`` bytes, and how many of its entries can be believed."""
    found = Extents()
    entries = 0
    for at in range(0, len(data) - ENTRY_SIZE + 1, ENTRY_SIZE):
        packed = data[at : at + _RANGE.size]
        if _SUM.unpack_from(data, at + _RANGE.size)[0] != zlib.crc32(packed):
            break
        start, end = _RANGE.unpack(packed)
        if end > size:
            break
        found.add(start, end)
        entries += 1
    return found, entries
