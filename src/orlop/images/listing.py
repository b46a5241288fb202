"""What a list shows of images: from their rows, without reading a document for each.

A row knows what its config says, from when it was named; rows of an older orlop do not, and then the config
is read, once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from orlop.errors import DataLoss, Error, NotFound
from orlop.hints import TYPE_CHECKING
from orlop.images.format import NAMESPACE
from orlop.images.infos import HeldPlatform, ImageInfo
from orlop.metadata import images, platforms, uses
from orlop.metadata.images import ImageRow, ListedImage
from orlop.metadata.platforms import PlatformRow
from orlop.metadata.uses import ImageUse
from orlop.values import dataclass, replace

if TYPE_CHECKING:
    from orlop.images.core import Core
    from orlop.metadata.db import Transaction
    from orlop.spec.digest import Digest

__all__ = ["Rows", "describe", "held_of", "info_of", "list_images", "list_known", "noted", "rows_of"]

_KEEP_SECONDS = 1.0  # how long a list may wait to write down what it has learnt


def describe(core: Core, row: ImageRow, size: int, layers: int) -> ImageInfo:
    """An image and what its config says.  Raises `NotFound` or `DataLoss` where that cannot be read."""
    platform, created = row.platform, row.created
    if platform is None:
        from orlop.spec.documents import parse_config

        config = parse_config(core.blobs.read(row.config), f"read image {row.name}")
        platform, created = str(config.platform()), config.created
    return _info(row, size, layers, platform=platform, created=created or "")


def info_of(tx: Transaction, name: str) -> ImageInfo:
    """The image that a name means in a transaction that has just said so, config and all.

    Read there, for afterwards another process may have taken it away.
    """
    row = images.get_image(tx, NAMESPACE, name)
    assert row is not None
    size, layers = images.config_size(tx, row.config)
    info = _info(row, size, layers, platform=row.platform or "", created=row.created or "")
    info = replace(info, platforms=held_of(row, platforms.platforms_of(tx, NAMESPACE, name)))
    return noted(info, uses.image_use(tx, NAMESPACE, name))


def held_of(row: ImageRow, held: Sequence[PlatformRow]) -> tuple[HeldPlatform, ...]:
    """What a name holds of its index, with what it means without a platform first."""
    first = sorted(held, key=lambda one: one.manifest != row.manifest)
    return tuple(HeldPlatform(platform=one.platform, id=one.config, digest=one.manifest) for one in first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What the metadata say of all images at one moment."""

    images: list[ListedImage]
    uses: list[ImageUse]
    held: dict[str, list[PlatformRow]]


def rows_of(tx: Transaction) -> Rows:
    """Read them."""
    return Rows(
        images=images.list_with_sizes(tx, NAMESPACE),
        uses=uses.image_uses(tx, NAMESPACE),
        held=platforms.all_platforms(tx, NAMESPACE),
    )


def list_images(core: Core) -> list[ImageInfo]:
    """All images, by name."""
    rows = core.db.read(rows_of)
    infos = [(one.row, info) for one in rows.images if (info := _line(core, one)) is not None]
    learnt = {row.config: info for row, info in infos if row.platform is None and info.platform}
    if learnt:
        _keep(core, learnt)
    return _listed(rows, infos)


def list_known(rows: Rows) -> list[ImageInfo] | None:
    """All images, by name, from their rows alone; None where a row does not know what its config says."""
    if any(one.row.platform is None for one in rows.images):
        return None
    return _listed(rows, [(one.row, _known(one)) for one in rows.images])


def _known(image: ListedImage) -> ImageInfo:
    row = image.row
    return _info(row, image.size, image.layers, platform=row.platform or "", created=row.created or "")


def _listed(rows: Rows, infos: Sequence[tuple[ImageRow, ImageInfo]]) -> list[ImageInfo]:
    notes = {use.name: use for use in rows.uses}
    return [
        replace(noted(info, notes.get(info.name)), platforms=held_of(row, rows.held.get(info.name, ())))
        for row, info in infos
    ]


def noted(info: ImageInfo, use: ImageUse | None) -> ImageInfo:
    """The same with the store's own notes: its labels, and when it was last used."""
    if use is None:
        return info
    used = datetime.fromtimestamp(use.used, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return replace(info, used=used, labels=dict(use.labels))


def _line(core: Core, image: ListedImage) -> ImageInfo | None:
    """A line of the list; None for an image that was removed at this moment.

    An image whose config is lost or bad keeps its line, with what the metadata know: `inspect` says what is
    wrong with it.
    """
    row = image.row
    try:
        return describe(core, row, image.size, image.layers)
    except (NotFound, DataLoss):
        if core.db.read(lambda tx: images.get_image(tx, NAMESPACE, row.name)) is None:
            return None
        return _info(row, image.size, image.layers)


def _keep(core: Core, learnt: dict[Digest, ImageInfo]) -> None:
    """Write down what configs say, so that the next list reads none."""
    from orlop.observe import Call

    def body(tx: Transaction) -> None:
        for config, info in learnt.items():
            images.describe_config(tx, config, platform=info.platform, created=info.created)

    try:
        core.db.write(body, call=Call(deadline=time.monotonic() + _KEEP_SECONDS))
    except Error as exc:  # a full disk, say: a list does not fail for that
        import logging

        logging.getLogger(__name__).debug("what configs say is not kept: %s", exc)


def _info(row: ImageRow, size: int, layers: int, *, platform: str = "", created: str = "") -> ImageInfo:
    return ImageInfo(
        name=row.name,
        id=row.config,
        digest=row.manifest,
        index=row.index,
        platform=platform,
        created=created,
        size=size,
        layers=layers,
    )
