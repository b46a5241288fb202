"""The documents of a shared image, and the files of the store that hold its blobs.

An image whose manifest is known, and all of whose blobs the store keeps, goes as it came.  Any other gets a
manifest that names its layers as the store has them: uncompressed tars, whose digest is the diff ID.  That
one is not remembered: pushed by orlop, the image has the manifest that it always had, or will have.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from orlop.errors import NotFound
from orlop.images.archives.chosen import manifest_of
from orlop.images.core import Core
from orlop.metadata import images, layers
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    encode,
    parse_config,
)
from orlop.values import dataclass

__all__ = ["SharedDocuments", "documents_of"]

_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedDocuments:
    """One image: its documents, and for each blob the file of the store that has its bytes.

    ``kept`` are the blobs that have to be kept besides the config and its layers.
    """

    name: str
    config: Digest
    diff_ids: tuple[DiffID, ...]
    manifest: bytes
    digest: Digest
    media_type: str
    layers: tuple[Descriptor, ...]
    sizes: tuple[int, ...]
    files: tuple[tuple[Digest, Path], ...]
    created: str
    kept: tuple[Digest, ...] = ()


def documents_of(
    core: Core, name: str, config: Digest, manifest: Digest | None, *, whole: bool, what: str
) -> SharedDocuments:
    """What an image is for others; ``manifest`` is the one that the store knows of it, if any.

    ``whole`` asks that the blobs of its manifest are at hand.
    """
    diff_ids = core.layers_of(config, what)
    sizes = tuple(_size(core, diff_id, what) for diff_id in diff_ids)
    config_file = (config, core.blobs.path(config))
    data = core.blobs.read(config)
    created = _time(parse_config(data, what).created or "")
    if manifest is not None:
        document, text = manifest_of(core, manifest, what)
        digests = [one.checked_digest() for one in document.layers]
        here = all(core.blobs.path(digest).exists() for digest in digests)
        if len(digests) == len(diff_ids) and (here or not whole):
            known = core.db.read(lambda tx: images.manifest_of(tx, manifest))
            return SharedDocuments(
                name=name,
                config=config,
                diff_ids=diff_ids,
                manifest=text,
                digest=manifest,
                media_type=(known.media_type if known else document.media_type) or OCI_MANIFEST,
                layers=tuple(document.layers),
                sizes=sizes,
                files=(config_file, *((digest, core.blobs.path(digest)) for digest in digests)),
                created=created,
                kept=(manifest, *(digests if here else ())),
            )
    described = tuple(
        Descriptor(media_type=OCI_LAYER, digest=str(diff_id), size=size)
        for diff_id, size in zip(diff_ids, sizes, strict=True)
    )
    made = Manifest(
        schema_version=2,
        media_type=OCI_MANIFEST,
        config=Descriptor(media_type=OCI_CONFIG, digest=str(config), size=len(data)),
        layers=list(described),
        annotations=core.db.read(lambda tx: images.annotations_of(tx, config)) or None,
    )
    text = encode(made)
    return SharedDocuments(
        name=name,
        config=config,
        diff_ids=diff_ids,
        manifest=text,
        digest=Digest.of(text),
        media_type=OCI_MANIFEST,
        layers=described,
        sizes=sizes,
        files=(
            config_file,
            *((Digest(str(diff_id)), core.layers.tar(diff_id)) for diff_id in diff_ids),
        ),
        created=created,
    )


def _time(text: str) -> str:
    """An image's time, if Go would read it: one that it cannot read would cost podman the whole store."""
    if not _RFC3339.fullmatch(text):
        return ""
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return ""
    return text


def _size(core: Core, diff_id: DiffID, what: str) -> int:
    row = core.db.read(lambda tx: layers.get_layer(tx, diff_id))
    if row is None:
        raise NotFound(what, f"the store does not have layer {diff_id}", hint="pull the image again")
    return row.size
