"""Fingerprints: whether anything below a folder was changed since it was last looked at.

A fingerprint is a hash over the name, inode number, mode, size and ctime of every entry.  The kernel alone
sets ctimes, and every change of an inode gets it a new one, but for two holes that whoever remembers a
fingerprint must close:

- a change in the same tick of the kernel's clock may leave the ctime as it is, so a fingerprint with a ctime
  that is *young* is not remembered (`Look.settled`);
- a write(2) that runs, and a mapping that is dirty, have had their new ctime already, and write on without a
  further one: so nothing is remembered while a file is open for writing (`any_writers`).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time

from orlop.linux.files import walk_folders
from orlop.linux.writers import may_be_written
from orlop.observe import Call
from orlop.values import dataclass

__all__ = ["YOUNG", "Look", "any_writers", "look", "settled_look"]

YOUNG = 20_000_000  # ns: more than two ticks of the slowest clock that stamps inodes (CONFIG_HZ=100)
_COARSE = 2_000_000_000  # ns: where the file system keeps whole seconds only (ext4 with inodes of 128 bytes)
_ENTRY = struct.Struct("<QQIQ")
_MASK = (1 << 64) - 1
_WHAT = "look for changes"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A fingerprint, and the latest ctime in it, in ns since 1970."""

    fingerprint: bytes
    newest: int
    coarse: bool

    def settled(self, now: int) -> bool:
        """Whether a change after ``now``, in ns since 1970, is sure to show in another fingerprint."""
        return self.newest < now - (_COARSE if self.coarse else YOUNG)


def look(tree: int, call: Call) -> Look:
    """Look at all below a folder, and at itself.  Raises OSError where it is changed under the walk."""
    hashed = hashlib.blake2b(digest_size=32)
    about = os.fstat(tree)
    hashed.update(_packed(about))
    newest, fine = about.st_ctime_ns, about.st_ctime_ns % 1_000_000_000
    for path, _, entries in walk_folders(tree):
        call.check(_WHAT)
        hashed.update(struct.pack("<II", len(path), len(entries)) + path)
        for entry in sorted(entries, key=_name):
            about = entry.stat(follow_symlinks=False)
            name = os.fsencode(entry.name)
            hashed.update(struct.pack("<H", len(name)) + name + _packed(about))
            newest = max(newest, about.st_ctime_ns)
            fine |= about.st_ctime_ns % 1_000_000_000
    return Look(fingerprint=hashed.digest(), newest=newest, coarse=not fine)


def settled_look(tree: int, call: Call) -> Look | None:
    """The same, settled; None where it does not become so in a moment."""
    for _ in range(2):
        found = look(tree, call)
        if found.settled(time.time_ns()):
            return found
        if found.coarse:
            break
        call.pause(YOUNG / 1e9 * 1.25, _WHAT)
    return None


def any_writers(tree: int, call: Call) -> bool:
    """Whether a regular file below a folder is open for writing, as far as can be known."""
    for _, folder, entries in walk_folders(tree):
        call.check(_WHAT)
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                continue
            fd = os.open(entry.name, _OPEN, dir_fd=folder)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode) and may_be_written(fd):
                    return True
            finally:
                os.close(fd)
    return False


def _name(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name)


def _packed(about: os.stat_result) -> bytes:
    return _ENTRY.pack(about.st_ino, about.st_size, about.st_mode, about.st_ctime_ns & _MASK)
