"""The daemon: a gRPC server on a unix socket over a store that the caller opened.

Invariants: one daemon for each store and for each socket (orlop.service.listener); a stop refuses new
calls at once, lets running ones finish within a grace, then cancels them, and the socket is gone before
the locks are.  Prepared roots need no daemon and stay.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any, Self

import grpc

from orlop.client.address import Address
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.images.api import Store
from orlop.images.preload import preload
from orlop.proto.docker.containerkit.types import image_pb2_grpc
from orlop.proto.orlop.v1 import images_pb2_grpc, store_pb2_grpc, transfer_pb2_grpc
from orlop.service.gate import Gate, pools_by_method
from orlop.service.housekeeping import IDLE_EVERY, CollectsIdle, Housekeeping
from orlop.service.images import ContainerkitImages, Images
from orlop.service.listener import Owner, claim_root, claim_socket
from orlop.service.pools import DEFAULT_LIMITS, Pools, ServiceLimits
from orlop.service.store import Store as StoreService
from orlop.service.transfer import Transfer

__all__ = ["GRACE", "SERVICES", "Daemon", "serve"]

_log = logging.getLogger(__name__)

SERVICES = (
    "docker.containerkit.types.Images",
    "orlop.v1.Images",
    "orlop.v1.Transfer",
    "orlop.v1.Store",
)
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
        listen: str,
        *,
        group: str | None = None,
        limits: ServiceLimits = DEFAULT_LIMITS,
        idle_every: float = IDLE_EVERY,
    ) -> None:
        """Check the address and the group; raises `InvalidArgument`.

        ``idle_every`` is how many seconds pass between two collections of what ended by itself.
        """
        self.address = Address.parse(listen, f"listen on {listen}")
        self._attempted = f"listen on {self.address}"
        self._owner = Owner(group, self._attempted)
        self._store = store
        self._limits = limits
        self._idle_every = idle_every
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
            pools = Pools(self._limits)
            undo.callback(_end_work, pools)
            server = self._server(pools)
            undo.callback(server.stop, 0)
            health = _add_health(server)
            _add_reflection(server)
            undo.enter_context(
                claim_socket(self.address, self._owner, lambda: self._bind(server), self._attempted)
            )
            server.start()
            undo.callback(self._end_calls, server, pools, health)
            if isinstance(self._store, CollectsIdle):
                idle = Housekeeping(self._store, busy=lambda: pools.busy, every=self._idle_every)
                idle.start()
                undo.callback(idle.stop)
            self._undo = undo.pop_all()
        _log.info("serving %s on %s", root, self.address)
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

    def _server(self, pools: Pools) -> grpc.Server:
        server = grpc.server(
            pools.quick,
            interceptors=[Gate(pools_by_method(pools))],
            options=(("grpc.max_receive_message_length", self._limits.request_size),),
            maximum_concurrent_rpcs=self._limits.calls,
        )
        image_pb2_grpc.add_ImagesServicer_to_server(ContainerkitImages(self._store), server)
        images_pb2_grpc.add_ImagesServicer_to_server(Images(self._store), server)
        transfer_pb2_grpc.add_TransferServicer_to_server(Transfer(self._store), server)
        store_pb2_grpc.add_StoreServicer_to_server(StoreService(self._store), server)
        return server

    def _bind(self, server: grpc.Server) -> None:
        # Older gRPC answers 0, newer raises RuntimeError; the listener has tried the place already.
        try:
            bound = server.add_insecure_port(self.address.target)
        except RuntimeError as exc:
            raise FailedPrecondition(self._attempted, f"gRPC cannot bind: {exc}") from exc
        if not bound:
            raise FailedPrecondition(self._attempted, "gRPC cannot bind")

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
    listen: str,
    *,
    group: str | None = None,
    log_level: str = "INFO",
    grace: float = GRACE,
    limits: ServiceLimits = DEFAULT_LIMITS,
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
    daemon = Daemon(store, listen, group=group, limits=limits)
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


def _end_work(pools: Pools) -> None:
    left = pools.shutdown(_AFTER_CANCEL)
    if left:
        _log.warning("%d calls do not end, though cancelled", left)


def _add_health(server: grpc.Server) -> Any:  # noqa: ANN401 - the package has no types
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer = health.HealthServicer()
    for name in SERVICES:
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def _add_reflection(server: grpc.Server) -> None:
    from grpc_health.v1 import health
    from grpc_reflection.v1alpha import reflection

    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
