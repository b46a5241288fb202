"""Which form layers get in a push: what was asked for, or the settings say, and which blobs will do.

A form is only for layers that orlop compresses.  Those that came from elsewhere go as they came, for there
they are already, unless all are to be made anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import cast

from orlop.config import BlobFormat, Compression, Settings
from orlop.errors import DataLoss
from orlop.layers.packing.recipes import RECIPES, Recipe, check_wish, choose
from orlop.metadata.layers import LayerBlob
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = ["Wish", "plain_of", "recipe_of_settings", "threads_of", "wish_of", "with_diff_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How layers are to be compressed.

    ``asked`` says that the caller said so, and not the settings; ``exact`` that more than a compression was
    asked for; ``everywhere`` that layers from elsewhere are to have the form, too.
    """

    recipe: Recipe
    asked: bool = False
    exact: bool = False
    everywhere: bool = False

    def takes(self, blob: LayerBlob) -> bool:
        """Whether a blob that a layer is known to come as will do."""
        if not self.asked:
            return blob.recipe is None or blob.recipe in RECIPES
        if blob.recipe is not None:
            own = RECIPES.get(blob.recipe)
            if own is None:
                return False
            alike = own.format == "plain" and own.compression == self.recipe.compression
            return own == self.recipe or (alike and not self.exact)
        return not self.everywhere or self.has_compression(blob)

    def has_compression(self, blob: LayerBlob) -> bool:
        """Whether a blob from elsewhere is in a form like that asked for."""
        return not self.exact and compression_of(blob.media_type) == self.recipe.compression

    def fits(self, blobs: Sequence[LayerBlob]) -> bool:
        """Whether an image whose manifest is known to have these blobs is what was asked for."""
        if not self.asked:
            return True
        own = [blob for blob in blobs if blob.recipe is not None]
        if own:
            return all(self.takes(blob) for blob in own)
        return all(self.has_compression(blob) for blob in blobs)


def wish_of(
    settings: Settings,
    *,
    compression: str | None = None,
    level: int | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    recompress: bool = False,
    what: str,
) -> Wish:
    """What a caller asked for, and for the rest the settings.  Raises `InvalidArgument`."""
    check_wish(what, compression=compression, level=level, format=format)
    asked = compression is not None or level is not None or format is not None
    form: str | None = format
    kind: str | None = compression
    if form is None and settings.compression_format != "plain":
        default = recipe_of_settings(settings, what)
        if kind in (None, default.compression):
            form = settings.compression_format
    if kind is None and form in (None, "plain"):
        kind = settings.compression
    if level is None and settings.compression_level and kind in (None, settings.compression):
        level = settings.compression_level
    recipe = choose(
        compression=cast(Compression | None, kind),
        level=level,
        format=cast(BlobFormat | None, form),
        what=what,
    )
    exact = asked and (recipe.format != "plain" or level is not None)
    return Wish(recipe=recipe, asked=asked, exact=exact, everywhere=asked and recompress)


def recipe_of_settings(settings: Settings, what: str = "use settings") -> Recipe:
    """The recipe that the settings alone say.  Raises `InvalidArgument` where they cannot go together."""
    form = settings.compression_format
    return choose(
        compression=settings.compression if form == "plain" else None,
        level=settings.compression_level or None,
        format=form,
        what=what,
    )


def plain_of(recipe: Recipe) -> Recipe:
    """The plain form that is nearest to a seekable one."""
    return choose(compression=recipe.compression, level=recipe.level or None)


def threads_of(settings: Settings) -> int:
    """How many threads compress: as the settings say, else one for each processor that we may use."""
    return settings.compression_threads or len(os.sched_getaffinity(0))


def compression_of(media_type: str) -> str:
    """The compression that a blob's media type tells.

    >>> compression_of("application/vnd.docker.image.rootfs.diff.tar.gzip"), compression_of("x.tar")
    ('gzip', 'none')
    """
    return next((kind for kind in ("gzip", "zstd") if media_type.endswith(kind)), "none")


def with_diff_ids(config: bytes, diff_ids: Sequence[DiffID], what: str) -> bytes:
    """An image's configuration with other diff IDs, all else as it was."""
    document = json.loads(config)
    if not isinstance(document, dict) or not isinstance(document.get("rootfs"), dict):
        raise DataLoss(what, "the image's configuration has no root file system")
    document["rootfs"]["diff_ids"] = list(map(str, diff_ids))
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
