"""Waiting for a blob that somebody else is fetching, in this process or another: their progress is ours.

Who fetches holds the blob's lock; who follows looks at their ingest between two looks at the lock, so it
takes over as soon as they are gone, from the bytes that they leave.  What is seen is for showing alone: it
is read without a lock, and nothing is decided by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from orlop.content.blobs import BlobStore
from orlop.observe import Call, Progress, Rate
from orlop.spec.digest import Digest

__all__ = ["following"]

_LOOK = 0.1  # seconds between two looks at another's ingest


def following(
    blobs: BlobStore, digest: Digest, size: int, call: Call, clock: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """What to do between two looks at the lock of a blob of ``size`` bytes: report how far the other is.

    The phase is ``following`` once there are bytes to be seen; of another that finishes, all are there.
    """
    rate = Rate()
    last, seen = float("-inf"), 0

    def look() -> None:
        nonlocal last, seen
        now = clock()
        if now - last < _LOOK:
            return
        last = now
        there = min(blobs.bytes_of_ingest(digest), size)
        if not there and not seen:
            return
        rate.add(max(there - seen, 0) if seen else 0)
        seen = max(seen, there)
        call.observer.progress(
            Progress(item=digest, phase="following", done=seen, total=size, rate=rate.rate)
        )

    return look
