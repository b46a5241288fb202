"""Quantities as people read them.  Imports nothing."""

from __future__ import annotations

__all__ = ["size_text"]


def size_text(size: float) -> str:
    """Bytes for people, in powers of ten as docker shows them.

    >>> size_text(999), size_text(12_345_678)
    ('999 B', '12.3 MB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            break
    return f"{size:.1f} {unit}"
