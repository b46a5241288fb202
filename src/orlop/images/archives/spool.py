"""What comes as a stream, on disk: an archive is read in any order, so its end must be there first.

The file is a layer's in the making (`orlop.layers.store`), so that a collector leaves it alone while its
maker lives, and a root file system's plain tar needs no second copy: it is that layer, hashed on the way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from orlop.config import over_limit
from orlop.errors import InvalidArgument
from orlop.images.core import Core
from orlop.images.space import needing
from orlop.layers.compression import detect
from orlop.layers.store import NewLayer
from orlop.linux.files import sync_range
from orlop.observe import Call, Progress, Rate, reached
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = ["Spooled", "spooled"]

_WRITE_BACK = 8 << 20  # bytes after which write-back is started, so that the last fsync is short
_MAGIC = 6  # bytes that tell how it is compressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """A stream that has ended: its file, its bytes, and of one that is not compressed the diff ID."""

    new: NewLayer
    size: int
    diff_id: DiffID | None


@contextmanager
def spooled(core: Core, chunks: Iterable[bytes], what: str, *, call: Call) -> Iterator[Spooled]:
    """Write a stream to a file of the store, which is gone with the context unless it is published.

    Raises `InvalidArgument` for an empty one, `ResourceExhausted` past ``layer_size`` and where the disk
    is full.
    """
    limit = core.settings.limits.layer_size
    with core.layers.new() as new:
        total = synced = 0
        head, rate = b"", Rate()
        hasher = hashlib.sha256()
        with needing(core.layout.root, lambda: total, what):
            for chunk in chunks:
                call.check(what)
                if not chunk:
                    continue
                total += len(chunk)
                if total > limit:
                    raise over_limit("layer_size", f"more than {limit}", limit, attempted=what)
                if len(head) < _MAGIC:
                    head += chunk[:_MAGIC]
                hasher.update(chunk)
                _write(new.tar, chunk)
                if total - synced >= _WRITE_BACK and core.sync.durable:
                    sync_range(new.tar, synced, total - synced)
                    synced = total
                if rate.add(len(chunk)):
                    call.observer.progress(Progress(item="-", phase="reading", done=total, rate=rate.rate))
        call.check(what)
        if not total:
            raise InvalidArgument(what, "nothing came: it is empty")
        reached("spool.written")
        call.observer.progress(Progress(item="-", phase="reading", done=total, total=total))
        plain = detect(head) == "plain"
        diff_id = DiffID(f"sha256:{hasher.hexdigest()}") if plain else None
        yield Spooled(new=new, size=total, diff_id=diff_id)


def _write(fd: int, data: bytes) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, memoryview(data)[done:])
