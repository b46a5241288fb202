"""Annotations that a changed root's image inherits: those of the manifest that its base came with.

They are remembered with the new config (`orlop.metadata.images.put_annotations`) until something makes a
manifest of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from orlop.errors import DataLoss, InvalidArgument, NotFound
from orlop.images.changed.changes import is_text
from orlop.images.core import NAMESPACE, Core
from orlop.metadata import images
from orlop.metadata.db import Transaction
from orlop.metadata.roots import RootRow
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import parse_manifest

__all__ = ["check_annotations", "of_image", "of_root"]


def of_root(core: Core, root: RootRow, what: str, call: Call) -> Mapping[str, str]:
    """Those of the image that a root was prepared from: by its name's manifest, else by any of its own."""

    def manifest(tx: Transaction) -> Digest | None:
        row = images.get_image(tx, NAMESPACE, root.image)
        if row is not None and row.config == root.config and row.manifest is not None:
            return row.manifest
        return next(iter(images.manifests_of(tx, root.config)), None)

    return of_image(core, root.config, core.db.read(manifest), what, call)


def of_image(core: Core, config: Digest, manifest: Digest | None, what: str, call: Call) -> Mapping[str, str]:
    """Those of an image's manifest, or those that it will have."""
    if manifest is None:
        return core.db.read(lambda tx: images.annotations_of(tx, config))
    try:
        document = parse_manifest(core.blobs.read(manifest), "", what)
    except (NotFound, DataLoss) as exc:  # that is for a check to mend: nothing else needs it now
        call.observer.warning(f"the annotations of the image are not known: {exc.reason}")
        return {}
    return document.annotations or {}


def check_annotations(annotations: Mapping[str, str], what: str) -> None:
    """Raise `InvalidArgument` for annotations that no manifest can hold (annotations.md, "Rules")."""
    for key, value in annotations.items():
        if not key or not (is_text(key) and is_text(value)):
            raise InvalidArgument(
                what, f"no annotation: {key[:100]!r}", hint="write it as KEY=VALUE, in UTF-8"
            )
