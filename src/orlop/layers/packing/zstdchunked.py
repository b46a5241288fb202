"""zstd:chunked: the layer's very tar in zstd frames, one to each file, and a table of contents behind them.

The table stands in a skippable frame, which plain decoders pass over: so the diff ID stays.  Where it is,
and its digest, the manifest says in annotations (containers/storage, pkg/chunked).  A fetcher that knows them
gets the table first, and then the files that it has not.

What is not here is *tar-split*, from which newer podman computes the diff ID of what it fetched in part: it
needs a CRC-64 of every file, for which Python has nothing fast.  Such a podman fetches the layer whole.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator

from orlop.layers.index import LayerIndex
from orlop.layers.packing.contents import Item, check_tar, fields_of, items, pieces_of
from orlop.layers.packing.parallel import Pool, mapped
from orlop.layers.packing.pieces import Piece, packed_pieces
from orlop.layers.packing.recipes import Unlisted
from orlop.layers.packing.streams import frame
from orlop.values import dataclass, field

__all__ = ["CHECKSUM", "POSITION", "SPACES", "check", "write"]

SPACES = ("io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.")
"""The annotations' names begin so: for podman 4.4 and later; for older ones and the stargz snapshotter."""
POSITION, CHECKSUM = "manifest-position", "manifest-checksum"
_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A50
_FOOTER = struct.Struct("<4Q8s")  # only the stargz snapshotter reads it
_FOOTER_MAGIC = b"GnUlInUx"
_TOC_KIND = 1
_BETWEEN = -1  # a piece that belongs to no file
_META_PIECE = 4 << 20


@dataclass(slots=True)
class _Data:
    """Where a file's bytes are in the blob."""

    offset: int
    end: int = 0
    digest: str = ""
    chunks: list[tuple[int, int, int, str]] = field(default_factory=list)  # blob offset, offset, size, digest


def write(
    tar: int, index: LayerIndex, level: int, pool: Pool | None, annotations: dict[str, str]
) -> Iterator[bytes]:
    """The blob of a layer's open tar; the annotations are there once it has ended.

    Raises `Unlisted` before the first byte where the layer cannot have this form.
    """
    files = check(index)
    found: dict[int, _Data] = {}
    at = 0
    whole = hashlib.sha256()
    for packed in packed_pieces(tar, _pieces(files, index.tar_size), lambda data: frame(data, level), pool):
        piece = packed.piece
        if piece.of != _BETWEEN:
            data = found.get(piece.of)
            if data is None:
                data, whole = found.setdefault(piece.of, _Data(at)), hashlib.sha256()
            done = data.chunks[-1][1] + data.chunks[-1][2] if data.chunks else 0
            data.chunks.append((at, done, piece.length, f"sha256:{packed.digest}"))
            if piece.keep:
                whole.update(packed.plain)
            data.end = at + len(packed.data)
            data.digest = f"sha256:{whole.hexdigest() if piece.keep else packed.digest}"
        at += len(packed.data)
        yield packed.data
    yield from _table(_entries(index, found), at, level, pool, annotations)


def check(index: LayerIndex) -> list[Item]:
    """The files that have bytes, as they follow one another in the tar.

    Raises `Unlisted` where a layer cannot have this form.
    """
    check_tar(index)
    for item in items(index):
        fields_of(item.member)
    files = sorted((item for item in items(index) if item.has_data), key=lambda item: item.offset)
    at = 0
    for item in files:
        if item.offset < at or item.offset + item.member.size > index.tar_size:
            raise Unlisted("its files' bytes do not follow one another")
        at = item.offset + item.member.size
    return files


def _pieces(files: list[Item], end: int) -> Iterator[Piece]:
    at = 0
    for item in files:
        yield from _between(at, item.offset)
        size = item.member.size
        chunks = list(pieces_of(size))
        for offset, length in chunks:
            yield Piece(item.node, item.offset + offset, length, hashed=length, keep=len(chunks) > 1)
        at = item.offset + size
    yield from _between(at, end)


def _between(start: int, end: int) -> Iterator[Piece]:
    """Headers, and whatever else is no file's bytes."""
    for at in range(start, end, _META_PIECE):
        yield Piece(_BETWEEN, at, min(_META_PIECE, end - at))


def _entries(index: LayerIndex, found: dict[int, _Data]) -> Iterator[bytes]:
    for item in items(index):
        entry = fields_of(item.member)
        data = found.get(item.node) if item.has_data else None
        if data is None:
            yield _json(entry)
            continue
        entry |= {"digest": data.digest, "offset": data.offset, "endOffset": data.end}
        if len(data.chunks) == 1:
            yield _json(entry)
            continue
        name = entry["name"]
        for number, (place, offset, size, digest) in enumerate(data.chunks):
            chunk = {"type": "chunk", "name": name, "chunkOffset": offset} if number else entry
            chunk |= {"offset": place, "chunkSize": size, "chunkDigest": digest}
            if number == len(data.chunks) - 1:
                chunk["endOffset"] = data.end  # podman 4.3 looks for it here, later ones at the first
            yield _json(chunk)


def _table(
    entries: Iterator[bytes], at: int, level: int, pool: Pool | None, annotations: dict[str, str]
) -> Iterator[bytes]:
    """The frames behind the tar: the table of contents, and where it is."""
    text = b'{"version":1,"entries":[' + b",".join(entries) + b"]}"
    table = b"".join(mapped(lambda data: frame(data, level), [text], pool))
    start = at + _SKIPPABLE.size
    yield _skippable(table)
    yield _skippable(_FOOTER.pack(start, len(table), len(text), _TOC_KIND, _FOOTER_MAGIC))
    for space in SPACES:
        annotations[space + POSITION] = f"{start}:{len(table)}:{len(text)}:{_TOC_KIND}"
        annotations[space + CHECKSUM] = f"sha256:{hashlib.sha256(table).hexdigest()}"


def _skippable(data: bytes) -> bytes:
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(data)) + data


def _json(entry: dict[str, object]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()
