"""Pieces of a blob that are compressed apart, so that each can be fetched alone: side by side, in batches.

A piece is some bytes of the layer's tar, or bytes that are given, and becomes one gzip member or zstd frame.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from orlop.errors import DataLoss
from orlop.layers.packing.parallel import Pool, mapped
from orlop.values import dataclass

__all__ = ["Packed", "Piece", "packed_pieces"]

BATCH = 2 << 20  # plain bytes that one thread gets at a time


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` bytes of the tar from ``offset`` on, and then ``more``, compressed together.

    ``of`` is whatever the caller knows it by; ``hashed`` asks for the digest of so many bytes of its start,
    ``keep`` for the plain bytes, too.
    """

    of: Any
    offset: int = 0
    length: int = 0
    more: bytes = b""
    hashed: int = 0
    keep: bool = False


@dataclass(frozen=True, slots=True)
class Packed:
    """A piece that is compressed: its bytes, and what was asked for: a sha256 in hex, the plain bytes."""

    piece: Piece
    data: bytes
    digest: str
    plain: bytes


def packed_pieces(
    tar: int, pieces: Iterable[Piece], pack: Callable[[bytes], bytes], pool: Pool | None
) -> Iterator[Packed]:
    """Compress pieces, in order."""

    def work(batch: list[Piece]) -> list[Packed]:
        return [_one(tar, piece, pack) for piece in batch]

    for batch in mapped(work, _batches(pieces), pool):
        yield from batch


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += piece.length + len(piece.more) + 4096  # a piece costs something, however small
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _one(tar: int, piece: Piece, pack: Callable[[bytes], bytes]) -> Packed:
    plain = _read(tar, piece.offset, piece.length) + piece.more if piece.length else piece.more
    digest = hashlib.sha256(memoryview(plain)[: piece.hashed]).hexdigest() if piece.hashed else ""
    return Packed(piece, pack(plain), digest, plain if piece.keep else b"")


def _read(tar: int, offset: int, length: int) -> bytes:
    data = os.pread(tar, length, offset)
    while len(data) < length:
        more = os.pread(tar, length - len(data), offset + len(data))
        if not more:
            raise DataLoss("read layer", "a layer's tar is shorter than its index says")
        data += more
    return data
