"""The tar that a worker appends to its file: hashed where it lies, behind the worker.

What is there never changes: the worker's descriptor can only append, and its seccomp filter leaves it no
call that could make more of it (`orlop.layers.worker`).  How much is there is the kernel's word, not the
worker's.

Nobody waits for anybody: the worker may be as far ahead as the disk takes it, and its dirty pages are
bounded as everybody's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from orlop.config import Limits
from orlop.errors import DataLoss, ResourceExhausted, limit_hint
from orlop.layers.worker.feed import Feed
from orlop.linux.mapped import mapped

__all__ = ["Drain"]

STEP = 4 << 20  # bytes that are hashed before anything else is looked at
LEAST = 64 << 10  # bytes that are worth a mapping


class Drain:
    """The hash of a file that grows.  Used by one thread.

    ``written`` is told the bytes that were hashed, ``whole`` is called when that is all of them; ``progress``
    tells both to the worker that reads the file.
    """

    def __init__(
        self,
        tar: int,
        progress: Feed,
        limits: Limits,
        written: Callable[[int], None],
        whole: Callable[[], None],
    ) -> None:
        if os.fstat(tar).st_size:
            raise ValueError("the file that a tar is to be written to is not empty")
        self._tar, self._progress = tar, progress
        self._most, self._written, self._whole = limits.layer_size, written, whole
        self._there = 0
        self._maps = True
        self.hasher = hashlib.sha256()
        self.total = 0
        self.complete = False

    def look(self) -> None:
        """See how much is there by now, for good."""
        self._there = os.fstat(self._tar).st_size
        if self._there > self._most:
            raise ResourceExhausted(
                "unpack layer", "the worker wrote more than it may", hint=limit_hint("layer_size")
            )

    @property
    def behind(self) -> bool:
        """Whether something that was seen to be there was not hashed yet."""
        return self.total < self._there

    def step(self) -> None:
        """Hash some of it."""
        self.total += self._hash(min(STEP, self._there - self.total))
        if not self._progress.told:  # else the worker will hear of it later; and never is the pipe full
            self._progress.advance(self.total)
        self._written(self.total)

    def _hash(self, count: int) -> int:
        if self._maps and count >= LEAST:
            try:
                with mapped(self._tar, self.total, count) as view:
                    self.hasher.update(view)
                return count
            except OSError:
                self._maps = False  # a disk that fails says so again, in words
        part = os.pread(self._tar, min(count, 1 << 20), self.total)
        if not part:
            raise DataLoss("unpack layer", "somebody cut off the file that it is written to")
        self.hasher.update(part)
        return len(part)

    def finish(self) -> None:
        """All is there, and hashed."""
        self.complete = True
        self._progress.advance(self.total, complete=True)
        self._whole()
