"""What the daemon is told of each service it offers: who answers, in which threads, and who may ask.

A value per service; `orlop.service.table` lists them all, and everything that has to know every method
(pools, access, reflection, health) reads that list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import grpc

from orlop.images.api import Store
from orlop.images.contentstore.api import ContentApi
from orlop.images.nodeimages import NodeImages
from orlop.images.snapshots import Snapshots
from orlop.remote import api as remote
from orlop.values import dataclass

__all__ = ["Kind", "Offer", "Served"]

Kind = Literal[
    "quick", "roots", "transfers", "contents", "idle"
]  # of calls: the pools of orlop.service.pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the daemon has to offer: a store's verbs, and who asks registries (None in one that asks none)."""

    store: Store
    registries: remote.Registries | None = None
    node_images: NodeImages | None = None
    snapshots: Snapshots | None = None
    content: ContentApi | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One gRPC service.

    ``add`` registers a servicer over what there is to offer.  Each method is named once, under the kind of
    its call.  ``looks`` are those that change nothing, so that who may only look may call them.  A service
    of the ``owner`` is for root and the daemon's own user alone.  ``message`` is how many bytes a message to
    it may have where that is more than others' requests.
    """

    name: str
    add: Callable[[Offer, grpc.Server], None]
    quick: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    transfers: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    owner: bool = False
    message: int = 0

    def methods(self, kind: Kind) -> tuple[str, ...]:
        """The full names (``/package.Service/Method``) of the methods of a kind."""
        named: tuple[str, ...] = getattr(self, kind)
        return tuple(f"/{self.name}/{method}" for method in named)
