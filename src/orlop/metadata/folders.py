"""Rows about folders: layers and chains unpacked, for the drivers that need them so."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence

from orlop.hints import Literal
from orlop.metadata.db import Transaction
from orlop.spec.digest import DiffID
from orlop.values import dataclass

__all__ = [
    "FolderKind",
    "FolderRow",
    "add_folder",
    "find_by_prefix",
    "find_folder",
    "folders_of_root",
    "get_folder",
    "set_root_folders",
]

FolderKind = Literal["layer", "glue", "tree"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRow:
    """One folder.

    ``of`` is a diff ID or a chain ID.  ``boot`` names the boot in which it was made: what one of an earlier
    boot lost in a power cut nobody knows.  A glue that holds nothing has no entries, and no folder.
    """

    id: str
    kind: FolderKind
    of: str
    form: str
    size: int
    entries: int
    boot: str


_COLUMNS = "id, kind, of, form, size, entries, boot"


def _folder(row: sqlite3.Row) -> FolderRow:
    return FolderRow(id=row[0], kind=row[1], of=row[2], form=row[3], size=row[4], entries=row[5], boot=row[6])


def add_folder(tx: Transaction, folder: FolderRow, diff_ids: Iterable[DiffID]) -> None:
    """Name a folder, in place of the row that had its kind, name and form before, if one did."""
    tx.execute(
        "DELETE FROM folders WHERE kind = ? AND of = ? AND form = ?", (folder.kind, folder.of, folder.form)
    )
    tx.execute(
        f"INSERT INTO folders ({_COLUMNS}, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            folder.id,
            folder.kind,
            folder.of,
            folder.form,
            folder.size,
            folder.entries,
            folder.boot,
            time.time(),
        ),
    )
    tx.executemany(
        "INSERT OR IGNORE INTO folder_layers (folder, diff_id) VALUES (?, ?)",
        [(folder.id, diff_id) for diff_id in diff_ids],
    )


def find_folder(tx: Transaction, kind: FolderKind, of: str, form: str) -> FolderRow | None:
    """The folder of a layer or chain in one form."""
    row = tx.execute(
        f"SELECT {_COLUMNS} FROM folders WHERE kind = ? AND of = ? AND form = ?", (kind, of, form)
    ).fetchone()
    return _folder(row) if row else None


def find_by_prefix(tx: Transaction, kind: FolderKind, prefix: str, form: str) -> FolderRow | None:
    """A folder in one form whose name begins so."""
    row = tx.execute(
        f"SELECT {_COLUMNS} FROM folders WHERE kind = ? AND of >= ? AND of < ? AND form = ?",
        (kind, prefix, prefix + "\x7f", form),
    ).fetchone()
    return _folder(row) if row else None


def get_folder(tx: Transaction, folder: str) -> FolderRow | None:
    """The folder of an id."""
    row = tx.execute(f"SELECT {_COLUMNS} FROM folders WHERE id = ?", (folder,)).fetchone()
    return _folder(row) if row else None


def folders_of_root(tx: Transaction, root_id: str) -> list[str]:
    """The ids of the folders that a root stands on, top first; they may have no row any more."""
    query = "SELECT folder FROM root_folders WHERE root = ? ORDER BY position"
    return [row[0] for row in tx.execute(query, (root_id,))]


def set_root_folders(tx: Transaction, root_id: str, folders: Sequence[str]) -> None:
    """Remember what a root stands on."""
    tx.execute("DELETE FROM root_folders WHERE root = ?", (root_id,))
    if not folders:
        return
    tx.executemany(
        "INSERT INTO root_folders (root, position, folder) VALUES (?, ?, ?)",
        [(root_id, position, folder) for position, folder in enumerate(folders)],
    )
