"""What `orlop.images.transfer.delivery` has brought to a registry."""

from __future__ import annotations

from orlop.spec.digest import Digest
from orlop.spec.documents import Manifest
from orlop.values import dataclass, field

__all__ = ["Delivered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """An image whose blobs are at the registry: its manifest, which is not put there yet.

    ``config`` is the store's own image unless ``changed``: layers in a form that adds entries to them have
    other diff IDs, and make another image.
    """

    config: Digest
    digest: Digest
    media_type: str
    document: bytes = field(repr=False)
    manifest: Manifest = field(repr=False)
    changed: bool = False

    @property
    def size(self) -> int:
        """The bytes of all its blobs and its manifest."""
        blobs = sum(layer.size for layer in self.manifest.layers)
        return len(self.document) + self.manifest.config.size + blobs
