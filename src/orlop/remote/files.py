"""How an artifact's files come to lie in a folder: by names that lead nowhere else, whole or not at all.

    FOLDER/.orlop-sha256-<hex>.part    a file in flight, named after its digest: the next pull goes on with it
    FOLDER/<name>               a file that was verified, moved there in one step

Names come from a stranger's manifest.  They are relative, clean and printable; the kernel resolves their
folders below FOLDER without following a symlink (openat2), and what is there is not replaced unless that is
asked for, and never written through.  One process at a time works on a part: it holds a flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from orlop.config import Limits, over_limit
from orlop.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, from_oserror
from orlop.linux.files import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    fsync_dir,
    openat2,
)
from orlop.spec.digest import Digest

__all__ = ["Folder", "Part", "check_names"]

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)  # link(2)
_CHUNK = 1 << 20
_PREFIX = ".orlop-"


def check_names(names: Iterable[str], limits: Limits, attempted: str) -> None:
    """Refuse names that cannot all be files of one folder (HOSTILE.md 6).

    Raises `InvalidArgument` for one that is absolute, not clean, not printable or given twice, and for one
    that is a folder of another; `ResourceExhausted` past ``limits.path_size``, ``name_size`` or ``depth``.
    """
    seen: set[tuple[str, ...]] = set()
    for name in names:
        shown = repr(name[:200])
        parts = tuple(name.split("/"))
        if name.startswith("/") or not name:
            raise InvalidArgument(attempted, f"not a file's name in a folder: {shown}")
        if any(part in ("", ".", "..") for part in parts):
            raise InvalidArgument(attempted, f"a file's name is not clean: {shown}")
        if "\\" in name or not name.isprintable():
            raise InvalidArgument(attempted, f"there is a backslash or what cannot be printed in {shown}")
        if parts[0].startswith(_PREFIX):
            raise InvalidArgument(attempted, f"names that begin with {_PREFIX} are orlop's own: {shown}")
        if len(os.fsencode(name)) > limits.path_size:
            raise over_limit("path_size", len(name), limits.path_size, attempted=attempted)
        if max(len(os.fsencode(part)) for part in parts) > limits.name_size:
            raise over_limit("name_size", max(map(len, parts)), limits.name_size, attempted=attempted)
        if len(parts) > limits.depth:
            raise over_limit("depth", len(parts), limits.depth, attempted=attempted)
        if parts in seen:
            raise InvalidArgument(attempted, f"two files have one name: {shown}")
        seen.add(parts)
    for parts in seen:
        for length in range(1, len(parts)):
            if parts[:length] in seen:
                raise InvalidArgument(
                    attempted, f"{'/'.join(parts[:length])[:200]!r} is a file and the folder of another"
                )


class Folder:
    """The folder that files are pulled into.  Thread-safe; a context manager."""

    def __init__(self, path: str, attempted: str) -> None:
        """Open the folder, making it if it is not there.  Raises the errno's class."""
        self.path = os.path.abspath(path)
        self._attempted = attempted
        try:
            os.makedirs(self.path, exist_ok=True)
            self._fd = os.open(self.path, _FOLDER)
        except OSError as exc:
            raise from_oserror(attempted, exc) from exc

    def close(self) -> None:
        """Let go of it.  Once."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def has(self, name: str, digest: Digest, size: int) -> bool:
        """Whether a regular file is there that has this digest; False where nothing is.

        Raises `AlreadyExists` where something else is.
        """
        try:
            fd = openat2(self._fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, resolve=_INSIDE)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise self._failed(name, exc) from exc
        try:
            about = os.fstat(fd)
            if stat.S_ISREG(about.st_mode) and about.st_size == size:
                hasher = digest.hasher()
                while chunk := os.read(fd, _CHUNK):
                    hasher.update(chunk)
                if hasher.hexdigest() == digest.hex:
                    return True
        finally:
            os.close(fd)
        raise AlreadyExists(
            self._attempted, f"{self.path}/{name} is there already", hint="--force replaces it"
        )

    @contextmanager
    def part(self, digest: Digest) -> Iterator[Part]:
        """The file in flight of a digest, locked.

        Raises `FailedPrecondition` where another process has it.
        """
        name = f"{_PREFIX}{digest.algorithm}-{digest.hex}.part"
        fd = self._open_part(name)
        try:
            if os.fstat(fd).st_nlink > 1:
                # It was given its name, and the process ended before it took this one away.
                os.unlink(name, dir_fd=self._fd)
                again = self._open_part(name)
                os.close(fd)
                fd = again
            yield Part(fd, name, digest)
        finally:
            os.close(fd)

    def _open_part(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = openat2(self._fd, name, flags, 0o666, resolve=_INSIDE)
        except OSError as exc:
            raise self._failed(name, exc) from exc
        try:
            self._lock(fd, name)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int, name: str) -> None:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise FailedPrecondition(
                self._attempted, f"{self.path}/{name} is not a file in flight", hint="remove it"
            )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            there = None
        if there is None or not os.path.samestat(about, there):
            raise FailedPrecondition(
                self._attempted, f"another process pulls into {self.path}", hint="wait for it"
            )

    def place(self, part: Part, name: str, *, force: bool) -> str:
        """Give a verified part its name, in one step and durably; the path it has now.

        Raises `AlreadyExists` where something is there, unless ``force``.
        """
        *above, last = name.split("/")
        try:
            os.fsync(part.fd)
            here = self._enter(above)
        except OSError as exc:
            raise self._failed(name, exc) from exc
        try:
            self._move(part, here, last, name, force=force)
            fsync_dir(here)
        except OSError as exc:
            raise self._failed(name, exc) from exc
        finally:
            os.close(here)
        return os.path.join(self.path, name)

    def _move(self, part: Part, here: int, last: str, name: str, *, force: bool) -> None:
        if force:
            os.rename(part.name, last, src_dir_fd=self._fd, dst_dir_fd=here)
            return
        try:
            os.link(part.name, last, src_dir_fd=self._fd, dst_dir_fd=here, follow_symlinks=False)
        except FileExistsError as exc:
            raise AlreadyExists(
                self._attempted, f"{self.path}/{name} is there already", hint="--force replaces it"
            ) from exc
        except OSError as exc:
            if exc.errno not in _NO_LINKS:
                raise
            self._move_without_links(part, here, last, name)
            return
        os.unlink(part.name, dir_fd=self._fd)

    def _move_without_links(self, part: Part, here: int, last: str, name: str) -> None:
        """On a file system without hard links: look, then rename; a file made in between is replaced."""
        if last in os.listdir(here):
            raise AlreadyExists(
                self._attempted, f"{self.path}/{name} is there already", hint="--force replaces it"
            )
        os.rename(part.name, last, src_dir_fd=self._fd, dst_dir_fd=here)

    def _enter(self, above: list[str]) -> int:
        """The folder of a name, made where it is missing; a descriptor."""
        here = os.dup(self._fd)
        for component in above:
            try:
                with suppress(FileExistsError):
                    os.mkdir(component, dir_fd=here)
                inside = openat2(here, component, _FOLDER, resolve=_INSIDE)
            finally:
                os.close(here)
            here = inside
        return here

    def _failed(self, name: str, exc: OSError) -> Error:
        if exc.errno not in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR, errno.EISDIR):
            return from_oserror(self._attempted, exc)
        what = "is a folder" if exc.errno == errno.EISDIR else "leads through a link or a file"
        return FailedPrecondition(self._attempted, f"{self.path}/{name} {what}: {exc.strerror}")


class Part:
    """A file in flight.  Used by one thread."""

    def __init__(self, fd: int, name: str, digest: Digest) -> None:
        self.fd = fd
        self.name = name
        self._hasher = digest.hasher()
        self._digest = digest
        self.size = 0

    def resume(self, most: int) -> int:
        """Hash what is there; its size, 0 where it is more than ``most``, which is then thrown away."""
        if os.fstat(self.fd).st_size > most:
            self.restart()
            return 0
        while chunk := os.pread(self.fd, _CHUNK, self.size):
            self._hasher.update(chunk)
            self.size += len(chunk)
        return self.size

    def restart(self) -> None:
        """Throw away what is there."""
        os.ftruncate(self.fd, 0)
        self._hasher, self.size = self._digest.hasher(), 0

    def write(self, chunk: bytes) -> None:
        """Append."""
        view = memoryview(chunk)
        while view:
            count = os.pwrite(self.fd, view, self.size)
            self._hasher.update(view[:count])
            self.size += count
            view = view[count:]

    def verified(self) -> bool:
        """Whether what is there has the digest."""
        return self._hasher.hexdigest() == self._digest.hex
