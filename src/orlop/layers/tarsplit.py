"""What podman keeps of a layer's tar beside its files, so that it can be put together again: tar-split.

A stream of JSON objects, one a line: *segments* hold bytes of the tar as they are (headers, padding), *files*
name a file of the layer's folder, its size and a checksum of its bytes.  Whatever is not plainly a file of
the tree (a sparse file, a name that a later entry replaced) stands in segments, so the tar is the same byte
for byte whatever it holds.

Sources: vbatts/tar-split, tar/storage; the checksum is CRC-64 with ISO 3309's polynomial, as Go's hash/crc64.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import zlib
from collections.abc import Iterator

from orlop.errors import DataLoss
from orlop.layers.index import COPIED, LINK, LOWER_LINK, LayerIndex
from orlop.observe import Call

__all__ = ["crc64", "tar_split"]

_FILE, _SEGMENT = 1, 2
_CHUNK = 128 << 10  # fits a processor's cache, folded
_MAX_PATH = 3000  # bytes; whoever reads adds a folder before it, and PATH_MAX is 4096
_ONES = (1 << 64) - 1


def crc64(data: bytes, crc: int = 0) -> int:
    """The checksum of bytes, or of more after those that have the checksum ``crc``.

    By folding: x^64 is x^4+x^3+x+1 for this polynomial, and squaring in GF(2) is linear, so x^(64 s) is
    x^(4s)+x^(3s)+x^s+1 for every power of two s.  The upper part of the message is moved down by four shifts,
    again and again; each costs as much as it has bytes, and there are half as many every time.

    >>> hex(crc64(b"123456789"))
    '0xb90956c775a41001'
    """
    if not data:
        return crc
    # Bit i of this number is the coefficient of x^(length-1-i): the checksum takes bits from the right.
    bits = int.from_bytes(data, "little") ^ (crc ^ _ONES)
    length = 8 * len(data) + 64
    while length > 64:
        step = 1 << ((length - 1) // 64).bit_length() - 1
        size = _folded(length, step)
        while size >= length:  # just above a power of two the upper part would come out above the lower
            step //= 2
            size = _folded(length, step)
        rest, upper = 64 * step, length - 64 * step  # what stays, what is moved down
        head, bits = bits & ((1 << upper) - 1), bits >> upper << (size - rest)
        for power in (4 * step, 3 * step, step, 0):
            bits ^= head << (size - upper - power)
        length = size
    return bits ^ _ONES


def _folded(length: int, step: int) -> int:
    """How many bits there are after one fold."""
    return max(64 * step, length - 64 * step + 4 * step)


def tar_split(index: LayerIndex, tar_fd: int, *, call: Call) -> Iterator[bytes]:
    """The stream for a layer's tar, compressed by gzip, in pieces.  The tar is read once."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    for position, entry in enumerate(_entries(index, tar_fd, call)):
        entry["position"] = position
        if data := packer.compress(json.dumps(entry, separators=(",", ":")).encode() + b"\n"):
            yield data
    yield packer.flush()


def _entries(index: LayerIndex, tar_fd: int, call: Call) -> Iterator[dict[str, object]]:
    at = 0
    for offset, size, node in sorted(_files(index)):
        if offset < at:
            continue  # two names of the same bytes
        yield from _segments(tar_fd, at, offset, call)
        crc = 0
        for data in _read(tar_fd, offset, offset + size, call):
            crc = crc64(data, crc)
        path = index.path(node)
        try:
            name = {"name": path.decode()}
        except UnicodeDecodeError:
            name = {"name_raw": base64.b64encode(path).decode()}
        yield {
            "type": _FILE,
            **name,
            "size": size,
            "payload": base64.b64encode(crc.to_bytes(8, "big")).decode(),
        }
        at = offset + size
    yield from _segments(tar_fd, at, index.tar_size, call)


def _files(index: LayerIndex) -> Iterator[tuple[int, int, int]]:
    """Offset, size and node of each file whose bytes lie in the tar in one piece."""
    for node in range(len(index)):
        size = index.size[node]
        if not size or not stat.S_ISREG(index.mode[node]) or node in index.sparse:
            continue
        if index.flags[node] & (LINK | LOWER_LINK | COPIED) or len(index.path(node)) > _MAX_PATH:
            continue
        yield index.offset[node], size, node


def _segments(tar_fd: int, begin: int, end: int, call: Call) -> Iterator[dict[str, object]]:
    for data in _read(tar_fd, begin, end, call):
        yield {"type": _SEGMENT, "payload": base64.b64encode(data).decode()}


def _read(fd: int, begin: int, end: int, call: Call) -> Iterator[bytes]:
    while begin < end:
        call.check("read layer")
        data = os.pread(fd, min(_CHUNK, end - begin), begin)
        if not data:
            raise DataLoss("read layer", "its tar is shorter than it was")
        yield data
        begin += len(data)
