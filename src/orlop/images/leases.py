"""Which leases are dead: the one place that finds out.

What a lease is, `orlop.images.core.Lease` says.
"""

from __future__ import annotations

from orlop.images.core import Core
from orlop.metadata import garbage

__all__ = ["dead_leases"]


def dead_leases(core: Core) -> frozenset[str]:
    """Leases whose owner is gone: their locks, taken before the rows were made, are free.

    They keep nothing, and the next collection ends them.
    """
    dead: set[str] = set()
    for lease in core.db.read(garbage.lease_ids):
        lock = core.try_locked("lease", lease)
        if lock is not None:
            lock.release()
            dead.add(lease)
    return frozenset(dead)
