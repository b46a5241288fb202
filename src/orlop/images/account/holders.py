"""Who keeps a thing, as reasons for people: asked one thing at a time, in one transaction.

The same rule as `orlop.metadata.needs`, which only says whether: there is a reason exactly for what it finds
needed (a test holds the two together).  Of a layer that very many images have, `LAYER_USERS` are named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime

from orlop.images.core import NAMESPACE
from orlop.images.upkeep import Reason
from orlop.metadata import costs, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.metadata.needs import Needs, Without
from orlop.spec.digest import Digest
from orlop.values import replace

__all__ = ["Holders", "moment"]

_ORDER = ("image", "root", "snapshot", "lease", "pin")
_MORE = "and "  # no name has a space


class Holders:
    """Answers from one transaction.  ``dead`` leases keep nothing; ``now`` says which pins have expired."""

    def __init__(self, tx: Transaction, *, dead: Collection[str], now: float) -> None:
        self._tx = tx
        self._dead = dead
        self._now = now
        self._layers: dict[str, list[Reason]] = {}  # those that were asked about

    def config(self, config: str, note: str = "") -> list[Reason]:
        """Of an image: names, roots, leases, pins.  ``note`` says what names and roots have to do with it."""
        return _distinct(self._direct("config", config, note))

    def layer(self, diff_id: str) -> list[Reason]:
        """Of a layer."""
        found = self._layers.get(diff_id)
        if found is None:
            found = _distinct(self._of_layer(diff_id))
            if all(reason.name.startswith(_MORE) for reason in found) and not self._needed(diff_id):
                found = []  # those that are not named do not need it either
            self._layers[diff_id] = found
        return found

    def _needed(self, diff_id: str) -> bool:
        without = Without(namespace=NAMESPACE, leases=frozenset(self._dead))
        return Needs(self._tx, now=self._now, without=without).layer(diff_id)

    def blob(self, digest: str) -> list[Reason]:
        """Of a blob."""
        return _distinct(self._of_blob(digest))

    def chain(self, chain: str) -> list[Reason]:
        """Of a chain: whoever has all its layers; the roots that stand on it come first."""
        made_of = roots.chain_layers(self._tx, chain)
        return self._cache(made_of, self._direct("chain", chain), Reason(kind="chain", name=chain))

    def folder(self, folder: str, made_of: Collection[str]) -> list[Reason]:
        """Of a folder, likewise."""
        return self._cache(made_of, self._direct("folder", folder), Reason(kind="folder", name=folder))

    def lease(self, lease: str) -> Reason:
        """A lease as what keeps something."""
        facts, note = costs.get_lease(self._tx, lease), "an operation"
        if facts is not None:
            whose = f", process {facts.pid}" if facts.pid else ""
            note = f"{facts.what or note}{whose}, running since {moment(facts.created)}"
        return Reason(kind="lease", name=lease, note=note)

    def pin(self, name: str) -> Reason:
        """A pin, likewise."""
        facts = costs.get_pin(self._tx, NAMESPACE, name)
        expires = facts.expires if facts is not None else None
        note = "until it is taken back" if expires is None else f"until {moment(expires)}"
        return Reason(kind="pin", name=name, note=note)

    # -- parts ----------------------------------------------------------------------------------

    def _direct(self, what: str, ref: str, note: str = "") -> Iterator[Reason]:
        for holder in costs.holders(self._tx, what, ref, now=self._now):
            if holder.kind == "lease":
                if holder.name not in self._dead:
                    yield self.lease(holder.name)
            elif holder.kind == "pin":
                yield self.pin(holder.name)
            else:
                told = holder.note if holder.kind == "root" and what == "config" and not note else note
                yield Reason(kind=holder.kind, name=holder.name, note=told or holder.note)

    def _of_layer(self, diff_id: str) -> Iterator[Reason]:
        listed, more = costs.configs_with_layer(self._tx, diff_id)
        for config, place, count in listed:
            for reason in self._direct("config", config):
                if reason.kind == "image":
                    yield replace(reason, note=f"its layer {place} of {count}")
                elif reason.kind == "root":
                    yield replace(reason, note=f"layer {place} of {count}: {reason.note}")
                else:
                    yield reason
        if more:
            yield Reason(kind="image", name=f"{_MORE}{more} more")
        yield from self._direct("layer", diff_id)
        for what, ref in costs.held_caches(self._tx, diff_id):
            yield from self._direct(what, ref)

    def _of_blob(self, digest: str) -> Iterator[Reason]:
        yield from self._direct("config", digest, "its config")
        for config in costs.configs_with_manifest(self._tx, digest):
            yield from self._direct("config", config, "its manifest")
        yield from self._direct("blob", digest)
        layer = layers.layer_of_blob(self._tx, Digest(digest))
        if layer is not None:
            for reason in self._of_layer(layer.diff_id):
                yield replace(reason, note=f"{reason.note}, as it came" if reason.note else "")

    def _cache(self, made_of: Collection[str], direct: Iterable[Reason], own: Reason) -> list[Reason]:
        """Of what was made of some layers, and goes with the first of them."""
        if not made_of:
            return [*_distinct(direct), replace(own, note="it has no layers, so it stays")]
        by_layer = {diff_id: self.layer(diff_id) for diff_id in dict.fromkeys(made_of)}
        if not all(by_layer.values()):
            return []
        whole: list[Reason] = []
        rarest = min(by_layer, key=lambda diff_id: len(by_layer[diff_id]))
        for config, _, count in costs.configs_with_layer(self._tx, rarest)[0]:
            if by_layer.keys() <= set(images.config_layers(self._tx, Digest(config))):
                whole += self._direct("config", config, f"has its layers, {len(by_layer)} of {count}")
        found = _distinct([*direct, *whole])
        if found:
            return found
        return _distinct(replace(reasons[0], note="has a layer of it") for reasons in by_layer.values())


def moment(seconds: float) -> str:
    """A time for people: RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _distinct(reasons: Iterable[Reason]) -> list[Reason]:
    """Each holder once, with the first note; images first, and what stands for several at their end."""
    found: dict[tuple[str, str], Reason] = {}
    for reason in reasons:
        found.setdefault((reason.kind, reason.name), reason)
    return sorted(found.values(), key=_place)


def _place(reason: Reason) -> tuple[int, bool, str]:
    kind = _ORDER.index(reason.kind) if reason.kind in _ORDER else len(_ORDER)
    return kind, reason.name.startswith(_MORE), reason.name
