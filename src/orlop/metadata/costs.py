"""Who needs what, for those who ask why something is kept and what it costs.  Only reads.

Whether a thing is needed is `orlop.metadata.needs`' to say, one thing at a time; here is by whom.
`read_named` reads the whole store in a few queries, for sums over all images: asking the rule about each of
ten thousand images takes half a minute, this takes a second (a test holds the two together).  The other
functions are about one thing and find their rows by indexes.

Digests stay text: they were checked when they were written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from orlop.metadata.db import Transaction
from orlop.values import dataclass

__all__ = [
    "LAYER_USERS",
    "Holder",
    "LeaseFacts",
    "Named",
    "PinFacts",
    "chains_of",
    "chains_within",
    "configs_with_layer",
    "configs_with_manifest",
    "folders_of",
    "folders_within",
    "get_lease",
    "get_pin",
    "held_caches",
    "holders",
    "kept_blobs",
    "layers_of_folder",
    "manifests_of",
    "matching",
    "read_named",
    "root_of_id",
]

LAYER_USERS = 64  # images that are named as users of one layer; of the others their number is told


# ------------------------------------------------------------------ all at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """All that rows name, of one moment.

    ``images`` has the names of each config that has one; ``documents`` the manifests of configs, and
    ``layers`` their layers.  ``kept`` are the blobs of layers that are there.  ``made`` tells of which layers
    caches are: by kind (``chain``, ``folder``) and name.  ``held`` is what roots, leases and pins keep: kinds
    (``config``, ``layer``, ``blob``) and names.
    """

    images: dict[str, list[str]]
    documents: dict[str, list[str]]
    layers: dict[str, list[str]]
    kept: dict[str, list[str]]
    made: dict[tuple[str, str], list[str]]
    held: frozenset[tuple[str, str]]


_MADE = {
    "chain": "SELECT chain_id, diff_id FROM chain_layers",
    "folder": "SELECT folder, diff_id FROM folder_layers",
}
# What a chain or a folder is kept for are its layers.
_HELD = """
SELECT 'config', config_digest FROM prepared
UNION SELECT 'config', config_digest FROM root_mounts WHERE config_digest IS NOT NULL
UNION SELECT 'config', config_digest FROM checkpoints
UNION SELECT 'blob', digest FROM contents
UNION SELECT 'layer', diff_id FROM chain_layers WHERE chain_id IN (
  SELECT chain_id FROM prepared UNION SELECT chain_id FROM root_mounts WHERE chain_id IS NOT NULL)
UNION SELECT 'layer', diff_id FROM folder_layers WHERE folder IN (SELECT folder FROM root_folders)
UNION SELECT 'layer', diff_id FROM snapshot_layers
"""
_NAMES = (
    "SELECT config_digest, name FROM images "
    "UNION SELECT config_digest, name FROM image_platforms ORDER BY 2, 1"
)
# An index and what it needs beyond its images counts with the image that its name means without a platform.
_DOCUMENTS = (
    "SELECT config_digest, manifest_digest FROM images WHERE manifest_digest IS NOT NULL "
    "UNION SELECT config_digest, digest FROM images JOIN index_blobs USING (index_digest)"
)
_PINNED = "SELECT kind, ref FROM pins WHERE expires_at IS NULL OR expires_at > ?"


def read_named(tx: Transaction, *, dead: Iterable[str] = (), now: float) -> Named:
    """Read it all.  ``dead`` leases, whose owner is gone, keep nothing, nor do pins expired by ``now``."""
    gone = set(dead)
    held = {(row[0], row[1]) for row in tx.execute(_HELD)}
    refs = [
        (kind, ref)
        for lease, kind, ref in tx.execute("SELECT lease, kind, ref FROM lease_refs")
        if lease not in gone
    ]
    refs += [(row[0], row[1]) for row in tx.execute(_PINNED, (now,))]
    for kind, ref in refs:
        if kind == "chain":
            held |= {("layer", diff_id) for diff_id in _chain_layers(tx, ref)}
        else:
            held.add((kind, ref))
    documents = _lists(tx, "SELECT config_digest, digest FROM image_manifests")
    for config, manifest in tx.execute(_DOCUMENTS):
        known = documents.setdefault(config, [])
        if manifest not in known:
            known.append(manifest)
    return Named(
        images=_lists(tx, _NAMES),
        documents=documents,
        layers=_lists(tx, "SELECT config_digest, diff_id FROM config_layers"),
        kept=_lists(tx, "SELECT diff_id, digest FROM layer_blobs WHERE digest IN (SELECT digest FROM blobs)"),
        made={
            (kind, name): layers
            for kind, query in _MADE.items()
            for name, layers in _lists(tx, query).items()
        },
        held=frozenset(held),
    )


def _lists(tx: Transaction, query: str) -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key, value in tx.execute(query):
        found[key].append(value)
    return dict(found)


def _chain_layers(tx: Transaction, chain: str) -> list[str]:
    return [row[0] for row in tx.execute("SELECT diff_id FROM chain_layers WHERE chain_id = ?", (chain,))]


# ------------------------------------------------------------------ who holds one thing


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A name, a root (its path), a lease, a pin or a namespace of content that keeps something.

    ``note`` says how, if it can.
    """

    kind: str
    name: str
    note: str = ""


# SQLite asks each part by its own index.
_HOLDERS = """
SELECT kind, name, note FROM (
  SELECT 'image' AS kind, name, 'config' AS what, config_digest AS ref, '' AS note FROM images
  UNION ALL SELECT 'image', name, 'config', config_digest, 'for ' || platform FROM image_platforms
  UNION ALL SELECT 'image', name, 'blob', manifest_digest, 'its manifest' FROM images
  UNION ALL SELECT 'image', name, 'blob', digest, 'in its index'
    FROM index_blobs JOIN images USING (index_digest)
  UNION ALL SELECT 'root', path, 'config', config_digest, 'prepared from it' FROM prepared
  UNION ALL SELECT 'root', path, 'chain', chain_id, 'stands on it' FROM prepared
  UNION ALL SELECT 'root', path, 'config', c.config_digest, 'its checkpoint ' || name
    FROM checkpoints c JOIN prepared ON id = root
  UNION ALL SELECT 'root', path, 'config', m.config_digest, 'mounted in it at ' || target
    FROM root_mounts m JOIN prepared ON id = root
  UNION ALL SELECT 'root', path, 'chain', m.chain_id, 'mounted in it at ' || target
    FROM root_mounts m JOIN prepared ON id = root
  UNION ALL SELECT 'root', path, 'folder', folder, 'stands on it' FROM root_folders JOIN prepared ON id = root
  UNION ALL SELECT 'snapshot', key, 'layer', diff_id, 'consists of it' FROM snapshot_layers
    JOIN snapshots ON id = snapshot
  UNION ALL SELECT 'lease', lease, kind, ref, '' FROM lease_refs
  UNION ALL SELECT 'content', CASE namespace WHEN '' THEN 'of no namespace' ELSE namespace END, 'blob',
    digest, 'written by a client of containerd''s API' FROM contents
  UNION ALL SELECT 'pin', name, kind, ref, '' FROM pins WHERE expires_at IS NULL OR expires_at > :now
) WHERE what = :what AND ref = :ref
"""


def holders(tx: Transaction, what: str, ref: str, *, now: float) -> list[Holder]:
    """Who names a ``config``, ``layer``, ``blob``, ``chain`` or ``folder`` itself."""
    rows = tx.execute(_HOLDERS, {"what": what, "ref": ref, "now": now})
    return [Holder(kind=row[0], name=row[1], note=row[2]) for row in rows]


def configs_with_layer(tx: Transaction, diff_id: str) -> tuple[list[tuple[str, int, int]], int]:
    """The configs that list a layer: digest, which of how many layers it is; `LAYER_USERS` at most.

    And how many more there are.
    """
    rows = tx.execute(
        "SELECT config_digest, MIN(position) + 1, (SELECT COUNT(*) FROM config_layers every "
        "WHERE every.config_digest = listed.config_digest) FROM config_layers listed WHERE diff_id = ? "
        "GROUP BY config_digest ORDER BY config_digest LIMIT ?",
        (diff_id, LAYER_USERS),
    ).fetchall()
    count = "SELECT COUNT(DISTINCT config_digest) FROM config_layers WHERE diff_id = ?"
    total = tx.execute(count, (diff_id,)).fetchone()[0] if len(rows) == LAYER_USERS else len(rows)
    return [(row[0], row[1], row[2]) for row in rows], total - len(rows)


def configs_with_manifest(tx: Transaction, digest: str) -> list[str]:
    """The configs that have a manifest."""
    rows = tx.execute(
        "SELECT config_digest FROM image_manifests WHERE digest = ?1 "
        "UNION SELECT config_digest FROM images WHERE manifest_digest = ?1 "
        "UNION SELECT config_digest FROM image_platforms WHERE manifest_digest = ?1",
        (digest,),
    )
    return [row[0] for row in rows]


# The chains and folders with a layer that somebody keeps or stands on.
_HELD_CACHES = """
SELECT 'chain', ref FROM lease_refs
  WHERE kind = 'chain' AND ref IN (SELECT chain_id FROM chain_layers WHERE diff_id = :layer)
UNION SELECT 'chain', ref FROM pins
  WHERE kind = 'chain' AND ref IN (SELECT chain_id FROM chain_layers WHERE diff_id = :layer)
UNION SELECT 'chain', chain_id FROM prepared
  WHERE chain_id IN (SELECT chain_id FROM chain_layers WHERE diff_id = :layer)
UNION SELECT 'chain', chain_id FROM root_mounts
  WHERE chain_id IN (SELECT chain_id FROM chain_layers WHERE diff_id = :layer)
UNION SELECT 'folder', rf.folder FROM folder_layers fl JOIN root_folders rf ON rf.folder = fl.folder
  WHERE fl.diff_id = :layer
LIMIT :most
"""


def held_caches(tx: Transaction, diff_id: str) -> list[tuple[str, str]]:
    """Chains and folders with a layer that somebody holds, `LAYER_USERS` at most: kinds and names."""
    rows = tx.execute(_HELD_CACHES, {"layer": diff_id, "most": LAYER_USERS})
    return [(row[0], row[1]) for row in rows]


def chains_of(tx: Transaction, diff_id: str) -> list[str]:
    """The chains that have a layer, `LAYER_USERS` at most."""
    query = "SELECT DISTINCT chain_id FROM chain_layers WHERE diff_id = ? ORDER BY 1 LIMIT ?"
    return [row[0] for row in tx.execute(query, (diff_id, LAYER_USERS))]


def folders_of(tx: Transaction, diff_id: str) -> list[str]:
    """The folders that were made of a layer, `LAYER_USERS` at most; not those that need no place on disk."""
    query = (
        "SELECT folder FROM folder_layers JOIN folders ON id = folder "
        "WHERE diff_id = ? AND entries > 0 ORDER BY 1 LIMIT ?"
    )
    return [row[0] for row in tx.execute(query, (diff_id, LAYER_USERS))]


# What was made of layers that a config has, all of them.
_WITHIN = """
SELECT DISTINCT {name} FROM config_layers JOIN {table} made USING (diff_id) WHERE config_digest = :config
  AND NOT EXISTS (SELECT 1 FROM {table} other WHERE other.{name} = made.{name} AND diff_id NOT IN
    (SELECT diff_id FROM config_layers WHERE config_digest = :config))
ORDER BY 1
"""


def chains_within(tx: Transaction, config: str) -> list[str]:
    """The chains of layers that a config has."""
    query = _WITHIN.format(name="chain_id", table="chain_layers")
    return [row[0] for row in tx.execute(query, {"config": config})]


def folders_within(tx: Transaction, config: str) -> list[str]:
    """The folders of layers that a config has, those on disk."""
    query = _WITHIN.format(name="folder", table="folder_layers")
    found = [row[0] for row in tx.execute(query, {"config": config})]
    return [folder for folder in found if _entries(tx, folder)]


def _entries(tx: Transaction, folder: str) -> int:
    row = tx.execute("SELECT entries FROM folders WHERE id = ?", (folder,)).fetchone()
    return int(row[0]) if row else 0


def layers_of_folder(tx: Transaction, folder: str) -> list[str]:
    """The layers that a folder was made of."""
    return [row[0] for row in tx.execute("SELECT diff_id FROM folder_layers WHERE folder = ?", (folder,))]


def kept_blobs(tx: Transaction, diff_id: str) -> list[str]:
    """The blobs of a layer that are there."""
    rows = tx.execute(
        "SELECT digest FROM layer_blobs JOIN blobs USING (digest) WHERE diff_id = ? ORDER BY 1", (diff_id,)
    )
    return [row[0] for row in rows]


def manifests_of(tx: Transaction, config: str) -> list[str]:
    """The manifests of a config that are there."""
    rows = tx.execute(
        "SELECT digest FROM image_manifests JOIN blobs USING (digest) WHERE config_digest = ?1 "
        "UNION SELECT digest FROM images JOIN blobs ON digest = manifest_digest WHERE config_digest = ?1",
        (config,),
    )
    return [row[0] for row in rows]


# ------------------------------------------------------------------ leases, pins, names


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFacts:
    """What an operation is, whose, and what it keeps: pairs of a kind and a name."""

    id: str
    what: str
    pid: int
    created: float
    refs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinFacts:
    """What a caller keeps.  ``expires`` is None for a pin that stays."""

    name: str
    kind: str
    ref: str
    expires: float | None


def get_lease(tx: Transaction, lease: str) -> LeaseFacts | None:
    """The lease of an id."""
    row = tx.execute("SELECT id, what, pid, created_at FROM leases WHERE id = ?", (lease,)).fetchone()
    if row is None:
        return None
    refs = tx.execute("SELECT kind, ref FROM lease_refs WHERE lease = ? ORDER BY kind, ref", (lease,))
    return LeaseFacts(
        id=row[0], what=row[1], pid=row[2], created=row[3], refs=tuple((kind, ref) for kind, ref in refs)
    )


def get_pin(tx: Transaction, namespace: str, name: str) -> PinFacts | None:
    """The pin of a name, expired or not."""
    row = tx.execute(
        "SELECT name, kind, ref, expires_at FROM pins WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    return PinFacts(name=row[0], kind=row[1], ref=row[2], expires=row[3]) if row else None


def root_of_id(tx: Transaction, root_id: str) -> str | None:
    """The path of a prepared root, by the name of its folder."""
    row = tx.execute("SELECT path FROM prepared WHERE id = ?", (root_id,)).fetchone()
    return row[0] if row else None


_NAMED = {
    "config": ("config_layers", "config_digest"),
    "image": ("images", "config_digest"),
    "prepared": ("prepared", "config_digest"),
    "checkpoint": ("checkpoints", "config_digest"),
    "manifest": ("image_manifests", "digest"),
    "name's manifest": ("images", "manifest_digest"),
    "platform's manifest": ("image_platforms", "manifest_digest"),
    "layer": ("layers", "diff_id"),
    "blob": ("blobs", "digest"),
    "chain": ("chains", "chain_id"),
    "folder": ("folders", "id"),
    "lease": ("leases", "id"),
}


def matching(tx: Transaction, what: str, prefix: str, *, most: int = 4) -> list[str]:
    """Names of a kind that begin so, ``most`` at most."""
    table, column = _NAMED[what]
    rows = tx.execute(
        f"SELECT DISTINCT {column} FROM {table} WHERE {column} >= ?1 AND {column} < ?1 || x'7f' "
        f"ORDER BY 1 LIMIT ?2",
        (prefix, most),
    )
    return [row[0] for row in rows]
