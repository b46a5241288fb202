"""What a list shows of an image: values apart from `orlop.images.api`, which has all of them.

A list needs no others, and each value that a short command does not import shortens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from orlop.values import dataclass, field

__all__ = ["NO_LABELS", "HeldPlatform", "ImageInfo"]

NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldPlatform:
    """One image of an index that a name holds: its platform, its ID, the digest of its manifest."""

    platform: str
    id: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """An image of the store.

    A name may mean an index: then ``index`` is its digest, ``platforms`` are its images that the store holds,
    and the rest is about the first of them, which the name means where nobody says a platform.
    ``id`` is the digest of its config; ``digest`` that of its manifest, or None while it has none
    (an image made by commit has a manifest only once it was pushed or exported).  ``size`` counts the
    bytes of its layers' tars.  ``created`` is RFC 3339, from the config;
    ``used`` when it was last pulled, prepared or committed.  ``labels`` are the store's own, of this name.
    """

    name: str
    id: str
    digest: str | None = None
    platform: str = ""
    created: str = ""
    size: int = 0
    layers: int = 0
    used: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: NO_LABELS)
    index: str | None = None
    platforms: tuple[HeldPlatform, ...] = ()
