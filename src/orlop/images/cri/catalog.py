"""All images of a store by ID, from their rows: what a kubelet lists every few seconds.

A config is asked for its user, once for as long as the store is open: a digest never means other bytes.
"""

from __future__ import annotations

import threading
import time

from orlop.errors import DataLoss, Error, NotFound
from orlop.images import names
from orlop.images.core import NAMESPACE, Core
from orlop.images.cri.rules import id_of, told_names, user_of
from orlop.images.nodeimages import PINNED_LABEL, NodeImage, NodeImageDetails
from orlop.metadata import images, labels, pins, platforms
from orlop.metadata.db import Transaction
from orlop.metadata.images import ImageRow, ListedImage
from orlop.spec.digest import Digest, chain_id
from orlop.spec.documents import parse_config
from orlop.spec.reference import Reference, is_short
from orlop.values import dataclass

__all__ = ["Catalog"]

_MOST = 20_000  # configs whose user is remembered; some 200 bytes each


@dataclass(frozen=True, slots=True)
class _Said:
    """What a config says of who runs, and its bytes."""

    uid: int | None
    username: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """One ID: its names and what each means, the bytes of its tars, and whether something pins it."""

    meanings: tuple[tuple[str, Digest | None], ...]
    size: int
    pinned: bool


class Catalog:
    """Reads one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._said: dict[Digest, _Said] = {}
        self._lock = threading.Lock()  # guards _said

    def all(self) -> list[NodeImage]:
        """See `orlop.images.nodeimages.NodeImages.node_images`."""
        listed, said, kept = self._core.db.read(
            lambda tx: (
                images.list_with_sizes(tx, NAMESPACE),
                labels.all_image_labels(tx, NAMESPACE),
                pins.pinned_configs(tx, now=time.time()),
            )
        )
        by_id: dict[Digest, list[ListedImage]] = {}
        for one in listed:
            by_id.setdefault(one.row.config, []).append(one)
        found = []
        for config, lines in by_id.items():
            pinned = config in kept or any(PINNED_LABEL in said.get(line.row.name, {}) for line in lines)
            meanings = tuple(_meaning(line.row) for line in lines)
            image = self._listed(config, _Found(meanings=meanings, size=lines[0].size, pinned=pinned))
            if image is not None:
                found.append(image)
        return found

    def one(self, text: str) -> NodeImage | None:
        """See `orlop.images.nodeimages.NodeImages.node_image`."""
        config = self.id(text)
        return self._one(config) if config is not None else None

    def details(self, text: str) -> NodeImageDetails | None:
        """See `orlop.images.nodeimages.NodeImages.node_image_details`."""
        config = self.id(text)
        image = self._one(config) if config is not None else None
        if config is None or image is None:
            return None
        diff_ids = self._core.db.read(lambda tx: images.config_layers(tx, config))
        return NodeImageDetails(
            image=image,
            chain=chain_id(diff_ids) if diff_ids else "",
            config=self._core.blobs.read(config),
        )

    def id(self, text: str) -> Digest | None:
        """The ID of what a text means here, or None; a short name is looked for as a pull does."""
        core = self._core
        whole = id_of(text)
        refs: tuple[Reference, ...] = ()
        if whole is None and core.settings.search_registries is not False and is_short(text):
            refs = core.registry.names(text)

        def body(tx: Transaction) -> ImageRow | None:
            for ref in refs:
                row = images.get_image(tx, NAMESPACE, str(ref))
                if row is not None:
                    return row
            return names.find(tx, NAMESPACE, whole or text)

        row = core.db.read(body)
        return row.config if row is not None else None

    def _one(self, config: Digest) -> NodeImage | None:
        def body(tx: Transaction) -> _Found:
            rows = images.images_by_id(tx, NAMESPACE, config)
            said = [labels.image_labels(tx, NAMESPACE, row.name) for row in rows]
            meanings = [_meaning(row) for row in rows]
            if not rows:  # of an index, and not what its name means without a platform
                held = platforms.names_of_config(tx, NAMESPACE, config)
                refs = [(Reference.parse(name), one.manifest) for name, one in held]
                meanings = [(str(ref.with_digest(digest)), None) for ref, digest in refs]
            pinned = config in pins.pinned_configs(tx, now=time.time())
            return _Found(
                meanings=tuple(meanings),
                size=images.config_size(tx, config)[0],
                pinned=pinned or any(PINNED_LABEL in one for one in said),
            )

        found = self._core.db.read(body)
        if not found.meanings:
            return None  # it was removed at this moment
        try:
            return _image(config, found, self._say(config))
        except NotFound:
            if self.id(config) is None:
                return None
            raise DataLoss(f"read image {config}", "its config is lost") from None

    def _listed(self, config: Digest, found: _Found) -> NodeImage | None:
        """A line of the list; None for an image that was removed at this moment."""
        try:
            said = self._say(config)
        except Error:  # `inspect` and `check` say what is wrong with it
            if self.id(config) is None:
                return None
            said = _Said(None, "", 1)  # a kubelet takes an image of no bytes for an error
        return _image(config, found, said)

    def _say(self, config: Digest) -> _Said:
        """What a config says.  Raises `NotFound`, or `DataLoss` for a damaged one."""
        with self._lock:
            known = self._said.get(config)
        if known is not None:
            return known
        data = self._core.blobs.read(config)
        run = parse_config(data, f"read image {config}", limits=self._core.settings.limits).config
        said = _Said(*user_of((run.user if run is not None else None) or ""), len(data))
        with self._lock:
            if len(self._said) >= _MOST:
                self._said.clear()
            self._said[config] = said
        return said


def _image(config: Digest, found: _Found, said: _Said) -> NodeImage:
    tags, digests = told_names(found.meanings)
    return NodeImage(
        id=config,
        tags=tags,
        digests=digests,
        size=found.size + said.size,
        uid=said.uid,
        username=said.username,
        pinned=found.pinned,
    )


def _meaning(row: ImageRow) -> tuple[str, Digest | None]:
    return row.name, row.index or row.manifest
