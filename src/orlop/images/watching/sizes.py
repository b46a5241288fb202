"""What a store holds, as sums of its rows: cheap enough for every scrape of metrics.

Not what it takes on disk (`orlop df` measures that): no file is looked at.
"""

from __future__ import annotations

from orlop.images.core import Core
from orlop.metadata import events
from orlop.metadata.db import Transaction
from orlop.values import dataclass

__all__ = ["StoreSizes", "sizes_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSizes:
    """Counts and bytes by what they are of.

    ``roots`` are by driver; ``trash`` counts what is still to be deleted; ``last_event`` is the last one's
    number.
    """

    images: int
    roots: dict[str, int]
    mounted: int
    counts: dict[str, int]
    sizes: dict[str, int]
    leases: int
    trash: int
    last_event: int


def sizes_of(core: Core) -> StoreSizes:
    """Read the sums, as of one moment."""
    return core.db.read(_sizes)


def _sizes(tx: Transaction) -> StoreSizes:
    counts, sizes = {}, {}
    for kind, column in (
        ("layers", "size + data_size + index_size"),
        ("blobs", "size"),
        ("chains", "size"),
        ("folders", "size"),
    ):
        row = tx.execute(f"SELECT COUNT(*), COALESCE(SUM({column}), 0) FROM {kind}").fetchone()  # noqa: S608
        counts[kind], sizes[kind] = int(row[0]), int(row[1])
    roots = {
        row[0]: int(row[1]) for row in tx.execute("SELECT driver, COUNT(*) FROM prepared GROUP BY driver")
    }

    def count(query: str) -> int:
        return int(tx.execute(query).fetchone()[0])

    return StoreSizes(
        images=count("SELECT COUNT(*) FROM images"),
        roots=roots,
        mounted=count("SELECT COUNT(*) FROM prepared WHERE mounted"),
        counts=counts,
        sizes=sizes,
        leases=count("SELECT COUNT(*) FROM leases"),
        trash=count("SELECT COUNT(*) FROM trash"),
        last_event=events.log_of(tx).last,
    )
