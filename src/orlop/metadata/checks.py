"""Rows as a check and a repair need them: all of a kind, who suffers, and what a repair writes.

Deciding what is damage is `orlop.images.checking.examine`'s; here is only what the rows say.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from orlop.errors import InvalidArgument
from orlop.metadata import garbage, platforms, roots
from orlop.metadata.db import Transaction
from orlop.metadata.folders import FolderRow
from orlop.metadata.layers import LayerRow
from orlop.spec.digest import DiffID, Digest
from orlop.spec.documents import INDEX_TYPES, MANIFEST_TYPES
from orlop.values import dataclass

__all__ = [
    "BlobRow",
    "Origin",
    "all_blobs",
    "all_chains",
    "all_folders",
    "all_layers",
    "blob_size",
    "blob_users",
    "chain_above",
    "chain_roots",
    "expire_folder",
    "folder_layers",
    "folder_users",
    "forget_blob",
    "forget_chain",
    "forget_layer",
    "image_has_layers",
    "integrity",
    "layer_chains",
    "layer_users",
    "layers_by_age",
    "malformed",
    "manifests_of",
    "origin_of",
    "reindex",
    "replace_config",
    "set_checked",
    "update_blob",
    "update_layer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRow:
    """A blob that is on disk.  ``document`` says whether it is a config or a manifest, by the rows."""

    digest: Digest
    size: int
    document: bool


_DOCUMENT = (
    "EXISTS (SELECT 1 FROM images WHERE config_digest = digest OR manifest_digest = digest) "
    "OR EXISTS (SELECT 1 FROM image_manifests WHERE image_manifests.digest = blobs.digest) "
    "OR EXISTS (SELECT 1 FROM index_blobs WHERE index_blobs.digest = blobs.digest) "
    "OR EXISTS (SELECT 1 FROM config_layers WHERE config_digest = blobs.digest) "
    "OR EXISTS (SELECT 1 FROM prepared WHERE config_digest = blobs.digest) "
    "OR EXISTS (SELECT 1 FROM checkpoints WHERE config_digest = blobs.digest)"
)


def integrity(tx: Transaction, *, full: bool) -> list[str]:
    """What SQLite itself finds wrong with its file, and with references between rows; a few of each."""
    found = [row[0] for row in tx.execute(f"PRAGMA {'integrity' if full else 'quick'}_check(20)")]
    found = [] if found == ["ok"] else found
    for row in tx.execute("PRAGMA foreign_key_check").fetchmany(20):
        found.append(f"a row of {row[0]} refers to one of {row[2]} that is not there")
    return found


def malformed(tx: Transaction) -> list[str]:
    """Names in the rows that are none: no orlop writes them."""
    found: list[str] = []
    queries = (
        ("layers", DiffID, "SELECT diff_id FROM layers"),
        ("config_layers", DiffID, "SELECT DISTINCT diff_id FROM config_layers"),
        ("chain_layers", DiffID, "SELECT DISTINCT diff_id FROM chain_layers"),
        ("layer_blobs", Digest, "SELECT digest FROM layer_blobs"),
        ("blobs", Digest, "SELECT digest FROM blobs"),
        ("contents", Digest, "SELECT digest FROM contents"),
        ("images", Digest, "SELECT config_digest FROM images"),
        ("images", Digest, "SELECT manifest_digest FROM images WHERE manifest_digest IS NOT NULL"),
        ("images", Digest, "SELECT index_digest FROM images WHERE index_digest IS NOT NULL"),
        ("image_platforms", Digest, "SELECT config_digest FROM image_platforms"),
        ("image_platforms", Digest, "SELECT manifest_digest FROM image_platforms"),
        ("index_blobs", Digest, "SELECT digest FROM index_blobs"),
        ("image_manifests", Digest, "SELECT digest FROM image_manifests"),
        ("prepared", Digest, "SELECT config_digest FROM prepared"),
        ("checkpoints", Digest, "SELECT config_digest FROM checkpoints"),
        ("captures", DiffID, "SELECT diff_id FROM captures WHERE diff_id IS NOT NULL"),
        ("snapshot_layers", DiffID, "SELECT diff_id FROM snapshot_layers"),
    )
    for table, kind, query in queries:
        for (text,) in tx.execute(query):
            try:
                kind(text)
            except (InvalidArgument, TypeError, AttributeError):
                found.append(f"a row of {table} names {str(text)[:100]!r}, which is no digest")
    for name, query in (
        ("chains", "SELECT chain_id FROM chains"),
        ("folders", "SELECT id FROM folders"),
        ("prepared", "SELECT id FROM prepared"),
        ("snapshots", "SELECT id FROM snapshots"),
    ):
        for (text,) in tx.execute(query):
            if not isinstance(text, str) or "/" in text or text in {"", ".", ".."}:
                found.append(f"a row of {name} has the name {str(text)[:100]!r}, which leads elsewhere")
    return found[:20]


def reindex(tx: Transaction) -> None:
    """Build SQLite's own indexes again from the rows."""
    tx.execute("REINDEX")


# -- all of a kind --------------------------------------------------------------------------------


def all_blobs(tx: Transaction) -> list[BlobRow]:
    """All blobs."""
    rows = tx.execute(f"SELECT digest, size, {_DOCUMENT} FROM blobs ORDER BY digest")
    return [BlobRow(digest=Digest(row[0]), size=row[1], document=bool(row[2])) for row in rows]


def blob_size(tx: Transaction, digest: Digest) -> int | None:
    """The size of a blob, if it is on disk."""
    row = tx.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
    return row[0] if row else None


def all_layers(tx: Transaction) -> list[DiffID]:
    """All layers."""
    return [DiffID(row[0]) for row in tx.execute("SELECT diff_id FROM layers ORDER BY diff_id")]


def layers_by_age(tx: Transaction, before: float) -> list[tuple[DiffID, int]]:
    """The layers that were last found whole before a time, with their sizes; the longest ago first.

    Making one counts: its bytes were hashed then.
    """
    rows = tx.execute(
        "SELECT diff_id, size FROM layers WHERE MAX(checked_at, created_at) < ? "
        "ORDER BY MAX(checked_at, created_at), diff_id",
        (before,),
    )
    return [(DiffID(row[0]), row[1]) for row in rows]


def all_chains(tx: Transaction) -> list[str]:
    """All chains, those below before those above."""
    return [row[0] for row in tx.execute("SELECT chain_id FROM chains ORDER BY depth, chain_id")]


def all_folders(tx: Transaction) -> list[FolderRow]:
    """All folders."""
    rows = tx.execute("SELECT id, kind, of, form, size, entries, boot FROM folders ORDER BY id")
    return [
        FolderRow(id=row[0], kind=row[1], of=row[2], form=row[3], size=row[4], entries=row[5], boot=row[6])
        for row in rows
    ]


def image_has_layers(tx: Transaction, namespace: str, name: str) -> bool:
    """Whether the rows know of any layers of an image; some have none."""
    query = (
        "SELECT 1 FROM images JOIN config_layers USING (config_digest) "
        "WHERE namespace = ? AND name = ? LIMIT 1"
    )
    return tx.execute(query, (namespace, name)).fetchone() is not None


def manifests_of(tx: Transaction, config: Digest) -> list[Digest]:
    """The manifests known for a config."""
    rows = tx.execute("SELECT digest FROM image_manifests WHERE config_digest = ?", (config,))
    return [Digest(row[0]) for row in rows]


def folder_layers(tx: Transaction, folder: str) -> list[DiffID]:
    """The layers that a folder was made from, in no order."""
    rows = tx.execute("SELECT diff_id FROM folder_layers WHERE folder = ?", (folder,))
    return [DiffID(row[0]) for row in rows]


_PINS = "SELECT 'pin ' || name FROM pins WHERE (expires_at IS NULL OR expires_at > :now)"

# -- who suffers ----------------------------------------------------------------------------------


def layer_users(tx: Transaction, diff_id: DiffID) -> tuple[list[str], list[str]]:
    """The names of images that have a layer, with pins (``pin NAME``), and the paths of roots on it."""
    configs = "(SELECT config_digest FROM config_layers WHERE diff_id = :layer)"
    names = tx.execute(
        f"SELECT name FROM images WHERE config_digest IN {configs} "
        f"UNION SELECT name FROM image_platforms WHERE config_digest IN {configs} "
        f"UNION {_PINS} AND (kind = 'layer' "
        f"AND ref = :layer OR kind = 'config' AND ref IN {configs} OR kind = 'chain' AND ref IN "
        "(SELECT chain_id FROM chain_layers WHERE diff_id = :layer)) ORDER BY 1",
        {"layer": diff_id, "now": time.time()},
    ).fetchall()
    paths = tx.execute(
        "WITH used(id) AS (SELECT chain_id FROM chain_layers WHERE diff_id = ?) "
        "SELECT path FROM prepared WHERE chain_id IN (SELECT id FROM used) OR config_digest IN "
        "(SELECT config_digest FROM config_layers WHERE diff_id = ?) "
        "UNION SELECT path FROM root_mounts JOIN prepared ON prepared.id = root "
        "WHERE root_mounts.chain_id IN (SELECT id FROM used) "
        "UNION SELECT path FROM checkpoints JOIN prepared ON prepared.id = root "
        "WHERE checkpoints.config_digest IN (SELECT config_digest FROM config_layers WHERE diff_id = ?) "
        "UNION SELECT 'snapshot ' || key FROM snapshot_layers JOIN snapshots ON snapshots.id = snapshot "
        "WHERE diff_id = ? ORDER BY path",
        (diff_id, diff_id, diff_id, diff_id),
    ).fetchall()
    return [row[0] for row in names], [row[0] for row in paths]


def layer_chains(tx: Transaction, diff_id: DiffID) -> list[str]:
    """The images of chains that point into a layer's files."""
    query = "SELECT chain_id FROM chain_layers WHERE diff_id = ? ORDER BY chain_id"
    found = [roots.get_chain(tx, row[0]) for row in tx.execute(query, (diff_id,)).fetchall()]
    return [row.id for row in found if row is not None and any(one == diff_id for one, _ in row.devices)]


def chain_roots(tx: Transaction, chain: str) -> list[str]:
    """The paths of the roots that stand on a chain's image, directly or through images above it.

    And snapshots (``snapshot KEY``).
    """
    rows = tx.execute(
        "WITH RECURSIVE above(id) AS (SELECT ? UNION SELECT chain_id FROM chains JOIN above ON parent = id) "
        "SELECT path FROM prepared WHERE chain_id IN (SELECT id FROM above) "
        "UNION SELECT path FROM root_mounts JOIN prepared ON prepared.id = root "
        "WHERE root_mounts.chain_id IN (SELECT id FROM above) "
        "UNION SELECT 'snapshot ' || key FROM snapshots WHERE chain_id IN (SELECT id FROM above) "
        "AND kind != 'committed' ORDER BY path",
        (chain,),
    )
    return [row[0] for row in rows]


def chain_above(tx: Transaction, chain: str) -> list[str]:
    """A chain's image and all that lie on it, the topmost first."""
    rows = tx.execute(
        "WITH RECURSIVE above(id) AS (SELECT ? UNION SELECT chain_id FROM chains JOIN above ON parent = id) "
        "SELECT chain_id FROM chains WHERE chain_id IN (SELECT id FROM above) ORDER BY depth DESC",
        (chain,),
    )
    return [row[0] for row in rows]


def blob_users(tx: Transaction, digest: Digest) -> list[str]:
    """The names of images that a document belongs to, and pins (``pin NAME``) of them or of a blob.

    And the namespaces of content that have a blob (``content NAMESPACE``).
    """
    rows = tx.execute(
        f"{_PINS} AND kind IN ('config', 'blob') AND (ref = :digest OR ref IN "
        "(SELECT config_digest FROM image_manifests WHERE digest = :digest)) "
        "UNION SELECT RTRIM('content ' || namespace) FROM contents WHERE digest = :digest ORDER BY 1",
        {"digest": digest, "now": time.time()},
    )
    return [*_names_of(tx, digest), *(row[0] for row in rows)]


def _names_of(tx: Transaction, digest: Digest) -> list[str]:
    rows = tx.execute(
        "SELECT name FROM images WHERE config_digest = ?1 OR manifest_digest = ?1 OR config_digest IN "
        "(SELECT config_digest FROM image_manifests WHERE digest = ?1) "
        "UNION SELECT name FROM image_platforms WHERE config_digest = ?1 OR manifest_digest = ?1 "
        "UNION SELECT name FROM images JOIN index_blobs USING (index_digest) WHERE digest = ?1 ORDER BY name",
        (digest,),
    )
    return [row[0] for row in rows]


def folder_users(tx: Transaction, folder: str) -> list[str]:
    """The paths of the roots that stand on a folder."""
    rows = tx.execute(
        "SELECT DISTINCT path FROM prepared JOIN root_folders ON root = prepared.id WHERE folder = ? "
        "ORDER BY path",
        (folder,),
    )
    return [row[0] for row in rows]


# -- what a repair writes -------------------------------------------------------------------------


def set_checked(tx: Transaction, diff_id: DiffID, when: float) -> None:
    """Remember that a layer was found whole."""
    tx.execute("UPDATE layers SET checked_at = ? WHERE diff_id = ?", (when, diff_id))


def update_layer(tx: Transaction, layer: LayerRow) -> None:
    """Say of a layer what its files are like now."""
    tx.execute(
        "UPDATE layers SET size = ?, data_size = ?, index_size = ?, entries = ? WHERE diff_id = ?",
        (layer.size, layer.data_size, layer.index_size, layer.entries, layer.diff_id),
    )


def forget_layer(tx: Transaction, diff_id: DiffID) -> None:
    """Forget a layer whose files are gone, and the chains and folders made of it, which become trash.

    Not for a layer that prepared roots stand on.
    """
    tx.execute("DELETE FROM layers WHERE diff_id = ?", (diff_id,))
    chains = tx.execute("SELECT chain_id FROM chain_layers WHERE diff_id = ?", (diff_id,)).fetchall()
    for (chain,) in chains:
        for above in chain_above(tx, chain):
            forget_chain(tx, above)
    folders = tx.execute("SELECT folder FROM folder_layers WHERE diff_id = ?", (diff_id,)).fetchall()
    for (folder,) in folders:
        tx.execute("DELETE FROM folders WHERE id = ?", (folder,))
        garbage.trash_add(tx, f"folders/{folder}")


def forget_chain(tx: Transaction, chain: str) -> None:
    """Forget one image of chains that nothing lies on; its file becomes trash."""
    if tx.execute("DELETE FROM chains WHERE chain_id = ?", (chain,)).rowcount:
        garbage.trash_add(tx, f"chains/{chain}.erofs")


def forget_blob(tx: Transaction, digest: Digest) -> None:
    """Forget a blob whose file is gone."""
    tx.execute("DELETE FROM blobs WHERE digest = ?", (digest,))


def expire_folder(tx: Transaction, folder: str) -> None:
    """Have a folder made again, in its place, when it is next needed."""
    tx.execute("UPDATE folders SET boot = '' WHERE id = ?", (folder,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a document can be had again: names of its images, and repositories of their layers.

    ``manifest`` is its media type where it is a manifest, else it is a config.  ``size`` is in bytes.
    """

    manifest: str | None
    size: int
    names: tuple[str, ...]
    repositories: tuple[tuple[str, str], ...]


def origin_of(tx: Transaction, digest: Digest) -> Origin | None:
    """The origin of a document; None for what the rows do not know as one."""
    known = tx.execute("SELECT media_type, size FROM image_manifests WHERE digest = ?", (digest,)).fetchone()
    part = platforms.index_blob(tx, digest)
    if known is None and part is not None and part.media_type in MANIFEST_TYPES + INDEX_TYPES:
        known = (part.media_type, part.size)
    names = _names_of(tx, digest)
    config = tx.execute(
        "SELECT 1 FROM images WHERE config_digest = ? UNION SELECT 1 FROM prepared WHERE config_digest = ? "
        "UNION SELECT 1 FROM checkpoints WHERE config_digest = ? "
        "UNION SELECT 1 FROM config_layers WHERE config_digest = ?",
        (digest, digest, digest, digest),
    ).fetchone()
    if known is None and not names and config is None:
        return None
    repositories = tx.execute(
        "SELECT registry, repository FROM blob_sources WHERE digest IN (SELECT digest FROM layer_blobs "
        "WHERE diff_id IN (SELECT diff_id FROM config_layers WHERE config_digest = ? OR config_digest IN "
        "(SELECT config_digest FROM image_manifests WHERE digest = ?))) "
        "GROUP BY registry, repository ORDER BY MAX(seen_at) DESC LIMIT 8",
        (digest, digest),
    ).fetchall()
    size = blob_size(tx, digest)
    if known is None and config is None and part is None:
        known = ("", size or 0)  # only a name's row says that it is a manifest
    return Origin(
        manifest=known[0] if known else None,
        size=known[1] if known and known[1] else size or (part.size if part else 0),
        names=tuple(names),
        repositories=tuple((row[0], row[1]) for row in repositories),
    )


def update_blob(tx: Transaction, digest: Digest, size: int) -> None:
    """Say how large a blob is, that is on disk."""
    tx.execute("UPDATE blobs SET size = ? WHERE digest = ?", (size, digest))


def replace_config(tx: Transaction, config: Digest, diff_ids: Sequence[DiffID]) -> None:
    """Say which layers a config lists."""
    tx.execute("DELETE FROM config_layers WHERE config_digest = ?", (config,))
    tx.executemany(
        "INSERT INTO config_layers VALUES (?, ?, ?)",
        [(config, position, diff_id) for position, diff_id in enumerate(diff_ids)],
    )
