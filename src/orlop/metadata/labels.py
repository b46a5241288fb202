"""Rows about labels of image names: the store's own notes, which policies ask for.

They belong to the name, not to what it means: a name that moves keeps them, one that is deleted does not.
(Those of prepared roots are in `orlop.metadata.roots`.)
"""

from __future__ import annotations

from collections.abc import Mapping

from orlop.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.metadata.db import Transaction

__all__ = ["all_image_labels", "change_image_labels", "delete_image_labels", "image_labels"]


def _owner(namespace: str, name: str) -> str:
    return f"{namespace}\n{name}"


def image_labels(tx: Transaction, namespace: str, name: str) -> dict[str, str]:
    """The labels of a name, by key."""
    query = "SELECT key, value FROM labels WHERE kind = 'image' AND owner = ? ORDER BY key"
    return {row[0]: row[1] for row in tx.execute(query, (_owner(namespace, name),))}


def all_image_labels(tx: Transaction, namespace: str) -> dict[str, dict[str, str]]:
    """The labels of all names that have some."""
    found: dict[str, dict[str, str]] = {}
    start = _owner(namespace, "")
    query = (
        "SELECT owner, key, value FROM labels WHERE kind = 'image' AND owner >= ? AND owner < ? "
        "ORDER BY owner, key"
    )
    for owner, key, value in tx.execute(query, (start, f"{namespace}\x0b")):  # \n comes just before
        found.setdefault(owner.removeprefix(start), {})[key] = value
    return found


def change_image_labels(
    tx: Transaction, namespace: str, name: str, changes: Mapping[str, str | None]
) -> None:
    """Set labels of a name, and take those away whose value is None."""
    owner = _owner(namespace, name)
    for key, value in changes.items():
        if value is None:
            tx.execute("DELETE FROM labels WHERE kind = 'image' AND owner = ? AND key = ?", (owner, key))
        else:
            tx.execute(
                "INSERT INTO labels (kind, owner, key, value) VALUES ('image', ?, ?, ?) "
                "ON CONFLICT (kind, owner, key) DO UPDATE SET value = excluded.value",
                (owner, key, value),
            )


def delete_image_labels(tx: Transaction, namespace: str, name: str) -> None:
    """Forget all labels of a name."""
    tx.execute("DELETE FROM labels WHERE kind = 'image' AND owner = ?", (_owner(namespace, name),))
