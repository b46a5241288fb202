"""Backup: the metadata of a store in one file, with or without content, while others use the store.

The order makes it consistent.  All that names and pins keep goes on a lease; then the metadata are copied,
as they are at one moment; then what came between the two goes on the lease as well, or out of the copy if it
went again.  From there on nothing that the copy names can be collected, whatever is removed meanwhile.

Derived things (indexes, chains, folders) are left out: a restore makes them of the tars.  So are prepared
roots, which belong to their machine and change while they are read.  Every byte behind a digest is hashed on
the way: a backup of what is lost or rotten fails, and says so.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orlop.errors import AlreadyExists, DataLoss, Error, InvalidArgument, ResourceExhausted, from_oserror
from orlop.images.backups.file import (
    BACKUP_VERSION,
    CHUNK,
    FORMAT,
    LABEL,
    METADATA,
    BackupWriter,
    Label,
    blob_name,
    layer_name,
)
from orlop.images.core import NAMESPACE, Core
from orlop.images.space import free_bytes
from orlop.images.upkeep import BackedUp
from orlop.linux.files import fsync_dir
from orlop.metadata import copies
from orlop.metadata.copies import Saved, Wanted
from orlop.observe import Call, Progress, Rate
from orlop.spec.digest import DiffID, Digest
from orlop.version import __version__

__all__ = ["Backup"]


class Backup:
    """Backs up one store.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def write(self, destination: str, *, content: bool, call: Call) -> BackedUp:
        """See `orlop.images.upkeep.Upkeep.backup`."""
        what = f"back up to {destination}"
        target = self._check(destination, what)
        core = self._core
        # The scratch folder is that of a layer in the making, so that collectors know whose it is.
        with core.lease(what) as lease, core.layers.new() as scratch:
            lease.mark_used()
            core.db.write(lambda tx: copies.hold(tx, NAMESPACE, lease.add), call=call)
            copy = scratch.folder / METADATA
            copies.copy_live(core.layout.database, copy)
            saved, wanted = copies.edit_copy(copy, core.db, NAMESPACE, lease.id, lease.add, call=call)
            with _new_file(target, what) as fd:
                out = _Output(BackupWriter(fd), call, what, destination)
                layers = self._write(out, copy, saved, wanted, content=content)
                out.writer.finish()
        call.observer.progress(Progress(item=destination, phase="done", done=out.writer.size))
        return BackedUp(
            path=destination,
            size=out.writer.size,
            images=len(saved.images),
            layers=layers,
            content=content,
            roots=saved.roots,
        )

    def _check(self, destination: str, what: str) -> Path:
        if not destination.startswith("/"):
            raise InvalidArgument(what, "the path is relative", hint="give an absolute path")
        if destination.endswith("/") or os.path.isdir(destination):
            raise InvalidArgument(what, "it is a folder", hint="give the name of a file")
        if self._core.layout.contains(destination):
            raise InvalidArgument(what, "it lies inside the store", hint="choose another disk, if you can")
        if os.path.lexists(destination):
            raise _exists(what)
        return Path(destination)

    def _write(self, out: _Output, copy: Path, saved: Saved, wanted: Wanted, *, content: bool) -> int:
        """All members; returns how many layers."""
        core = self._core
        for digest in wanted.documents - saved.blobs.keys():
            raise _lost(out.what, f"blob {digest}")
        blobs = sorted({*wanted.documents, *(wanted.blobs if content else ())} & saved.blobs.keys())
        layers = sorted(wanted.layers) if content else []
        for diff_id in set(layers) - saved.layers.keys():
            raise _lost(out.what, f"layer {diff_id}")
        out.total = copy.stat().st_size
        out.total += sum(saved.blobs[one] for one in blobs) + sum(saved.layers[one] for one in layers)
        _check_room(Path(out.item).parent, out.total, out.what)
        with open(copy, "rb") as file:
            metadata = Digest(f"sha256:{_hash(file.fileno())}")
        label = Label(
            orlop_backup=BACKUP_VERSION,
            orlop=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            content=content,
            metadata=str(metadata),
        )
        out.data(LABEL, msgspec.json.format(msgspec.json.encode(label), indent=1) + b"\n")
        out.data(FORMAT, (core.layout.root / FORMAT).read_bytes())
        out.file(METADATA, copy, metadata, copy.stat().st_size)
        for text in blobs:
            digest = Digest(text)
            out.file(blob_name(digest), core.blobs.path(digest), digest, saved.blobs[text])
        for text in layers:
            diff_id = DiffID(text)
            out.file(layer_name(diff_id), core.layers.tar(diff_id), diff_id, saved.layers[text])
        return len(layers)


class _Output:
    """Members on their way into the file, hashed and reported."""

    def __init__(self, writer: BackupWriter, call: Call, what: str, item: str) -> None:
        self.writer, self.what, self.item, self.total = writer, what, item, 0
        self._call, self._rate = call, Rate()

    def data(self, name: str, data: bytes) -> None:
        """A member that is at hand."""
        self.writer.add(name, len(data), [data])

    def file(self, name: str, path: Path, digest: Digest, size: int) -> None:
        """A file that must have a digest and a size."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise _lost(self.what, str(path)) from exc
        try:
            self.writer.add(name, size, self._verified(fd, path, digest))
        finally:
            os.close(fd)

    def _verified(self, fd: int, path: Path, digest: Digest) -> Iterator[bytes]:
        hasher = digest.hasher()
        while chunk := os.read(fd, CHUNK):
            self._call.check(self.what)
            hasher.update(chunk)
            if self._rate.add(len(chunk)):
                progress = Progress(
                    item=self.item,
                    phase="writing",
                    done=self.writer.size,
                    total=max(self.total, self.writer.size),
                    rate=self._rate.rate,
                )
                self._call.observer.progress(progress)
            yield chunk
        if hasher.hexdigest() != digest.hex:
            raise DataLoss(
                self.what,
                f"{path} has other bytes than its name says",
                hint="'orlop check --repair' may mend it",
            )


def _lost(what: str, thing: str) -> DataLoss:
    return DataLoss(what, f"{thing} is lost", hint="'orlop check --repair' may mend it")


def _check_room(folder: Path, needed: int, what: str) -> None:
    free = free_bytes(folder)
    if needed > free:
        raise ResourceExhausted(
            what,
            f"it needs {needed} bytes, and {free} are free in {folder}",
            hint="choose another disk, or leave out the content",
            details={"needed": str(needed), "free": str(free)},
        )


def _hash(fd: int) -> str:
    import hashlib

    hasher = hashlib.sha256()
    while chunk := os.read(fd, CHUNK):
        hasher.update(chunk)
    return hasher.hexdigest()


@contextmanager
def _new_file(target: Path, what: str) -> Iterator[int]:
    """A file that takes its name, durably, when all went well; one that is there by then stays."""
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise from_oserror(what, exc) from exc
    try:
        os.fchmod(fd, 0o600)  # whatever the umask
        yield fd
        _name(temporary, target, what)
        fsync_dir(target.parent)
    except BaseException as exc:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(exc, OSError):
            raise from_oserror(what, exc) from exc
        raise
    finally:
        os.close(fd)


def _name(temporary: Path, target: Path, what: str) -> None:
    try:
        os.link(temporary, target)
    except FileExistsError as exc:
        raise _exists(what) from exc
    except OSError as exc:
        if exc.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}:
            raise
        os.rename(temporary, target)  # a file system without links: FAT
    else:
        os.unlink(temporary)


def _exists(what: str) -> Error:
    return AlreadyExists(what, "the file exists", hint="choose another name, or remove it")
