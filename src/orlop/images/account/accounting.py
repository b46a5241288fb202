"""What a store takes on disk, and how that divides among images: `orlop df`.

Every byte that ``du`` counts is in one part.  Of what images need, a thing is *unique* to an image if it
would go with the image's names: nothing but that image needs it.  All other things it needs are *shared*.
A chain or a folder is a cache: it goes with the first of its layers, and an image needs it if it has all
those layers.

Sizes are of the disk, names are of one moment shortly before; a store that is at work meanwhile gives the
difference to ``layers`` or to whom it would have belonged.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator

from orlop.images.account.measure import KINDS, Measured, kind_of, measure
from orlop.images.core import Core
from orlop.images.leases import dead_leases
from orlop.images.space import available_bytes
from orlop.images.upkeep import Collected, ImageUsage, Usage, UsagePart
from orlop.metadata import costs
from orlop.metadata.costs import Named
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["Account", "Accounting", "Thing", "divide", "path_of"]

Thing = tuple[str, str]  # a kind (layer, blob, chain, folder) and a name
_SHARED = -1  # who needs a thing: an image by its number, or several, or not (only) an image


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How things divide among images.

    ``together`` are the bytes of all that images need, each thing once.
    """

    images: tuple[ImageUsage, ...]
    together: int


class Accounting:
    """Adds up one store.  Thread-safe; only reads."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def usage(self, litter: Collected, *, call: Call) -> Usage:
        """See `orlop.images.upkeep.Keeping.usage`; ``litter`` is what a collection would take now."""
        core, root = self._core, self._core.layout.root
        dead = dead_leases(core)
        named = core.db.read(lambda tx: costs.read_named(tx, dead=dead, now=time.time()))
        measured = measure(root, call=call)
        if measured.unread:
            call.observer.warning(f"{measured.unread} folders cannot be read, and are not counted")
        disk = os.statvfs(root)
        return Usage(
            parts=_parts(measured, litter),
            images=divide(named, measured.pieces).images,
            free=available_bytes(root),
            capacity=disk.f_blocks * disk.f_frsize,
        )


def path_of(thing: Thing) -> str:
    """Where a thing lies, from ROOT."""
    kind, name = thing
    if kind == "layer":
        return f"layers/{name.partition(':')[2]}"
    if kind == "chain":
        return f"chains/{name}.erofs"
    if kind == "blob":
        return f"content/blobs/{name.replace(':', '/')}"
    if kind == "folder":
        return f"folders/{name}"
    return name  # a stray


def _parts(measured: Measured, litter: Collected) -> tuple[UsagePart, ...]:
    reclaimable = dict.fromkeys(KINDS, 0)
    for path in {path_of(_thing(item)) for item, _ in litter.items}:
        reclaimable[kind_of(path)] += measured.pieces.get(path, 0)
    return tuple(
        UsagePart(
            kind=kind, count=measured.counts[kind], size=measured.sizes[kind], reclaimable=reclaimable[kind]
        )
        for kind in KINDS
    )


def _thing(item: str) -> Thing:
    kind, _, name = item.partition(" ")
    return kind, name


def divide(named: Named, pieces: dict[str, int]) -> Account:
    """Divide what is on disk among images."""
    configs = list(named.images)
    needs = [frozenset(_needs(named, config)) for config in configs]
    users: defaultdict[Thing, list[int]] = defaultdict(list)
    for number, things in enumerate(needs):
        for thing in things:
            users[thing].append(number)
    held = _held(named)
    alone = {thing: found[0] for thing, found in users.items() if len(found) == 1 and thing not in held}
    unique, total = [0] * len(configs), [0] * len(configs)
    together = 0
    for thing, numbers in users.items():
        size = pieces.get(path_of(thing), 0)
        together += size
        for number in numbers:
            total[number] += size
        if thing in alone:
            unique[alone[thing]] += size
    for thing, layers in named.made.items():
        size = pieces.get(path_of(thing), 0)
        takers = {alone[layer] for diff_id in layers if (layer := ("layer", diff_id)) in alone}
        needing = takers | set(_having(layers, users, needs))
        together += size if needing else 0
        for number in needing:
            total[number] += size
        for number in takers:
            unique[number] += size
    return Account(
        images=tuple(
            ImageUsage(
                id=config,
                names=tuple(named.images[config]),
                unique=unique[number],
                shared=total[number] - unique[number],
            )
            for number, config in sorted(enumerate(configs), key=lambda pair: named.images[pair[1]])
        ),
        together=together,
    )


def _needs(named: Named, config: str) -> Iterator[Thing]:
    yield "blob", config
    for digest in named.documents.get(config, ()):
        yield "blob", digest
    for diff_id in named.layers.get(config, ()):
        yield from _layer_needs(named, diff_id)


def _layer_needs(named: Named, diff_id: str) -> Iterator[Thing]:
    yield "layer", diff_id
    for digest in named.kept.get(diff_id, ()):
        yield "blob", digest


def _held(named: Named) -> set[Thing]:
    """What roots, leases and pins need."""
    held: set[Thing] = set()
    for kind, name in named.held:
        if kind == "config":
            held.update(_needs(named, name))
        elif kind == "layer":
            held.update(_layer_needs(named, name))
        else:
            held.add((kind, name))
    return held


def _having(layers: list[str], users: dict[Thing, list[int]], needs: list[frozenset[Thing]]) -> Iterator[int]:
    """The images that have all of some layers."""
    wanted = {("layer", diff_id) for diff_id in layers}
    if not wanted:
        return
    rarest = min(wanted, key=lambda thing: len(users.get(thing, ())))
    for number in users.get(rarest, ()):
        if wanted <= needs[number]:
            yield number
