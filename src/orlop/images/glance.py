"""A look at a store that is not opened: its list of images, for a command that wants nothing else.

To open a store is to make and check its folders, to bring its metadata to this version, and to import what
all verbs share.  Of a store of this version a list needs one read.  Anything unusual (ROOT or RUN is missing,
another's or in the other, another version, a lost boot, an error) is None: then the store is opened, which
mends it or says what is wrong.
"""

from __future__ import annotations

import os
import sqlite3
import stat

from orlop.hints import TYPE_CHECKING
from orlop.images.format import FORMAT
from orlop.images.listing import list_known, rows_of
from orlop.metadata import SCHEMA_VERSION, boots

if TYPE_CHECKING:
    from orlop.images.infos import ImageInfo

__all__ = ["images_at"]

_PATIENCE = 30  # seconds for who has meta.db for itself alone, closing it
_ODD = frozenset(',:\\"?#%')  # in a mount option or a URI


def images_at(root: str, run: str) -> list[ImageInfo] | None:
    """All images of the store at ``root``, by name; None if it has to be opened for that."""
    if any(char in _ODD or char.isspace() for char in root + run):
        return None
    try:
        if not (_is_whole(root) and _is_ours(run) and _are_apart(root, run)):
            return None
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            boot = file.read().strip().decode()
        db = sqlite3.connect(
            f"file:{root}/meta.db?mode=rw", uri=True, isolation_level=None, timeout=_PATIENCE
        )
        try:
            db.execute("BEGIN")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION or boots.others(db, boot):
                return None
            rows = rows_of(db)
            db.execute("ROLLBACK")
        finally:
            db.close()
    except (OSError, sqlite3.Error):
        return None
    return list_known(rows)


def _is_whole(root: str) -> bool:
    """Whether it is a store's folder that opening would leave as it is."""
    if not _is_ours(root) or stat.S_IMODE(os.stat(root).st_mode) & 0o077:
        return False
    with open(f"{root}/format.json", "rb") as file:
        return file.read(len(FORMAT) + 1) == FORMAT and os.stat(f"{root}/meta.db").st_size > 0


def _is_ours(folder: str) -> bool:
    about = os.stat(folder)
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()


def _are_apart(root: str, run: str) -> bool:
    """Whether neither lies in the other."""
    one, other = (f"{os.path.realpath(folder).rstrip('/')}/" for folder in (root, run))
    return not one.startswith(other) and not other.startswith(one)
