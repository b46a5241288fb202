"""Whether, and how, what was written is made to outlast a power cut.

One value for one open store, handed to all that write files for it: with `Settings.durable` off it does
nothing, and the store remembers in which boot that was (`orlop.metadata.boots`).  Only the files and folders
at hand are synced, never a whole file system: others' writes are not ours to wait for.
"""

from __future__ import annotations

import os

from orlop.linux._syscall import Path

__all__ = ["DURABLE", "Sync"]


class Sync:
    """fsync(2), or nothing at all.  Stateless; failures are OSErrors with the kernel's errno."""

    __slots__ = ("durable",)

    def __init__(self, durable: bool) -> None:
        self.durable = durable

    def file(self, fd: int) -> None:
        """Have an open file's bytes and metadata on disk; its name is its folder's."""
        if self.durable:
            os.fsync(fd)

    def folder(self, folder: Path | int) -> None:
        """Have the names in a folder, given by path or descriptor, on disk."""
        if not self.durable:
            return
        if isinstance(folder, int):
            os.fsync(folder)
            return
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


DURABLE = Sync(True)
"""Syncs: what a store does unless it is told otherwise, and what is always done for its own skeleton."""
