"""What a service manager and a daemon say to each other: sockets handed over, states told, pings.

The protocols of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), which are a few variables of the
environment and datagrams of text; no library of systemd is needed, and none is used.  The environment is
the caller's to read (`Supervision.of`); without such a manager everything here does nothing.

Invariants: a manager that cannot be told anything is logged and never fails the daemon; the watchdog is
pinged only after a check has succeeded, so a daemon that hangs is ended although its threads still tick.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping

from orlop.errors import Error, InvalidArgument
from orlop.values import dataclass

__all__ = ["VARIABLES", "Notifier", "Supervision", "Watchdog"]

_log = logging.getLogger(__name__)

VARIABLES = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")
"""All that `Supervision.of` reads: no child of the daemon is to see them."""
_FIRST = 3  # SD_LISTEN_FDS_START
_MOST = 1_024  # sockets that are believed in
_PATIENCE = 5.0  # seconds that a manager may take to accept a datagram
_EXTENDED = 60.0  # seconds by which a wait is extended each time
_AGAIN = 10.0  # seconds between two extensions
_STATUS_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What a manager has handed over.  The descriptors in ``sockets`` are the daemon's to own."""

    notify: str = ""  # where states are told; empty: nowhere
    sockets: tuple[tuple[str, int], ...] = ()  # names (perhaps empty) and descriptors of sockets that listen
    watchdog: float = 0.0  # seconds without a ping after which we are ended; 0: never

    @classmethod
    def of(cls, environ: Mapping[str, str], pids: Collection[int]) -> Supervision:
        """What variables say that are meant for one of ``pids``; others are somebody else's.

        Raises `InvalidArgument` for what is meant for us and no number.
        """
        sockets: tuple[tuple[str, int], ...] = ()
        if environ.get("LISTEN_FDS") and _is_ours(environ, "LISTEN_PID", pids, default=False):
            count = _number(environ, "LISTEN_FDS", most=_MOST)
            names = environ.get("LISTEN_FDNAMES", "").split(":")
            names += [""] * (count - len(names))
            sockets = tuple(zip(names, range(_FIRST, _FIRST + count), strict=False))
        watchdog = 0.0
        if environ.get("WATCHDOG_USEC") and _is_ours(environ, "WATCHDOG_PID", pids, default=True):
            watchdog = _number(environ, "WATCHDOG_USEC", most=2**63) / 1e6
        return cls(notify=environ.get("NOTIFY_SOCKET", ""), sockets=sockets, watchdog=watchdog)


def _is_ours(environ: Mapping[str, str], name: str, pids: Collection[int], *, default: bool) -> bool:
    text = environ.get(name)
    return default if not text else text in map(str, pids)


def _number(environ: Mapping[str, str], name: str, *, most: int) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit()) or int(text) > most:
        raise InvalidArgument(f"read {name}", f"not a number up to {most}: {text[:40]!r}")
    return int(text)


class Notifier:
    """Tells a manager about us.  Thread-safe; one for an empty address says nothing."""

    def __init__(self, address: str = "") -> None:
        """``address`` is a path, or an abstract name after ``@`` (unix(7)); any other is ignored."""
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._extended = -_AGAIN
        if address and not address.startswith(("/", "@")):
            _log.warning("NOTIFY_SOCKET is neither a path nor an abstract name: %.100r", address)
            self._address = ""

    def ready(self, status: str) -> None:
        """Calls are answered, at first or after `reloading`."""
        self._tell("READY=1", _status(status))

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends that."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", _status("reading the configuration"))

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._tell("STOPPING=1", _status(status))

    def ping(self) -> None:
        """We are alive."""
        self._tell("WATCHDOG=1")

    def extend(self) -> None:
        """Starting or stopping goes on, and its time out is to begin anew; to be called again and again."""
        now = time.monotonic()
        if now - self._extended >= _AGAIN:
            self._extended = now
            self._tell(f"EXTEND_TIMEOUT_USEC={int(_EXTENDED * 1e6)}")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        data = "\n".join(lines).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.sendto(data, self._address)
        except (OSError, ValueError) as exc:  # ValueError: a path that can be none
            _log.warning("the service manager cannot be told %s: %s", lines[0], exc)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:_STATUS_SIZE]}"


class Watchdog:
    """A thread that pings as long as ``check`` returns.  `start` once; `stop` is idempotent.

    ``check`` takes the seconds it may last, and raises where it has no answer.  There are three tries in the
    time that the manager waits.
    """

    def __init__(self, notifier: Notifier, seconds: float, check: Callable[[float], None]) -> None:
        self._notifier = notifier
        self._pause = seconds / 3
        self._check = check
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orlop-watchdog", daemon=True)

    def start(self) -> None:
        """Begin, with a check at once."""
        self._thread.start()

    def hush(self) -> None:
        """Ask and ping no more; waits for nothing."""
        self._stopped.set()

    def stop(self) -> None:
        """Ping no more, and wait for a check that is under way."""
        self.hush()
        if self._thread.is_alive():
            self._thread.join(self._pause)

    def _run(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                self._check(self._pause)
            except Error as exc:
                if not self._stopped.is_set():
                    _log.error("the daemon does not answer itself, and the watchdog is not told: %s", exc)
            except Exception:  # noqa: BLE001 - logged; a bug in the check must not end the thread silently
                _log.exception("the daemon cannot ask itself, and the watchdog is not told")
            else:
                if not self._stopped.is_set():
                    self._notifier.ping()
            self._stopped.wait(max(0.0, began + self._pause - time.monotonic()))
