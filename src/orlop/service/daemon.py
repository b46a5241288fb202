"""The daemon: a gRPC server behind a door (orlop.service.door), over a store that the caller opened.

Its process, with signals and what a service manager is told, is `orlop.service.process`.

Invariants: one daemon for each store and for each socket (orlop.service.listener); a stop refuses new
calls at once, lets running ones finish within a grace, then cancels them, and the socket is gone before
the locks are.  Prepared roots need no daemon and stay.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import grpc

from orlop.client.address import Address, TcpAddress, parse_address
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.images.api import Store
from orlop.images.contentstore.api import HasContent
from orlop.images.nodeimages import NodeImages
from orlop.images.preload import preload
from orlop.images.snapshots import HasSnapshots
from orlop.remote import api as remote
from orlop.service.access import Access
from orlop.service.deadlines import Deadlines
from orlop.service.door import Door, Listening
from orlop.service.gate import Gate, deadlines_by_pool
from orlop.service.housekeeping import IDLE_EVERY, CollectsIdle, Housekeeping
from orlop.service.listener import Behind, Owner, bind_tcp, claim_root, claim_socket, take_over
from orlop.service.pools import DEFAULT_LIMITS, Pools, ServiceLimits
from orlop.service.served import Offer
from orlop.service.shown import Veil
from orlop.service.table import LOOKS, MESSAGES, OWNERS, SERVED, SERVICES, pools_by_method
from orlop.service.tls import Certificates, ServerTls
from orlop.service.watching import CallWatcher
from orlop.values import replace

__all__ = ["GRACE", "SERVICES", "Daemon"]

_log = logging.getLogger(__name__)

GRACE = DEFAULT_LIMITS.grace
_AFTER_CANCEL = 10.0  # seconds for cancelled work to end
_FLUSH = 0.5  # seconds for the last answers to leave
_LOOK = 0.05
# Limits that threads and gRPC are made with.
_AT_START = (
    *("quick", "roots", "transfers", "contents", "idle", "spare", "calls"),
    *("handshake", "idle_connection", "keepalive", "request_size"),
)


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
        passed: Sequence[tuple[str, int]] = (),
        watchers: Sequence[CallWatcher] = (),
    ) -> None:
        """Check the addresses, who may do what, and the certificates; raises `InvalidArgument`.

        ``listen`` is one address or several.  One of TCP needs ``tls``, and names of certificates in
        ``limits``.  ``idle_every`` is how many seconds pass between two collections of what ended by itself.
        ``registries`` does what clients ask of registries; without it they are refused that.  ``passed``
        are sockets that listen already, by name and descriptor: they are served first, and an address of
        ``listen`` that is one of theirs is not bound.  ``watchers`` are told of every call, and when the
        daemon begins and ends.
        """
        texts = [listen] if isinstance(listen, str) else list(listen)
        if not texts and not passed:
            raise InvalidArgument("listen", "no address is given")
        self._passed = [take_over(name, fd) for name, fd in passed]
        self.addresses = [address for _, address in self._passed]
        for text in texts:
            address = parse_address(text, f"listen on {text}")
            if address not in self.addresses[: len(self._passed)]:
                self.addresses.append(address)
        self._group = group
        self._owner = Owner(group, self._attempted, opens_to_all=limits.opens_to_all)
        self._access = Access(limits, group=self._owner.group, attempted=self._attempted)
        self._certificates = _certificates(self.addresses, tls, limits)
        self._store = store
        self._limits = limits
        self._idle_every = idle_every
        self._registries = registries
        self._watchers = tuple(watchers)
        self._undo = ExitStack()
        self._stopping = threading.Lock()  # one `stop` at a time
        self._grace = GRACE
        self._hurry = False
        self._while_waiting: Callable[[], None] = _nothing
        self._places: list[tuple[str, bool]] = []  # our sockets' paths, and whether their folders are ours
        self._door: Door | None = None
        self._gate: Gate | None = None
        self._pools: Pools | None = None
        self._ask: Address | None = None

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
            pools = self._pools = Pools(self._limits, deadlines=deadlines)
            undo.callback(_end_work, pools)
            undo.callback(deadlines.stop)
            for watcher in self._watchers:
                undo.enter_context(watcher.attached(self._store, pools))
            behind = undo.enter_context(Behind(root, self._attempted))
            server = self._server(pools, deadlines)
            undo.callback(server.stop, 0)
            health = _add_health(server)
            _add_reflection(server)
            door = self._door = Door(
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
                idle = Housekeeping(self._store, busy=lambda: bool(pools.busy), every=self._idle_every)
                idle.start()
                undo.callback(idle.stop)
            self._undo = undo.pop_all()
        _log.info("serving %s on %s", root, ", ".join(map(str, self.addresses)))
        return self

    def stop(self, grace: float = GRACE, *, while_waiting: Callable[[], None] | None = None) -> None:
        """Stop: running calls have ``grace`` seconds, or until `hurry`.  Idempotent; safe in any thread.

        ``while_waiting`` is called several times a second meanwhile.
        """
        with self._stopping:
            self._grace = grace
            self._while_waiting = while_waiting or _nothing
            self._undo.close()

    def reload(self, limits: ServiceLimits, *, also: Callable[[], None] | None = None) -> tuple[str, ...]:
        """Go by other limits and rules, and by what the certificates' files hold now, without a stop.

        ``also`` is called before anything changes; where it raises, or what is given cannot be, all stays as
        it was.  Connections of clients that may do nothing any more end.  Returns the names of the limits
        that differ and wait for a start.  To be called by one thread at a time, while the daemon serves.
        """
        assert self._door is not None
        assert self._gate is not None
        assert self._pools is not None
        attempted = "read the configuration again"
        _check_names(self.addresses, limits, attempted)
        owner = Owner(self._group, attempted, opens_to_all=limits.opens_to_all)
        Access(limits, group=owner.group, attempted=attempted)
        use = self._certificates.read(attempted) if self._certificates is not None else _nothing
        if also is not None:
            also()
        use()
        later = tuple(name for name in _AT_START if getattr(limits, name) != getattr(self._limits, name))
        self._limits = replace(limits, **{name: getattr(self._limits, name) for name in later})
        self._access.replace(limits, group=owner.group, attempted=attempted)
        self._open_to(owner)
        self._pools.replace(limits)
        self._gate.seconds = deadlines_by_pool(self._pools, limits)
        self._door.replace(
            connections=limits.connections, client_connections=limits.client_connections
        )  # last: it looks at all connections by what has changed
        return later

    def _open_to(self, owner: Owner) -> None:
        """Give our sockets, and the folders that we made for them, to other users."""
        for path, made in self._places if owner.mode != self._owner.mode else ():
            try:
                owner.apply(path, owner.mode)
                if made:
                    owner.apply(os.path.dirname(path), owner.folder_mode)
            except OSError as exc:
                _log.warning("the mode of %s stays as it was: %s", path, exc.strerror)
        self._owner = owner

    @property
    def limits(self) -> ServiceLimits:
        """Those in force."""
        return self._limits

    @property
    def busy(self) -> int:
        """How many calls run or wait, idle streams apart."""
        return self._pools.busy if self._pools is not None else 0

    @property
    def own_address(self) -> Address:
        """Where the daemon can ask itself, once it is started: by its door, and without a certificate."""
        assert self._ask is not None
        return self._ask

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
        gate = self._gate = Gate(
            pools_by_method(pools),
            access=self._access,
            ledger=pools.ledger,
            veil=Veil(info.root, info.run),
            deadlines=deadlines,
            seconds=deadlines_by_pool(pools, self._limits),
            request_size=self._limits.request_size,
            messages=MESSAGES,
            services=SERVICES,
            looks=LOOKS,
            owners=OWNERS,
            watchers=self._watchers,
        )
        server = grpc.server(
            pools.quick,
            interceptors=[gate],
            options=_options(self._limits),
            maximum_concurrent_rpcs=self._limits.calls,
        )
        store = self._store
        offer = Offer(
            store=store,
            registries=self._registries,
            node_images=store if isinstance(store, NodeImages) else None,
            snapshots=store.snapshots() if isinstance(store, HasSnapshots) else None,
            content=store.content_store if isinstance(store, HasContent) else None,
        )
        for served in SERVED:
            served.add(offer, server)
        return server

    def _listen(self, server: grpc.Server, behind: Behind, undo: ExitStack) -> Iterator[Listening]:
        """Our sockets, each at its address, and gRPC's behind them."""
        paths: dict[bool, str] = {}

        def listening(sock: socket.socket, *, tls: bool, listens: bool = False) -> Listening:
            if tls not in paths:
                paths[tls] = behind.path("tls" if tls else "local")
                self._bind(server, paths[tls], tls=tls)
            return Listening(sock=sock, behind=paths[tls], tls=tls, listens=listens)

        for sock, address in self._passed:
            undo.callback(sock.close)
            yield listening(sock, tls=isinstance(address, TcpAddress), listens=True)
        for number, address in enumerate(self.addresses):
            if number < len(self._passed):
                continue
            attempted = f"listen on {address}"
            if isinstance(address, TcpAddress):
                sock, self.addresses[number] = bind_tcp(address, attempted)
                undo.callback(sock.close)
                yield listening(sock, tls=True)
            else:
                sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                bind = partial(sock.bind, address.path)
                made = undo.enter_context(claim_socket(address, self._owner, bind, attempted))
                self._places.append((address.path, made))
                yield listening(sock, tls=False)
        self._ask = next((address for address in self.addresses if isinstance(address, Address)), None)
        if self._ask is None:  # a way in without a certificate, for ourselves: its folder is ours alone
            self._ask = Address(behind.path("own"))
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(self._ask.path)
            yield listening(sock, tls=False)

    def _bind(self, server: grpc.Server, path: str, *, tls: bool) -> None:
        # Older gRPC answers 0, newer raises RuntimeError.
        target = Address(path).target
        try:
            if tls:
                assert self._certificates is not None
                bound = server.add_secure_port(target, self._certificates.credentials())
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
            self._while_waiting()
        ended.wait(_FLUSH)
        server.stop(0).wait(_AFTER_CANCEL)


def _nothing() -> None:
    """In the place of something to do."""


def _certificates(
    addresses: Sequence[Address | TcpAddress], tls: ServerTls | None, limits: ServiceLimits
) -> Certificates | None:
    """What TCP is served with; None without TCP.  Raises `InvalidArgument`, and as `ServerTls` does."""
    tcp = next((address for address in addresses if isinstance(address, TcpAddress)), None)
    if tcp is None:
        if tls is not None:
            raise InvalidArgument(f"listen on {addresses[0]}", "certificates are for TCP, and there is none")
        return None
    attempted = f"listen on {tcp}"
    _check_names(addresses, limits, attempted)
    return Certificates(tls or ServerTls.of(None, None, None, attempted), attempted)


def _check_names(addresses: Sequence[Address | TcpAddress], limits: ServiceLimits, attempted: str) -> None:
    tcp = any(isinstance(address, TcpAddress) for address in addresses)
    if tcp and not (limits.tls_names or limits.tls_read_only_names):
        raise InvalidArgument(
            attempted,
            "no name of a client's certificate is given, so nobody might do anything",
            hint="give --tls-name or --tls-read-only-name; '*' is any that the authority has signed",
        )


def _options(limits: ServiceLimits) -> tuple[tuple[str, int], ...]:
    """GRPC's own limits (grpc/impl/channel_arg_names.h), in milliseconds."""
    options = {
        # More than any may have: the gate says which limit it is.
        "grpc.max_receive_message_length": 2 * max(limits.request_size, *MESSAGES.values()),
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
