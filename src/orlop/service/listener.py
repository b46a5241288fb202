"""The daemon's place: one daemon for a store, one for a socket, and who may use that socket.

The socket stands in a folder of its own, which is made (0750, root and the group) if only the last
component is missing.  The socket is 0660, root's and the group's.  Beside it lies ``NAME.lock``, held
while the daemon lives: whoever has it may remove a socket that nobody answers on.

Invariants: a live socket is never removed; the mode and the owner are right before the first call is
answered, and nobody else can connect before.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from orlop.client.address import Address
from orlop.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, from_oserror
from orlop.linux.flock import FileLock
from orlop.observe import Call

__all__ = ["DEFAULT_GROUP", "Owner", "claim_root", "claim_socket"]

DEFAULT_GROUP = "orlop"
_FOLDER_MODE = 0o750


class Owner:
    """Whom the socket belongs to, and with what mode.

    Root's daemon: ``group``, else the group ``orlop`` where the system has it, else root.  Another
    user's: the user alone (0600), unless ``group`` names one of the user's groups.
    """

    def __init__(self, group: str | None, attempted: str) -> None:
        self.uid = os.geteuid()
        self.mode = 0o660
        gid = _gid(DEFAULT_GROUP if group is None and self.uid == 0 else group)
        if group is not None and gid is None:
            raise InvalidArgument(attempted, f"there is no group {group!r}", hint=f"addgroup {group}")
        if gid is None and self.uid != 0:
            self.mode = 0o600
        self.gid = os.getegid() if gid is None else gid

    def apply(self, path: str, mode: int) -> None:
        """Give a path to the owner; the group first, so that no mode opens it to the wrong one."""
        os.chown(path, -1, self.gid, follow_symlinks=False)
        os.chmod(path, mode)


def claim_root(root: str, address: Address, attempted: str) -> FileLock:
    """The lock that makes this process the store's only daemon.

    Raises `FailedPrecondition`, naming the other daemon, where there is one.
    """
    path = os.path.join(root, "locks", "daemon.lock")
    lock = FileLock(path)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if lock.acquire(call=Call(), attempted=attempted, blocking=False):
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"process {os.getpid()} at {address}\n")
            return lock
        with open(path, encoding="utf-8", errors="replace") as file:
            other = file.read(1_000).strip()
    except OSError as exc:
        lock.release()
        raise from_oserror(attempted, exc) from exc
    raise FailedPrecondition(
        attempted,
        f"another daemon serves {root}" + (f": {other}" if other else ""),
        hint="use that one, or stop it first",
    )


@contextmanager
def claim_socket(address: Address, owner: Owner, bind: Callable[[], None], attempted: str) -> Iterator[None]:
    """Make the socket by ``bind``, with its folder, owner and mode; removed when the block ends.

    Raises `FailedPrecondition` if another daemon listens there or the place cannot hold a socket, and
    the errno's class where the system refuses.
    """
    path = address.path
    with ExitStack() as undo:
        with _system_errors(attempted):
            _make_folder(os.path.dirname(path), owner, attempted)
            lock = FileLock(f"{path}.lock", unlink_on_release=True)
            if not lock.acquire(call=Call(), attempted=attempted, blocking=False):
                raise _taken(address, attempted)
            undo.callback(lock.release)
            _remove_stale(address, attempted)
            _try_bind(path)
            before = os.umask(0o077)  # gRPC makes the socket; until it is ours alone nobody else's
            try:
                bind()
            finally:
                os.umask(before)
            undo.callback(_unlink, path)
            owner.apply(path, owner.mode)
        yield


def _gid(group: str | None) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


@contextmanager
def _system_errors(attempted: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_oserror(attempted, exc) from exc


def _make_folder(folder: str, owner: Owner, attempted: str) -> None:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise FailedPrecondition(attempted, f"{folder} is not a folder") from None
        return
    except FileNotFoundError as exc:
        parent = os.path.dirname(folder)
        raise FailedPrecondition(
            attempted, f"the folder {parent} does not exist", hint="make it, or listen elsewhere"
        ) from exc
    owner.apply(folder, _FOLDER_MODE)


def _remove_stale(address: Address, attempted: str) -> None:
    """Remove a socket that nobody listens on; anything else at the path stays and is an error."""
    try:
        there = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise AlreadyExists(
            attempted, "something that is not a socket is there", hint="move it away, or listen elsewhere"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody has it (unix(7), EAGAIN)
    raise _taken(address, attempted)


def _try_bind(path: str) -> None:
    """Bind and let go: gRPC would say only that it failed, the kernel says why."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.bind(path)
        except OSError as exc:
            raise OSError(exc.errno or errno.EIO, os.strerror(exc.errno or errno.EIO), path) from exc
    os.unlink(path)


def _taken(address: Address, attempted: str) -> Error:
    return FailedPrecondition(
        attempted, f"another daemon listens on {address}", hint="stop it first, or listen elsewhere"
    )


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return  # gRPC removes it itself when it closes the listener
