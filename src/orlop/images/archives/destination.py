"""Where an export ends up on the side of whoever asked: a file, or a folder that is an OCI layout.

Invariants: a file has its name only once it is whole and synced, and one that is there stays unless `force`;
of a folder, index.json is replaced in one step after all that it names is there, and what else was in it
stays.  What an export that fails has made is taken away.  The stream is not believed: `tarstream` reads it,
blobs must have their digests, and no name leads out of the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from orlop.errors import (
    AlreadyExists,
    DataLoss,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    from_oserror,
)
from orlop.images.archives.layoutnames import FULL_NAME, INDEX, LAYOUT, LAYOUT_TEXT, REF_NAME, named
from orlop.images.archives.tarstream import read_members
from orlop.images.space import free_bytes, is_full
from orlop.linux.files import fsync_dir, open_beneath, remove_tree, sync_range
from orlop.observe import Call
from orlop.spec.digest import Digest
from orlop.spec.documents import MAX_DOCUMENT, OCI_INDEX, Descriptor, Index, encode, parse_manifest

__all__ = ["FileTarget", "unpack_layout"]

CHUNK = 1 << 20
WRITE_BACK = 8 << 20  # bytes after which write-back is started, so that the last fsync is short
HOLE = 64 << 10  # bytes of zeros that become a hole
_BLOB = re.compile(r"blobs/(sha256/[0-9a-f]{64}|sha512/[0-9a-f]{128})")
_FOLDERS = frozenset({"blobs", "blobs/sha256", "blobs/sha512"})
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Where a process finds its own descriptors (linux/fs/proc/fd.c; udev and every container make the links).
_OWN = re.compile(r"/dev/(?:stdin|stdout|stderr)|/(?:dev|proc/self)/fd/[0-9]{1,9}")
_STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FileTarget:
    """A file to be written; a context manager that gives it its name where the block ends well.

    A device, a pipe or a descriptor of our own (/dev/stdout) is written to as it is.  With ``holes`` zeros
    are left out of the file.
    """

    def __init__(self, path: Path, *, force: bool, holes: bool = False, what: str) -> None:
        self._path = path
        self._force = force
        self._what = what
        self._holes = holes
        self._temporary: Path | None = None
        self._fd = -1
        self._at = self._synced = 0

    def __enter__(self) -> Self:
        try:
            self._open()
        except FileNotFoundError as exc:
            raise NotFound(self._what, f"there is no folder {self._path.parent}") from exc
        except OSError as exc:
            raise _failed(self._what, self._path, exc) from exc
        return self

    def _open(self) -> None:
        path = self._path
        if _OWN.fullmatch(str(path)):
            # Not through the link: a new file in the place of that would not be where the caller looks.
            self._holes = False
            self._fd = os.dup(_STANDARD[path.name] if path.name in _STANDARD else int(path.name))
            return
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            if os.path.lexists(path):
                raise FailedPrecondition(self._what, f"{path} is a symlink to nothing") from None
        else:
            if stat.S_ISDIR(mode):
                raise InvalidArgument(self._what, f"{path} is a folder", hint="give the name of a file")
            if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or (stat.S_ISBLK(mode) and self._force):
                self._holes = False
                self._fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
                return
            if not self._force:
                raise _exists(self._what, path)
        self._temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
        self._fd = os.open(self._temporary, _NEW, 0o666)

    def write(self, data: bytes, /) -> int:
        """Take all of some bytes."""
        try:
            for start in range(0, len(data), HOLE) if self._holes else (0,):
                self._write(memoryview(data)[start : start + HOLE] if self._holes else memoryview(data))
        except OSError as exc:
            raise _failed(self._what, self._path, exc) from exc
        return len(data)

    def _write(self, view: memoryview) -> None:
        size = len(view)
        if self._holes and size == HOLE and view == _ZEROS:
            os.lseek(self._fd, size, os.SEEK_CUR)
        while view and not (self._holes and size == HOLE and view == _ZEROS):
            view = view[os.write(self._fd, view) :]
        self._at += size
        if self._temporary is not None and self._at - self._synced >= WRITE_BACK:
            with suppress(OSError):  # it only makes the fsync to come shorter
                sync_range(self._fd, self._synced, self._at - self._synced)
            self._synced = self._at

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if value is None and self._temporary is not None:
                if self._holes:
                    os.ftruncate(self._fd, self._at)
                os.fsync(self._fd)
                self._name(self._temporary)
                fsync_dir(self._path.parent)
        except OSError as exc:
            raise _failed(self._what, self._path, exc) from exc
        finally:
            os.close(self._fd)
            if self._temporary is not None:
                with suppress(FileNotFoundError):
                    os.unlink(self._temporary)

    def _name(self, temporary: Path) -> None:
        if self._force:
            os.rename(temporary, self._path)
            return
        try:
            os.link(temporary, self._path)
        except FileExistsError as exc:
            raise _exists(self._what, self._path) from exc
        except OSError as exc:
            if exc.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}:
                raise
            os.rename(temporary, self._path)  # a file system without links: FAT


_ZEROS = memoryview(bytes(HOLE))


def _failed(what: str, path: Path, exc: OSError) -> Error:
    """What an errno means; of a full disk which one it is, for it need not be the store's."""
    if not is_full(exc):
        return from_oserror(what, exc)
    folder = path.parent
    free = free_bytes(folder)
    details = {"errno": "ENOSPC", "free": str(free), "where": str(folder)}
    reason = f"no room is left on the disk of {folder}: {free} bytes are free"
    return ResourceExhausted(what, reason, hint="choose another disk, or - for a pipe", details=details)


def _exists(what: str, path: Path) -> Error:
    return AlreadyExists(what, f"{path} exists", hint="choose another name, or --force")


# -- folders -----------------------------------------------------------------------------------------


def unpack_layout(stream: Iterator[bytes], path: Path, *, force: bool, call: Call, what: str) -> None:
    """Make a folder of a layout that comes as a tar, or add it to the layout that is there.

    Raises `AlreadyExists` where a name in the layout means another image, unless ``force``, and
    `FailedPrecondition` for a folder that holds something else.
    """
    try:
        if _is_new(path, what):
            _make(stream, path, call, what)
        else:
            _add(stream, path, force=force, call=call, what=what)
    except OSError as exc:
        raise _failed(what, path, exc) from exc


def _is_new(path: Path, what: str) -> bool:
    try:
        there = os.listdir(path)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise FailedPrecondition(what, f"{path} is a symlink to nothing") from None
        return True
    except NotADirectoryError as exc:
        raise AlreadyExists(what, f"{path} is no folder") from exc
    if there and LAYOUT not in there:
        raise FailedPrecondition(
            what, f"{path} holds something, and is no OCI layout", hint="choose an empty or a new folder"
        )
    return False  # an empty one is filled where it is: it may be a mount point, or behind a link


def _make(stream: Iterator[bytes], path: Path, call: Call, what: str) -> None:
    """A new folder, under a name of its own until it is whole."""
    path = Path(os.path.normpath(path))
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        os.mkdir(temporary)
    except FileNotFoundError as exc:
        raise NotFound(what, f"there is no folder {path.parent}") from exc
    try:
        with _Layout(temporary, force=False, call=call, what=what) as layout:
            layout.read(stream)
        try:
            os.rename(temporary, path)
        except OSError as exc:
            if exc.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise AlreadyExists(what, f"{path} was made meanwhile", hint="try again") from exc
            raise
        fsync_dir(path.parent)
    except BaseException:
        remove_tree(temporary, missing_ok=True)
        raise


def _add(stream: Iterator[bytes], path: Path, *, force: bool, call: Call, what: str) -> None:
    with _Layout(path, force=force, call=call, what=what) as layout:
        try:
            layout.read(stream)
        except BaseException:
            layout.undo()
            raise


class _Layout:
    """A layout's folder, for one who writes; others wait."""

    def __init__(self, path: Path, *, force: bool, call: Call, what: str) -> None:
        self._path = path
        self._force = force
        self._call = call
        self._what = what
        self._made: list[str] = []
        self._made_folders: list[str] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._fd = self._folder(os.open(self._path, _OPEN_FOLDER & ~os.O_NOFOLLOW), stack)
            while True:
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._call.pause(0.05, self._what)
            self._folders = {"": self._fd}
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @staticmethod
    def _folder(fd: int, stack: ExitStack) -> int:
        stack.callback(os.close, fd)
        return fd

    def undo(self) -> None:
        """Take away what was made, and nothing that was there."""
        for name in self._made:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._fd)
        for name in reversed(self._made_folders):
            with suppress(OSError):  # somebody else's things are in it now
                os.rmdir(name, dir_fd=self._fd)

    def read(self, stream: Iterator[bytes]) -> None:
        """All of a stream; durable on return."""
        new: bytes | None = None
        known = {LAYOUT, INDEX, *_FOLDERS}
        members = read_members(
            stream, lambda name: name in known or _BLOB.fullmatch(name) is not None, self._what
        )
        for name, size, chunks in members:
            if name == LAYOUT:
                if size != len(LAYOUT_TEXT) or b"".join(chunks) != LAYOUT_TEXT:
                    raise InvalidArgument(self._what, "it is of another version of OCI layouts")
                if not self._there(LAYOUT):
                    self._put(LAYOUT, LAYOUT_TEXT)
            elif name == INDEX:
                if size > MAX_DOCUMENT:
                    raise InvalidArgument(self._what, f"its {INDEX} has {size} bytes")
                new = b"".join(chunks)
            else:
                self._blob(name, size, chunks)
        if new is None:
            raise DataLoss(self._what, f"there was no {INDEX} in it")
        for fd in [fd for name, fd in self._folders.items() if name]:
            os.fsync(fd)
        self._put(INDEX, self._merged(new), replace=True)
        os.fsync(self._fd)

    def _blob(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        folder, _, last = name.rpartition("/")
        digest = Digest(f"{folder.rpartition('/')[2]}:{last}")
        dir_fd = self._open_folder(folder)
        if self._is_there(dir_fd, last, digest, size):
            for _ in chunks:
                self._call.check(self._what)
            return
        temporary = f".tmp-{secrets.token_hex(8)}"
        fd = os.open(temporary, _NEW, 0o666, dir_fd=dir_fd)
        try:
            hasher = digest.hasher()
            for chunk in chunks:
                self._call.check(self._what)
                hasher.update(chunk)
                _write_all(fd, chunk)
            if hasher.hexdigest() != digest.hex:
                raise DataLoss(self._what, f"{digest} came with other bytes")
            os.fsync(fd)
            os.rename(temporary, last, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            self._made.append(name)
        except BaseException:
            with suppress(OSError):  # the first failure is the one to report
                os.unlink(temporary, dir_fd=dir_fd)
            raise
        finally:
            os.close(fd)

    def _open_folder(self, name: str) -> int:
        found = self._folders.get(name)
        if found is None:
            above, _, last = name.rpartition("/")
            parent = self._open_folder(above)
            with suppress(FileExistsError):
                os.mkdir(last, dir_fd=parent)
                self._made_folders.append(name)
            found = self._folder(os.open(last, _OPEN_FOLDER, dir_fd=parent), self._exit)
            self._folders[name] = found
        return found

    def _is_there(self, dir_fd: int, name: str, digest: Digest, size: int) -> bool:
        """Whether a blob is there with the right bytes."""
        try:
            fd = open_beneath(dir_fd, name)
        except OSError:
            return False  # what is wrong there is replaced, or said, when it is written
        try:
            if os.fstat(fd).st_size != size:
                return False
            hasher = digest.hasher()
            while chunk := os.read(fd, CHUNK):
                self._call.check(self._what)
                hasher.update(chunk)
            return hasher.hexdigest() == digest.hex
        finally:
            os.close(fd)

    def _there(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _put(self, name: str, data: bytes, *, replace: bool = False) -> None:
        """A small file of the folder itself, whole or not at all."""
        temporary = f".tmp-{secrets.token_hex(8)}"
        fd = os.open(temporary, _NEW, 0o666, dir_fd=self._fd)
        try:
            _write_all(fd, data)
            os.fsync(fd)
            if not replace:
                self._made.append(name)
            os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)

    def _merged(self, data: bytes) -> bytes:
        """The index.json that the layout is to have: what it had, and what comes."""
        new = parse_manifest(data, OCI_INDEX, self._what)
        if not isinstance(new, Index):
            raise InvalidArgument(self._what, f"its {INDEX} is no index")
        document = self._old()
        if document is None:
            return data
        lines: list[Any] = document["manifests"]
        names = {_name_of(line) for line in new.manifests} - {None}
        kept = []
        for line in lines:
            annotations = line.get("annotations") or {} if isinstance(line, dict) else {}
            name = annotations.get(FULL_NAME) or annotations.get(REF_NAME)
            if name in names:
                same = any(line.get("digest") == one.digest for one in new.manifests if _name_of(one) == name)
                if not same and not self._force:
                    raise AlreadyExists(
                        self._what, f"{name} means another image in {self._path}", hint="--force replaces it"
                    )
                continue
            if any(isinstance(line, dict) and _same(line, one) for one in new.manifests):
                continue
            kept.append(line)
        refs = [line.get("annotations", {}).get(REF_NAME) for line in kept if isinstance(line, dict)]
        entries = [(_bare(one), _name_of(one)) for one in new.manifests]
        added = named(entries, [ref for ref in refs if isinstance(ref, str)])
        document["manifests"] = [*kept, *(json.loads(msgspec.json.encode(one)) for one in added)]
        return encode(document)

    def _old(self) -> dict[str, Any] | None:
        try:
            fd = open_beneath(self._fd, INDEX)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(fd).st_size > MAX_DOCUMENT:
                raise FailedPrecondition(self._what, f"{self._path}/{INDEX} is too large to be one")
            data = os.pread(fd, MAX_DOCUMENT, 0)
        finally:
            os.close(fd)
        parse_manifest(data, OCI_INDEX, f"read {self._path}/{INDEX}")
        document: dict[str, Any] = json.loads(data)
        return document


def _name_of(line: Descriptor) -> str | None:
    return (line.annotations or {}).get(FULL_NAME)


def _bare(line: Descriptor) -> Descriptor:
    return msgspec.structs.replace(line, annotations=None)


def _same(line: dict[str, Any], one: Descriptor) -> bool:
    """Whether a line without a name says the same as another."""
    return not line.get("annotations") and _name_of(one) is None and line.get("digest") == one.digest


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
