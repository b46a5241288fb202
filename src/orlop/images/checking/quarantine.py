"""``ROOT/quarantine``: what a repair took out of the store because it is not what it should be.

::

    quarantine/<time>-<what>-<random>/<name>   the thing itself, moved
    quarantine/<time>-<what>-<random>/why      what was found, a line of text

Nothing in there is used again, or deleted, by orlop: it is the owner's to look at and to throw away.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from orlop.errors import from_oserror
from orlop.images.core import Core
from orlop.linux.files import remove_tree, write_durably
from orlop.observe import reached

__all__ = ["Quarantine"]

_NAME = "quarantine"
_ODD = re.compile(r"[^0-9A-Za-z._-]+")


class Quarantine:
    """The folder of one store; made when it is first needed.  Thread-safe; locking is the caller's."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.folder = core.layout.root / _NAME

    def move(self, path: Path, what: str, why: str) -> Path | None:
        """Take a file or folder out of its place; where it is now, or None if it was not there.

        A symlink is moved, not what it leads to.  Durable on return.
        """
        try:
            if not os.path.lexists(path):
                return None
            with self._cell(what, why) as cell:
                target = cell / path.name
                os.rename(path, target)
            reached("quarantine.moved")
            for folder in (target.parent, path.parent):
                self._core.sync.folder(folder)
        except OSError as exc:
            raise from_oserror(f"put {path} into quarantine", exc) from exc
        return target

    def keep(self, path: Path, what: str, why: str) -> Path | None:
        """Give a file a second name there: it is about to be replaced in its place, in one step."""
        try:
            with self._cell(what, why) as cell:
                target = cell / path.name
                os.link(path, target, follow_symlinks=False)
            self._core.sync.folder(target.parent)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise from_oserror(f"put {path} into quarantine", exc) from exc
        return target

    def cells(self) -> list[Path]:
        """What is in there."""
        try:
            return sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []

    @contextlib.contextmanager
    def _cell(self, what: str, why: str) -> Iterator[Path]:
        """A new folder with its ``why``; gone again if the thing does not come into it."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        if not self.folder.is_dir():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._core.sync.folder(self.folder.parent)
        cell = self.folder / f"{stamp}-{_ODD.sub('-', what)[:80]}-{secrets.token_hex(3)}"
        cell.mkdir(mode=0o700)
        try:
            write_durably(cell / "why", f"{why}\n".encode(errors="replace"), sync=self._core.sync)
            self._core.sync.folder(self.folder)
            yield cell
        except BaseException:
            if os.listdir(cell) in ([], ["why"]):  # a full disk: what was to be moved stays where it is
                remove_tree(cell, missing_ok=True)
            raise
