"""A tar read with what is in its files: `orlop.layers.tarread` goes past the bytes, this hands them on.

Beside it the inverse for what is written in one go, without an index: an entry's header and its bytes, sparse
files in GNU's form 1.0, which GNU tar, bsdtar and our own reader know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from orlop.config import DEFAULT_LIMITS, Limits
from orlop.errors import InvalidArgument
from orlop.layers.entry import Entry
from orlop.layers.index import BLOCK
from orlop.layers.tarread import TarReader
from orlop.layers.tarwrite import Member, headers
from orlop.values import replace

__all__ = ["END", "TarData", "Write", "padding", "sparse_header"]

END = bytes(2 * BLOCK)
"""The end of an archive."""

_PIECE = 1 << 20

Write = Callable[[int, bytes], None]
"""Takes bytes of a file: where they begin, and they."""


class TarData(TarReader):
    """As its base; before a regular file that is not empty is yielded, ``begin`` is called for it.

    What ``begin`` returns is given the file's bytes, in order, at most 1 MiB at a time; holes are left out.
    """

    def __init__(
        self,
        chunks: Iterable[bytes],
        begin: Callable[[Entry], Write],
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(chunks, limits=limits)
        self._begin = begin

    def _pass_data(self, entry: Entry, size: int) -> None:
        if entry.size:
            write = self._begin(entry)
            for at, data in self._pieces(0, size):
                write(at, data)
        else:
            self._skip(size)
        self._take(-size % BLOCK)

    def _pass_stored(self, entry: Entry, stored: int) -> None:
        write, source = self._begin(entry), entry.offset
        end = source + stored
        for offset, length, start in entry.extents or ():
            self._skip(start - source)
            for at, data in self._pieces(offset, length):
                write(at, data)
            source = start + length
        self._skip(end - source)

    def _pieces(self, at: int, length: int) -> Iterator[tuple[int, bytes]]:
        end = at + length
        while at < end:
            data = self._take(min(_PIECE, end - at))
            if not data:
                raise InvalidArgument("read tar", "the archive is cut off in a file")
            yield at, data
            at += len(data)


def padding(size: int) -> bytes:
    """What follows so many bytes of a file."""
    return bytes(-size % BLOCK)


def sparse_header(member: Member, extents: Sequence[tuple[int, int]]) -> bytes:
    """What comes before a file with holes; ``extents`` are offsets and lengths of what it has."""
    numbers = [len(extents)]
    for offset, length in extents:
        numbers += [offset, length]
    table = b"".join(b"%d\n" % number for number in numbers)
    table += bytes(-len(table) % BLOCK)
    stored = sum(length for _, length in extents)
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", member.path),
        (b"GNU.sparse.realsize", b"%d" % member.size),
    ]
    return headers(replace(member, size=len(table) + stored), records) + table
