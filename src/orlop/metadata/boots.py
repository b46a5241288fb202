"""The boots of the machine in which something was written that was not synced (`Settings.durable` off).

Within its own boot such a thing is as good as any: everybody reads what was written.  A power cut ends that,
and nothing but reading all of it again (``orlop check --full``) tells what was lost; so boots are remembered
from before the first such write until a check has found everything whole, or mended it.
"""

from __future__ import annotations

from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = ["clear", "is_marked", "mark", "others"]


def mark(tx: Transaction, boot: str) -> None:
    """Remember that what is written in this boot may not be synced.  Idempotent."""
    tx.execute("INSERT OR IGNORE INTO unsynced (boot) VALUES (?)", (boot,))


def is_marked(tx: Transaction, boot: str) -> bool:
    """Whether something may have been written in this boot that is not synced."""
    return tx.execute("SELECT 1 FROM unsynced WHERE boot = ?", (boot,)).fetchone() is not None


def others(tx: Transaction, boot: str) -> list[str]:
    """The earlier boots of which what was written may be lost or spoilt."""
    return [row[0] for row in tx.execute("SELECT boot FROM unsynced WHERE boot <> ? ORDER BY boot", (boot,))]


def clear(tx: Transaction, boot: str) -> None:
    """Everything was found whole, or mended: forget all boots but this one, which is not over."""
    tx.execute("DELETE FROM unsynced WHERE boot <> ?", (boot,))
