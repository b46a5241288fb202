"""Why a thing is kept, what it shares, and what its removal would free: `orlop explain`.

One transaction that only reads says who and what; then the pieces are measured on disk.  What would go is
asked of the rule that collections follow (`orlop.metadata.garbage.find`), as if the thing were gone already.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from orlop.errors import InvalidArgument, NotFound
from orlop.images.account.accounting import path_of
from orlop.images.account.holders import Holders, moment
from orlop.images.account.measure import kind_of, measure_some, piece_of
from orlop.images.account.parts import Parts, Piece, each_once
from orlop.images.account.things import Thing, find_thing
from orlop.images.collection.strays import ASIDE
from orlop.images.core import NAMESPACE, Core
from orlop.images.leases import dead_leases
from orlop.images.upkeep import Collected, Explanation, Part, Reason
from orlop.metadata import captures, costs, folders, garbage, roots
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Forgotten, Suspects
from orlop.metadata.needs import Without
from orlop.observe import Call
from orlop.values import dataclass, replace

__all__ = ["Explainer"]

_SHOWN = 32  # holders that are named of each part; of the others their number is told
_FILES = ("layer.tar", "layer.index", "layer.data")
_OWN = "the store's own"
_STAYS = (  # what is said of files without a row that a collection leaves
    ("content/ingest/", "a download: it waits a day to be resumed"),
    (f"prepared/{ASIDE}", "set aside by a collection: somebody had written to it, so it is yours to delete"),
    ("prepared/", "a root in the making, or one that was written to"),
    ("quarantine/", "set aside by a repair: the file 'why' in it says why, and it is yours to delete"),
    ("layers/", "in the making"),
    ("folders/", "in the making"),
    ("chains/", "in the making"),
    ("content/", "in the making"),
    ("", _OWN),
)
_KINDS = {"ingests": "ingest", "trash": "trash", "roots": "root"}  # of pieces that no row names


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """An explanation before anything is measured.

    Its size is that of ``own``, or of all parts if that is empty; ``goes`` are the pieces that would go.
    """

    kind: str
    name: str
    own: str = ""
    kept_by: tuple[Reason, ...]
    parts: tuple[Piece, ...] = ()
    goes: frozenset[str] = frozenset()


class Explainer:
    """Explains the things of one store.  Thread-safe; only reads."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def explain(self, text: str, *, litter: Callable[[], Collected], call: Call) -> Explanation:
        """See `orlop.images.upkeep.Keeping.explain`; ``litter`` tells what a collection would take now."""
        core, what = self._core, f"explain {text}"
        piece = self._inside(text, what)
        dead = dead_leases(core)

        def body(tx: Transaction) -> _Draft | None:
            thing = find_thing(tx, NAMESPACE, text, what) if piece is None else _named(tx, piece)
            return _Reader(tx, dead).draft(thing) if thing is not None else None

        draft = core.db.read(body)
        if draft is None:
            assert piece is not None
            draft = _stray(piece, litter())
        return self._measured(draft, call)

    def _inside(self, text: str, what: str) -> str | None:
        """The piece of the store that a path means, or ``stray PATH`` as collections print it."""
        root = self._core.layout.root
        if text.startswith("stray "):
            path = os.path.normpath(text.removeprefix("stray "))
            if path.startswith(("/", "..")):
                raise InvalidArgument(what, "the path leads out of the store")
        else:  # by its text: links in what containers wrote lead anywhere
            clean = os.path.normpath(text) if os.path.isabs(text) else text
            for base in (str(root), os.path.realpath(root)):
                if clean == base or clean.startswith(f"{base}/"):
                    path = os.path.relpath(clean, base)
                    break
            else:
                return None
        piece = piece_of(path)
        if piece is None:
            raise InvalidArgument(
                what, "it is a folder of the store itself", hint="'orlop df' measures those"
            )
        if not os.path.lexists(root / piece):
            raise NotFound(what, "there is no such file in the store")
        return piece

    def _measured(self, draft: _Draft, call: Call) -> Explanation:
        wanted = {*(part.path for part in draft.parts), *draft.goes, draft.own} - {""}
        sizes = measure_some(self._core.layout.root, sorted(wanted, key=_order), call=call)
        parts = tuple(
            Part(
                kind=part.kind,
                name=part.name,
                size=sizes.get(part.path, 0),
                shared_with=_shown(part.holders),
            )
            for part in draft.parts
        )
        size = sizes.get(draft.own, 0) if draft.own else sum(part.size for part in parts)
        return Explanation(
            kind=draft.kind,
            name=draft.name,
            size=size,
            kept_by=draft.kept_by,
            parts=parts,
            frees=sum(sizes.get(path, 0) for path in draft.goes),
        )


def _order(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _shown(holders: Iterable[Reason]) -> tuple[str, ...]:
    """Those who need a part, as one may name them again."""
    found = [
        reason.name if reason.kind in {"image", "root"} else f"{reason.kind} {reason.name}"
        for reason in holders
    ]
    if len(found) <= _SHOWN:
        return tuple(found)
    return (*found[:_SHOWN], f"and {len(found) - _SHOWN} more")


def _named(tx: Transaction, piece: str) -> Thing | None:
    """What a row calls a piece; None where no row names it."""
    holder, _, name = piece.rpartition("/")
    if holder == "layers" and costs.matching(tx, "layer", f"sha256:{name}") == [f"sha256:{name}"]:
        return Thing("layer", f"sha256:{name}")
    if holder == "chains" and roots.get_chain(tx, name.removesuffix(".erofs")) is not None:
        return Thing("chain", name.removesuffix(".erofs"))
    if holder == "folders" and folders.get_folder(tx, name) is not None:
        return Thing("folder", name)
    if holder.startswith("content/blobs/"):
        digest = f"{holder.rpartition('/')[2]}:{name}"
        return Thing("blob", digest) if costs.matching(tx, "blob", digest) == [digest] else None
    if holder == "prepared" and (path := costs.root_of_id(tx, name)) is not None:
        return Thing("root", path)
    return None


def _stray(piece: str, litter: Collected) -> _Draft:
    """A file or folder that no row names."""
    part = kind_of(piece)
    goes = piece in {path_of((kind, name)) for kind, _, name in (i.partition(" ") for i, _ in litter.items)}
    note = "" if goes else next(note for start, note in _STAYS if piece.startswith(start))
    own = note == _OWN
    return _Draft(
        kind="file" if own else _KINDS.get(part, "stray"),
        name=piece,
        own=piece,
        kept_by=(Reason(kind="store", name=piece, note=note),) if note else (),
        goes=frozenset({piece} if goes else ()),
    )


class _Reader:
    """Drafts explanations in one transaction."""

    def __init__(self, tx: Transaction, dead: frozenset[str]) -> None:
        self._tx = tx
        self._now = time.time()
        self._dead = dead
        self._holders = Holders(tx, dead=dead, now=self._now)
        self._parts = Parts(tx, self._holders)

    def draft(self, thing: Thing) -> _Draft:
        """What there is to say of a thing."""
        makers: dict[str, Callable[[str], _Draft]] = {
            "image": self._image,
            "layer": self._layer,
            "blob": self._blob,
            "chain": self._chain,
            "folder": self._folder,
            "root": self._root,
            "lease": self._lease,
            "pin": self._pin,
        }
        return makers[thing.kind](thing.name)

    # -- what would go --------------------------------------------------------------------------

    def _goes(self, suspects: Suspects, without: Without) -> dict[str, Forgotten]:
        """The pieces that go with those that are taken away, and not without that; by path."""
        without = replace(without, leases=without.leases | self._dead)
        now = self._gone(suspects)
        then = garbage.find(self._tx, suspects, without=without)
        return {item.path: item for item in then if item.path not in now}

    def _gone(self, suspects: Suspects) -> dict[str, Forgotten]:
        """The pieces that the next collection takes."""
        return {item.path: item for item in garbage.find(self._tx, suspects, without=self._as_it_is)}

    @property
    def _as_it_is(self) -> Without:
        return Without(namespace=NAMESPACE, leases=self._dead)

    # -- each kind ------------------------------------------------------------------------------

    def _image(self, config: str) -> _Draft:
        kept_by = self._holders.config(config)
        named = [reason.name for reason in kept_by if reason.kind == "image"]
        suspects = Suspects(configs={config})
        for name in named:
            suspects.merge(garbage.suspects_of_image(self._tx, NAMESPACE, name))
        goes: dict[str, Forgotten] = {}
        if named:
            goes = self._goes(suspects, Without(namespace=NAMESPACE, images=frozenset(named)))
        elif not kept_by:
            goes = self._gone(suspects)
        parts = list(self._parts.of_config(config, {("image", name) for name in named}))
        # Caches that were made of its layers and others' go with its layers, too.
        parts += [Piece(kind=item.kind, name=item.name, path=path) for path, item in goes.items()]
        return _Draft(
            kind="image",
            name=named[0] if named else config,
            kept_by=tuple(
                replace(reason, note="its name") if reason.kind == "image" else reason for reason in kept_by
            ),
            parts=each_once(parts),
            goes=frozenset(goes),
        )

    def _layer(self, diff_id: str) -> _Draft:
        kept_by = self._holders.layer(diff_id)
        own = path_of(("layer", diff_id))
        files = [Piece(kind="file", name=name, path=f"{own}/{name}") for name in _FILES]
        return _Draft(
            kind="layer",
            name=diff_id,
            own=own,
            kept_by=tuple(kept_by),
            parts=(*files, *self._parts.made_of(diff_id)),
            goes=frozenset(() if kept_by else self._gone(Suspects(layers={diff_id}))),
        )

    def _blob(self, digest: str) -> _Draft:
        kept_by = self._holders.blob(digest)
        own = path_of(("blob", digest))
        return self._cached("blob", digest, own, kept_by)

    def _chain(self, chain: str) -> _Draft:
        kept_by = self._holders.chain(chain)
        below = [row.id for row in roots.chain_stack(self._tx, chain)[1:]]
        parts = [self._parts.chain(parent, set()) for parent in below]
        parts += self._parts.of_layers(roots.chain_layers(self._tx, chain), set())
        return self._cached("chain", chain, path_of(("chain", chain)), kept_by, parts)

    def _folder(self, folder: str) -> _Draft:
        made_of = costs.layers_of_folder(self._tx, folder)
        kept_by = self._holders.folder(folder, made_of)
        parts = self._parts.of_layers(made_of, set())
        return self._cached("folder", folder, path_of(("folder", folder)), kept_by, parts)

    @staticmethod
    def _cached(kind: str, name: str, own: str, kept: list[Reason], parts: Iterable[Piece] = ()) -> _Draft:
        return _Draft(
            kind=kind,
            name=name,
            own=own,
            kept_by=tuple(kept),
            parts=tuple(parts),
            goes=frozenset() if kept else frozenset({own}),
        )

    def _root(self, path: str) -> _Draft:
        row = roots.get_root(self._tx, path)
        if row is None:
            raise NotFound(f"explain {path}", "it was cleaned up meanwhile")
        me = {("root", path)}
        own = f"prepared/{row.id}"
        suspects = garbage.suspects_of_root(self._tx, row.id)
        goes = self._goes(suspects, Without(namespace=NAMESPACE, roots=frozenset({row.id})))
        parts = [Piece(kind="written", name=path, path=own)] if row.kind == "active" else []
        mounted = [m.config for m in roots.mounts_of(self._tx, row.id) if m.config is not None]
        points = [point.config for point in captures.checkpoints_of(self._tx, row.id)]
        for config in dict.fromkeys([row.config, *mounted, *points]):
            parts += self._parts.of_config(config, me)
        note = f"{row.kind}, {row.driver}, of {row.image}, prepared {moment(row.created)}"
        return _Draft(
            kind="root",
            name=path,
            own=own,
            kept_by=(Reason(kind="root", name=path, note=note),),
            parts=each_once(parts),
            goes=frozenset({*goes, *([own] if row.kind == "active" else [])}),
        )

    def _lease(self, lease: str) -> _Draft:
        facts = costs.get_lease(self._tx, lease)
        if facts is None:
            raise NotFound(f"explain lease {lease}", "the operation has ended")
        suspects = Suspects()
        for kind, ref in facts.refs:
            suspects.add(kind, ref)
        alive = lease not in self._dead
        without = Without(namespace=NAMESPACE, leases=frozenset({lease}))
        return _Draft(
            kind="lease",
            name=lease,
            kept_by=(self._holders.lease(lease),) if alive else (),
            parts=self._parts.of_refs(facts.refs, {("lease", lease)}),
            goes=frozenset(self._goes(suspects, without) if alive else self._gone(suspects)),
        )

    def _pin(self, name: str) -> _Draft:
        facts = costs.get_pin(self._tx, NAMESPACE, name)
        if facts is None:
            raise NotFound(f"explain pin {name}", "it was taken back meanwhile")
        suspects = Suspects()
        suspects.add(facts.kind, facts.ref)
        expired = facts.expires is not None and facts.expires <= self._now
        without = Without(namespace=NAMESPACE, pins=frozenset({name}))
        return _Draft(
            kind="pin",
            name=name,
            kept_by=() if expired else (self._holders.pin(name),),
            parts=self._parts.of_refs([(facts.kind, facts.ref)], {("pin", name)}),
            goes=frozenset(self._gone(suspects) if expired else self._goes(suspects, without)),
        )
