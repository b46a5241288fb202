"""The daemon's places: one daemon for a store, one for a socket, who may use that socket, and what is behind.

The socket stands in a folder of its own, which is made (0750, root and the group) if only the last
component is missing.  The socket is 0660, root's and the group's; where the configuration names others who
may use it, they are 0755 and 0666, and the door alone decides (orlop.service.door).  Beside it lies
``NAME.lock``, held while the daemon lives: whoever has it may remove a socket that nobody answers on.

gRPC's own socket is behind the door, in ``ROOT/locks/door``, mode 0700.

A socket that a service manager has handed over (orlop.service.systemd) is the manager's: its file, folder,
owner and mode are left alone, and stay when the daemon ends, so that clients wait for the next one.

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

from orlop.client.address import SUN_PATH_MAX, Address, TcpAddress
from orlop.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, from_oserror
from orlop.linux.flock import FileLock
from orlop.observe import Call

__all__ = ["DEFAULT_GROUP", "Behind", "Owner", "bind_tcp", "claim_root", "claim_socket", "take_over"]

DEFAULT_GROUP = "orlop"
_FOLDER_MODE = 0o750


class Owner:
    """Whom the socket belongs to, and with what mode.

    Root's daemon: ``group``, else the group ``orlop`` where the system has it, else root.  Another
    user's: the user alone (0600), unless ``group`` names one of the user's groups.  With
    ``opens_to_all`` everybody can connect, and the door lets in who is named.
    """

    def __init__(self, group: str | None, attempted: str, *, opens_to_all: bool = False) -> None:
        self.uid = os.geteuid()
        self.mode = 0o660
        self.folder_mode = _FOLDER_MODE
        gid = _gid(DEFAULT_GROUP if group is None and self.uid == 0 else group)
        if group is not None and gid is None:
            raise InvalidArgument(attempted, f"there is no group {group!r}", hint=f"addgroup {group}")
        if gid is None and self.uid != 0:
            self.mode = 0o600
        self.gid = os.getegid() if gid is None else gid
        self.group = None if self.mode == 0o600 else self.gid  # whose members may use it
        if opens_to_all:
            self.mode, self.folder_mode = 0o666, 0o755

    def apply(self, path: str, mode: int) -> None:
        """Give a path to the owner; the group first, so that no mode opens it to the wrong one."""
        os.chown(path, -1, self.gid, follow_symlinks=False)
        os.chmod(path, mode)


def claim_root(root: str, address: Address | TcpAddress, attempted: str) -> FileLock:
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
def claim_socket(address: Address, owner: Owner, bind: Callable[[], None], attempted: str) -> Iterator[bool]:
    """Make the socket by ``bind``, with its folder, owner and mode; removed when the block ends.

    Yields whether the folder was made, and so has the owner's mode.

    Raises `FailedPrecondition` if another daemon listens there or the place cannot hold a socket, and
    the errno's class where the system refuses.
    """
    path = address.path
    with ExitStack() as undo:
        with _system_errors(attempted):
            made = _make_folder(os.path.dirname(path), owner, attempted)
            lock = FileLock(f"{path}.lock", unlink_on_release=True)
            if not lock.acquire(call=Call(), attempted=attempted, blocking=False):
                raise _taken(address, attempted)
            undo.callback(lock.release)
            _remove_stale(address, attempted)
            _try_bind(path)
            before = os.umask(0o077)  # until its owner and mode are set it is ours alone
            try:
                bind()
            finally:
                os.umask(before)
            undo.callback(_unlink, path)
            owner.apply(path, owner.mode)
        yield made


def bind_tcp(address: TcpAddress, attempted: str) -> tuple[socket.socket, TcpAddress]:
    """A socket at a host's first address, and where it is: port 0 stands for any that is free.

    Raises `InvalidArgument` for a host that has no address here, and the errno's class.
    """
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as exc:
        raise InvalidArgument(attempted, f"{address.host} is no address of this machine: {exc}") from exc
    family, kind, protocol, _, where = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        return sock, TcpAddress(address.host, sock.getsockname()[1])
    except OSError as exc:
        sock.close()
        raise from_oserror(attempted, exc) from exc


def take_over(name: str, fd: int) -> tuple[socket.socket, Address | TcpAddress]:
    """A socket that was handed over, and where it listens.  The descriptor is the socket's from then on.

    Raises `InvalidArgument` for what is no listening stream socket, or none with an address of ours.
    """
    attempted = f"take over the socket {name or fd}"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise InvalidArgument(attempted, f"descriptor {fd} is no socket: {exc.strerror}") from exc
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        where = sock.getsockname()
    except OSError as exc:
        sock.close()
        raise InvalidArgument(attempted, f"descriptor {fd}: {exc.strerror}") from exc
    if sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        raise InvalidArgument(
            attempted,
            "it does not listen for connections",
            hint="its unit wants ListenStream= and no Accept=yes",
        )
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return sock, TcpAddress(where[0], where[1])
    if sock.family == socket.AF_UNIX and isinstance(where, str) and where.startswith("/"):
        return sock, Address(where)
    sock.close()
    raise InvalidArgument(attempted, "it is neither a unix socket at a path nor one of TCP")


class Behind:
    """The folder of the sockets that only the door connects to; a context manager.

    Its paths are of any length: where a socket's would be too long, they go by way of the open folder.
    """

    def __init__(self, root: str, attempted: str) -> None:
        self._folder = os.path.join(root, "locks", "door")
        self._attempted = attempted
        self._names: list[str] = []
        self._fd = -1

    def __enter__(self) -> Behind:
        with _system_errors(self._attempted):
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            os.chmod(self._folder, 0o700)
            for name in os.listdir(self._folder):  # left by one that was killed: the root's lock is ours
                os.unlink(os.path.join(self._folder, name))
            self._fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *exc: object) -> None:
        for name in self._names:
            _unlink(os.path.join(self._folder, name))
        os.close(self._fd)

    def path(self, name: str) -> str:
        """Where a socket of this name is to be."""
        self._names.append(name)
        path = os.path.join(self._folder, name)
        return path if len(os.fsencode(path)) <= SUN_PATH_MAX else f"/proc/self/fd/{self._fd}/{name}"


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


def _make_folder(folder: str, owner: Owner, attempted: str) -> bool:
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise FailedPrecondition(attempted, f"{folder} is not a folder") from None
        return False
    except FileNotFoundError as exc:
        parent = os.path.dirname(folder)
        raise FailedPrecondition(
            attempted, f"the folder {parent} does not exist", hint="make it, or listen elsewhere"
        ) from exc
    owner.apply(folder, owner.folder_mode)
    return True


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
    """Bind and let go: what the kernel says against the place, with the place's name."""
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
        return
