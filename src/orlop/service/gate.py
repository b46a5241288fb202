"""What every call passes on its way in: who calls, may they, is it a request, and which threads run it.

An interceptor, so that the servicers are plain translation: they call the store and let it raise.

    bytes ─ decoded ─ its kind's pool, its client's turn ─ refused? ─ who ─ may they ─ valid ─ the store

Invariants: nothing is done for a call before all of it has been asked; `orlop.errors` become a status
with details (orlop.client.status); anything else is a bug, logged with its traceback here and told to the
client as INTERNAL without it; who may only look is told no place of the host (orlop.service.shown).
Health is answered to whoever is connected and within its limits.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message

from orlop.client.status import status_of
from orlop.errors import DataLoss, Error, Internal, InvalidArgument, PermissionDenied, over_limit
from orlop.service.access import Access, check_owner
from orlop.service.clients import NOBODY, Client, Ledger
from orlop.service.deadlines import Deadlines, Limited
from orlop.service.pools import CallPool, Pools, ServiceLimits, arrived, refusal
from orlop.service.requests import check
from orlop.service.shown import Veil, one_line
from orlop.service.tls import names_of
from orlop.service.watching import Begun, CallWatcher, Seer, metadata_of, request_id

__all__ = ["Gate", "deadlines_by_pool"]

_log = logging.getLogger(__name__)

_Context = grpc.ServicerContext
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in grpc-stubs only

_HEALTH = "/grpc.health.v1.Health/"
_WATCH = f"{_HEALTH}Watch"
_MANY = 1_000
_TOLD_AGAIN = 60.0  # seconds between two warnings that a client is refused for the same limit


def deadlines_by_pool(pools: Pools, limits: ServiceLimits) -> dict[CallPool, float]:
    """How many seconds a call of each pool may take; 0 for no bound."""
    return {
        pools.quick: limits.quick_deadline,
        pools.roots: limits.roots_deadline,
        pools.transfers: limits.transfers_deadline,
        pools.contents: limits.transfers_deadline,
        pools.idle: limits.transfers_deadline,
    }


class _Malformed:
    """In the place of a request whose bytes are none."""


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in grpc-stubs only
    """Lets calls in, runs each method in its pool, and maps its errors.

    `intercept_service` is called by gRPC's single polling thread, all else by those of the pools.
    """

    def __init__(
        self,
        pools: Mapping[str, CallPool],
        *,
        access: Access,
        ledger: Ledger,
        veil: Veil,
        deadlines: Deadlines,
        seconds: Mapping[CallPool, float],
        request_size: int,
        messages: Mapping[str, int] | None = None,
        services: Collection[str],
        looks: Collection[str],
        owners: Collection[str],
        watchers: Sequence[CallWatcher] = (),
    ) -> None:
        """``looks`` are the methods that change nothing, ``owners`` those of root and our own user alone.

        ``messages`` are bytes that a method's messages may have where that is more than ``request_size``.
        """
        self.veil = veil
        self.services = frozenset(services) | {""}
        self.request_size = request_size
        self.messages = messages or {}
        self.watchers = watchers
        self.deadlines = deadlines
        self.seconds = seconds
        self._looks = frozenset(looks)
        self._owners = frozenset(owners)
        self._pools = pools
        self._access = access
        self._ledger = ledger
        self._ready: dict[str, _Handler] = {}
        self._requests = itertools.count(1)
        self._process = f"{os.getpid():x}"
        self._refused: dict[tuple[str, str], float] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The handler for a method: gRPC's, in a wrapper that is made once."""
        method = handler_call_details.method
        found = self._ready.get(method)
        if found is not None:
            return found
        handler = continuation(handler_call_details)
        if handler is None:
            return None  # not kept: a client could name as many as it likes
        pool = self._pools.get(method)
        if pool is None or method.startswith(_HEALTH):
            made = _unharmed(self, handler, method, pool)
        else:
            made = _wrap(self, handler, method, pool)
        self._ready[method] = made
        return made

    def client(self, context: _Context) -> Client:
        """Who made a call."""
        connection = self._ledger.connection(context.peer())
        if connection is None:
            return NOBODY
        if connection.tls:
            names = names_of(cast("Mapping[str, Sequence[bytes]]", context.auth_context()))
            judge = partial(self._access.certified, names, connection.client.key)
            self._ledger.certified(connection, judge)
        return connection.client

    def admit(self, method: str, client: Client) -> None:
        """Raise for a call that its client may not make, or that is too much."""
        error = refusal()
        if error is not None:
            raise error
        if client.role is None:
            raise PermissionDenied(
                f"call {method}",
                f"{client.key} may not use this daemon",
                hint="its configuration says who may",
            )
        if client.role == "read-only" and method not in self._looks:
            raise PermissionDenied(
                f"call {method}",
                f"{client.key} may only look",
                hint="the daemon's configuration says who may change something",
            )
        if method in self._owners and not client.owner:
            raise PermissionDenied(
                f"call {method}",
                f"{client.key} may not: it is for root and the daemon's own user",
            )

    def number(self) -> str:
        """A name for a call, by which the log and its client mean the same."""
        return f"{self._process}-{next(self._requests):x}"

    def log_refusal(self, client: Client, error: Error) -> int:
        """At what level a refusal is logged: a warning once in a while, as a flood is to fill no disk."""
        now, key = time.monotonic(), (client.key, error.details.get("limit", ""))
        if now - self._refused.get(key, -_TOLD_AGAIN) < _TOLD_AGAIN:
            return logging.DEBUG
        if len(self._refused) >= _MANY:
            self._refused.clear()
        self._refused[key] = now
        return logging.WARNING


def _wrap(gate: Gate, handler: _Handler, method: str, pool: CallPool) -> _Handler:
    """The handler with another behaviour, in ``pool``."""
    codec: dict[str, Any] = {
        "request_deserializer": _careful(handler.request_deserializer, _Malformed),
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(
            _Unary(gate, method, handler.unary_unary, pool, stream=False), **codec
        )
    if handler.unary_stream is not None:
        behaviour = _Stream(gate, method, handler.unary_stream, pool, stream=True)
        return grpc.unary_stream_rpc_method_handler(behaviour, **codec)
    behaviour = _Stream(gate, method, handler.stream_stream, pool, stream=True)
    return grpc.stream_stream_rpc_method_handler(behaviour, **codec)


def _unharmed(gate: Gate, handler: _Handler, method: str, pool: CallPool | None) -> _Handler:
    """A handler that is not ours (health).

    Bytes that are no message, and names of no service, are one and the same name that is none: health keeps
    every name that was ever watched.
    """
    if not method.startswith(_HEALTH) or handler.request_streaming:
        return handler
    from grpc_health.v1 import health_pb2

    nothing = health_pb2.HealthCheckRequest(service="no service of this daemon")
    careful = _careful(handler.request_deserializer, lambda: nothing)

    def decode(data: bytes) -> object:
        request = careful(data) if careful is not None else nothing
        return request if getattr(request, "service", None) in gate.services else nothing

    if handler.unary_unary is not None:
        check = _Health(gate, handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(check, decode, handler.response_serializer)
    watch = _Health(gate, cast("Callable[..., Any]", handler.unary_stream), pool)
    return grpc.unary_stream_rpc_method_handler(watch, decode, handler.response_serializer)


class _Health:
    """Health's behaviours, within their client's limits."""

    def __init__(self, gate: Gate, behaviour: Callable[..., Any], pool: CallPool | None = None) -> None:
        self._gate = gate
        self._behaviour = behaviour
        self.experimental_thread_pool = pool.streams if pool is not None else None

    def __call__(self, request: object, context: _Context) -> Any:  # noqa: ANN401 - health's own
        arrived()
        error = refusal()
        if error is not None:
            client = self._gate.client(context)
            level = self._gate.log_refusal(client, error)
            _log.log(level, "health by %s: %s: %s", client, error.code, one_line(error))
            code, message, trailers = status_of(error)
            context.set_trailing_metadata(trailers)
            context.abort(code, message)
        return self._behaviour(request, context)


def _careful(
    decode: Callable[[bytes], Any] | None, otherwise: Callable[[], object]
) -> Callable[[bytes], object] | None:
    """A decoder that raises nothing: gRPC would log a traceback, and answer INTERNAL."""
    if decode is None:
        return None

    def careful(data: bytes) -> object:
        try:
            return decode(data)
        except DecodeError:
            return otherwise()

    return careful


class _Behaviour:
    """A method's behaviour.

    gRPC looks for ``experimental_thread_pool`` on it (grpc/_server.py); a version that does not would
    run it in the server's pool: slower when crowded, not wrong.
    """

    def __init__(
        self, gate: Gate, method: str, behaviour: Callable[..., Any] | None, pool: CallPool, *, stream: bool
    ) -> None:
        assert behaviour is not None
        self._gate = gate
        self._method = method
        self._behaviour = behaviour
        self._pool = pool
        self.experimental_thread_pool = pool.streams if stream else pool

    @property
    def _seconds(self) -> float:
        """How long a call may take, by the limits of now."""
        return self._gate.seconds.get(self._pool, 0.0)

    def _checked(self, request: object, client: Client) -> object:
        attempted = f"call {self._method}"
        if isinstance(request, _Malformed):
            raise InvalidArgument(attempted, "the request's bytes are not the message that it takes")
        if isinstance(request, Message):
            size = request.ByteSize()
            most = max(self._gate.request_size, self._gate.messages.get(self._method, 0))
            if size > most:
                raise over_limit("request_size", size, most, attempted=attempted, table="daemon")
            check(request, attempted)
            check_owner(request, client, attempted)
        elif isinstance(request, Iterator):
            return (self._checked(one, client) for one in request)
        return request

    def _fail(
        self, exc: Exception, client: Client, number: str, context: _Context, seer: Seer | None
    ) -> NoReturn:
        error = exc if isinstance(exc, Error) else self._bug(exc, client, number)
        level = logging.ERROR if isinstance(error, (Internal, DataLoss)) else logging.INFO
        if error is refusal():
            level = self._gate.log_refusal(client, error)
        said = one_line(error)
        ended = {"code": error.code, "seconds": seer.seconds} if seer is not None else None
        _log.log(
            level, "%s by %s, request %s: %s: %s", self._method, client, number, error.code, said, extra=ended
        )
        if seer is not None:
            seer.ended(error.code)
        if client.role != "full":
            error = self._gate.veil.error(error)
        code, message, trailers = status_of(error)
        context.set_trailing_metadata(trailers)
        context.abort(code, message)

    def _bug(self, exc: Exception, client: Client, number: str) -> Error:
        _log.error("%s by %s, request %s: unexpected error", self._method, client, number, exc_info=exc)
        hint = f"the daemon's log has the details, under request {number}"
        return Internal(f"call {self._method}", "unexpected error", hint=hint)

    def _begin(self, context: _Context) -> tuple[Client, str, Seer | None]:
        arrived()
        client, number = self._gate.client(context), self._gate.number()
        seer = None
        if self._gate.watchers:
            metadata = metadata_of(context)
            number = request_id(number, metadata)
            call = Begun(method=self._method, client=str(client), number=number, metadata=metadata)
            seer = Seer(self._gate.watchers, call)
        _log.debug("%s by %s, request %s", self._method, client, number)
        return client, number, seer

    def _shown(self, answer: object, client: Client) -> object:
        if client.role != "full" and isinstance(answer, Message):
            return self._gate.veil.message(answer)
        return answer


class _Unary(_Behaviour):
    """One answer."""

    def __call__(self, request: object, context: _Context) -> object:
        client, number, seer = self._begin(context)
        deadlines, watch = self._gate.deadlines, None
        try:
            self._gate.admit(self._method, client)
            limited = Limited(context, self._seconds)
            watch = deadlines.begin(context, limited.time_remaining())
            answer = self._behaviour(self._checked(request, client), cast("_Context", limited))
            if seer is not None:
                seer.ended("OK")
            return self._shown(answer, client)
        except Exception as exc:  # noqa: BLE001 - the last place to make a status of it; logged in _fail
            self._fail(exc, client, number, context, seer)
        finally:
            if watch is not None:
                deadlines.end(watch)
            if seer is not None:
                seer.ended("CANCELLED")  # unless it has ended otherwise: the client has gone


class _Stream(_Behaviour):
    """A stream of answers."""

    def __call__(self, request: object, context: _Context) -> Iterator[object]:
        client, number, seer = self._begin(context)
        deadlines, watch = self._gate.deadlines, None
        try:
            self._gate.admit(self._method, client)
            limited = Limited(context, self._seconds)
            watch = deadlines.begin(context, limited.time_remaining())
            for answer in self._behaviour(self._checked(request, client), cast("_Context", limited)):
                yield self._shown(answer, client)
            if seer is not None:
                seer.ended("OK")
        except Exception as exc:  # noqa: BLE001 - as above
            self._fail(exc, client, number, context, seer)
        finally:
            if watch is not None:
                deadlines.end(watch)
            if seer is not None:
                seer.ended("CANCELLED")  # unless it has ended otherwise: the client has gone
