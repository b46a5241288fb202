"""Rows about chains and prepared roots."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

from orlop.errors import AlreadyExists
from orlop.metadata import events
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = [
    "ChainRow",
    "Ending",
    "MountRow",
    "RootRow",
    "add_chain",
    "add_root",
    "all_labels",
    "chain_layers",
    "chain_stack",
    "chain_users",
    "count_roots",
    "delete_root",
    "drop_labels",
    "ending",
    "get_chain",
    "get_root",
    "is_root",
    "labels_of",
    "list_roots",
    "mapping_users",
    "mounts_of",
    "move_root",
    "root_ids",
    "set_mounted",
    "touch_sources",
]


_NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRow:
    """One EROFS image of a stack.  ``devices`` are pairs of a diff ID and ``tar`` or ``data``."""

    id: str
    parent: str | None
    depth: int
    entries: int
    size: int
    uuid: bytes
    devices: tuple[tuple[DiffID, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRow:
    """A prepared root.

    ``created`` is seconds since 1970; ``form`` says how ids stand in its writable part; ``quota`` is in
    bytes; the maps are texts: ``inside:outside:size``, with commas between.
    """

    id: str
    path: str
    image: str
    config: Digest
    chain: str
    driver: str
    kind: str
    self_contained: bool
    mounted: bool
    made_target: bool
    created: float
    form: str = "real"
    quota: int | None = None
    uid_map: str = ""
    gid_map: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRow:
    """A mount that a caller added to a root; of an image, its config and its chain."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]
    config: Digest | None = None
    chain: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What there is to see to when a root's row goes.

    ``more`` says whether it keeps anything beside its config and chain: images mounted in it, checkpoints;
    ``labels`` whether it has any; ``neighbour`` whether another root without id maps stands on its chain, as
    it does itself: of one with id maps nobody asks.
    """

    config: Digest
    more: bool
    labels: bool
    neighbour: bool


def add_chain(tx: Transaction, chain: ChainRow, diff_ids: Sequence[DiffID]) -> None:
    """Name a chain whose file is on disk; ``diff_ids`` are all it stands for.  Idempotent."""
    devices = "".join(f"{diff_id} {kind}\n" for diff_id, kind in chain.devices)
    tx.execute(
        "INSERT INTO chains (chain_id, parent, depth, entries, size, uuid, devices, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (chain_id) DO NOTHING",
        (chain.id, chain.parent, chain.depth, chain.entries, chain.size, chain.uuid, devices, time.time()),
    )
    tx.executemany(
        "INSERT OR IGNORE INTO chain_layers (chain_id, position, diff_id) VALUES (?, ?, ?)",
        [(chain.id, position, diff_id) for position, diff_id in enumerate(diff_ids)],
    )


def get_chain(tx: Transaction, chain: str) -> ChainRow | None:
    """One image of a stack."""
    row = tx.execute(
        "SELECT chain_id, parent, depth, entries, size, uuid, devices FROM chains WHERE chain_id = ?",
        (chain,),
    ).fetchone()
    if row is None:
        return None
    devices = tuple(
        (DiffID(diff_id), kind) for diff_id, kind in (line.split(" ") for line in row[6].splitlines())
    )
    return ChainRow(
        id=row[0], parent=row[1], depth=row[2], entries=row[3], size=row[4], uuid=row[5], devices=devices
    )


def chain_stack(tx: Transaction, chain: str) -> list[ChainRow]:
    """A chain's images, top first; empty if one of them is missing."""
    stack: list[ChainRow] = []
    name: str | None = chain
    while name is not None:
        row = get_chain(tx, name)
        if row is None:
            return []
        stack.append(row)
        name = row.parent
    return stack


def chain_layers(tx: Transaction, chain: str) -> tuple[DiffID, ...]:
    """All the layers that a chain stands for, bottom first."""
    rows = tx.execute("SELECT diff_id FROM chain_layers WHERE chain_id = ? ORDER BY position", (chain,))
    return tuple(DiffID(row[0]) for row in rows)


def chain_users(tx: Transaction, chain: str) -> set[tuple[str, str]]:
    """The id maps of the prepared roots that stand on a chain's image, directly or through images above it.

    Empty if there is no such root; a root without maps, and a snapshot, counts as two empty texts.
    """
    above = (
        "WITH RECURSIVE above(id) AS (SELECT ? UNION SELECT chain_id FROM chains JOIN above ON parent = id) "
    )
    mapped = tx.execute(
        above
        + "SELECT uid_map, gid_map FROM prepared WHERE chain_id IN (SELECT id FROM above) AND uid_map != '' "
        "UNION SELECT uid_map, gid_map FROM root_mounts JOIN prepared ON prepared.id = root "
        "WHERE root_mounts.chain_id IN (SELECT id FROM above)",
        (chain,),
    )
    users = {(row[0], row[1]) for row in mapped}
    # There may be very many without maps, and one of them is enough.
    plain = above + "SELECT 1 FROM prepared WHERE chain_id IN (SELECT id FROM above) AND uid_map = '' LIMIT 1"
    snapshot = (
        above
        + "SELECT 1 FROM snapshots WHERE chain_id IN (SELECT id FROM above) AND kind != 'committed' LIMIT 1"
    )
    if tx.execute(plain, (chain,)).fetchone() or tx.execute(snapshot, (chain,)).fetchone():
        users.add(("", ""))
    return users


_COLUMNS = (
    "id, path, image, config_digest, chain_id, driver, kind, self_contained, mounted, made_target, "
    "created_at, form, quota, uid_map, gid_map"
)


def _root(row: sqlite3.Row) -> RootRow:
    return RootRow(
        id=row[0],
        path=row[1],
        image=row[2],
        config=Digest(row[3]),
        chain=row[4],
        driver=row[5],
        kind=row[6],
        self_contained=bool(row[7]),
        mounted=bool(row[8]),
        made_target=bool(row[9]),
        created=row[10],
        form=row[11],
        quota=row[12],
        uid_map=row[13],
        gid_map=row[14],
    )


def add_root(
    tx: Transaction,
    namespace: str,
    root: RootRow,
    labels: Mapping[str, str],
    mounts: Sequence[MountRow] = (),
    *,
    event: str = "root.prepared",
    about: Mapping[str, str] = _NOTHING,
) -> None:
    """Name a prepared root, by an event of this kind.  Raises `AlreadyExists` if its path is taken."""
    try:
        tx.execute(
            f"INSERT INTO prepared ({_COLUMNS}, namespace) VALUES ({', '.join('?' * 16)})",
            (
                root.id,
                root.path,
                root.image,
                root.config,
                root.chain,
                root.driver,
                root.kind,
                root.self_contained,
                root.mounted,
                root.made_target,
                root.created,
                root.form,
                root.quota,
                root.uid_map,
                root.gid_map,
                namespace,
            ),
        )
    except sqlite3.IntegrityError as exc:
        raise already_prepared(root.path) from exc
    said = {"image": root.image, "id": root.config, "kind": root.kind, "driver": root.driver, **about}
    events.add(tx, namespace, event, root.path, said)
    if labels:
        tx.executemany(
            "INSERT INTO labels (kind, owner, key, value) VALUES ('prepared', ?, ?, ?)",
            [(root.id, key, value) for key, value in labels.items()],
        )
    if not mounts:
        return
    tx.executemany(
        "INSERT INTO root_mounts (root, position, type, source, target, options, config_digest, chain_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (root.id, place, row.type, row.source, row.target, "\n".join(row.options), row.config, row.chain)
            for place, row in enumerate(mounts)
        ],
    )


def touch_sources(tx: Transaction, namespace: str, root: RootRow) -> bool:
    """Remember that a root's image was asked for now; False unless its name still means its config.

    And unless its chain and its config are there.  One statement, for a Prepare that looks at nothing else.
    """
    done = tx.execute(
        "UPDATE images SET used_at = ? WHERE namespace = ? AND name = ? AND config_digest = ? "
        "AND EXISTS (SELECT 1 FROM chains WHERE chain_id = ?) "
        "AND EXISTS (SELECT 1 FROM blobs WHERE digest = ?)",
        (time.time(), namespace, root.image, root.config, root.chain, root.config),
    )
    return done.rowcount == 1


def ending(tx: Transaction, root: RootRow) -> Ending | None:
    """What there is to see to before a root's row goes; None if it is gone, elsewhere, or mounted otherwise.

    One statement, for a Cleanup that looks at nothing else.
    """
    row = tx.execute(
        "SELECT config_digest, "
        "EXISTS (SELECT 1 FROM root_mounts WHERE root = p.id) "
        "OR EXISTS (SELECT 1 FROM checkpoints WHERE root = p.id), "
        "EXISTS (SELECT 1 FROM labels WHERE kind = 'prepared' AND owner = p.id), "
        # Not of one with maps: where all have some, that would read all roots of the chain.
        "CASE WHEN p.uid_map != '' THEN 0 ELSE "
        "EXISTS (SELECT 1 FROM prepared WHERE chain_id = p.chain_id AND uid_map = '' AND id != p.id) END "
        "FROM prepared p WHERE id = ? AND path = ? AND mounted = ?",
        (root.id, root.path, root.mounted),
    ).fetchone()
    if row is None:
        return None
    return Ending(config=Digest(row[0]), more=bool(row[1]), labels=bool(row[2]), neighbour=bool(row[3]))


def mounts_of(tx: Transaction, root_id: str) -> list[MountRow]:
    """The mounts that a caller added to a root, in order."""
    query = (
        "SELECT type, source, target, options, config_digest, chain_id FROM root_mounts "
        "WHERE root = ? ORDER BY position"
    )
    return [
        MountRow(
            type=row[0],
            source=row[1],
            target=row[2],
            options=tuple(row[3].split("\n")) if row[3] else (),
            config=Digest(row[4]) if row[4] else None,
            chain=row[5],
        )
        for row in tx.execute(query, (root_id,))
    ]


def mapping_users(tx: Transaction, uid_map: str, gid_map: str) -> int:
    """How many prepared roots have these id maps, which are not empty."""
    query = "SELECT COUNT(*) FROM prepared WHERE uid_map = ? AND gid_map = ? AND uid_map != ''"
    return int(tx.execute(query, (uid_map, gid_map)).fetchone()[0])


def already_prepared(path: str) -> AlreadyExists:
    """The error for a path that is taken."""
    return AlreadyExists(
        f"prepare {path}", "the path is prepared already", hint=f"'orlop cleanup {path}' gives it back"
    )


def get_root(tx: Transaction, path: str) -> RootRow | None:
    """The prepared root at a path."""
    row = tx.execute(f"SELECT {_COLUMNS} FROM prepared WHERE path = ?", (path,)).fetchone()
    return _root(row) if row else None


def list_roots(tx: Transaction, namespace: str) -> list[RootRow]:
    """All prepared roots, by path."""
    query = f"SELECT {_COLUMNS} FROM prepared WHERE namespace = ? ORDER BY path"
    return [_root(row) for row in tx.execute(query, (namespace,))]


def is_config_of_root(tx: Transaction, namespace: str, config: Digest) -> bool:
    """Whether a root of a namespace was prepared from an image, whose name may be gone or never was."""
    sql = "SELECT 1 FROM prepared WHERE config_digest = ? AND +namespace = ? LIMIT 1"  # by prepared_by_config
    return tx.execute(sql, (config, namespace)).fetchone() is not None


def some_paths(tx: Transaction, most: int) -> list[str]:
    """So many of the paths at which roots are prepared, the first by path."""
    return [str(row[0]) for row in tx.execute("SELECT path FROM prepared ORDER BY path LIMIT ?", (most,))]


def is_root(tx: Transaction, root_id: str) -> bool:
    """Whether a root has a row."""
    return tx.execute("SELECT 1 FROM prepared WHERE id = ?", (root_id,)).fetchone() is not None


def count_roots(tx: Transaction) -> int:
    """How many roots are prepared."""
    return int(tx.execute("SELECT COUNT(*) FROM prepared").fetchone()[0])


def root_ids(tx: Transaction) -> set[str]:
    """The folders under ``prepared`` that have a row."""
    return {row[0] for row in tx.execute("SELECT id FROM prepared")}


def labels_of(tx: Transaction, root_id: str) -> dict[str, str]:
    """The labels of a prepared root."""
    rows = tx.execute(
        "SELECT key, value FROM labels WHERE kind = 'prepared' AND owner = ? ORDER BY key", (root_id,)
    )
    return {row[0]: row[1] for row in rows}


def all_labels(tx: Transaction, namespace: str) -> dict[str, dict[str, str]]:
    """The labels of all prepared roots that have any, by the root's id."""
    found: dict[str, dict[str, str]] = {}
    query = (
        "SELECT prepared.id, key, value FROM labels JOIN prepared ON prepared.id = owner "
        "WHERE labels.kind = 'prepared' AND namespace = ? ORDER BY owner, key"
    )
    for owner, key, value in tx.execute(query, (namespace,)):
        found.setdefault(owner, {})[key] = value
    return found


def set_mounted(tx: Transaction, root_id: str, *, mounted: bool, made_target: bool) -> None:
    """Remember whether orlop has mounted a root itself, and made the folder for it."""
    row = tx.execute("SELECT namespace, path, mounted FROM prepared WHERE id = ?", (root_id,)).fetchone()
    if row is not None and bool(row[2]) != mounted:
        events.add(tx, row[0], "root.mounted" if mounted else "root.unmounted", row[1])
    tx.execute(
        "UPDATE prepared SET mounted = ?, made_target = ? WHERE id = ?", (mounted, made_target, root_id)
    )


def move_root(tx: Transaction, root_id: str, path: str, labels: Mapping[str, str]) -> None:
    """Give a root another path, and further labels.  Raises `AlreadyExists` if it is taken."""
    row = tx.execute("SELECT namespace, path FROM prepared WHERE id = ?", (root_id,)).fetchone()
    if row is not None:
        events.add(tx, row[0], "root.moved", path, {"from": row[1]})
    try:
        tx.execute("UPDATE prepared SET path = ? WHERE id = ?", (path, root_id))
    except sqlite3.IntegrityError as exc:
        raise already_prepared(path) from exc
    tx.executemany(
        "INSERT OR REPLACE INTO labels (kind, owner, key, value) VALUES ('prepared', ?, ?, ?)",
        [(root_id, key, value) for key, value in labels.items()],
    )


def drop_labels(tx: Transaction, root_id: str) -> None:
    """Take away all labels of a prepared root."""
    tx.execute("DELETE FROM labels WHERE kind = 'prepared' AND owner = ?", (root_id,))


def delete_root(
    tx: Transaction, root_id: str, *, event: str | None = "root.cleaned", labels: bool = True
) -> bool:
    """Forget a prepared root; whether there was one.  ``event`` is None where another tells it.

    ``labels`` is False where it is known to have none.
    """
    if labels:
        drop_labels(tx, root_id)
    if event is not None:
        # Not by RETURNING, which SQLite knows since 3.35: enterprise systems of today have 3.34.
        query = "SELECT namespace, path, image FROM prepared WHERE id = ?"
        for namespace, path, image in tx.execute(query, (root_id,)).fetchall():
            events.add(tx, namespace, event, path, {"image": image})
    return tx.execute("DELETE FROM prepared WHERE id = ?", (root_id,)).rowcount > 0
