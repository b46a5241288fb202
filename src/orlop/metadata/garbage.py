"""Leases, and what nothing needs any more: found, forgotten, and the list of trash.

Whatever ends (a name, a root, a lease, a pin) leaves *suspects*: the things it kept.  `find` tells which of
some suspects nothing needs, and what goes with them; what is needed is `orlop.metadata.needs`' to say.
`forget` deletes their rows in the caller's transaction and writes the paths to delete into ``trash``;
files go only after that is on disk.  So an end costs what goes, not what the store holds.  `everything`
makes suspects of all that is not needed: it reads the whole store, so a collection does that in a
transaction that only reads, and forgets in a short one, which looks again.

A lease lasts as long as its owner holds the flock named after it (`orlop.images.core.Lease`), not for a
time: a pull may take hours, and the clock may jump.  Which owners are dead is the caller's to find out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator

from orlop.metadata import events
from orlop.metadata.db import Transaction
from orlop.metadata.needs import NOTHING, Needs, Without
from orlop.values import dataclass, field

__all__ = [
    "Forgotten",
    "Suspects",
    "everything",
    "find",
    "forget",
    "is_trash",
    "lease_add",
    "lease_end",
    "lease_ids",
    "suspects_of_image",
    "suspects_of_root",
    "trash_add",
    "trash_done",
    "trash_list",
]

CHUNK = 1000  # suspects that one transaction decides about, so that none is long


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One thing that no row names any more: its kind, its name, its bytes, its path in the store."""

    kind: str
    name: str
    size: int
    path: str


@dataclass(slots=True, kw_only=True)
class Suspects:
    """Things that may have lost what needed them.  Those that are needed do no harm but a look."""

    configs: set[str] = field(default_factory=set)
    layers: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)

    def add(self, kind: str, ref: str) -> None:
        """One more: a ``config``, ``layer``, ``blob`` or ``chain``."""
        sets = {"config": self.configs, "layer": self.layers, "blob": self.blobs, "chain": self.chains}
        sets[kind].add(ref)

    def merge(self, other: Suspects) -> None:
        """Those of another, too."""
        self.configs |= other.configs
        self.layers |= other.layers
        self.blobs |= other.blobs
        self.chains |= other.chains

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.configs or self.layers or self.blobs or self.chains)

    def chunks(self, size: int = CHUNK) -> Iterator[Suspects]:
        """The same in parts, for a transaction each.

        Images go first: a layer is not asked about again once it went with its image.
        """
        pairs = [
            (kind, ref)
            for kind, refs in (
                ("config", self.configs),
                ("chain", self.chains),
                ("layer", self.layers),
                ("blob", self.blobs),
            )
            for ref in sorted(refs)
        ]
        for start in range(0, len(pairs), size):
            part = Suspects()
            for kind, ref in pairs[start : start + size]:
                part.add(kind, ref)
            yield part


@dataclass(slots=True, kw_only=True)
class _Gone:
    """What nothing needs, in full; also what has no file."""

    configs: list[str]
    layers: list[str]
    blobs: list[str]
    found: list[Forgotten]


# ------------------------------------------------------------------ finding


def find(tx: Transaction, suspects: Suspects, *, without: Without = NOTHING) -> list[Forgotten]:
    """What would be forgotten of some suspects, and with them; only reads."""
    return _gone(tx, suspects, without).found


def everything(tx: Transaction, *, without: Without = NOTHING) -> Suspects:
    """All that nothing needs; only reads, but the whole store."""
    needs = Needs(tx, now=time.time(), without=without)
    configs = {
        *needs.unneeded("config", "config_layers", "config_digest"),
        *needs.unneeded("config", "image_manifests", "config_digest"),
    }
    layers = set(needs.unneeded("layer", "layers", "diff_id"))
    for table in ("chain_layers", "folder_layers", "layer_blobs"):  # rows that a lost layer left
        lost = "NOT EXISTS (SELECT 1 FROM layers WHERE layers.diff_id = t.diff_id)"
        layers.update(needs.unneeded("layer", table, "diff_id", lost))
    blobs = {
        *needs.unneeded("blob", "blobs", "digest"),
        *needs.unneeded("blob", "blob_sources", "digest"),
        *needs.unneeded("blob", "index_blobs", "index_digest"),
    }
    return Suspects(configs=configs, layers=layers, blobs=blobs)


def suspects_of_image(tx: Transaction, namespace: str, name: str) -> Suspects:
    """What an image name keeps; ask before its row goes.

    Of an index that is itself: `find` and `forget` look at what it needs.
    """
    row = tx.execute(
        "SELECT config_digest, index_digest FROM images WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    if row is None:
        return Suspects()
    query = "SELECT config_digest FROM image_platforms WHERE namespace = ? AND name = ?"
    configs = {row[0], *(other[0] for other in tx.execute(query, (namespace, name)))}
    return Suspects(configs=configs, blobs={row[1]} if row[1] else set())


def suspects_of_root(tx: Transaction, root_id: str) -> Suspects:
    """What a prepared root keeps; ask before its row goes.

    Its chain and its folders have the layers of its config.
    """
    rows = tx.execute(
        "SELECT config_digest FROM prepared WHERE id = ?1 "
        "UNION SELECT config_digest FROM root_mounts WHERE root = ?1 AND config_digest IS NOT NULL "
        "UNION SELECT config_digest FROM checkpoints WHERE root = ?1",
        (root_id,),
    )
    return Suspects(configs={row[0] for row in rows})


def _gone(tx: Transaction, suspects: Suspects, without: Without) -> _Gone:
    needs = Needs(tx, now=time.time(), without=without)
    configs = needs.without_need("config", suspects.configs)
    layers = set(suspects.layers)
    layers |= _each(tx, "SELECT diff_id FROM config_layers WHERE config_digest = ?", configs)
    layers |= _each(tx, "SELECT diff_id FROM chain_layers WHERE chain_id = ?", suspects.chains)
    gone = needs.without_need("layer", layers)
    blobs = suspects.blobs | set(configs)
    blobs |= _each(tx, "SELECT digest FROM index_blobs WHERE index_digest = ?", suspects.blobs)
    blobs |= _each(tx, "SELECT digest FROM image_manifests WHERE config_digest = ?", configs)
    blobs |= _each(tx, "SELECT digest FROM layer_blobs WHERE diff_id = ?", gone)
    gone_blobs = needs.without_need("blob", blobs)
    found = [*_chains(tx, gone), *_folders(tx, gone), *_layers(tx, gone), *_blobs(tx, gone_blobs)]
    return _Gone(configs=configs, layers=gone, blobs=gone_blobs, found=found)


def _each(tx: Transaction, query: str, refs: Iterable[str]) -> set[str]:
    return {row[0] for ref in refs for row in tx.execute(query, (ref,))}


def _chains(tx: Transaction, layers: Iterable[str]) -> Iterator[Forgotten]:
    """The chains that a layer takes with it, those that lie on others first."""
    rows: dict[str, tuple[int, int]] = {}
    for chain in _each(tx, "SELECT chain_id FROM chain_layers WHERE diff_id = ?", layers):
        depth, size = tx.execute("SELECT depth, size FROM chains WHERE chain_id = ?", (chain,)).fetchone()
        rows[chain] = -depth, size
    for chain in sorted(rows, key=lambda chain: (rows[chain][0], chain)):
        yield Forgotten("chain", chain, rows[chain][1], f"chains/{chain}.erofs")


def _folders(tx: Transaction, layers: Iterable[str]) -> Iterator[Forgotten]:
    """The folders that a layer takes with it."""
    for folder in sorted(_each(tx, "SELECT folder FROM folder_layers WHERE diff_id = ?", layers)):
        row = tx.execute("SELECT size FROM folders WHERE id = ?", (folder,)).fetchone()
        yield Forgotten("folder", folder, row[0], f"folders/{folder}")


def _layers(tx: Transaction, layers: Iterable[str]) -> Iterator[Forgotten]:
    for diff_id in layers:
        query = "SELECT size + data_size + index_size FROM layers WHERE diff_id = ?"
        row = tx.execute(query, (diff_id,)).fetchone()
        if row:
            yield Forgotten("layer", diff_id, row[0], f"layers/{diff_id.partition(':')[2]}")


def _blobs(tx: Transaction, blobs: Iterable[str]) -> Iterator[Forgotten]:
    for digest in blobs:
        row = tx.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
        if row:
            algorithm, _, encoded = digest.partition(":")
            yield Forgotten("blob", digest, row[0], f"content/blobs/{algorithm}/{encoded}")


# ------------------------------------------------------------------ forgetting


def forget(tx: Transaction, suspects: Suspects) -> list[Forgotten]:
    """Delete the rows of those suspects that nothing needs, and write their files into ``trash``."""
    if not suspects:
        return []
    gone = _gone(tx, suspects, NOTHING)
    named = {"chain": "DELETE FROM chains WHERE chain_id = ?", "folder": "DELETE FROM folders WHERE id = ?"}
    for item in gone.found:
        if item.kind in named:
            tx.execute(named[item.kind], (item.name,))
        trash_add(tx, item.path)
    for refs, statements in (
        (
            gone.layers,
            (
                "DELETE FROM layers WHERE diff_id = ?",
                "DELETE FROM layer_blobs WHERE diff_id = ?",
                "DELETE FROM captures WHERE diff_id = ?",
            ),
        ),
        (
            gone.blobs,
            (
                "DELETE FROM blobs WHERE digest = ?",
                "DELETE FROM blob_sources WHERE digest = ?",
                "DELETE FROM index_blobs WHERE index_digest = ?",
                "DELETE FROM index_blobs WHERE digest = ?",  # of an index that stays: in another, on a lease
            ),
        ),
        (
            gone.configs,
            (
                "DELETE FROM config_layers WHERE config_digest = ?",
                "DELETE FROM image_manifests WHERE config_digest = ?",
                "DELETE FROM image_annotations WHERE config_digest = ?",
            ),
        ),
    ):
        for statement in statements if refs else ():
            tx.executemany(statement, [(ref,) for ref in refs])
    _tell(tx, gone.found)
    return gone.found


def _tell(tx: Transaction, found: list[Forgotten]) -> None:
    """Write the event of what was forgotten, in sum."""
    if not found:
        return
    counts = Counter(f"{item.kind}s" for item in found)
    events.add(tx, "", "store.collected", "", {**counts, "bytes": sum(item.size for item in found)})


def trash_add(tx: Transaction, path: str) -> None:
    """Remember a path, relative to the store, that is to be deleted."""
    tx.execute("INSERT OR IGNORE INTO trash (path) VALUES (?)", (path,))


def trash_list(tx: Transaction) -> list[str]:
    """The paths still to be deleted."""
    return [row[0] for row in tx.execute("SELECT path FROM trash ORDER BY path")]


def is_trash(tx: Transaction, path: str) -> bool:
    """Whether a path is still to be deleted."""
    return tx.execute("SELECT 1 FROM trash WHERE path = ?", (path,)).fetchone() is not None


def trash_done(tx: Transaction, path: str) -> None:
    """A path is gone from its place."""
    tx.execute("DELETE FROM trash WHERE path = ?", (path,))


# ------------------------------------------------------------------ leases


def lease_add(tx: Transaction, lease: str, kind: str, ref: str, *, what: str = "", pid: int = 0) -> None:
    """Keep a thing (``layer``, ``blob``, ``chain`` or ``config``) while the lease lasts.

    ``what`` and ``pid`` tell those who ask whose it is.
    """
    tx.execute(
        "INSERT OR IGNORE INTO leases (id, created_at, what, pid) VALUES (?, ?, ?, ?)",
        (lease, time.time(), what, pid),
    )
    tx.execute("INSERT OR IGNORE INTO lease_refs (lease, kind, ref) VALUES (?, ?, ?)", (lease, kind, ref))


def lease_ids(tx: Transaction) -> list[str]:
    """All leases, those of the dead included."""
    return [row[0] for row in tx.execute("SELECT id FROM leases")]


def lease_end(tx: Transaction, lease: str) -> Suspects:
    """The operation is over; returns what it kept."""
    found = Suspects()
    for kind, ref in tx.execute("SELECT kind, ref FROM lease_refs WHERE lease = ?", (lease,)):
        found.add(kind, ref)
    tx.execute("DELETE FROM leases WHERE id = ?", (lease,))
    return found
