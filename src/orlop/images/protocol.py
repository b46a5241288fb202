"""All that a store does, as one protocol: `orlop.images.api.Store`.

In a module of its own because it needs all the others, and whoever calls a verb needs no protocol.
"""

from __future__ import annotations

from orlop.hints import Protocol
from orlop.images.api import Images, Roots
from orlop.images.comparing import Comparing
from orlop.images.contents import Contents
from orlop.images.events import Events
from orlop.images.exports import Exports
from orlop.images.forks import Forks
from orlop.images.shares import Sharing
from orlop.images.upkeep import Keeping, Upkeep

__all__ = ["Store"]


class Store(Images, Roots, Forks, Keeping, Upkeep, Contents, Comparing, Exports, Events, Sharing, Protocol):
    """All of it."""
