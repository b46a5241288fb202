"""OpenTelemetry spans: one for each call of the daemon, and one for each step of the work, in their places.

Satisfies `orlop.observe.Recorder` and `orlop.service.watching.CallWatcher` by shape.  Only the API is used:
where spans go is for the SDK that the process has set up (``opentelemetry-instrument orlop daemon
--tracing``, or a library's own user).  A call whose client sends ``traceparent`` continues its trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from orlop.errors import Error
from orlop.observe import recording
from orlop.version import __version__

__all__ = ["Traces", "is_set_up"]

_FAULTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"})


class _Call(Protocol):
    @property
    def method(self) -> str: ...
    @property
    def number(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...


def is_set_up() -> bool:
    """Whether the process has told OpenTelemetry where spans go; else they go nowhere."""
    return not isinstance(trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider))


class Traces:
    """Makes spans, by the process's provider or by another.  Thread-safe."""

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("orlop", __version__, tracer_provider=provider)

    # -- calls ----------------------------------------------------------------------------------

    @contextmanager
    def attached(self, store: object, pools: object) -> Iterator[None]:
        """Record steps for the length of a ``with`` block."""
        with recording(self):
            yield

    def began(self, call: _Call) -> _Seen:
        """A call begins: its span is the thread's current one."""
        parent = propagate.extract(call.metadata)
        service, _, method = call.method.lstrip("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{method}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "orlop.request": call.number,
            },
        )
        return _Seen(span, contexts.attach(trace.set_span_in_context(span, parent)))

    # -- steps ----------------------------------------------------------------------------------

    def origin(self) -> contexts.Context:
        """The context of the thread that makes a call."""
        return contexts.get_current()

    @contextmanager
    def step(self, name: str, origin: object, about: Mapping[str, str | int]) -> Iterator[None]:
        """A span below the thread's current one or, in a thread that has none, below the call's."""
        parent: contexts.Context | None = None
        if not trace.get_current_span().get_span_context().is_valid and isinstance(origin, contexts.Context):
            parent = origin
        attributes = {f"orlop.{key}": value for key, value in about.items()}
        with self._tracer.start_as_current_span(
            f"orlop {name}",
            context=parent,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as exc:
                _fail(span, exc)
                raise

    def count(self, name: str, amount: int) -> None:
        """Amounts are for metrics."""


def _fail(span: Span, exc: BaseException) -> None:
    """The class of an error, not its words: they may have paths and names that traces are not to have."""
    code = exc.code if isinstance(exc, Error) else type(exc).__name__
    span.set_attribute("error.type", code)
    span.set_status(Status(StatusCode.ERROR, code))


class _Seen:
    __slots__ = ("_span", "_token")

    def __init__(self, span: Span, token: Any) -> None:  # noqa: ANN401 - OpenTelemetry's own
        self._span = span
        self._token = token

    def ended(self, code: str, seconds: float) -> None:
        """End the span."""
        self._span.set_attribute("rpc.grpc.status_code", code)
        if code in _FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()
        with suppress(ValueError):  # a stream that was closed from another thread, which runs none of ours
            contexts.detach(self._token)
