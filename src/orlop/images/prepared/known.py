"""What a name was found to mean at an earlier Prepare, so that the next one need not look.

An entry says which image, chain and driver a Prepare with such options comes to.  It is a guess: the
transaction that names the root looks whether the name still means that image, and whether its chain is still
there; if not, it is forgotten, and the Prepare begins anew.  So no entry is ever too old.
"""

from __future__ import annotations

from collections.abc import Sequence

from orlop.config import Settings
from orlop.errors import Error
from orlop.images.api import PrepareOptions
from orlop.metadata.images import ImageRow
from orlop.metadata.roots import ChainRow, RootRow
from orlop.spec.reference import Reference, is_short
from orlop.values import dataclass

__all__ = ["Known", "KnownImages"]

MOST = 1_000
_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What roots of a name are ``like``, and the images of their chain, top first."""

    like: RootRow
    stack: Sequence[ChainRow]


class KnownImages:
    """The entries of one open store.  Thread-safe: an entry is one value, in a dictionary."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._entries: dict[_Key, Known] = {}

    def get(self, name: str, options: PrepareOptions, settings: Settings) -> Known | None:
        """The entry for a name; what was found under other settings does not count."""
        if self._settings is not settings:
            self._settings, self._entries = settings, {}
        return self._entries.get(_key(name, options)) if _is_plain(options, settings) else None

    def put(
        self, name: str, options: PrepareOptions, settings: Settings, image: ImageRow, known: Known
    ) -> None:
        """Remember what a name meant, where only its own row in the store decided that."""
        if self._settings is not settings or not _is_plain(options, settings):
            return
        try:
            own = str(Reference.parse(name)) == image.name
        except Error:
            return
        if not own or (is_short(name) and settings.search_registries is not False):
            return
        if len(self._entries) >= MOST:
            self._entries.clear()
        self._entries[_key(name, options)] = known

    def forget(self, name: str, options: PrepareOptions) -> None:
        """The entry is no longer true."""
        self._entries.pop(_key(name, options), None)


def _is_plain(options: PrepareOptions, settings: Settings) -> bool:
    """Whether nothing but the name decides what a root stands on."""
    return not (
        options.view
        or options.platform is not None
        or options.quota is not None
        or options.extra
        or (options.pull or settings.pull) == "always"
    )


def _key(name: str, options: PrepareOptions) -> _Key:
    return name, options.driver, options.self_contained, options.uid_map, options.gid_map
