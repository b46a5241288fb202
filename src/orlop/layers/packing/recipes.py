"""Recipes: how orlop compresses a layer, as a name that is kept beside the blob's digest.

A recipe never changes its meaning; new ones get new names.  It says the form, the library and the level,
so that a later push makes the same blob again.  The version of the library is not in it: the digest decides.

>>> choose(compression="zstd", level=7).name, choose(format="zstd:chunked").name
('zstd-7', 'zstd-chunked-3')
>>> RECIPES["gzip-igzip-2"].level
2
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from orlop.config import BlobFormat, Compression
from orlop.errors import InvalidArgument
from orlop.values import dataclass

__all__ = [
    "COMPRESSIONS",
    "ESTARGZ",
    "FORMATS",
    "RECIPES",
    "Recipe",
    "Unlisted",
    "check_wish",
    "choose",
    "recipe_of",
]

# Written out: without typing the types are stand-ins (`orlop.hints`).  A test holds them together.
COMPRESSIONS: tuple[Compression, ...] = ("gzip", "zstd", "none")
FORMATS: tuple[BlobFormat, ...] = ("plain", "estargz", "zstd:chunked")

GZIP_LEVEL = 2  # as fast as 1, and smaller
ZSTD_LEVEL = 3  # zstd's own default
IGZIP_MOST = 2  # its level 3 gives other bytes on other processors, so from there on zlib
MOST = {"gzip": 9, "zstd": 19}  # beyond 19 zstd asks its readers for windows of 128 MiB


class Unlisted(Exception):
    """A layer that has no seekable form: no table of contents can describe it.  The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One way to compress.  ``library`` is the gzip one's: igzip or zlib."""

    name: str
    compression: Compression
    format: BlobFormat = "plain"
    library: str = ""
    level: int = 0

    @property
    def suffix(self) -> str:
        """What stands behind the tar in the blob's media type."""
        return "" if self.compression == "none" else f"+{self.compression}"

    @property
    def keeps_tar(self) -> bool:
        """Whether the blob holds the layer's very tar; eStargz adds entries to it."""
        return self.format != "estargz"


def _gzip(level: int, *, format: BlobFormat = "plain") -> Recipe:  # noqa: A002 - the option's name
    library = "igzip" if level <= IGZIP_MOST else "zlib"
    name = f"{'gzip' if format == 'plain' else format}-{library}-{level}"
    return Recipe(name=name, compression="gzip", format=format, library=library, level=level)


def _zstd(level: int, *, format: BlobFormat = "plain") -> Recipe:  # noqa: A002 - the option's name
    name = f"{'zstd' if format == 'plain' else 'zstd-chunked'}-{level}"
    return Recipe(name=name, compression="zstd", format=format, level=level)


_LEVELS = {"gzip": range(1, MOST["gzip"] + 1), "zstd": range(1, MOST["zstd"] + 1)}

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(name="isal-2", compression="gzip", library="igzip", level=2),  # one thread: the first one
            Recipe(name="none", compression="none"),
            *(_gzip(level) for level in _LEVELS["gzip"]),
            *(_zstd(level) for level in _LEVELS["zstd"]),
            *(_zstd(level, format="zstd:chunked") for level in _LEVELS["zstd"]),
        )
    }
)
"""Those that keep the tar, by name: a blob so made is one of the layer's."""

ESTARGZ: Mapping[str, Recipe] = MappingProxyType(
    {recipe.name: recipe for recipe in (_gzip(level, format="estargz") for level in _LEVELS["gzip"])}
)


def recipe_of(name: str) -> Recipe:
    """The recipe of a name.  Raises `InvalidArgument` where there is none."""
    recipe = RECIPES.get(name) or ESTARGZ.get(name)
    if recipe is None:
        raise InvalidArgument("compress layer", f"unknown recipe {name!r}")
    return recipe


def check_wish(what: str, *, compression: str | None, level: int | None, format: str | None) -> None:  # noqa: A002
    """Raise `InvalidArgument` for a compression, level and format that cannot go together."""
    if compression is not None and compression not in COMPRESSIONS:
        raise InvalidArgument(
            what, f"unknown compression {compression!r}", hint=f"one of {_list(COMPRESSIONS)}"
        )
    if format is not None and format not in FORMATS:
        raise InvalidArgument(what, f"unknown format {format!r}", hint=f"one of {_list(FORMATS)}")
    needed = {"estargz": "gzip", "zstd:chunked": "zstd"}.get(format or "")
    if needed is not None and compression not in (None, needed):
        raise InvalidArgument(what, f"{format} is always compressed with {needed}, not with {compression}")
    kind = needed or compression
    if level is None:
        return
    if kind == "none":
        raise InvalidArgument(what, "what is not compressed has no level")
    most = MOST[kind] if kind is not None else max(MOST.values())
    if not 1 <= level <= most:
        raise InvalidArgument(what, f"the level is {level}, and must be from 1 to {most}")


def choose(
    *,
    compression: Compression | None = None,
    level: int | None = None,
    format: BlobFormat | None = None,  # noqa: A002 - the option's name
    what: str = "compress layer",
) -> Recipe:
    """The recipe for a wish; what is not said gets its default: plain gzip."""
    check_wish(what, compression=compression, level=level, format=format)
    if format == "estargz":
        return _gzip(level or GZIP_LEVEL, format=format)
    if format == "zstd:chunked":
        return _zstd(level or ZSTD_LEVEL, format=format)
    if compression == "none":
        return RECIPES["none"]
    if compression == "zstd":
        return _zstd(level or ZSTD_LEVEL)
    check_wish(what, compression="gzip", level=level, format=format)
    return _gzip(level or GZIP_LEVEL)


def _list(values: tuple[str, ...]) -> str:
    return ", ".join(values)
