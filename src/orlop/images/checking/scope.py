"""Which things of a store a check is about: all, or those that a caller named with what they need."""

from __future__ import annotations

from collections.abc import Iterable

from orlop.errors import InvalidArgument
from orlop.images.account.things import find_thing
from orlop.images.core import NAMESPACE
from orlop.metadata import checks, folders, images, platforms, roots
from orlop.metadata.db import Transaction
from orlop.metadata.roots import RootRow
from orlop.spec.digest import DiffID, Digest, chain_id
from orlop.values import dataclass, field

__all__ = ["Scope"]


@dataclass(slots=True)
class Scope:
    """The names of what is looked at, by kind; with ``everything`` the sets mean nothing."""

    everything: bool = True
    images: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    roots: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, tx: Transaction, things: Iterable[str]) -> Scope:
        """What some things are and need; everything if there are none.

        Raises `NotFound` for what the store does not have, `InvalidArgument` for what cannot be checked.
        """
        scope = cls(everything=True)
        for thing in things:
            scope.everything = False
            scope._add(tx, thing)
        return scope

    def _add(self, tx: Transaction, text: str) -> None:
        thing = find_thing(tx, NAMESPACE, text, f"check {text}")
        if thing.kind == "image":
            self._add_config(tx, Digest(thing.name))
            self._add_indexes(tx)
        elif thing.kind == "root":
            root = roots.get_root(tx, thing.name)
            if root is not None:
                self._add_root(tx, root)
        elif thing.kind == "chain":
            self._add_chain(tx, thing.name)
        elif thing.kind in {"layer", "blob", "folder"}:
            kinds = {"layer": self.layers, "blob": self.blobs, "folder": self.folders}
            kinds[thing.kind].add(thing.name)
        else:
            raise InvalidArgument(f"check {text}", f"a {thing.kind} has nothing that could be damaged")

    def _add_config(self, tx: Transaction, config: Digest) -> None:
        self.images |= {row.name for row in images.images_by_id(tx, NAMESPACE, config)}
        self.blobs |= {config, *checks.manifests_of(tx, config)}
        diff_ids: tuple[DiffID, ...] = images.config_layers(tx, config)
        self.layers |= set(diff_ids)
        name = chain_id(diff_ids).hex if diff_ids else "empty"
        for chain in (name, f"{name}-whole", f"{name}-each"):
            self._add_chain(tx, chain)
        for row in checks.all_folders(tx):
            if row.of == name or row.of.startswith(f"{name}+") or row.of in diff_ids:
                self.folders.add(row.id)

    def _add_indexes(self, tx: Transaction) -> None:
        """What the names that were added hold of their index."""
        for name in sorted(self.images):
            row = images.get_image(tx, NAMESPACE, name)
            if row is None or row.index is None:
                continue
            self.blobs |= {part.digest for part in platforms.index_blobs(tx, row.index)}
            for one in platforms.platforms_of(tx, NAMESPACE, name):
                self._add_config(tx, one.config)

    def _add_chain(self, tx: Transaction, chain: str) -> None:
        name: str | None = chain
        while name is not None and name not in self.chains:
            row = roots.get_chain(tx, name)
            if row is None:
                return
            self.chains.add(name)
            name = row.parent

    def _add_root(self, tx: Transaction, row: RootRow) -> None:
        self.roots.add(row.path)
        self._add_config(tx, row.config)
        self._add_chain(tx, row.chain)
        for mount in roots.mounts_of(tx, row.id):
            if mount.config is not None:
                self._add_config(tx, mount.config)
            if mount.chain is not None:
                self._add_chain(tx, mount.chain)
        self.folders |= set(folders.folders_of_root(tx, row.id))
