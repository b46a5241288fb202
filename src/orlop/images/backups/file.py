"""The file of a backup: a plain tar, every member of which has one possible form.

::

    orlop-backup.json             version, what is in it, the digest of meta.db
    format.json                   the store's
    meta.db                       one moment of the metadata
    blobs/<algorithm>/<hex>       documents; with content also kept layers' blobs (a sha512 in two halves)
    layers/<hex>.tar              with content: layers, by their diff IDs

GNU tar reads it, so that a backup can be looked into by hand.  `BackupReader` does not believe it: a name is
one of these, stands there once, and its header is byte by byte what `header` makes of the name and the size;
the file ends where its last member says.  Of the bytes behind a digest nothing is known before they were
hashed.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from orlop.config import over_limit
from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, from_oserror
from orlop.linux.files import sync_range
from orlop.observe import Call
from orlop.spec.digest import DiffID, Digest
from orlop.values import dataclass

__all__ = [
    "BACKUP_VERSION",
    "FORMAT",
    "METADATA",
    "BackupReader",
    "BackupWriter",
    "Label",
    "blob_name",
    "layer_name",
]

BACKUP_VERSION = 1
LABEL, FORMAT, METADATA = "orlop-backup.json", "format.json", "meta.db"
BLOCK = 512
CHUNK = 1 << 20
WRITE_BACK = 8 << 20  # bytes after which write-back is started, so that the last fsync is short
MAX_MEMBERS = 4_000_000  # a few hundred bytes of memory each
MAX_LABEL = 1 << 16
_MODE = 0o600
_HALVES = re.compile(r".{64}")  # a component of a name has at most 100 characters in a plain header
_NAME = re.compile(
    rf"{re.escape(LABEL)}|{re.escape(FORMAT)}|{re.escape(METADATA)}"
    r"|blobs/sha256/[0-9a-f]{64}|blobs/sha512/[0-9a-f]{64}/[0-9a-f]{64}|layers/[0-9a-f]{64}\.tar"
)


class Label(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The first member: what this is.  ``created`` is RFC 3339; ``orlop`` the version that wrote it."""

    orlop_backup: int
    orlop: str
    created: str
    content: bool
    metadata: str


@dataclass(frozen=True, slots=True)
class Part:
    """Where a member's bytes are."""

    offset: int
    size: int


def blob_name(digest: Digest) -> str:
    """The member that holds a blob."""
    return f"blobs/{digest.algorithm}/" + "/".join(_HALVES.findall(digest.hex))


def layer_name(diff_id: DiffID) -> str:
    """The member that holds a layer's tar."""
    return f"layers/{diff_id.hex}.tar"


def header(name: str, size: int) -> bytes:
    """The header of a member, one block; with GNU's base-256 numbers where octal ends."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, _MODE
    if len(name) <= tarfile.LENGTH_NAME:
        return about.tobuf(tarfile.GNU_FORMAT)
    return about.tobuf(tarfile.USTAR_FORMAT)  # a sha512: its folders go into the prefix, and 8 GiB is the end


class BackupWriter:
    """Writes members to an open file, one after the other."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._synced = 0
        self.size = 0

    def add(self, name: str, size: int, chunks: Iterable[bytes]) -> None:
        """A member of exactly ``size`` bytes.  Raises OSError, and what ``chunks`` raises."""
        assert _NAME.fullmatch(name), name
        self._write(header(name, size))
        start = self.size
        for chunk in chunks:
            self._write(chunk)
        if self.size - start != size:
            raise DataLoss(f"back up {name}", f"it has {self.size - start} bytes, not {size}")
        self._write(bytes(-size % BLOCK))

    def finish(self) -> None:
        """Write the end; durable on return."""
        self._write(bytes(2 * BLOCK))
        os.fsync(self._fd)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.size += len(data)
        if self.size - self._synced >= WRITE_BACK:
            sync_range(self._fd, self._synced, self.size - self._synced)
            self._synced = self.size


class BackupReader:
    """An open backup whose members are known; a context manager.

    Raises `NotFound` if there is no such file, `InvalidArgument` if it is no backup, `DataLoss` if it ends
    early or is damaged, `FailedPrecondition` if it is newer than this orlop.
    """

    def __init__(self, path: Path, *, call: Call) -> None:
        self._what = f"restore {path}"
        self._call = call
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as exc:
            raise from_oserror(self._what, exc) from exc
        try:
            if not stat.S_ISREG(os.fstat(self.fd).st_mode):
                raise InvalidArgument(self._what, "it is not a file")
            self._parts = self._scan()
            self.label = self._label()
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    def find(self, name: str) -> Part | None:
        """Where a member is."""
        return self._parts.get(name)

    def read(self, name: str, *, limit: int, called: str = "", digest: Digest | None = None) -> bytes:
        """A small member's bytes; those of a digest are verified.

        Raises `ResourceExhausted` past ``limit``, whose name in the configuration ``called`` is, `DataLoss`
        where it is missing or has other bytes.
        """
        part = self._require(name)
        if part.size > limit and called:
            raise over_limit(called, part.size, limit, attempted=f"{self._what}: read {name}")
        if part.size > limit:
            raise ResourceExhausted(self._what, f"{name} has {part.size} bytes, the limit is {limit}")
        data = b"".join(self._chunks(part))
        if digest is not None and not digest.verifies(data):
            raise DataLoss(self._what, f"{name} has other bytes than its digest says")
        return data

    def chunks(self, name: str, *, digest: Digest) -> Iterator[bytes]:
        """A member's bytes bit by bit; `DataLoss` after the last one if they have another digest."""
        hasher = digest.hasher()
        for chunk in self._chunks(self._require(name)):
            hasher.update(chunk)
            yield chunk
        if hasher.hexdigest() != digest.hex:
            raise DataLoss(self._what, f"{name} has other bytes than its digest says")

    def _require(self, name: str) -> Part:
        part = self._parts.get(name)
        if part is None:
            raise DataLoss(self._what, f"there is no {name} in it")
        return part

    def _chunks(self, part: Part) -> Iterator[bytes]:
        at, end = part.offset, part.offset + part.size
        while at < end:
            self._call.check(self._what)
            chunk = os.pread(self.fd, min(CHUNK, end - at), at)
            if not chunk:
                raise DataLoss(self._what, "it got shorter while it was read")
            yield chunk
            at += len(chunk)

    def _scan(self) -> dict[str, Part]:
        """All members, from their headers; what is between those is not read."""
        size = os.fstat(self.fd).st_size
        found: dict[str, Part] = {}
        at = 0
        while True:
            self._call.check(self._what)
            block = os.pread(self.fd, BLOCK, at)
            if len(block) < BLOCK and found:
                raise DataLoss(self._what, "it ends early", hint="it was not copied whole")
            if block == bytes(BLOCK) and found:
                if size != at + 2 * BLOCK or os.pread(self.fd, BLOCK, at + BLOCK) != bytes(BLOCK):
                    raise DataLoss(self._what, "it has another end than a backup")
                return found
            name, length = self._member(block, first=not found)
            if name in found:
                raise InvalidArgument(self._what, f"{name} is in it twice")
            if len(found) >= MAX_MEMBERS:
                raise ResourceExhausted(self._what, f"it has more than {MAX_MEMBERS} members")
            found[name] = Part(at + BLOCK, length)
            at += BLOCK + length + -length % BLOCK
            if at > size:
                raise DataLoss(self._what, f"it ends in the midst of {name}", hint="it was not copied whole")

    def _member(self, block: bytes, *, first: bool) -> tuple[str, int]:
        """Name and size of a header that is one of ours."""
        try:
            about = tarfile.TarInfo.frombuf(block, "ascii", "strict")
            name, size = about.name, about.size
            ours = bool(_NAME.fullmatch(name)) and size >= 0 and header(name, size) == block
        except (tarfile.HeaderError, ValueError):
            ours = False
        if first and not (ours and name == LABEL):
            raise InvalidArgument(self._what, "it is not a backup that orlop wrote")
        if not ours:
            raise DataLoss(self._what, "it is damaged: what should be the header of a member is none of ours")
        return name, size

    def _label(self) -> Label:
        data = self.read(LABEL, limit=MAX_LABEL)
        try:
            version = msgspec.json.decode(data, type=dict[str, object]).get("orlop-backup")
            if isinstance(version, int) and version > BACKUP_VERSION:
                raise FailedPrecondition(
                    self._what,
                    f"it is a backup of version {version}",
                    hint="use the newer orlop that wrote it",
                )
            return msgspec.json.decode(data, type=Label)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
            raise InvalidArgument(self._what, f"its {LABEL} is malformed: {exc}") from exc
