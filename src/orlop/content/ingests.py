"""A download in flight: a file that grows, perhaps in several places at once.

::

    content/ingest/<hex>/data           the bytes so far; where no record is, all of them from the start on
    content/ingest/<hex>/extents        which bytes of it are there (`orlop.content.extents`)
    content/ingest/ref-<key>/           a write under a name that a client chose: data, and what is
                                        known of it (`orlop.content.writes`)

The record begins before the first byte ahead of the front is written, with how far the front is; so one
that is empty says no less than none.  After that bytes come before the entry that tells of them.  Neither
file is synced before the download is verified.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from orlop.content.extents import ENTRY_SIZE, Extents, decode_entries, encode_entry
from orlop.linux.files import remove_tree
from orlop.linux.sync import DURABLE, Sync
from orlop.observe import reached

__all__ = ["Ingest", "bytes_there"]

MAX_RECORD = 64 << 20  # bytes read of a record; one that is longer was not made by us
_DATA, _RECORD = "data", "extents"


class Ingest:
    """A download in flight.  It belongs to whoever holds the digest's lock.

    ``size`` is the number of bytes that are there from the start on; ``held`` how many there are in all.
    Several threads may write, each in places of its own, and others read ``fd``.
    """

    def __init__(self, folder: Path, target: Path | None, sync: Sync = DURABLE) -> None:
        """``target`` is where the blob goes; None where that is known at the end only."""
        self._sync = sync
        self._folder = folder
        self._target = target
        self._lock = threading.Lock()  # guards _extents and _record
        folder.mkdir(mode=0o700, exist_ok=True)
        reached("ingest.made")
        self._record = -1
        self.fd = os.open(folder / _DATA, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._extents, self._record = self._open_record()
        except BaseException:
            self.close()
            raise

    def _open_record(self) -> tuple[Extents, int]:
        """What is there, and the descriptor of the record if there is one."""
        size = os.fstat(self.fd).st_size
        try:
            record = os.open(self._folder / _RECORD, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            return _all(size), -1
        try:
            there, entries = decode_entries(_read(record), size)
            if entries:
                os.ftruncate(record, entries * ENTRY_SIZE)  # nothing damaged before what will be added
                return there, record
        except BaseException:
            os.close(record)
            raise
        os.close(record)
        os.unlink(self._folder / _RECORD)
        return _all(size), -1

    @property
    def size(self) -> int:
        """How many bytes are there from the start on."""
        with self._lock:
            return self._extents.front

    @property
    def held(self) -> int:
        """How many bytes are there in all."""
        with self._lock:
            return self._extents.total

    @property
    def length(self) -> int:
        """The length of the file, gaps and all."""
        return os.fstat(self.fd).st_size

    def gaps(self, size: int) -> list[tuple[int, int]]:
        """What is missing of a blob of ``size`` bytes: first byte and end of each part."""
        with self._lock:
            return self._extents.gaps(size)

    def write(self, chunk: bytes | memoryview) -> None:
        """Add bytes behind the front."""
        self.write_at(self.size, chunk)

    def write_at(self, offset: int, chunk: bytes | memoryview) -> None:
        """Add bytes anywhere."""
        with self._lock:
            if self._record < 0 and offset > self._extents.front:
                self._begin_record()
        done, size = os.pwrite(self.fd, chunk, offset), len(chunk)
        if done < size:
            view = memoryview(chunk)
            while done < size:
                done += os.pwrite(self.fd, view[done:], offset + done)
        with self._lock:
            self._note(offset, offset + size)
        reached("ingest.grown")

    def _begin_record(self) -> None:
        """From now on the file's length does not tell what is there."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._record = os.open(self._folder / _RECORD, flags, 0o600)
        reached("extents.made")
        if front := self._extents.front:
            _append(self._record, 0, front)

    def _note(self, start: int, end: int) -> None:
        """Remember bytes that were written."""
        self._extents.add(start, end)
        if self._record >= 0:
            _append(self._record, start, end)
            reached("extents.grown")

    def cut(self, size: int) -> None:
        """Forget what is behind a size.  Needs an ingest without gaps."""
        with self._lock:
            os.ftruncate(self.fd, min(size, self._extents.front))
            self._extents = _all(min(size, self._extents.front))

    def truncate(self) -> None:
        """Forget all bytes."""
        with self._lock:
            if self._record >= 0:
                os.close(self._record)
                self._record = -1
            # The bytes first: a record of bytes that are not there is not believed.
            os.ftruncate(self.fd, 0)
            (self._folder / _RECORD).unlink(missing_ok=True)
            self._extents = Extents()

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The bytes that are there, from the start."""
        at, front = 0, self.size
        while at < front:
            chunk = os.pread(self.fd, min(size, front - at), at)
            if not chunk:
                return
            yield chunk
            at += len(chunk)

    def publish(self, target: Path | None = None) -> None:
        """Make the verified download, which has no gap, a blob; durable on return."""
        target = target or self._target
        assert target is not None
        if self.length > self.size:
            os.ftruncate(self.fd, self.size)  # what nobody's record tells of
        self._sync.file(self.fd)
        reached("ingest.synced")
        os.rename(self._folder / _DATA, target)
        reached("ingest.published")
        self._sync.folder(target.parent)
        self.discard()

    def discard(self) -> None:
        """Delete the download."""
        self.close()
        try:  # what there should be, by name: a third of the time (of 60 small layers 25 ms)
            for name in (_DATA, _RECORD):
                (self._folder / name).unlink(missing_ok=True)
            self._folder.rmdir()
        except OSError:
            remove_tree(self._folder, missing_ok=True)

    def close(self) -> None:
        """Let go of the files; what was downloaded stays.  Idempotent."""
        for fd in (self.fd, self._record):
            if fd >= 0:
                os.close(fd)
        self.fd = self._record = -1


def bytes_there(folder: Path) -> int:
    """How many bytes of a download are there, as far as one sees who does not hold its lock."""
    try:
        about = (folder / _DATA).stat()
        return min(about.st_size, about.st_blocks * 512) if (folder / _RECORD).exists() else about.st_size
    except FileNotFoundError:
        return 0


def _all(size: int) -> Extents:
    there = Extents()
    there.add(0, size)
    return there


def _append(record: int, start: int, end: int) -> None:
    # An entry that a full disk cuts short is no entry, and hides those behind it until it is read again:
    # they cost a second download.
    os.write(record, encode_entry(start, end))


def _read(record: int) -> bytes:
    parts = []
    at = 0
    while at < MAX_RECORD and (part := os.pread(record, 1 << 20, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
