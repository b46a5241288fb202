"""Rows of containerd's content API: which namespace has which blob, and its labels.

That a blob's bytes are on disk is the row in ``blobs`` to say (`orlop.metadata.layers`); a row here keeps it
(`orlop.metadata.needs`).  Times are nanoseconds since 1970.

What was written without a namespace has an empty one, which every namespace sees.  To ask without one (None)
is to ask for all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from orlop.metadata.db import Transaction
from orlop.spec.digest import Digest
from orlop.values import dataclass

__all__ = [
    "ContentRow",
    "add_content",
    "blob_size",
    "delete_content",
    "get_content",
    "is_in_one_of",
    "list_contents",
    "update_content",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentRow:
    """A blob as one namespace has it."""

    namespace: str
    digest: Digest
    size: int
    labels: Mapping[str, str]
    created: int
    updated: int


_COLUMNS = "namespace, digest, size, labels, created_at, updated_at"


def _row(row: tuple[str, str, int, str, int, int]) -> ContentRow:
    namespace, digest, size, labels, created, updated = row
    return ContentRow(
        namespace=namespace,
        digest=Digest(digest),
        size=size,
        labels=json.loads(labels),
        created=created,
        updated=updated,
    )


def add_content(tx: Transaction, row: ContentRow) -> bool:
    """Give a namespace a blob that is named in ``blobs``; False if it has it already."""
    done = tx.execute(
        f"INSERT OR IGNORE INTO contents ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",
        (row.namespace, row.digest, row.size, json.dumps(dict(row.labels)), row.created, row.updated),
    )
    return done.rowcount == 1


def get_content(tx: Transaction, namespace: str | None, digest: Digest) -> ContentRow | None:
    """A blob as a namespace sees it: its own first; of all of them, as the first has it."""
    query = f"SELECT {_COLUMNS} FROM contents WHERE digest = ?"
    if namespace is None:
        row = tx.execute(f"{query} ORDER BY namespace LIMIT 1", (digest,)).fetchone()
    else:
        mine = f"{query} AND namespace IN (?, '') ORDER BY namespace DESC LIMIT 1"
        row = tx.execute(mine, (digest, namespace)).fetchone()
    return _row(tuple(row)) if row else None


def update_content(tx: Transaction, row: ContentRow) -> None:
    """Replace a row's labels, and say when."""
    tx.execute(
        "UPDATE contents SET labels = ?, updated_at = ? WHERE namespace = ? AND digest = ?",
        (json.dumps(dict(row.labels)), row.updated, row.namespace, row.digest),
    )


def delete_content(tx: Transaction, namespace: str | None, digest: Digest) -> bool:
    """Take a blob from a namespace, or from all; whether there was one that had it."""
    if namespace is None:
        return tx.execute("DELETE FROM contents WHERE digest = ?", (digest,)).rowcount > 0
    query = "DELETE FROM contents WHERE namespace = ? AND digest = ?"
    return tx.execute(query, (namespace, digest)).rowcount > 0


def list_contents(tx: Transaction, namespace: str | None, after: str, most: int) -> list[ContentRow]:
    """At most so many blobs that a namespace sees and that come behind a digest, in order, each once."""
    seen = "" if namespace is None else " AND namespace IN (:namespace, '')"
    first = "o.namespace < c.namespace" if namespace is None else "o.namespace > c.namespace"
    query = (
        f"SELECT {_COLUMNS} FROM contents c WHERE digest > :after{seen} AND NOT EXISTS "
        f"(SELECT 1 FROM contents o WHERE o.digest = c.digest AND {first}{seen}) ORDER BY digest LIMIT :most"
    )
    rows = tx.execute(query, {"namespace": namespace, "after": after, "most": most})
    return [_row(tuple(row)) for row in rows]


def is_in_one_of(tx: Transaction, namespaces: Iterable[str], digest: Digest) -> bool:
    """Whether one of some namespaces has a blob."""
    return any(get_content(tx, namespace, digest) is not None for namespace in namespaces)


def blob_size(tx: Transaction, digest: Digest) -> int | None:
    """The size of a blob that is on disk, whoever has it."""
    row = tx.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
    return row[0] if row else None
