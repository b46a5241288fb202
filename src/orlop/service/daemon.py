"""The daemon: a gRPC server on a unix socket over a store that the caller opened.

Invariants: one daemon for each store and for each socket (orlop.service.listener); a stop refuses new
calls at once, lets running ones finish within a grace, then cancels them, and the socket is gone before
the locks are.  Prepared roots need no daemon and stay.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Self

import grpc

from orlop.client.address import Address
from orlop.errors import FailedPrecondition
from orlop.images.api import Store
from orlop.proto.docker.containerkit.types import image_pb2_grpc
from orlop.proto.orlop.v1 import images_pb2_grpc, store_pb2_grpc, transfer_pb2_grpc
from orlop.service.gate import Gate, pools_by_method
from orlop.service.images import ContainerkitImages, Images
from orlop.service.listener import Owner, claim_root, claim_socket
from orlop.service.pools import DEFAULT_LIMITS, Pools, ServiceLimits
from orlop.service.transfer import Store as StoreService
from orlop.service.transfer import Transfer

__all__ = ["Daemon", "serve"]

_log = logging.getLogger(__name__)

SERVICES = (
    "docker.containerkit.types.Images",
    "orlop.v1.Images",
    "orlop.v1.Transfer",
    "orlop.v1.Store",
)
_AFTER_CANCEL = 10.0  # seconds for cancelled work to end


class Daemon:
    """A server for one store.  `start` and `stop` once each; a context manager.

    Raises from `start`: `FailedPrecondition` for a second daemon, `InvalidArgument` for an address or a
    group that cannot be, the errno's class where the socket cannot be made.
    """

    def __init__(
        self, store: Store, listen: str, *, group: str | None = None, limits: ServiceLimits = DEFAULT_LIMITS
    ) -> None:
        self.address = Address.parse(listen, f"listen on {listen}")
        self._attempted = f"listen on {self.address}"
        self._owner = Owner(group, self._attempted)
        self._store = store
        self._limits = limits
        self._undo = ExitStack()
        self._stopping = threading.Lock()  # one `stop` at a time
        self._stopped = False
        self._hurry = threading.Event()

    def start(self) -> Self:
        """Listen; calls are answered when this returns."""
        root = self._store.info().root
        with ExitStack() as undo:
            undo.callback(claim_root(root, self.address, f"serve {root}").release)
            pools = Pools(self._limits)
            undo.callback(pools.shutdown, 0.0)
            server = self._server(pools)
            health = _add_health(server)
            _add_reflection(server)
            undo.enter_context(claim_socket(self.address, self._owner, lambda: self._bind(server), self._attempted))
            server.start()
            undo.push(lambda *_: self._end_calls(server, pools, health))
            self._undo = undo.pop_all()
        _log.info("serving %s on %s", root, self.address)
        return self

    def stop(self, grace: float = 10.0) -> None:
        """Stop: running calls have ``grace`` seconds, or until `hurry`.  Idempotent; safe in any thread."""
        with self._stopping:
            if not self._stopped:
                self._grace = grace
                self._stopped = True
                self._undo.close()
                _log.info("stopped")

    def hurry(self) -> None:
        """Cut the grace of a `stop` short.  May be called from a signal handler."""
        self._hurry.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _server(self, pools: Pools) -> grpc.Server:
        server = grpc.server(
            pools.quick,
            interceptors=[Gate(pools_by_method(pools))],
            options=(
                ("grpc.max_receive_message_length", self._limits.request_size),
                ("grpc.so_reuseport", 0),
            ),
            maximum_concurrent_rpcs=self._limits.calls,
        )
        image_pb2_grpc.add_ImagesServicer_to_server(ContainerkitImages(self._store), server)
        images_pb2_grpc.add_ImagesServicer_to_server(Images(self._store), server)
        transfer_pb2_grpc.add_TransferServicer_to_server(Transfer(self._store), server)
        store_pb2_grpc.add_StoreServicer_to_server(StoreService(self._store), server)
        return server
