"""What is needed: the one rule that says whether a thing may be forgotten.

Needed are, directly, the configs of image names (of an index all that a name holds), of prepared roots,
their checkpoints and images mounted in them, the chains of roots, and what leases and unexpired pins keep.
From there:

- a *config* is needed only directly;
- a *layer* if it is kept itself, if a needed config lists it, if a chain or folder under a root has it, or if
  a snapshot of containerd's consists of it;
- a *blob* if it is kept itself, or is a needed config, a manifest of one, what a needed layer comes as, or
  what the index of an image name needs; or a namespace of containerd's content API has it;
- a *chain* or *folder* is a cache: it stays while all its layers stay (`orlop.metadata.garbage`).

Invariants that make this short: a chain has all the layers of its parent, and a root's chain and folders have
the layers of its config.  So whatever has a layer that is not needed is not needed either, and a parent is
never forgotten before its children.

The rule is SQL, put together once: small decisions ask it about one thing, collections about all.  Every
part finds its rows by an index, so a decision costs what refers to the thing, not what the store holds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from orlop.hints import TYPE_CHECKING
from orlop.values import dataclass

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = ["NOTHING", "Needs", "Without"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Without:
    """What to decide as if it were gone: image names, roots (ids), leases (ids), pins (names).

    So a collection tells what it would take, and an explanation what a removal would free, in a
    transaction that only reads.  Names are those of one namespace.
    """

    namespace: str = "default"
    images: frozenset[str] = frozenset()
    roots: frozenset[str] = frozenset()
    leases: frozenset[str] = frozenset()
    pins: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything is taken away."""
        return bool(self.images or self.roots or self.leases or self.pins)


NOTHING = Without()


class Needs:
    """The rule, in one transaction at one time.

    ``now`` decides which pins have expired.  As long as nothing is written, answers do not change.
    """

    def __init__(self, tx: Transaction, *, now: float, without: Without = NOTHING) -> None:
        self._tx = tx
        self._absent = bool(without)
        self._rule = _rule(self._absent)
        self._values: dict[str, object] = {"now": now}
        if without:
            import json

            self._values["namespace"] = without.namespace
            for kind in _ABSENT:
                self._values[f"gone_{kind}"] = json.dumps(sorted(getattr(without, kind)))

    # -- one thing ------------------------------------------------------------------------------

    def config(self, digest: str) -> bool:
        """Whether an image name, a root, a lease or a pin needs a config."""
        return self._ask("config", digest)

    def layer(self, diff_id: str) -> bool:
        """Whether anything needs a layer."""
        return self._ask("layer", diff_id)

    def blob(self, digest: str) -> bool:
        """Whether anything needs a blob."""
        return self._ask("blob", digest)

    def _ask(self, kind: str, ref: str) -> bool:
        row = self._tx.execute(self._rule[f"one {kind}"], {**self._values, "ref": ref}).fetchone()
        return bool(row[0])

    # -- several of a kind ----------------------------------------------------------------------

    def without_need(self, kind: str, refs: Iterable[str]) -> list[str]:
        """Those of some things of a ``kind`` that are not needed, in order."""
        if not self._absent:
            return sorted(ref for ref in refs if not self._ask(kind, ref))
        import json

        # In one statement: else the lists of what is taken away would be read anew for each thing.
        condition = self._rule[kind].format(x="t.value")
        query = f"SELECT t.value FROM json_each(:refs) t WHERE NOT {condition} ORDER BY 1"
        values = {**self._values, "refs": json.dumps(sorted(refs))}
        return [row[0] for row in self._tx.execute(query, values)]

    def unneeded(self, kind: str, table: str, column: str, where: str = "1") -> list[str]:
        """The values of a column, digests of a ``kind``, that are not needed, each once."""
        condition = self._rule[kind].format(x=f"t.{column}")
        query = f"SELECT DISTINCT t.{column} FROM {table} t WHERE {where} AND NOT {condition}"
        return [row[0] for row in self._tx.execute(query, self._values)]


_ABSENT: Mapping[str, str] = {
    "images": "AND NOT (namespace = :namespace AND {column} IN (SELECT value FROM json_each(:gone_images)))",
    "roots": "AND {column} NOT IN (SELECT value FROM json_each(:gone_roots))",
    "leases": "AND {column} NOT IN (SELECT value FROM json_each(:gone_leases))",
    "pins": "AND NOT (namespace = :namespace AND {column} IN (SELECT value FROM json_each(:gone_pins)))",
}


@functools.cache
def _rule(absent: bool) -> Mapping[str, str]:
    """SQL conditions with a place ``{x}`` for what is asked about, and queries about ``:ref``."""

    def some(table: str, condition: str, kind: str, column: str) -> str:
        left_out = _ABSENT[kind].format(column=column) if absent else ""
        return f"EXISTS (SELECT 1 FROM {table} WHERE {condition} {left_out})"

    def kept(kind: str, x: str) -> Iterable[str]:
        """By a lease or a pin."""
        yield some("lease_refs", f"kind = '{kind}' AND ref = {x}", "leases", "lease")
        unexpired = "(expires_at IS NULL OR expires_at > :now)"
        yield some("pins", f"kind = '{kind}' AND ref = {x} AND {unexpired}", "pins", "name")

    def used(column: str, x: str) -> Iterable[str]:
        """By a root, or by a mount in one."""
        yield some("prepared", f"{column} = {x}", "roots", "id")
        yield some("root_mounts", f"{column} = {x}", "roots", "root")

    def either(*conditions: str) -> str:
        return f"({' OR '.join(conditions)})"

    def config(x: str) -> str:
        named = some("images", f"config_digest = {x}", "images", "name")
        held = some("image_platforms", f"config_digest = {x}", "images", "name")
        point = some("checkpoints", f"config_digest = {x}", "roots", "root")
        return either(named, held, *used("config_digest", x), point, *kept("config", x))

    def layer(x: str) -> str:
        held = either(*used("chain_id", "hl.chain_id"), *kept("chain", "hl.chain_id"))
        listed = f"cl.diff_id = {x} AND {config('cl.config_digest')}"
        return either(
            f"EXISTS (SELECT 1 FROM config_layers cl WHERE {listed})",
            *kept("layer", x),
            f"EXISTS (SELECT 1 FROM chain_layers hl WHERE hl.diff_id = {x} AND {held})",
            some(
                "folder_layers fl JOIN root_folders rf ON rf.folder = fl.folder",
                f"fl.diff_id = {x}",
                "roots",
                "rf.root",
            ),
            f"EXISTS (SELECT 1 FROM snapshot_layers sl WHERE sl.diff_id = {x})",
        )

    def blob(x: str) -> str:
        documents = f"im.digest = {x} AND {config('im.config_digest')}"
        return either(
            config(x),
            some("images", f"manifest_digest = {x}", "images", "name"),
            f"EXISTS (SELECT 1 FROM image_manifests im WHERE {documents})",
            *kept("blob", x),
            f"EXISTS (SELECT 1 FROM contents WHERE contents.digest = {x})",
            some("index_blobs ib JOIN images USING (index_digest)", f"ib.digest = {x}", "images", "name"),
            f"EXISTS (SELECT 1 FROM layer_blobs lb WHERE lb.digest = {x} AND {layer('lb.diff_id')})",
        )

    rules = {"config": config, "layer": layer, "blob": blob}
    asked = {f"one {kind}": f"SELECT {rule(':ref')}" for kind, rule in rules.items()}
    return asked | {kind: rule("{x}") for kind, rule in rules.items()}
