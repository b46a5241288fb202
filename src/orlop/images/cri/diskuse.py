"""What images take of the disk, for those who ask every few seconds.

The disk is walked, as `orlop df` does, but not for every call: a measurement serves again until so much time
has passed that measuring stays a small share of it.  One caller measures; others meanwhile get the last one,
or wait for the first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from orlop.images.account.measure import measure
from orlop.images.nodeimages import DiskUse
from orlop.observe import Call

__all__ = ["DiskMeter"]

_SERVES = 10.0  # seconds that a measurement serves at least, as the kubelet's own statistics do
_SHARE = 20  # and at least so many times what it took
_LOOK = 0.05  # seconds between looks at whether a call that waits is over
_IMAGES = ("layers", "chains", "folders", "blobs", "ingests", "trash")  # also what is still being deleted
_ROOTS = ("roots", "snapshots")  # of prepared roots, and of containerd's containers


class DiskMeter:
    """Measures one store.  Thread-safe."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._measuring = threading.Lock()  # held by who measures; guards _until
        self._last: DiskUse | None = None
        self._until = 0.0

    def use(self, *, call: Call) -> DiskUse:
        """See `orlop.images.nodeimages.NodeImages.disk_use`."""
        while not self._measuring.acquire(timeout=_LOOK if self._last is None else 0):
            call.check("measure the store")
            if self._last is not None:
                return self._last
        try:
            if self._last is None or self._clock() >= self._until:
                self._last = self._measure(call)
            return self._last
        finally:
            self._measuring.release()

    def _measure(self, call: Call) -> DiskUse:
        started, at = self._clock(), time.time_ns()
        found = measure(self._root, call=call)
        took = self._clock() - started
        self._until = started + took + max(_SERVES, _SHARE * took)
        return DiskUse(
            path=str(self._root),
            at=at,
            image_bytes=_sum(found.sizes, _IMAGES),
            image_inodes=_sum(found.inodes, _IMAGES),
            root_bytes=_sum(found.sizes, _ROOTS),
            root_inodes=_sum(found.inodes, _ROOTS),
        )


def _sum(numbers: dict[str, int], kinds: tuple[str, ...]) -> int:
    return sum(numbers[kind] for kind in kinds)
