"""Whether the daemon answers: asked as a client asks, by the way that clients come.

    a connection of its own ─ the door ─ gRPC ─ the gate ─ a thread of the pool ─ the store's metadata

So a door that accepts nothing, a pool whose threads all hang, or a database that gives no answer shows,
which a timer in the same process would not see.  An error of the daemon's own is an answer, too: one that
is asked too much, or whose store is damaged, is not helped by a new start.
"""

from __future__ import annotations

import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orlop.client.address import Address
from orlop.client.status import error_of
from orlop.errors import Cancelled, DeadlineExceeded, Unavailable
from orlop.proto.orlop.v1 import store_pb2, store_pb2_grpc

__all__ = ["SelfCheck"]

_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
_NO_ANSWER = (Cancelled, DeadlineExceeded, Unavailable)


class SelfCheck:
    """Asks the daemon at ``address``, which lets its own user do everything."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def __call__(self, seconds: float) -> None:
        """Return once it has answered; raises `DeadlineExceeded` or `Unavailable` where it does not."""
        until = time.monotonic() + seconds
        with grpc.insecure_channel(self._address.target, options=_OPTIONS) as channel:
            try:
                health = health_pb2_grpc.HealthStub(channel)
                health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
                left = max(0.1, until - time.monotonic())
                store_pb2_grpc.StoreStub(channel).ListPins(store_pb2.ListPinsRequest(), timeout=left)
            except grpc.RpcError as exc:
                error = error_of(exc, "ask the daemon whether it answers", self._address)
                if isinstance(error, _NO_ANSWER):
                    raise error from exc
