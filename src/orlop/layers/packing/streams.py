"""A tar as a stream: one gzip member, zstd frames, or as it is.

gzip is a *single member* (several confuse some pullers).  Its pieces are compressed side by side all the
same: each is deflated with the bytes before it as its dictionary and ends on a byte (a sync flush), so that
they are one stream when joined.  zstd's pieces are frames, which every decoder takes one after another.
The pieces have fixed sizes, so the bytes depend on neither threads nor chunks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from orlop.layers.compression import zstd_module
from orlop.layers.packing.parallel import Pool, mapped
from orlop.layers.packing.recipes import Recipe

__all__ = ["GZIP_HEAD", "compress", "frame", "gathered", "member"]

GZIP_PIECE = 1 << 20
ZSTD_PIECE = 4 << 20
WINDOW = 32 << 10  # how far back deflate reaches
GZIP_HEAD = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"  # no name, no time, no system (RFC 1952, 2.3)
_LAST = b"\x03\x00"  # an empty last block (RFC 1951, 3.2.6)


def compress(chunks: Iterable[bytes], recipe: Recipe, pool: Pool | None = None) -> Iterator[bytes]:
    """The blob of a tar, by a recipe of a plain form."""
    if recipe.compression == "none":
        yield from chunks
    elif recipe.name == "isal-2":
        yield from _first_recipe(chunks)
    elif recipe.compression == "gzip":
        yield from _gzip(chunks, recipe, pool)
    else:
        pieces = gathered(chunks, ZSTD_PIECE, least=1)
        yield from mapped(lambda piece: frame(piece, recipe.level), pieces, pool)


def _gzip(chunks: Iterable[bytes], recipe: Recipe, pool: Pool | None) -> Iterator[bytes]:
    crc, size = 0, 0
    library = _deflater(recipe.library)
    crc32 = _deflater("igzip").crc32

    def pieces() -> Iterator[tuple[bytes, bytes]]:
        nonlocal crc, size
        before = b""
        for piece in gathered(chunks, GZIP_PIECE):
            crc, size = crc32(piece, crc), size + len(piece)
            yield before, piece
            before = piece[-WINDOW:]

    def deflate(piece: tuple[bytes, bytes]) -> bytes:
        before, data = piece
        if before:
            packer = library.compressobj(recipe.level, zlib.DEFLATED, -15, zdict=before)
        else:
            packer = library.compressobj(recipe.level, zlib.DEFLATED, -15)
        return bytes(packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH))

    yield GZIP_HEAD
    yield from mapped(deflate, pieces(), pool)
    yield _LAST + struct.pack("<II", crc, size & 0xFFFFFFFF)


def _first_recipe(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """``isal-2``: igzip's stream as the library writes it, in one thread."""
    packer = _deflater("igzip").compressobj(2, zlib.DEFLATED, 31)
    for chunk in chunks:
        packed = packer.compress(chunk)
        if packed:
            yield packed
    yield packer.flush()


def member(data: bytes, recipe: Recipe) -> bytes:
    """A whole gzip member."""
    packer = _deflater(recipe.library).compressobj(recipe.level, zlib.DEFLATED, -15)
    packed: bytes = packer.compress(data) + packer.flush()
    return GZIP_HEAD + packed + struct.pack("<II", _deflater("igzip").crc32(data), len(data) & 0xFFFFFFFF)


def frame(data: bytes, level: int) -> bytes:
    """A whole zstd frame."""
    return bytes(zstd_module().compress(data, level))


def gathered(chunks: Iterable[bytes], size: int, *, least: int = 0) -> Iterator[bytes]:
    """The same bytes in pieces of one size, the last one shorter; at least ``least`` pieces.

    >>> list(gathered([b"ab", b"c", b"defg"], 3)), list(gathered([], 3, least=1))
    ([b'abc', b'def', b'g'], [b''])
    """
    held: list[bytes] = []
    have = given = 0
    for chunk in chunks:
        if not have and len(chunk) == size:
            given += 1
            yield chunk
            continue
        held.append(chunk)
        have += len(chunk)
        if have < size:
            continue
        data = b"".join(held)
        whole = len(data) - len(data) % size
        for at in range(0, whole, size):
            given += 1
            yield data[at : at + size]
        held, have = [data[whole:]], len(data) - whole
    if have or given < least:
        yield b"".join(held)


def _deflater(library: str) -> Any:  # noqa: ANN401 - two modules with one interface
    if library == "zlib":
        return zlib
    from isal import isal_zlib

    return isal_zlib
