"""Rows as policies see them: which images there are, when each was last used, its labels, what holds it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orlop.hints import TYPE_CHECKING
from orlop.metadata.labels import all_image_labels, image_labels
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = [
    "ImageUse",
    "LayerUse",
    "held_configs",
    "image_use",
    "image_uses",
    "is_unused_since",
    "layer_uses",
    "layers_by_config",
    "platform_configs",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUse:
    """A name, its config, when it was last asked for, in seconds since 1970, and its labels."""

    name: str
    config: str
    used: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUse:
    """A layer's bytes, of its tar and in all; ``held`` if it stays when all images go."""

    diff_id: str
    tar: int
    disk: int
    held: bool


def image_uses(tx: Transaction, namespace: str) -> list[ImageUse]:
    """All names, by name."""
    labels = all_image_labels(tx, namespace)
    query = "SELECT name, config_digest, used_at FROM images WHERE namespace = ? ORDER BY name"
    return [
        ImageUse(name=row[0], config=row[1], used=row[2], labels=labels.get(row[0], {}))
        for row in tx.execute(query, (namespace,))
    ]


def image_use(tx: Transaction, namespace: str, name: str) -> ImageUse | None:
    """One name."""
    row = tx.execute(
        "SELECT config_digest, used_at FROM images WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    if row is None:
        return None
    return ImageUse(name=name, config=row[0], used=row[1], labels=image_labels(tx, namespace, name))


def layers_by_config(tx: Transaction) -> dict[str, tuple[str, ...]]:
    """The layers of all configs."""
    found: dict[str, list[str]] = {}
    for config, diff_id in tx.execute("SELECT config_digest, diff_id FROM config_layers"):
        found.setdefault(config, []).append(diff_id)
    return {config: tuple(layers) for config, layers in found.items()}


def platform_configs(tx: Transaction, namespace: str) -> dict[str, set[str]]:
    """The configs of all platforms that names hold of their index, by name."""
    found: dict[str, set[str]] = {}
    query = "SELECT name, config_digest FROM image_platforms WHERE namespace = ?"
    for name, config in tx.execute(query, (namespace,)):
        found.setdefault(name, set()).add(config)
    return found


def held_configs(tx: Transaction) -> set[str]:
    """The configs of prepared roots, of their checkpoints, and of images mounted in them."""
    query = (
        "SELECT config_digest FROM prepared UNION SELECT config_digest FROM checkpoints "
        "UNION SELECT config_digest FROM root_mounts WHERE config_digest IS NOT NULL"
    )
    return {row[0] for row in tx.execute(query)}


def layer_uses(
    tx: Transaction, names: Sequence[str], *, namespace: str, leases: Iterable[str], now: float
) -> list[LayerUse]:
    """All layers; ``names`` are those of all images, ``leases`` those that are dead.

    Without names no layer is looked at for what holds it.
    """
    free = set[str]()
    if names:
        from orlop.metadata.needs import Needs, Without

        without = Without(namespace=namespace, images=frozenset(names), leases=frozenset(leases))
        free.update(Needs(tx, now=now, without=without).unneeded("layer", "layers", "diff_id"))
    query = "SELECT diff_id, size, size + data_size + index_size FROM layers"
    return [
        LayerUse(diff_id=row[0], tar=row[1], disk=row[2], held=row[0] not in free)
        for row in tx.execute(query)
    ]


def is_unused_since(
    tx: Transaction, namespace: str, name: str, config: str, *, used: float, now: float
) -> bool:
    """Whether a name still means a config, was not asked for since, and no root or pin came meanwhile."""
    configs = (
        "(SELECT :config UNION SELECT config_digest FROM image_platforms "
        "WHERE namespace = :namespace AND name = :name)"
    )
    row = tx.execute(
        f"SELECT NOT EXISTS (SELECT 1 FROM prepared WHERE config_digest IN {configs}) "
        f"AND NOT EXISTS (SELECT 1 FROM root_mounts WHERE config_digest IN {configs}) "
        f"AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE config_digest IN {configs}) "
        f"AND NOT EXISTS (SELECT 1 FROM pins WHERE kind = 'config' AND ref IN {configs} "
        "  AND (expires_at IS NULL OR expires_at > :now)) "
        "FROM images WHERE namespace = :namespace AND name = :name AND config_digest = :config "
        "AND used_at <= :used",
        {"namespace": namespace, "name": name, "config": config, "used": used, "now": now},
    ).fetchone()
    return bool(row and row[0])
