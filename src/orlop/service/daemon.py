"""The daemon: a gRPC server behind a door (orlop.service.door), over a store that the caller opened.

Invariants: one daemon for each store and for each socket (orlop.service.listener); a stop refuses new
calls at once, lets running ones finish within a grace, then cancels them, and the socket is gone before
the locks are.  Prepared roots need no daemon and stay.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Self

import grpc

from orlop.client.address import Address, TcpAddress, parse_address
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.images.api import Store
from orlop.images.preload import preload
from orlop.remote import api as remote
from orlop.service.access import Access
from orlop.service.deadlines import Deadlines
from orlop.service.door import Door, Listening
from orlop.service.gate import Gate, deadlines_by_pool
from orlop.service.housekeeping import IDLE_EVERY, CollectsIdle, Housekeeping
from orlop.service.listener import Behind, Owner, bind_tcp, claim_root, claim_socket
from orlop.service.pools import DEFAULT_LIMITS, Pools, ServiceLimits
from orlop.service.served import Offer
from orlop.service.shown import Veil
from orlop.service.table import LOOKS, OWNERS, SERVED, SERVICES, pools_by_method
from orlop.service.tls import ServerTls

__all__ = ["GRACE", "SERVICES", "Daemon", "serve"]

_log = logging.getLogger(__name__)

GRACE = 10.0  # seconds that running calls have to finish once the daemon is to stop
_AFTER_CANCEL = 10.0  # seconds for cancelled work to end
_FLUSH = 0.5  # seconds for the last answers to leave
_LOOK = 0.05
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Daemon:
    """A server for one store, which stays the caller's to close.  `start` once; a context manager."""

    def __init__(
        self,
        store: Store,
        listen: str | Sequence[str],
        *,
        group: str | None = None,
        limits: ServiceLimits = DEFAULT_LIMITS,
        tls: ServerTls | None = None,
        idle_every: float = IDLE_EVERY,
        registries: remote.Registries | None = None,
    ) -> None:
        """Check the addresses, who may do what, and the certificates; raises `InvalidArgument`.

        ``listen`` is one address or several.  One of TCP needs ``tls``, and names of certificates in
        ``limits``.  ``idle_every`` is how many seconds pass between two collections of what ended by itself.
        ``registries`` does what clients ask of registries; without it they are refused that.
        """
        texts = [listen] if isinstance(listen, str) else list(listen)
        if not texts:
            raise InvalidArgument("listen", "no address is given")
        self.addresses = [parse_address(text, f"listen on {text}") for text in texts]
        self._owner = Owner(group, self._attempted, opens_to_all=limits.opens_to_all)
        self._access = Access(limits, group=self._owner.group, attempted=self._attempted)
        self._credentials = _credentials(self.addresses, tls, limits)
        self._store = store
        self._limits = limits
        self._idle_every = idle_every
        self._registries = registries
        self._undo = ExitStack()
        self._stopping = threading.Lock()  # one `stop` at a time
        self._grace = GRACE
        self._hurry = False

    def start(self) -> Self:
        """Listen; calls are answered when this returns.

        Raises `FailedPrecondition` for a second daemon on the store or on the socket, and the errno's
        class where the socket cannot be made.
        """
        preload()
        root = self._store.info().root
        with ExitStack() as undo:
            undo.callback(claim_root(root, self.address, f"serve {root}").release)
            deadlines = Deadlines()
            pools = Pools(self._limits, deadlines=deadlines)
            undo.callback(_end_work, pools)
            undo.callback(deadlines.stop)
            behind = undo.enter_context(Behind(root, self._attempted))
            server = self._server(pools, deadlines)
            undo.callback(server.stop, 0)
            health = _add_health(server)
            _add_reflection(server)
            door = Door(
                tuple(self._listen(server, behind, undo)),
                access=self._access,
                ledger=pools.ledger,
                connections=self._limits.connections,
                client_connections=self._limits.client_connections,
            )
            undo.callback(door.stop)
            server.start()
            undo.callback(self._end_calls, server, pools, health)
            deadlines.start()
            undo.callback(door.shut)
            door.start()
            if isinstance(self._store, CollectsIdle):
                idle = Housekeeping(self._store, busy=lambda: pools.busy, every=self._idle_every)
                idle.start()
                undo.callback(idle.stop)
            self._undo = undo.pop_all()
        _log.info("serving %s on %s", root, ", ".join(map(str, self.addresses)))
        return self

    def stop(self, grace: float = GRACE) -> None:
        """Stop: running calls have ``grace`` seconds, or until `hurry`.  Idempotent; safe in any thread."""
        with self._stopping:
            self._grace = grace
            self._undo.close()

    def hurry(self) -> None:
        """Cut the grace of a `stop` short.  Takes no lock: it is for signal handlers."""
        self._hurry = True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def address(self) -> Address | TcpAddress:
        """The first of its addresses."""
        return self.addresses[0]

    @property
    def _attempted(self) -> str:
        return f"listen on {self.address}"

    def _server(self, pools: Pools, deadlines: Deadlines) -> grpc.Server:
        info = self._store.info()
        gate = Gate(
            pools_by_method(pools),
            access=self._access,
            ledger=pools.ledger,
            veil=Veil(info.root, info.run),
            deadlines=deadlines,
            seconds=deadlines_by_pool(pools, self._limits),
            request_size=self._limits.request_size,
            services=SERVICES,
            looks=LOOKS,
            owners=OWNERS,
        )
        server = grpc.server(
            pools.quick,
            interceptors=[gate],
            options=_options(self._limits),
            maximum_concurrent_rpcs=self._limits.calls,
        )
        offer = Offer(store=self._store, registries=self._registries)
        for served in SERVED:
            served.add(offer, server)
        return server

    def _listen(self, server: grpc.Server, behind: Behind, undo: ExitStack) -> Iterator[Listening]:
        """Our sockets, each at its address, and gRPC's behind them."""
        paths: dict[bool, str] = {}
        for number, address in enumerate(self.addresses):
            attempted = f"listen on {address}"
            if isinstance(address, TcpAddress):
                sock, self.addresses[number] = bind_tcp(address, attempted)
                undo.callback(sock.close)
            else:
                sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                bind = partial(sock.bind, address.path)
                undo.enter_context(claim_socket(address, self._owner, bind, attempted))
            tls = isinstance(address, TcpAddress)
            if tls not in paths:
                paths[tls] = behind.path("tls" if tls else "local")
                self._bind(server, paths[tls], tls=tls)
            yield Listening(sock=sock, behind=paths[tls], tls=tls)

    def _bind(self, server: grpc.Server, path: str, *, tls: bool) -> None:
        # Older gRPC answers 0, newer raises RuntimeError.
        target = Address(path).target
        try:
            if tls:
                assert self._credentials is not None
                bound = server.add_secure_port(target, self._credentials)
            else:
                bound = server.add_insecure_port(target)
        except RuntimeError as exc:
            raise FailedPrecondition(self._attempted, f"gRPC cannot bind {path}: {exc}") from exc
        if not bound:
            raise FailedPrecondition(self._attempted, f"gRPC cannot bind {path}")

    def _end_calls(self, server: grpc.Server, pools: Pools, health: Any) -> None:  # noqa: ANN401 - untyped
        """Refuse new calls, wait for those that do something, end the rest (who watches health, say)."""
        _log.info("stopping; running calls have %g s", self._grace)
        health.enter_graceful_shutdown()
        ended = server.stop(self._grace)
        until = time.monotonic() + self._grace
        while not ended.wait(_LOOK) and pools.busy and not self._hurry and time.monotonic() < until:
            pass
        ended.wait(_FLUSH)
        server.stop(0).wait(_AFTER_CANCEL)


def serve(
    store: Store,
    listen: str | Sequence[str],
    *,
    group: str | None = None,
    log_level: str = "INFO",
    grace: float = GRACE,
    limits: ServiceLimits = DEFAULT_LIMITS,
    tls: ServerTls | None = None,
    registries: remote.Registries | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """Serve ``store`` on ``listen`` until SIGTERM or SIGINT; a second signal cuts the grace short.

    Logs to standard error, unless the process has set up logging.  ``ready`` is called once calls are
    answered.  The store stays the caller's to close.  Main thread only.  Raises as `Daemon` does.
    """
    if threading.current_thread() is not threading.main_thread():
        raise FailedPrecondition("serve", "signals reach the main thread only", hint="use Daemon")
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise InvalidArgument("serve", f"not a log level: {log_level!r}")
    logging.basicConfig(stream=sys.stderr, level=level, format=_LOG_FORMAT)
    daemon = Daemon(store, listen, group=group, limits=limits, tls=tls, registries=registries)
    with _signals(daemon.hurry) as wait:
        daemon.start()
        try:
            if ready is not None:
                ready()
            wait()
        finally:
            daemon.stop(grace)
    _log.info("stopped")


@contextmanager
def _signals(on_second: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """While the block runs the first signal ends the wait, the next call ``on_second``.

    The C handler itself writes to the pipe (``set_wakeup_fd``): a Python handler would not run if the
    signal came just before the main thread blocked, nor may it set an Event whose lock that thread holds.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    seen = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1:
            on_second()

    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield partial(_wait, reader)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(woken)
        os.close(reader)
        os.close(writer)


def _wait(reader: int) -> None:
    """Until one of our signals has come; each signal with a Python handler is a byte, its number."""
    while not set(os.read(reader, 64)) & set(_SIGNALS):
        continue


def _credentials(
    addresses: Sequence[Address | TcpAddress], tls: ServerTls | None, limits: ServiceLimits
) -> grpc.ServerCredentials | None:
    """What TCP is served with; None without TCP.  Raises `InvalidArgument`, and as `ServerTls` does."""
    tcp = next((address for address in addresses if isinstance(address, TcpAddress)), None)
    if tcp is None:
        if tls is not None:
            raise InvalidArgument(f"listen on {addresses[0]}", "certificates are for TCP, and there is none")
        return None
    attempted = f"listen on {tcp}"
    if not (limits.tls_names or limits.tls_read_only_names):
        raise InvalidArgument(
            attempted,
            "no name of a client's certificate is given, so nobody might do anything",
            hint="give --tls-name or --tls-read-only-name; '*' is any that the authority has signed",
        )
    return (tls or ServerTls.of(None, None, None, attempted)).credentials(attempted)


def _options(limits: ServiceLimits) -> tuple[tuple[str, int], ...]:
    """GRPC's own limits (grpc/impl/channel_arg_names.h), in milliseconds."""
    options = {
        "grpc.max_receive_message_length": 2 * limits.request_size,  # the gate says which limit it is
        "grpc.max_concurrent_streams": limits.client_calls,  # of a connection: the rest waits in the client
        "grpc.server_handshake_timeout_ms": int(limits.handshake * 1000),
        "grpc.max_connection_idle_ms": int(limits.idle_connection * 1000),
        "grpc.keepalive_time_ms": int(limits.keepalive * 1000),
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.http2.min_ping_interval_without_data_ms": 10_000,  # a client may ask that often
    }
    return tuple((name, value) for name, value in options.items() if value)


def _end_work(pools: Pools) -> None:
    left = pools.shutdown(_AFTER_CANCEL)
    if left:
        _log.warning("%d calls do not end, though cancelled", left)


def _add_health(server: grpc.Server) -> Any:  # noqa: ANN401 - the package has no types
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    # Not its other kind, which sends while it holds its lock: one client that opens and cancels watches,
    # or reads none, would stop gRPC's thread for all.
    servicer = health.HealthServicer(experimental_non_blocking=False)
    for name in SERVICES:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _add_reflection(server: grpc.Server) -> None:
    from grpc_health.v1 import health
    from grpc_reflection.v1alpha import reflection

    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
