"""The event of a push: told once a registry has taken the image."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.images.core import NAMESPACE
from orlop.metadata import events
from orlop.metadata.db import Transaction
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.values import dataclass

__all__ = ["Pushed"]

_TOLD = 2_000  # characters of where it went


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What went where: the image's name here, what the registry has now, and how many bytes that has.

    ``config`` is None of an index.
    """

    name: str
    digest: Digest
    config: Digest | None
    size: int
    refs: Sequence[Reference]

    def tell(self, tx: Transaction) -> None:
        """Write the event."""
        about = {
            "id": self.config,
            "digest": self.digest,
            "to": " ".join(str(ref) for ref in self.refs)[:_TOLD],
            "bytes": self.size,
        }
        events.add(tx, NAMESPACE, "image.pushed", self.name, about)
