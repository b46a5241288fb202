"""A daemon: whether its socket is there and answers, and whether it is one that this orlop understands."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from orlop.diagnosis.findings import Finding, Subject, note, ok, problem, said
from orlop.errors import DeadlineExceeded, Error
from orlop.version import __version__

if TYPE_CHECKING:
    from orlop.images.upkeep import StoreInfo

__all__ = ["check_daemon", "findings_of_info"]

_START = "start it: `systemctl start orlop.socket`, or `orlop daemon`"


def check_daemon(subject: Subject) -> Iterable[Finding]:
    """The daemon of ``host``; without one that of the store's own run folder, if there is one."""
    if subject.host is not None:
        yield from _asked(subject, subject.host, named=True)
        return
    path = os.path.join(subject.run or "/nonexistent", "socket", "orlop.sock")
    try:
        about = os.stat(path)
    except OSError:
        yield ok("daemon", "none runs for this store, and none is needed")
        return
    if not stat.S_ISSOCK(about.st_mode):
        yield note("daemon.socket", f"{path} is no socket", f"rm {path}; a daemon makes it")
        return
    yield from _asked(subject, f"unix://{path}", named=False)


def _asked(subject: Subject, address: str, *, named: bool) -> Iterator[Finding]:
    pid = 0
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        try:
            pid = _peer(path, subject.timeout)
        except OSError as exc:
            yield from _dead(path, exc, named=named)
            return
    try:
        began = time.monotonic()
        info = _info(subject, address)
    except ModuleNotFoundError as exc:
        text = f"a daemon listens at {address}, but {exc.name} is not installed here"
        yield note("daemon", text, "pip install 'orlop[daemon]'")
        return
    except Error as exc:
        yield problem("daemon.answer", f"{address}: {said(exc)}", exc.hint or _START)
        return
    took = time.monotonic() - began
    yield ok("daemon.answer", f"{address} answers, in {took * 1000:.0f} ms")
    yield from findings_of_info(info)
    yield from _namespace(pid)


def _peer(path: str, timeout: float) -> int:
    """The process behind a socket; 0 where it is not told."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        size = struct.calcsize("3i")
        pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
        return pid


def _dead(path: str, exc: OSError, *, named: bool) -> Iterator[Finding]:
    if isinstance(exc, PermissionError):
        text = f"{path} may not be used by you"
        yield problem("daemon.socket", text, "join the group that the socket belongs to: docs/daemon.md")
    elif isinstance(exc, ConnectionRefusedError):
        text = f"nobody listens at {path}: its daemon was killed"
        yield problem("daemon.socket", text, f"{_START}; or rm {path}, if none is wanted")
    elif isinstance(exc, TimeoutError):
        text = f"the daemon at {path} takes no connection"
        yield problem("daemon.socket", text, "see its log: journalctl -u orlop")
    else:
        yield problem("daemon.socket", f"{path}: {exc.strerror or exc}", _START if named else f"rm {path}")


def _info(subject: Subject, address: str) -> StoreInfo:
    from orlop.client import RemoteStore

    cert, key, ca = subject.tls
    with closing(RemoteStore.connect(address, tls_cert=cert, tls_key=key, tls_ca=ca)) as store:
        return _within(subject.timeout, store.info, f"ask {address}")


def _within(seconds: float, ask: Callable[[], StoreInfo], attempted: str) -> StoreInfo:
    """What a call answers that cannot be told how long it may take.  Raises `DeadlineExceeded`.

    Closing the connection ends the call that nobody waits for any more.
    """
    answers: SimpleQueue[StoreInfo | Exception] = SimpleQueue()

    def work() -> None:
        try:
            answers.put(ask())
        except Exception as exc:  # noqa: BLE001 - raised below, where somebody waits for it
            answers.put(exc)

    threading.Thread(target=work, name="doctor", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise DeadlineExceeded(attempted, f"no answer within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def findings_of_info(info: StoreInfo) -> Iterator[Finding]:
    """What a daemon says of itself: its version, its drivers, what it may do."""
    if info.version == __version__:
        yield ok("daemon.version", f"its version is {info.version}, as ours")
    else:
        text = (
            f"its version is {info.version}, ours {__version__}: what is new in one the other does not know"
        )
        yield note("daemon.version", text, "install the same on both sides, and restart the daemon")
    yield ok("daemon.store", f"it serves {info.root}: {info.images} images, {info.prepared} prepared roots")
    for driver in info.drivers:
        if driver.available:
            mark = ", and new roots get it" if driver.name == info.driver else ""
            yield ok(f"daemon.driver-{driver.name}", f"{driver.name} works there{mark}: {driver.reason}")
        else:
            text = f"{driver.name} does not work there: {driver.reason}"
            yield note(f"daemon.driver-{driver.name}", text, "docs/drivers.md says what it needs")
    if not info.driver:
        yield problem("daemon.driver", "no driver works there", "run `orlop doctor` where the daemon runs")


def _namespace(pid: int) -> Iterator[Finding]:
    """Whether the daemon's mounts show to us: it and we must have one mount namespace."""
    check = "daemon.mount-namespace"
    try:
        ours, its = (os.stat(f"/proc/{one}/ns/mnt").st_ino for one in ("self", pid))
    except OSError:
        return  # elsewhere, or not ours to look at
    if ours == its:
        yield ok(check, "it mounts where we see it")
    else:
        text = f"it (process {pid}) has a mount namespace of its own: what it mounts does not show here"
        advice = "start it without PrivateMounts, PrivateTmp, ProtectSystem and the like: docs/install.md"
        yield note(check, text, advice)
