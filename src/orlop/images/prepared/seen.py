"""What the rows say of one root, read in one moment, as most verbs need it; and what the API says of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from orlop.errors import NotFound
from orlop.images.api import Mount, PreparedInfo
from orlop.images.core import Core
from orlop.images.prepared.asked import check_path
from orlop.images.prepared.idmaps import maps_of
from orlop.metadata import roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import ChainRow, MountRow, RootRow
from orlop.snapshots.driver import MountSpec
from orlop.values import dataclass

__all__ = ["Seen", "info_of_root", "look"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A root, what its caller added to it, and its chain's images, top first: none if one is missing."""

    root: RootRow
    extras: list[MountRow]
    labels: dict[str, str]
    stack: list[ChainRow]


def look(core: Core, path: str, what: str) -> Seen:
    """The root at a path.  Raises `NotFound`, or `InvalidArgument` for no path at all."""
    check_path(path, what)

    def body(tx: Transaction) -> Seen | None:
        root = roots.get_root(tx, path)
        if root is None:
            return None
        return Seen(
            root=root,
            extras=roots.mounts_of(tx, root.id),
            labels=roots.labels_of(tx, root.id),
            stack=roots.chain_stack(tx, root.chain),
        )

    seen = core.db.read(body)
    if seen is None:
        from orlop.images.nearby import root_hint

        hint = core.db.read(lambda tx: root_hint(tx, path))
        raise NotFound(what, "nothing is prepared there", hint=hint)
    return seen


def info_of_root(
    root: RootRow, specs: Sequence[MountSpec], labels: Mapping[str, str], *, mounted: bool = False
) -> PreparedInfo:
    """What the API says of a root."""
    return PreparedInfo(
        path=root.path,
        image=root.image,
        image_id=root.config,
        kind="view" if root.kind == "view" else "active",
        driver=root.driver,
        mounted=mounted,
        created=datetime.fromtimestamp(root.created, UTC)
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z"),
        mounts=tuple(
            Mount(type=spec.type, source=spec.source, target=spec.target, options=spec.options)
            for spec in specs
        ),
        labels=dict(labels),
        quota=root.quota,
        uid_map=maps_of(root.uid_map),
        gid_map=maps_of(root.gid_map),
        missing=not os.path.isdir(os.path.dirname(root.path)),
    )
