"""One write under way: what its messages do to the bytes, and how it becomes a blob.

Of a blob that another namespace shares there is nothing to write: such a writer stands at the blob's end,
and a commit is enough.  Only where the client writes all the same are the bytes copied.

Invariants: bytes are hashed as they are written, and again from the disk when a write goes on, so what is
committed has the digest of what lies there; a blob is in its place, durable, before a row names it; the ref's
lock is held from the beginning to `close`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from orlop.content.writes import About, OpenWrite
from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    from_oserror,
)
from orlop.images.contentstore.api import ContentInfo, WriteStatus
from orlop.images.contentstore.rules import check_labels
from orlop.images.core import Core, Lease
from orlop.images.space import check_room, is_full, told
from orlop.linux.files import sync_range
from orlop.linux.flock import FileLock
from orlop.metadata import contents, layers
from orlop.metadata.contents import ContentRow
from orlop.metadata.db import Transaction
from orlop.observe import Call, reached
from orlop.spec.digest import Digest
from orlop.values import replace

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["LocalWriter", "is_there"]

WRITE_BACK = 8 << 20  # bytes after which write-back is started, so that the last fsync is short
_CHUNK = 1 << 20
_SHA256 = Digest.of(b"")  # for its algorithm
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _errors(
    function: Callable[Concatenate[LocalWriter, _P], _R],
) -> Callable[Concatenate[LocalWriter, _P], _R]:
    """The border of the writer: an OSError leaves as an error, that of a full disk with what is free."""

    @wraps(function)
    def call(self: LocalWriter, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(self, *args, **kwargs)
        except (OSError, ResourceExhausted) as exc:
            if is_full(exc):
                raise told(self.attempted, exc, self.root) from exc
            if isinstance(exc, OSError):
                raise from_oserror(self.attempted, exc) from exc
            raise

    return call


class LocalWriter:
    """See `orlop.images.contentstore.api.Writer`.

    ``shared`` is the size of the expected blob that is there already; None where bytes are to come.
    ``ended`` is called once, before the lock is free.
    """

    def __init__(
        self,
        core: Core,
        about: About,
        *,
        lock: FileLock,
        shared: int | None,
        lease: Lease | None,
        ended: Callable[[], None],
        call: Call,
    ) -> None:
        self._core = core
        self._about = about
        self._lock = lock
        self._shared = shared
        self._lease = lease
        self._ended = ended
        self._call = call
        self.attempted = f"write {about.ref}"
        self.root = core.layout.root
        self._write: OpenWrite | None = None
        self._synced = 0
        self._hasher: _Hash = (about.expected or _SHA256).hasher()
        if shared is None:
            self._begin()

    def _begin(self) -> OpenWrite:
        """Open what is there, and hash it."""
        write = self._core.blobs.writes().open(self._about)
        self._write = write
        self._about = write.about
        self._synced = write.ingest.size
        try:
            self._rehash((self._about.expected or _SHA256).algorithm)
        except BaseException:
            write.drop()
            raise
        return write

    def _rehash(self, algorithm: str) -> None:
        assert self._write is not None
        import hashlib

        hasher = hashlib.new(algorithm)
        for chunk in self._write.ingest.chunks(_CHUNK):
            self._call.check(self.attempted)
            hasher.update(chunk)
        self._hasher = hasher

    @property
    def about(self) -> About:
        """Whose it is, and what it is to become."""
        return self._about

    @property
    def status(self) -> WriteStatus:
        """See the protocol."""
        about, write = self._about, self._write
        return WriteStatus(
            ref=about.ref,
            offset=write.ingest.size if write is not None else self._shared or 0,
            total=about.total,
            expected=about.expected,
            started=about.started,
            updated=write.updated if write is not None else about.started,
        )

    @property
    def digest(self) -> Digest:
        """See the protocol."""
        if self._shared is not None:
            assert self._about.expected is not None
            return self._about.expected
        return Digest(f"{self._hasher.name}:{self._hasher.hexdigest()}")

    @_errors
    def expect(self, total: int, expected: Digest | None) -> None:
        """See the protocol."""
        if expected is not None and expected != self._about.expected:
            self._check_new(expected)
            if self._shared is not None:
                self._unshare()
        total, expected = max(total, 0) or self._about.total, expected or self._about.expected
        if (total, expected) != (self._about.total, self._about.expected):
            self._about = replace(self._about, total=total, expected=expected)
            if self._write is not None:
                self._write.expect(total, expected)

    def _check_new(self, digest: Digest) -> None:
        namespace = self._about.namespace
        if is_there(self._core, namespace, digest):
            self._free()
            raise AlreadyExists(self.attempted, f"{digest} is there")

    @_errors
    def write(self, offset: int, data: bytes) -> None:
        """See the protocol."""
        there = self.status.offset
        if offset not in (0, there):
            raise OutOfRange(self.attempted, f"{there} bytes are there, and the next is not number {offset}")
        if there and offset == 0:
            self._empty()
        if not data:
            return
        write = self._write or self._unshare()
        write.write(data)
        self._hasher.update(data)
        size = write.ingest.size
        if size - self._synced >= WRITE_BACK and self._core.sync.durable:
            sync_range(write.ingest.fd, self._synced, size - self._synced)
            self._synced = size

    def _empty(self) -> None:
        """Begin anew."""
        self._shared = None
        write = self._write or self._begin()
        write.truncate()
        self._synced = 0
        self._rehash((self._about.expected or _SHA256).algorithm)

    def _unshare(self) -> OpenWrite:
        """Have bytes of our own: a copy of the blob that is shared."""
        digest, size = self._about.expected, self._shared
        assert digest is not None
        assert size is not None
        self._empty()
        assert self._write is not None
        fd = os.open(self._core.blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            check_room(self.root, size, self.attempted)
            while chunk := os.pread(fd, _CHUNK, self._write.ingest.size):
                self._call.check(self.attempted)
                self._write.write(chunk)
                self._hasher.update(chunk)
        finally:
            os.close(fd)
        return self._write

    # -- the end --------------------------------------------------------------------------------

    @_errors
    def commit(self, labels: Mapping[str, str]) -> ContentInfo:
        """See the protocol."""
        labels = check_labels(labels, self.attempted)
        size = self.status.offset
        about = self._about
        if about.total and size != about.total:
            raise FailedPrecondition(self.attempted, f"{size} bytes are there, and {about.total} expected")
        if about.expected is not None and self._hasher.name != about.expected.algorithm:
            self._rehash(about.expected.algorithm)
        digest = self.digest
        if about.expected is not None and digest != about.expected:
            raise FailedPrecondition(
                self.attempted, f"the bytes have digest {digest}, and {about.expected} was expected"
            )
        now = time.time_ns()
        row = ContentRow(
            namespace=about.namespace, digest=digest, size=size, labels=labels, created=now, updated=now
        )
        what = f"write blob {digest}"
        with self._core.locked("blob", digest.hex, call=self._call, attempted=what):
            if is_there(self._core, about.namespace, digest):
                self._free()
                raise AlreadyExists(self.attempted, f"{digest} is there")
            named = self._core.db.read(lambda tx: layers.has_blob(tx, digest))
            there = named and self._core.blobs.has(digest)
            if not there and self._write is None:
                raise NotFound(self.attempted, f"{digest} is gone", hint="write it from the start")
            if not there and self._write is not None:
                self._write.publish(self._core.blobs.path(digest))
                reached("content.published")
            self._core.db.write(lambda tx: _name(tx, row), call=self._call)
            reached("content.named")
        self._free()
        return ContentInfo(digest=digest, size=size, labels=labels, created=now, updated=now)

    def _free(self) -> None:
        """Give the ref up, with all that is there."""
        if self._write is not None:
            self._write.drop()
        writes = self._core.blobs.writes()
        try:
            self._core.discard(writes.folder(writes.key(self._about.namespace, self._about.ref)))
        finally:
            self._end()

    @_errors
    def close(self) -> None:
        """See the protocol."""
        try:
            if self._write is not None:
                self._write.close()
        finally:
            self._end()

    def _end(self) -> None:
        """Let go of lock and lease.  Idempotent."""
        if not self._lock.held:
            return
        try:
            if self._lease is not None:
                self._lease.end()
        finally:
            self._ended()  # before another may have the ref
            self._lock.release()


def is_there(core: Core, namespace: str, digest: Digest) -> bool:
    """Whether a namespace has a blob; one whose file is lost may be written again."""
    found = core.db.read(lambda tx: contents.get_content(tx, namespace, digest))
    return found is not None and core.blobs.has(digest)


def _name(tx: Transaction, row: ContentRow) -> None:
    layers.add_blob(tx, row.digest, row.size)
    contents.add_content(tx, row)
