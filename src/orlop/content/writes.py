"""Writes under names that clients chose: a blob as far as it came, and what is known of it.

::

    content/ingest/ref-<key>/about      whose it is, what it is to become, since when (JSON)
    content/ingest/ref-<key>/data       the bytes so far, all of them from the start on

The key is made of the namespace and the ref, so a write is found without a row, and any text is a ref.  It
belongs to whoever holds the lock of its key (`Writes.key`).

What is synced, and when: nothing while bytes come; a process that is killed loses none of them all the same.
`close` syncs bytes, ``about`` and the names, and ``about`` says how many bytes that were and in which boot of
the machine.  In a later boot no more than those are believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from orlop.content.ingests import Ingest
from orlop.errors import InvalidArgument
from orlop.linux.sync import Sync
from orlop.observe import reached
from orlop.spec.digest import Digest
from orlop.values import dataclass, replace

__all__ = ["PREFIX", "About", "OpenWrite", "Writes"]

PREFIX = "ref-"
MAX_ABOUT = 1 << 16  # bytes: a ref has 4,096 at most
_ABOUT, _DATA = "about", "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of a write.  ``started`` is in nanoseconds since 1970; ``total`` 0 for not told.

    ``synced`` bytes were on disk in ``boot``.
    """

    namespace: str
    ref: str
    total: int
    expected: Digest | None
    started: int
    boot: str
    synced: int = 0


class Writes:
    """The writes in the folder ``content/ingest``.  Thread-safe; locking by key is the caller's."""

    def __init__(self, folder: Path, *, sync: Sync) -> None:
        self._folder = folder
        self._sync = sync

    @staticmethod
    def key(namespace: str, ref: str) -> str:
        """What names the folder and the lock of a write."""
        return hashlib.sha256(f"{namespace}\0{ref}".encode()).hexdigest()[:40]

    def folder(self, key: str) -> Path:
        """Where a write is, or would be."""
        return self._folder / f"{PREFIX}{key}"

    def open(self, about: About) -> OpenWrite:
        """Begin a write, or go on with what is there.  Needs the key's lock."""
        folder = self.folder(self.key(about.namespace, about.ref))
        known = _read(folder)
        if known is None or (known.namespace, known.ref) != (about.namespace, about.ref):
            known = replace(about, synced=0)
            size: int | None = 0
        else:
            size = None if known.boot == about.boot else known.synced
            known = replace(
                known,
                total=about.total or known.total,
                expected=about.expected or known.expected,
                boot=about.boot,
            )
        return OpenWrite(folder, known, size, self._sync)

    def look(self, key: str) -> tuple[About, int, int] | None:
        """What is known of a write, its bytes, and when it last grew, in nanoseconds; needs no lock."""
        return self._look(self.folder(key))

    def all(self) -> Iterator[tuple[About, int, int]]:
        """The same of all writes."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._folder.glob(f"{PREFIX}*")):
                found = self._look(folder)
                if found is not None:
                    yield found

    def _look(self, folder: Path) -> tuple[About, int, int] | None:
        known = _read(folder)
        if known is None:
            return None
        try:
            about = (folder / _DATA).stat()
        except FileNotFoundError:  # it is being committed, or is not begun
            return known, 0, known.started
        return known, about.st_size, max(about.st_mtime_ns, known.started)


class OpenWrite:
    """A write that somebody holds the lock of."""

    def __init__(self, folder: Path, about: About, size: int | None, sync: Sync) -> None:
        """``size`` is how many of the bytes that are there count; None: all."""
        self._sync = sync
        self._folder = folder
        self.about = about
        self.ingest = Ingest(folder, None, sync)
        try:
            self.updated = max(os.fstat(self.ingest.fd).st_mtime_ns, about.started)
            if size is not None and size < self.ingest.size:
                self.ingest.cut(size)
            reached("write.made")
            self._note()  # last: in this boot, whose name it bears, all that is there is believed
        except BaseException:
            self.ingest.close()
            raise

    def expect(self, total: int, expected: Digest | None) -> None:
        """Note what it is to become; on disk when it is closed."""
        self.about = replace(self.about, total=total, expected=expected)

    def write(self, data: bytes) -> None:
        """Add bytes at the end; what a failure leaves of them is taken back."""
        before = self.ingest.size
        try:
            self.ingest.write(data)
        except BaseException:
            os.ftruncate(self.ingest.fd, before)
            raise
        self.updated = time.time_ns()

    def truncate(self) -> None:
        """Forget all bytes."""
        if self.about.synced:  # first: what comes in their place must not be taken for them
            self.about = replace(self.about, synced=0)
            self._note(durable=True)
        self.ingest.truncate()
        self.updated = time.time_ns()

    def publish(self, target: Path) -> None:
        """Make it a blob; durable on return."""
        self.ingest.publish(target)

    def close(self) -> None:
        """Let go; what is there waits to be resumed, and is durable.  Idempotent."""
        if self.ingest.fd < 0:
            return
        try:
            os.utime(self.ingest.fd, ns=(self.updated, self.updated))
            self._sync.file(self.ingest.fd)
            self.about = replace(self.about, synced=self.ingest.size if self._sync.durable else 0)
            self._note(durable=True)
            self._sync.folder(self._folder.parent)
            reached("write.closed")
        finally:
            self.ingest.close()

    def drop(self) -> None:
        """Let go of the files, which somebody deletes."""
        self.ingest.close()

    def _note(self, *, durable: bool = False) -> None:
        """Replace ``about``; a reader finds the old or the new."""
        text = json.dumps(
            {
                "namespace": self.about.namespace,
                "ref": self.about.ref,
                "total": self.about.total,
                "expected": self.about.expected or "",
                "started": self.about.started,
                "boot": self.about.boot,
                "synced": self.about.synced,
            }
        )
        temporary = self._folder / f".{_ABOUT}"
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            if durable or self.about.synced:  # before there is something to lose a torn one is no loss
                self._sync.file(file.fileno())
        os.rename(temporary, self._folder / _ABOUT)
        if durable:
            self._sync.folder(self._folder)


def _read(folder: Path) -> About | None:
    """What a folder says of its write; None for nothing that can be believed, as after a power cut."""
    try:
        with open(folder / _ABOUT, "rb") as file:
            document = json.loads(file.read(MAX_ABOUT))
        expected = str(document["expected"])
        return About(
            namespace=str(document["namespace"]),
            ref=str(document["ref"]),
            total=int(document["total"]),
            expected=Digest(expected) if expected else None,
            started=int(document["started"]),
            boot=str(document["boot"]),
            synced=int(document["synced"]),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, InvalidArgument):
        return None
