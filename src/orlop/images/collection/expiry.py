"""Policies at work: what the store holds as `policy` wants to see it, and taking names away.

The choice is made of one moment of the store, which is not held up meanwhile; each image is looked at again
in the transaction that takes its names: one that was asked for since, or got a root or a pin, stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from orlop.images.collection.policy import Candidate, LayerSizes, choose
from orlop.images.core import NAMESPACE, Core
from orlop.images.upkeep import Keep
from orlop.metadata import garbage, images, pins, uses
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Forgotten, Suspects
from orlop.observe import Call, reached

__all__ = ["chosen", "take"]

_AT_ONCE = 50  # images whose names go in one transaction


def chosen(core: Core, keep: Keep, *, free: int, dead: Iterable[str], now: float) -> list[Candidate]:
    """The images that go under a policy, those used longest ago first.

    ``free`` is how many bytes of the disk are free, ``dead`` are leases whose owner is gone.
    """
    if not keep.limits:
        return []

    def body(tx: Transaction) -> tuple[list[Candidate], dict[str, LayerSizes]]:
        found = _candidates(tx, now)
        # Only a limit on free space asks what else keeps a layer.
        names = [name for image in found for name in image.names] if keep.free is not None else []
        sizes = uses.layer_uses(tx, names, namespace=NAMESPACE, leases=dead, now=now)
        layers = {use.diff_id: LayerSizes(tar=use.tar, disk=use.disk, held=use.held) for use in sizes}
        return found, layers

    found, layers = core.db.read(body)
    return choose(found, keep, layers=layers, now=now, free=free)


def _candidates(tx: Transaction, now: float) -> list[Candidate]:
    held = uses.held_configs(tx) | pins.pinned_configs(tx, now=now)
    layers = uses.layers_by_config(tx)
    platforms = uses.platform_configs(tx, NAMESPACE)
    by_config: dict[str, list[uses.ImageUse]] = {}
    for use in uses.image_uses(tx, NAMESPACE):
        by_config.setdefault(use.config, []).append(use)
    every = {  # of a name that means an index, all that it holds
        config: {config}.union(*(platforms.get(use.name, ()) for use in found))
        for config, found in by_config.items()
    }
    return [
        Candidate(
            id=config,
            names=tuple(use.name for use in found),
            used=max(use.used for use in found),
            layers=tuple(layer for one in sorted(every[config]) for layer in layers.get(one, ())),
            held=not held.isdisjoint(every[config]),
            labels=frozenset(pair for use in found for pair in use.labels.items()),
        )
        for config, found in by_config.items()
    ]


def take(core: Core, candidates: Sequence[Candidate], *, call: Call) -> tuple[list[str], list[Forgotten]]:
    """Take the names of some images away, and forget what nothing else needs; both are told."""
    names: list[str] = []
    found: list[Forgotten] = []
    for start in range(0, len(candidates), _AT_ONCE):
        part = candidates[start : start + _AT_ONCE]
        gone, items = core.db.write(lambda tx, part=part: _take(tx, part), call=call)  # type: ignore[misc]  # bound now
        reached("collect.unnamed")
        names += gone
        found += items
    return names, found


def _take(tx: Transaction, part: Sequence[Candidate]) -> tuple[list[str], list[Forgotten]]:
    gone: list[str] = []
    suspects = Suspects()
    for image in part:
        now = time.time()
        known = tuple(row.name for row in images.images_by_id(tx, NAMESPACE, image.id))
        if known == image.names and all(
            uses.is_unused_since(tx, NAMESPACE, name, image.id, used=image.used, now=now)
            for name in image.names
        ):
            for name in image.names:
                suspects.merge(garbage.suspects_of_image(tx, NAMESPACE, name))
                images.delete_image(tx, NAMESPACE, name)
            gone += image.names
    return gone, garbage.forget(tx, suspects)
