"""containerd's content API over a store: who has which blob, who writes to which ref, and what is shared.

A write's bytes and state are files (`orlop.content.writes`); a blob that is whole is a row for each
namespace that has it.  What is deleted goes as everything else does: the row, then the trash
(`orlop.metadata.garbage`).

Locks: ``ref-<key>`` for as long as somebody writes to a ref, for which nobody waits; a commit takes
``blob-<hex>`` while it holds that.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from orlop.content.writes import About
from orlop.errors import AlreadyExists, DataLoss, NotFound, OutOfRange, Unavailable, from_oserror
from orlop.images.contentstore import rules
from orlop.images.contentstore.api import ContentInfo, Writer, WriteStatus
from orlop.images.contentstore.writer import LocalWriter, is_there
from orlop.images.core import Core, Lease
from orlop.images.filters import parse_filters
from orlop.images.parts import Parts, verb
from orlop.images.space import check_room
from orlop.metadata import contents, garbage
from orlop.metadata.contents import ContentRow
from orlop.metadata.db import Transaction
from orlop.metadata.garbage import Suspects
from orlop.observe import Call, reached
from orlop.spec.digest import Digest

__all__ = ["ContentStore"]

_CALL = Call()
_PART = 1 << 20  # bytes of a blob in one message
_PAGE = 256  # rows of a list that one transaction reads


class ContentStore(Parts):
    """See `orlop.images.contentstore.api.ContentApi`.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self._guard = threading.Lock()  # guards _open
        self._open: dict[str, LocalWriter] = {}  # the writers of this process, by the key of the ref

    # -- blobs ----------------------------------------------------------------------------------

    @verb("read content")
    def info(self, namespace: str | None, digest: Digest) -> ContentInfo:
        """See the protocol."""
        rules.check_namespace(namespace, f"read content {digest}")
        return _info(self._core.db.read(lambda tx: _require(tx, namespace, digest)))

    @verb("update content")
    def update(
        self, namespace: str | None, digest: Digest, labels: Mapping[str, str], paths: Sequence[str]
    ) -> ContentInfo:
        """See the protocol."""
        what = f"update content {digest}"
        rules.check_namespace(namespace, what)

        def body(tx: Transaction) -> ContentInfo:
            row = _require(tx, namespace, digest)
            new = ContentRow(
                namespace=row.namespace,
                digest=digest,
                size=row.size,
                labels=rules.merged(row.labels, labels, paths, what),
                created=row.created,
                updated=max(time.time_ns(), row.updated + 1),
            )
            contents.update_content(tx, new)
            return _info(new)

        return self._core.db.write(body)

    def content(
        self, namespace: str | None, filters: Sequence[str], *, call: Call = _CALL
    ) -> Iterator[ContentInfo]:
        """See the protocol."""
        what = "list content"
        rules.check_namespace(namespace, what)
        wanted = parse_filters(filters, what)
        return self._pages(namespace, lambda info: wanted.matches(rules.content_fields(info)), call)

    def _pages(
        self, namespace: str | None, shown: Callable[[ContentInfo], bool], call: Call
    ) -> Iterator[ContentInfo]:
        after = ""
        while True:
            page = self._core.db.read(
                lambda tx, after=after: contents.list_contents(tx, namespace, after, _PAGE)  # type: ignore[misc]  # bound now
            )
            for row in page:
                call.check("list content")
                info = _info(row)
                if shown(info):
                    yield info
            if len(page) < _PAGE:
                return
            after = page[-1].digest

    @verb("delete content", deletes=True)
    def delete(self, namespace: str | None, digest: Digest) -> None:
        """See the protocol."""
        what = f"delete content {digest}"
        rules.check_namespace(namespace, what)

        def body(tx: Transaction) -> bool:
            if not contents.delete_content(tx, namespace, digest):
                raise NotFound(what, _nobody(namespace))
            return bool(garbage.forget(tx, Suspects(blobs={digest})))

        if self._core.db.write(body):
            reached("content.forgotten")
            self._core.sweeper.wake()

    def read(
        self, namespace: str | None, digest: Digest, offset: int, size: int, *, call: Call = _CALL
    ) -> Iterator[tuple[int, bytes]]:
        """See the protocol."""
        fd, at, end = self._begin_read(digest, namespace, max(offset, 0), size)
        return self._parts(digest, fd, at, end, call)

    @verb("read content")
    def _begin_read(
        self, digest: Digest, namespace: str | None, offset: int, size: int
    ) -> tuple[int, int, int]:
        what = f"read content {digest}"
        rules.check_namespace(namespace, what)
        row = self._core.db.read(lambda tx: _require(tx, namespace, digest))
        if offset > row.size:
            raise OutOfRange(what, f"it has {row.size} bytes, and {offset} is behind its end")
        end = row.size if size <= 0 else min(row.size, offset + size)
        try:
            fd = os.open(self._core.blobs.path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as exc:
            self.info(namespace, digest)  # unless it was deleted meanwhile
            if self._core.blobs.has(digest):  # and written again
                return self._begin_read(digest, namespace, offset, size)
            raise DataLoss(
                what, "its file is gone", hint="'orlop check --repair' says what can be done"
            ) from exc
        return fd, offset, end

    @staticmethod
    def _parts(digest: Digest, fd: int, at: int, end: int, call: Call) -> Iterator[tuple[int, bytes]]:
        try:
            while at < end:
                call.check(f"read content {digest}")
                try:
                    part = os.pread(fd, min(_PART, end - at), at)
                except OSError as exc:
                    raise from_oserror(f"read content {digest}", exc) from exc
                if not part:
                    raise DataLoss(f"read content {digest}", f"its file ends after {at} bytes")
                yield at, part
                at += len(part)
        finally:
            os.close(fd)

    # -- writes ---------------------------------------------------------------------------------

    @verb("look at a write")
    def status(self, namespace: str | None, ref: str) -> WriteStatus:
        """See the protocol."""
        what = f"look at write {ref}"
        rules.check_namespace(namespace, what)
        rules.check_ref(ref, what)
        for one in self._statuses(namespace, ref):
            return one
        raise NotFound(what, _nobody(namespace))

    @verb("list writes")
    def statuses(self, namespace: str | None, filters: Sequence[str]) -> list[WriteStatus]:
        """See the protocol."""
        rules.check_namespace(namespace, "list writes")
        wanted = parse_filters(filters, "list writes")
        return [one for one in self._statuses(namespace) if wanted.matches(rules.status_fields(one))]

    def _statuses(self, namespace: str | None, ref: str | None = None) -> Iterator[WriteStatus]:
        writes = self._core.blobs.writes()
        if namespace is not None and ref is not None:
            looks = (writes.look(writes.key(where, ref)) for where in (namespace, ""))
            found: Iterator[tuple[About, int, int]] = (one for one in looks if one is not None)
        else:
            found = writes.all()

        def is_asked(about: About) -> bool:
            return (namespace is None or about.namespace in (namespace, "")) and ref in (None, about.ref)

        with self._guard:
            mine = dict(self._open)
        for about, size, updated in found:
            writer = mine.pop(writes.key(about.namespace, about.ref), None)
            if not is_asked(about):
                continue
            if writer is not None:
                yield writer.status
                continue
            yield WriteStatus(
                ref=about.ref,
                offset=size if about.boot == self._core.boot else min(size, about.synced),
                total=about.total,
                expected=about.expected,
                started=about.started,
                updated=updated,
            )
        for writer in mine.values():  # they have no file: of what is shared nothing was written
            if is_asked(writer.about):
                yield writer.status

    @verb("write content")
    def write(
        self, namespace: str | None, ref: str, total: int, expected: Digest | None, *, call: Call = _CALL
    ) -> Writer:
        """See the protocol."""
        what = f"write {ref}"
        rules.check_namespace(namespace, what)
        rules.check_ref(ref, what)
        mine = namespace or ""
        writes = self._core.blobs.writes()
        key = writes.key(mine, ref)
        lock = self._core.try_locked("ref", key)
        if lock is None:
            raise Unavailable(what, "somebody writes to this ref", hint="wait for its end")
        lease: Lease | None = None
        try:
            shared: int | None = None
            if expected is not None:
                if is_there(self._core, mine, expected):
                    self._core.discard(writes.folder(key))
                    raise AlreadyExists(what, f"{expected} is there")
                shared, lease = self._share(expected, max(total, 0), call)
            about = About(
                namespace=mine,
                ref=ref,
                total=max(total, 0),
                expected=expected,
                started=time.time_ns(),
                boot=self._core.boot,
            )
            if shared is None and total > 0:
                known = writes.look(key)
                check_room(self.root, total - (known[1] if known is not None else 0), what)
            writer = LocalWriter(
                self._core,
                about,
                lock=lock,
                shared=shared,
                lease=lease,
                ended=lambda: self._forget(key),
                call=call,
            )
        except BaseException:
            if lease is not None:
                lease.abandon()
            lock.release()
            raise
        with self._guard:
            self._open[key] = writer
        return writer

    def _forget(self, key: str) -> None:
        with self._guard:
            self._open.pop(key, None)

    def _share(self, digest: Digest, total: int, call: Call) -> tuple[int | None, Lease | None]:
        """The size of a blob that a namespace may have without its bytes, and what keeps it meanwhile."""
        settings = self._core.settings

        def size(tx: Transaction) -> int | None:
            found = contents.blob_size(tx, digest)
            if found is None or total not in (0, found):
                return None
            may = rules.is_shared(
                settings.content_sharing,
                settings.content_shareable,
                is_there=lambda: True,
                is_in_one_of=lambda names: contents.is_in_one_of(tx, names, digest),
            )
            return found if may else None

        if self._core.db.read(size) is None or not self._core.blobs.has(digest):
            return None, None
        lease = Lease(self._core, f"write content {digest}")

        def body(tx: Transaction) -> int | None:
            found = size(tx)
            if found is not None:
                lease.add(tx, "blob", digest)
            return found

        try:
            lease.mark_used()
            found = self._core.db.write(body, call=call)
        except BaseException:
            lease.abandon()
            raise
        if found is None:
            lease.end()
            return None, None
        return found, lease

    @verb("abort a write", deletes=True)
    def abort(self, namespace: str | None, ref: str) -> None:
        """See the protocol."""
        what = f"abort write {ref}"
        rules.check_namespace(namespace, what)
        rules.check_ref(ref, what)
        writes = self._core.blobs.writes()
        if namespace is not None:
            names = {namespace, ""}
        else:
            names = {"", *(about.namespace for about, _, _ in writes.all() if about.ref == ref)}
            with self._guard:
                names.update(one.about.namespace for one in self._open.values() if one.about.ref == ref)
        found = False
        for key in (writes.key(name, ref) for name in sorted(names)):
            lock = self._core.try_locked("ref", key)
            if lock is None:
                raise Unavailable(what, "somebody writes to this ref", hint="wait for its end")
            try:
                if writes.look(key) is not None:
                    self._core.discard(writes.folder(key))
                    found = True
            finally:
                lock.release()
        if not found:
            raise NotFound(what, _nobody(namespace))


def _info(row: ContentRow) -> ContentInfo:
    return ContentInfo(
        digest=row.digest, size=row.size, labels=row.labels, created=row.created, updated=row.updated
    )


def _require(tx: Transaction, namespace: str | None, digest: Digest) -> ContentRow:
    row = contents.get_content(tx, namespace, digest)
    if row is None:
        raise NotFound(f"read content {digest}", _nobody(namespace))
    return row


def _nobody(namespace: str | None) -> str:
    return "no namespace has it" if namespace is None else f"namespace {namespace} does not have it"
