"""What a thing needs on disk, piece by piece, and who else needs each piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from orlop.images.account.accounting import path_of
from orlop.images.account.holders import Holders
from orlop.images.upkeep import Reason
from orlop.metadata import costs, images, layers, roots
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = ["Parts", "Piece", "each_once"]

Me = AbstractSet[tuple[str, str]]  # who asks, as holders: kinds and names
_NOBODY: Me = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part before it is measured: ``path`` is where it lies, ``holders`` are the others that need it."""

    kind: str
    name: str
    path: str
    holders: tuple[Reason, ...] = ()


class Parts:
    """Answers from one transaction."""

    def __init__(self, tx: Transaction, holders: Holders) -> None:
        self._tx = tx
        self._holders = holders

    def of_refs(self, refs: Iterable[tuple[str, str]], me: Me) -> tuple[Piece, ...]:
        """Of what a lease or a pin keeps: pairs of a kind and a name."""
        found: list[Piece] = []
        for kind, ref in refs:
            if kind == "config":
                found += self.of_config(ref, me)
            elif kind == "layer":
                found += self.of_layers([ref], me)
            elif kind == "chain":
                found += [self.chain(row.id, me) for row in roots.chain_stack(self._tx, ref)]
                found += self.of_layers(roots.chain_layers(self._tx, ref), me)
            else:
                found.append(self._blob("blob", ref, me))
        return each_once(found)

    def of_config(self, config: str, me: Me) -> Iterator[Piece]:
        """Of an image: its documents and layers, and the caches made of its layers alone."""
        if layers.has_blob(self._tx, Digest(config)):
            yield self._blob("config", config, me)
        for digest in costs.manifests_of(self._tx, config):
            yield self._blob("manifest", digest, me)
        diff_ids = images.config_layers(self._tx, Digest(config))
        yield from self.of_layers(diff_ids, me)
        for chain in costs.chains_within(self._tx, config):
            yield self.chain(chain, me)
        for folder in costs.folders_within(self._tx, config):
            yield self.folder(folder, me)

    def of_layers(self, diff_ids: Iterable[str], me: Me) -> Iterator[Piece]:
        """Of some layers: those that are there, and as what they came, where that is kept."""
        for diff_id in dict.fromkeys(diff_ids):
            if layers.get_layer(self._tx, DiffID(diff_id)) is None:
                continue
            holders = self._others(self._holders.layer(diff_id), me)
            yield Piece(kind="layer", name=diff_id, path=path_of(("layer", diff_id)), holders=holders)
            for digest in costs.kept_blobs(self._tx, diff_id):
                yield self._blob("blob", digest, me)

    def made_of(self, diff_id: str) -> Iterator[Piece]:
        """What was made of a layer, and goes with it."""
        for digest in costs.kept_blobs(self._tx, diff_id):
            yield self._blob("blob", digest, _NOBODY)
        for chain in costs.chains_of(self._tx, diff_id):
            yield self.chain(chain, _NOBODY)
        for folder in costs.folders_of(self._tx, diff_id):
            yield self.folder(folder, _NOBODY)

    def _blob(self, kind: str, digest: str, me: Me) -> Piece:
        holders = self._others(self._holders.blob(digest), me)
        return Piece(kind=kind, name=digest, path=path_of(("blob", digest)), holders=holders)

    def chain(self, chain: str, me: Me) -> Piece:
        """One chain."""
        holders = self._others(self._holders.chain(chain), me)
        return Piece(kind="chain", name=chain, path=path_of(("chain", chain)), holders=holders)

    def folder(self, folder: str, me: Me) -> Piece:
        """One folder."""
        made_of = costs.layers_of_folder(self._tx, folder)
        holders = self._others(self._holders.folder(folder, made_of), me)
        return Piece(kind="folder", name=folder, path=path_of(("folder", folder)), holders=holders)

    @staticmethod
    def _others(holders: Iterable[Reason], me: Me) -> tuple[Reason, ...]:
        return tuple(
            reason
            for reason in holders
            if (reason.kind, reason.name) not in me and reason.kind not in {"chain", "folder"}
        )


def each_once(parts: Iterable[Piece]) -> tuple[Piece, ...]:
    """Each place once, as it came first."""
    found: dict[str, Piece] = {}
    for part in parts:
        found.setdefault(part.path, part)
    return tuple(found.values())
