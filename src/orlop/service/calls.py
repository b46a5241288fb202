"""What the store is given of an RPC: a `Call` that ends with it, and an observer that reports to it.

Invariants: a client that goes away, its deadline and the daemon's stop all set the call's cancel token;
a stream's thread stays taken until the work has really ended, so that pools count work, not clients;
a slow client holds up nothing and costs no memory: of an item and phase, only the last state waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Generic, TypeVar

import grpc

from orlop.client import wire
from orlop.errors import Internal
from orlop.observe import NULL_OBSERVER, Call, CancelToken, Observer, Progress
from orlop.proto.orlop.v1 import types_pb2
from orlop.values import replace

__all__ = ["Warnings", "call_of", "watched", "with_auth"]

_T = TypeVar("_T")
_NO_DEADLINE = 10 * 365 * 86_400.0  # seconds; gRPC tells "none" as infinity or as the year 292277026596
_MAX_WARNINGS = 1_000  # of one call


def call_of(context: grpc.ServicerContext, observer: Observer = NULL_OBSERVER) -> Call:
    """A call that is cancelled when the RPC ends, however it ends."""
    token = CancelToken()
    if not context.add_callback(token.cancel):
        token.cancel()
    remaining = context.time_remaining()
    limited = remaining is not None and remaining < _NO_DEADLINE
    return Call(observer=observer, cancel=token, deadline=time.monotonic() + remaining if limited else None)


def with_auth(call: Call, auth: types_pb2.Auth) -> Call:
    """A call with the credentials of a request, where it has some."""
    return replace(call, auth=wire.auth_from(auth)) if auth.ByteSize() else call


class Warnings:
    """An observer for calls that answer once: it keeps the warnings."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def progress(self, event: Progress) -> None:
        """Drop the event: there is no stream to send it on."""

    def warning(self, text: str) -> None:
        """Keep the text for the answer."""
        if len(self.texts) < _MAX_WARNINGS:
            self.texts.append(text)


class _Relay(Generic[_T]):
    """Between the thread that works and the thread that sends.

    Thread-safe: the work's own threads report here too.
    """

    def __init__(self) -> None:
        self._change = threading.Condition()  # guards all below
        self._events: dict[object, Progress | str] = {}
        self._warnings = 0
        self._ended = False
        self._result: list[_T] = []
        self._error: BaseException | None = None

    def progress(self, event: Progress) -> None:
        """Queue a step in the place of the last one of that item and phase."""
        with self._change:
            self._events.pop((event.item, event.phase), None)
            self._events[event.item, event.phase] = event
            self._change.notify()

    def warning(self, text: str) -> None:
        """Queue a text."""
        with self._change:
            self._warnings += 1
            if self._warnings <= _MAX_WARNINGS:
                self._events[self._warnings] = text
                self._change.notify()

    def run(self, work: Callable[[Call], _T], call: Call) -> None:
        """Do the work; its outcome ends the relay."""
        try:
            self._result.append(work(call))
        except BaseException as exc:  # noqa: BLE001 - raised again by `result`, in the sending thread
            self._error = exc
        finally:
            with self._change:
                self._ended = True
                self._change.notify()

    def events(self) -> Iterator[Progress | str]:
        """What was reported, until the work has ended and all is told."""
        while True:
            with self._change:
                while not self._events and not self._ended:
                    self._change.wait()
                batch, self._events = list(self._events.values()), {}
            if not batch:
                return
            yield from batch

    def result(self) -> _T:
        """The outcome, once `events` has ended."""
        if self._error is not None:
            raise self._error
        if not self._result:
            raise Internal("run a call", "its thread ended without an outcome")
        return self._result[0]


def watched(
    context: grpc.ServicerContext, work: Callable[[Call], _T]
) -> Iterator[Progress | str | tuple[_T]]:
    """Run ``work`` in a thread of its own: its progress, its warnings (str), and last its result in a tuple.

    Raises what the work raises.
    """
    relay: _Relay[_T] = _Relay()
    call = call_of(context, relay)
    worker = threading.Thread(  # in a copy of our context: what it logs and traces is this call's
        target=copy_context().run, args=(relay.run, work, call), name="orlop-work", daemon=True
    )
    worker.start()
    try:
        yield from relay.events()
    finally:
        if worker.is_alive():  # the client is gone, and gRPC has closed this generator
            call.cancel.cancel()
            worker.join()
    yield (relay.result(),)
