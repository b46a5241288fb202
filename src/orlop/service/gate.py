"""What every call passes on its way in: which threads run it, and what becomes of its errors.

An interceptor, so that the servicers are plain translation: they call the store and let it raise.

Invariants: `orlop.errors` become a status with details (orlop.client.status); anything else is a bug,
logged with its traceback here and told to the client as INTERNAL without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

import grpc

from orlop.client.status import status_of
from orlop.errors import DataLoss, Error, Internal, ResourceExhausted
from orlop.service.pools import CallPool, Pools

__all__ = ["Gate", "pools_by_method"]

_log = logging.getLogger(__name__)

_Context = grpc.ServicerContext
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in grpc-stubs only

_REFLECTION = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
)


def pools_by_method(pools: Pools) -> dict[str, CallPool]:
    """Which pool runs which method; what is not named here runs in the server's own (quick)."""
    roots = {
        "docker.containerkit.types.Images": ("Prepare", "Cleanup", "Commit"),
        "orlop.v1.Images": (
            "PrepareRoot",
            "WatchPrepareRoot",
            "Mount",
            "Unmount",
            "Commit",
            "Cleanup",
            "Remove",
        ),
    }
    quick = {
        "orlop.v1.Images": ("Mounts", "ListPrepared", "List", "Inspect", "Tag", "Label"),
        "orlop.v1.Store": ("Info", "Pin", "Unpin", "ListPins"),
    }
    transfers = {
        "orlop.v1.Transfer": ("Pull", "Push", "Load"),
        "orlop.v1.Store": ("Collect", "Usage", "Explain", "Check", "Backup"),
    }
    chosen = dict.fromkeys(_REFLECTION, pools.idle)
    for pool, services in ((pools.roots, roots), (pools.quick, quick), (pools.transfers, transfers)):
        chosen.update({f"/{name}/{method}": pool for name in services for method in services[name]})
    return chosen


class Gate(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in grpc-stubs only
    """Runs each method in its pool and maps its errors.  Called by gRPC's single polling thread."""

    def __init__(self, pools: Mapping[str, CallPool]) -> None:
        self._pools = pools
        self._ready: dict[str, _Handler] = {}
        self._refusing: dict[str, _Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """The handler for a method: gRPC's, in a wrapper that is made once."""
        method = handler_call_details.method
        pool = self._pools.get(method)
        if pool is None:
            return continuation(handler_call_details)
        if method not in self._ready:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            self._refusing[method] = _wrap(handler, method, None)
            self._ready[method] = _wrap(handler, method, pool)
        return self._refusing[method] if pool.full else self._ready[method]


def _wrap(handler: _Handler, method: str, pool: CallPool | None) -> _Handler:
    """The handler with another behaviour: in ``pool``, or a refusal where there is none."""
    codec = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(_Unary(method, handler.unary_unary, pool), **codec)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(_Stream(method, handler.unary_stream, pool), **codec)
    return grpc.stream_stream_rpc_method_handler(_Stream(method, handler.stream_stream, pool), **codec)


class _Behaviour:
    """A method's behaviour.

    gRPC looks for ``experimental_thread_pool`` on it (grpc/_server.py); a version that does not would
    run it in the server's pool: slower when crowded, not wrong.
    """

    def __init__(self, method: str, behaviour: Callable[..., Any] | None, pool: CallPool | None) -> None:
        self._method = method
        self._behaviour = behaviour
        self.experimental_thread_pool = pool

    def _admitted(self) -> Callable[..., Any]:
        if self.experimental_thread_pool is None or self._behaviour is None:
            raise ResourceExhausted(
                f"call {self._method}", "too many calls of this kind wait already", hint="try again later"
            )
        return self._behaviour

    def _fail(self, exc: Exception, context: _Context) -> NoReturn:
        error = exc if isinstance(exc, Error) else self._bug(exc)
        level = logging.ERROR if isinstance(error, (Internal, DataLoss)) else logging.INFO
        _log.log(level, "%s: %s: %s", self._method, error.code, error)
        code, message, trailers = status_of(error)
        context.set_trailing_metadata(trailers)
        context.abort(code, message)

    def _bug(self, exc: Exception) -> Error:
        _log.error("%s: unexpected error", self._method, exc_info=exc)
        return Internal(f"call {self._method}", "unexpected error", hint="the daemon's log has the details")


class _Unary(_Behaviour):
    """One answer."""

    def __call__(self, request: object, context: _Context) -> object:
        try:
            return self._admitted()(request, context)
        except Exception as exc:  # noqa: BLE001 - the last place to make a status of it; logged in _fail
            self._fail(exc, context)


class _Stream(_Behaviour):
    """A stream of answers."""

    def __call__(self, request: object, context: _Context) -> Iterator[object]:
        try:
            yield from self._admitted()(request, context)
        except Exception as exc:  # noqa: BLE001 - as above
            self._fail(exc, context)
