"""Where in ``layer.data`` the files lie whose bytes cannot be pointed at in the tar.

Sparse members are expanded there at aligned offsets, so that EROFS can map them in equal chunks with holes;
files whose last block's padding in the tar is not zero are copied, since it would show under mmap.
"""

from __future__ import annotations

from collections.abc import Iterable

from orlop.erofs.tree import HOLE, Chunks
from orlop.layers.index import BLOCK, COPIED, LayerIndex
from orlop.values import dataclass

__all__ = ["Copied", "DataLayout"]

_MAX_CHUNKS = 65_535  # of one file
_FEW_CHUNKS = 16  # of each file once a layer's files have used up its share
_LAYER_CHUNKS = 4 << 20  # of one layer: 32 MiB of chunk indexes
_MIN_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Copied:
    """One file of layer.data: where its bytes start there, and its chunks if it has holes."""

    offset: int
    chunks: Chunks | None


class DataLayout:
    """Where the files that cannot be pointed at in the tar lie in ``layer.data``.

    Derived from the index alone, so it never has to be stored.  ``size`` is that of layer.data.
    A file with holes is cut into equal chunks, large enough that it has fewer than 65,536; a chunk
    without data is a hole, the others follow one another.  A layer has a budget of chunks, of which
    each file may take an eighth of what is left: a tar of many huge empty files stays cheap.
    """

    def __init__(self, index: LayerIndex) -> None:
        self.files: dict[int, Copied] = {}
        at = 0
        left = _LAYER_CHUNKS
        for node, flags in enumerate(index.flags):
            if not flags & COPIED:
                continue
            size = index.size[node]
            extents = index.sparse.get(node)
            if extents is None:
                self.files[node] = Copied(at, None)
                at += -(-size // BLOCK) * BLOCK
                continue
            chunk = _MIN_CHUNK
            while -(-size // chunk) > min(_MAX_CHUNKS, max(left // 8, _FEW_CHUNKS)):
                chunk *= 2
            used = _used_chunks(extents, chunk)
            starts = [HOLE] * -(-size // chunk)
            left -= len(starts)
            start = at
            for number in used:
                starts[number] = at // BLOCK
                at += min(chunk, -(-(size - number * chunk) // BLOCK) * BLOCK)
            self.files[node] = Copied(start, Chunks((chunk // BLOCK).bit_length() - 1, starts))
        self.size = at


def _used_chunks(extents: Iterable[tuple[int, int, int]], chunk: int) -> list[int]:
    """The numbers of the chunks that hold any data, in order."""
    used: list[int] = []
    for offset, length, _ in extents:
        if length:
            first = max(offset // chunk, used[-1] + 1 if used else 0)
            used.extend(range(first, (offset + length - 1) // chunk + 1))
    return used
