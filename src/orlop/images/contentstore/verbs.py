"""How a store in this process comes by containerd's content API."""

from __future__ import annotations

from functools import cached_property

from orlop.hints import TYPE_CHECKING
from orlop.images.parts import Parts

if TYPE_CHECKING:
    from orlop.images.contentstore.api import ContentApi

__all__ = ["ContentApiVerbs"]


class ContentApiVerbs(Parts):
    """See `orlop.images.contentstore.api.HasContent`."""

    @cached_property
    def content_store(self) -> ContentApi:
        """Made when it is first asked for: few stores are containerd's."""
        from orlop.images.contentstore.store import ContentStore

        return ContentStore(self._core)
