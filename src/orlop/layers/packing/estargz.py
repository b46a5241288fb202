"""eStargz: a tar of the layer's entries in gzip members, one to each file's bytes, and a table of contents.

The table is itself an entry of the tar (``stargz.index.json``, the last one), and so is the landmark that
says that nothing is to be fetched ahead: *the tar is another than the layer's*, and so is its diff ID.
Therefore the tar is written anew from the index, in the index's order.

Source: containerd/stargz-snapshotter, docs/estargz.md.
"""

from __future__ import annotations

import hashlib
import json
import stat
import struct
from collections.abc import Iterator
from typing import Any

from orlop.layers.index import LayerIndex
from orlop.layers.packing.contents import check_tar, fields_of, items, padding, pieces_of
from orlop.layers.packing.parallel import Pool, mapped
from orlop.layers.packing.pieces import Piece, packed_pieces
from orlop.layers.packing.recipes import Recipe, Unlisted
from orlop.layers.packing.streams import GZIP_HEAD, member
from orlop.layers.tarwrite import Member, headers
from orlop.values import dataclass, field

__all__ = ["PLAIN_SIZE", "TOC_DIGEST", "check", "write"]

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
PLAIN_SIZE = "io.containers.estargz.uncompressed-size"
TOC_NAME = b"stargz.index.json"
LANDMARK = b".no.prefetch.landmark"
_OTHER_LANDMARK = b".prefetch.landmark"
_LANDMARK_DATA = b"\x0f"
_END = bytes(1024)
_RUN = 1000  # entries without data that share a member


def write(
    tar: int, index: LayerIndex, recipe: Recipe, pool: Pool | None, found: dict[str, str]
) -> Iterator[bytes]:
    """The blob of a layer's open tar; the annotations are in ``found`` once it has ended, and ``diff_id``.

    Raises `Unlisted` before the first byte where the layer cannot have this form.
    """
    check(index)
    plain, size, at = hashlib.sha256(), 0, 0
    toc: list[bytes] = []
    whole = hashlib.sha256()
    first = 0  # where in the table the file stands whose chunks are coming
    file: dict[str, Any] = {}
    for packed in packed_pieces(tar, _members(index), lambda data: member(data, recipe), pool):
        piece, about = packed.piece, packed.piece.of
        plain.update(packed.plain)
        size += len(packed.plain)
        if about.chunk is not None:
            entry = about.chunk | {"offset": at, "chunkDigest": f"sha256:{packed.digest}"}
            if entry["type"] == "reg":
                whole, first, file = hashlib.sha256(), len(toc), entry
            whole.update(memoryview(packed.plain)[: piece.hashed])
            toc.append(_json(entry))
            if about.last:
                toc[first] = _json(file | {"digest": f"sha256:{whole.hexdigest()}"})
        toc += map(_json, about.entries)
        at += len(packed.data)
        yield packed.data
    text = b'{"version":1,"entries":[' + b",".join(toc) + b"]}"
    head = headers(Member(path=TOC_NAME, mode=stat.S_IFREG | 0o444, size=len(text)))
    tail = head + text + padding(len(text)) + _END
    plain.update(tail)
    yield from mapped(lambda data: member(data, recipe), [tail], pool)
    yield _footer(at)
    found[TOC_DIGEST] = f"sha256:{hashlib.sha256(text).hexdigest()}"
    found[PLAIN_SIZE] = str(size + len(tail))
    found["diff_id"] = f"sha256:{plain.hexdigest()}"


def check(index: LayerIndex) -> None:
    """Raise `Unlisted` where a layer cannot have this form."""
    check_tar(index)
    for item in items(index):
        fields_of(item.member)
        if item.member.path in (TOC_NAME, LANDMARK, _OTHER_LANDMARK):
            raise Unlisted(f"it has an entry {item.member.path.decode()!r} of its own")


@dataclass(slots=True, kw_only=True)
class _About:
    """What a member is in the table: a chunk of a file, or none, and entries whose headers are behind it."""

    chunk: dict[str, Any] | None = None
    last: bool = False
    entries: list[dict[str, Any]] = field(default_factory=list)


def _members(index: LayerIndex) -> Iterator[Piece]:
    """The tar in members: one to each chunk of a file, with the padding and the headers that follow it."""
    mark = Member(path=LANDMARK, mode=stat.S_IFREG | 0o644, size=len(_LANDMARK_DATA))
    yield Piece(_About(), more=headers(mark), keep=True)
    about, offset, length, hashed = _About(chunk=fields_of(mark), last=True), 0, 0, len(_LANDMARK_DATA)
    more = [_LANDMARK_DATA + padding(len(_LANDMARK_DATA))]
    for item in items(index):
        more.append(headers(item.member))
        if not item.has_data:
            about.entries.append(fields_of(item.member))
            if len(about.entries) == _RUN:  # that memory does not grow with what has no data
                yield Piece(about, offset, length, b"".join(more), hashed=hashed, keep=True)
                about, offset, length, hashed, more = _About(), 0, 0, 0, []
            continue
        yield Piece(about, offset, length, b"".join(more), hashed=hashed, keep=True)
        chunks = list(pieces_of(item.member.size))
        entry = fields_of(item.member)
        for start, piece in chunks:
            chunk = {"type": "chunk", "name": entry["name"], "chunkOffset": start} if start else entry
            about = _About(chunk=chunk, last=(start, piece) == chunks[-1])
            if not about.last:
                chunk["chunkSize"] = piece  # of the last chunk it is left out: what remains
            offset, length, hashed = item.offset + start, piece, piece
            more = []
            if not about.last:
                yield Piece(about, offset, length, hashed=hashed, keep=True)
        more = [padding(item.member.size)]
    yield Piece(about, offset, length, b"".join(more), hashed=hashed, keep=True)


def _footer(toc: int) -> bytes:
    """An empty member whose extra field says where the table is: 51 bytes."""
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % toc
    head = GZIP_HEAD[:3] + b"\x04" + GZIP_HEAD[4:]
    return head + struct.pack("<H", len(extra)) + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def _json(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False).encode()
