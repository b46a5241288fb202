"""Which image is meant of a name that means an index, among those that are here.

A name that means an index holds some of its images.  One of them is the *default*: what the name means where
nobody says a platform.  With a platform the best of those held is meant (`orlop.spec.platform`).
"""

from __future__ import annotations

import contextlib

from orlop.errors import DataLoss, InvalidArgument, NotFound
from orlop.images.core import NAMESPACE, Core
from orlop.images.indexes import offered_by, shorten
from orlop.metadata import platforms
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow
from orlop.spec.documents import Index, parse_config, parse_manifest
from orlop.spec.platform import Platform
from orlop.values import replace

__all__ = ["best", "choose", "held", "not_held"]


def held(tx: Transaction, row: ImageRow) -> list[ImageRow]:
    """The images that a row's name holds, that of the row first."""
    if row.index is None:
        return [row]
    others = [
        replace(row, config=one.config, manifest=one.manifest, platform=one.platform, created=one.created)
        for one in platforms.platforms_of(tx, NAMESPACE, row.name)
    ]
    return [row, *(other for other in others if other.manifest != row.manifest)]


def best(core: Core, rows: list[ImageRow], wanted: Platform) -> ImageRow | None:
    """The image that serves a platform best, the first of equals; None where none does."""
    ranked = [(_rank(core, row, wanted), row) for row in rows]
    rank, row = max(ranked, key=lambda pair: pair[0])
    return row if rank else None


def _rank(core: Core, row: ImageRow, wanted: Platform) -> int:
    if row.platform is None:  # an older orlop's row
        try:
            config = parse_config(core.blobs.read(row.config), f"read image {row.name}")
        except NotFound:
            return 1  # removed at this moment: what follows finds out
        return config.platform().rank(wanted)
    try:
        return Platform.parse(row.platform).rank(wanted)
    except InvalidArgument:  # a config's words need be none
        return 0


def choose(core: Core, row: ImageRow, platform: str | None, attempted: str) -> ImageRow:
    """The image that a name means on a platform, or without one.  Raises `NotFound`, as `not_held` has it."""
    if platform is None:
        return row
    wanted = Platform.parse(platform)
    rows = core.db.read(lambda tx: held(tx, row))
    found = best(core, rows, wanted)
    if found is None:
        raise not_held(core, row, rows, wanted, attempted)
    return found


def not_held(core: Core, row: ImageRow, rows: list[ImageRow], wanted: Platform, attempted: str) -> NotFound:
    """Nothing here serves a platform: what is here, and what the index offers, where there is one."""
    here = sorted({one.platform or "an unknown platform" for one in rows})
    reason = f"no image for {wanted} in the store; there are {shorten(here)}"
    hint = ""
    if row.index is not None:
        offered: list[str] = []
        with contextlib.suppress(NotFound, DataLoss, InvalidArgument):
            index = parse_manifest(core.blobs.read(row.index), "", attempted)
            offered = offered_by(index) if isinstance(index, Index) else []
        more = [name for name in offered if name not in here]
        if more:
            reason += f"; its index offers {shorten(more)}"
        hint = f"'orlop pull --platform {wanted} {row.name}' adds one, if there is one"
    return NotFound(attempted, reason, hint=hint)
