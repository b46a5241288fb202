"""The daemon's process: signals, the log, and what a service manager hears of it.

    start ─ READY ─┬─ SIGHUP: RELOADING ─ read again ─ READY ─┐
                   │         (a watchdog pings meanwhile)     │
                   └──────────────────────────────────────────┘─ SIGTERM: STOPPING ─ wait for calls ─ end

Not the serving itself, which is `orlop.service.daemon`, nor where settings come from: whoever calls `serve`
says how they are read again.

Invariants: no signal is lost, whenever it comes; what cannot be read again leaves all as it was, with a
word in the log; a manager's time out for stopping is extended as long as calls are waited for.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from orlop.errors import Error, FailedPrecondition, InvalidArgument
from orlop.images.api import Store
from orlop.remote import api as remote
from orlop.service.daemon import Daemon
from orlop.service.logs import CallLog, LogFormat, log_handler
from orlop.service.pools import DEFAULT_LIMITS, ServiceLimits
from orlop.service.selfcheck import SelfCheck
from orlop.service.systemd import Notifier, Supervision, Watchdog
from orlop.service.tls import ServerTls
from orlop.service.watching import CallWatcher
from orlop.values import dataclass

__all__ = ["Fresh", "begin_log", "serve"]

_log = logging.getLogger(__name__)

_STOPS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """A configuration that was read again.

    ``apply`` gives it to the store and to whoever else is not the daemon; it raises, having changed nothing,
    where that cannot be.  ``later`` names what differs and waits for a start.
    """

    limits: ServiceLimits
    log_level: str
    apply: Callable[[], None]
    later: tuple[str, ...] = ()


def serve(
    store: Store,
    listen: str | Sequence[str],
    *,
    group: str | None = None,
    log_level: str = "INFO",
    grace: float | None = None,
    limits: ServiceLimits = DEFAULT_LIMITS,
    tls: ServerTls | None = None,
    registries: remote.Registries | None = None,
    ready: Callable[[], None] | None = None,
    supervision: Supervision | None = None,
    reread: Callable[[], Fresh] | None = None,
    log_format: LogFormat = "text",
    watchers: Sequence[CallWatcher] = (),
) -> None:
    """Serve ``store`` on ``listen`` until SIGTERM or SIGINT; a second one cuts the grace short.

    Logs to standard error in a form, unless the process has set up logging; ``watchers`` see all calls.
    ``grace`` stands for that of ``limits``.  ``ready`` is called once calls are answered.  SIGHUP has the
    configuration read again by ``reread``; without it, and where the terminal that we were started from is
    gone, it is one that stops.  The store stays the caller's to close.  Main thread only.  Raises as `Daemon`
    does.
    """
    if threading.current_thread() is not threading.main_thread():
        raise FailedPrecondition("serve", "signals reach the main thread only", hint="use Daemon")
    supervision = supervision or Supervision()
    begin_log(log_level, log_format)
    notifier = Notifier(supervision.notify)
    daemon = Daemon(
        store,
        listen,
        group=group,
        limits=limits,
        tls=tls,
        registries=registries,
        passed=supervision.sockets,
        watchers=(CallLog(), *watchers),
    )
    with _Signals(daemon.hurry, stop_on_hangup=reread is None) as signals, ExitStack() as undo:
        daemon.start()
        if supervision.watchdog:
            dog = Watchdog(notifier, supervision.watchdog, SelfCheck(daemon.own_address))
            undo.callback(dog.stop)  # last: a question that is under way ends with the daemon
            undo.callback(_stop, daemon, notifier, grace)
            undo.callback(dog.hush)
            dog.start()
        else:
            undo.callback(_stop, daemon, notifier, grace)
        status = f"serving {store.info().root} on {', '.join(map(str, daemon.addresses))}"
        notifier.ready(status)
        if ready is not None:
            ready()
        while signals.wait():
            assert reread is not None
            notifier.reloading()
            said = _reload(daemon, reread)
            notifier.ready(f"{status}{said}")
    _log.info("stopped")


def begin_log(level: str, form: LogFormat) -> None:
    """Log to standard error in a form, unless the process has set up logging.  Idempotent."""
    logging.basicConfig(level=_level(level), handlers=[log_handler(form)])


def _stop(daemon: Daemon, notifier: Notifier, grace: float | None) -> None:
    calls = daemon.busy
    notifier.stopping(f"stopping; {calls} calls run" if calls else "stopping")
    notifier.extend()
    daemon.stop(daemon.limits.grace if grace is None else grace, while_waiting=notifier.extend)


def _reload(daemon: Daemon, reread: Callable[[], Fresh]) -> str:
    """Read and use the configuration; what the status is to say of it besides."""
    try:
        fresh = reread()
        level = _level(fresh.log_level)
        later = (*daemon.reload(fresh.limits, also=fresh.apply), *fresh.later)
    except Error as exc:
        _log.error("the configuration stays as it was: %s", exc)
        return "; the configuration on disk is broken, see the log"
    except Exception:  # noqa: BLE001 - logged; a bug in a reading must not end what serves
        _log.exception("the configuration stays as it was")
        return "; the configuration was not read, see the log"
    logging.getLogger().setLevel(level)
    if later:
        _log.warning("the configuration has been read; %s wait for a restart", ", ".join(later))
    else:
        _log.info("the configuration has been read")
    return ""


def _level(name: str) -> int:
    level = logging.getLevelNamesMapping().get(name.upper())
    if level is None:
        raise InvalidArgument("serve", f"not a log level: {name!r}")
    return level


class _Signals:
    """Our handlers, for the length of a ``with`` block.

    The C handler itself writes to the pipe (``set_wakeup_fd``): a Python handler would not run if the
    signal came just before the main thread blocked, nor may it set an Event whose lock that thread holds.
    """

    def __init__(self, on_second: Callable[[], None], *, stop_on_hangup: bool) -> None:
        self._on_second = on_second
        self._stops = {*_STOPS, signal.SIGHUP} if stop_on_hangup else set(_STOPS)
        self._terminal = _is_terminal()
        self._seen = 0
        self._told: set[int] = set()
        self._undo = ExitStack()

    def __enter__(self) -> _Signals:
        self._reader, writer = os.pipe()
        self._undo.callback(os.close, self._reader)
        self._undo.callback(os.close, writer)
        os.set_blocking(writer, False)
        woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._undo.callback(signal.set_wakeup_fd, woken)
        for number in (*_STOPS, signal.SIGHUP):
            self._undo.enter_context(_handled(number, self._handle))
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def wait(self) -> bool:
        """Wait for one of our signals: false if we are to stop, true if to read the configuration."""
        while True:
            if self._told & self._stops:
                return False
            if signal.SIGHUP in self._told:
                self._told.clear()
                return not (self._terminal and not _is_terminal())
            self._told |= set(os.read(self._reader, 64))  # each signal with a Python handler is a byte

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._stops:
            self._seen += 1
            if self._seen > 1:
                self._on_second()


@contextmanager
def _handled(number: signal.Signals, handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before if before is not None else signal.SIG_DFL)


def _is_terminal() -> bool:
    """Whether standard error is a terminal that is still there: of one that hung up nothing can be asked."""
    try:
        return os.isatty(2)
    except OSError:
        return False
