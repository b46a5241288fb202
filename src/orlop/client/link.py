"""The channel to a daemon, and the two shapes of calls on it: one answer, or a stream of events.

Not the verbs: they are in `orlop.client.remote`.

Invariants: a call's cancel token and deadline end its RPC at once, as do Ctrl-C and any other exception
in the calling thread; every failure leaves here as one of `orlop.errors`.  A process forked from one
that has a channel opens its own and leaves the parent's alone (gRPC's threads do not survive a fork).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any, Self, TypeVar

import grpc

from orlop.client.address import Address, TcpAddress, parse_address
from orlop.client.status import error_of, no_daemon
from orlop.client.tls import ClientTls
from orlop.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    from_oserror,
)
from orlop.observe import Call, CancelToken, Unheld
from orlop.proto.orlop.v1 import (
    comparing_pb2_grpc,
    contents_pb2_grpc,
    events_pb2_grpc,
    forks_pb2_grpc,
    images_pb2_grpc,
    registries_pb2_grpc,
    sharing_pb2_grpc,
    store_pb2_grpc,
    transfer_pb2_grpc,
)
from orlop.values import dataclass

__all__ = ["Link", "Stubs", "unicode_only"]

_Q = TypeVar("_Q")
_A = TypeVar("_A")

_LOOK = 0.05  # seconds between looks at the cancel token while a single answer is awaited
_CONNECT = 10.0  # seconds for a TCP connection to be there
_LINGER = 0.25  # seconds that a stream's watcher may outlive it
_MAX_ANSWER = 64 << 20  # bytes: a list of 100,000 prepared roots has about 30 MB
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_ANSWER),
    ("grpc.enable_http_proxy", 0),
    # Channels to one address share a connection otherwise: a forked child would get its parent's.
    ("grpc.use_local_subchannel_pool", 1),
    # A restarted daemon is met again soon: gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # How long one try may take, and no pause: systemd holds the socket of a daemon that is still to start.
    ("grpc.min_reconnect_backoff_ms", 30_000),
)
_left_to_parents: list[grpc.Channel] = []  # kept, as deallocating one in a forked child may hang


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services of orlop.v1 on one channel of one process."""

    pid: int
    channel: grpc.Channel
    images: images_pb2_grpc.ImagesStub
    transfer: transfer_pb2_grpc.TransferStub
    store: store_pb2_grpc.StoreStub
    registries: registries_pb2_grpc.RegistriesStub
    contents: contents_pb2_grpc.ContentsStub
    forks: forks_pb2_grpc.ForksStub
    comparing: comparing_pb2_grpc.ComparingStub
    events: events_pb2_grpc.EventsStub
    sharing: sharing_pb2_grpc.SharingStub


class Link:
    """A connection to the daemon at an address.  Thread-safe; connects when first used."""

    def __init__(self, address: Address | TcpAddress, tls: ClientTls | None = None) -> None:
        self.address = address
        self._tls = tls
        self._lock = threading.Lock()  # guards _stubs and _closed
        self._stubs: Stubs | None = None
        self._closed = False

    @classmethod
    def to(cls, address: str, *, tls_cert: str | None, tls_key: str | None, tls_ca: str | None) -> Self:
        """A connection to ``unix:///PATH`` or ``tcp://HOST:PORT``, where somebody listens.

        Raises as `orlop.client.remote.RemoteStore.connect` does.
        """
        where = parse_address(address, "connect")
        tls = ClientTls.of(tls_cert, tls_key, tls_ca, "connect") if isinstance(where, TcpAddress) else None
        link = cls(where, tls)
        link.probe("connect")
        return link

    def probe(self, attempted: str) -> None:
        """Raise `Unavailable` if nothing listens, `PermissionDenied` if the caller may not connect."""
        if isinstance(self.address, TcpAddress):
            self._probe_tcp(self.address, attempted)
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.address.path)
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
                raise no_daemon(attempted, self.address) from exc
            except PermissionError as exc:
                hint = "join the group of the socket, or become root"
                raise PermissionDenied(attempted, f"no right to use {self.address}", hint=hint) from exc
            except BlockingIOError:
                return  # its backlog is full: it is there, and busy (unix(7), EAGAIN)
            except OSError as exc:
                raise from_oserror(f"{attempted} at {self.address}", exc) from exc

    def _probe_tcp(self, address: TcpAddress, attempted: str) -> None:
        try:
            socket.create_connection((address.host, address.port), timeout=_CONNECT).close()
        except (ConnectionRefusedError, TimeoutError, socket.gaierror) as exc:
            raise no_daemon(attempted, address) from exc
        except OSError as exc:
            raise from_oserror(f"{attempted} at {address}", exc) from exc

    def unary(
        self,
        choose: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[_Q, _A]],
        request: _Q,
        attempted: str,
        *,
        call: Call | None = None,
    ) -> _A:
        """Ask once.  Without ``call`` nothing but an exception ends the wait.

        Where nobody can cancel it the wait is gRPC's own, in this thread: a third of what one costs that
        looks at a token, for which gRPC begins a thread (0.3 and 0.8 ms of CPU, seen in one run).
        """
        method = choose(self._open(attempted))
        timeout = _timeout(call, attempted)
        with self._errors(attempted, call):
            if call is None or isinstance(call.cancel, Unheld):
                try:
                    return method(request, timeout=timeout)
                except grpc.RpcError:
                    raise
                except BaseException as exc:  # of a signal's handler, such as Ctrl-C's
                    clear_frames(exc.__traceback__)  # gRPC's own may hold the RPC: with them it ends
                    raise
            answer = method.future(request, timeout=timeout)
            try:
                while True:
                    try:
                        return answer.result(timeout=_LOOK)
                    except grpc.FutureTimeoutError:
                        call.check(attempted)
            finally:
                _cancel(answer)  # does nothing once the answer is there

    def stream(
        self,
        choose: Callable[[Stubs], grpc.UnaryStreamMultiCallable[_Q, _A]],
        request: _Q,
        attempted: str,
        *,
        call: Call,
    ) -> Generator[_A]:
        """Ask, and yield events as they come.  The caller's ``close`` ends the RPC."""
        method = choose(self._open(attempted))
        return self._events(lambda timeout: method(request, timeout=timeout), attempted, call)

    def duplex(
        self,
        choose: Callable[[Stubs], grpc.StreamStreamMultiCallable[_Q, _A]],
        requests: Iterator[_Q],
        attempted: str,
        *,
        call: Call,
    ) -> Generator[_A]:
        """As `stream`, of many requests: gRPC takes them in a thread of its own, as the daemon reads them."""
        method = choose(self._open(attempted))
        return self._events(lambda timeout: method(requests, timeout=timeout), attempted, call)

    def _events(
        self, begin: Callable[[float | None], grpc.CallIterator[_A]], attempted: str, call: Call
    ) -> Generator[_A]:
        timeout = _timeout(call, attempted)
        with self._errors(attempted, call):
            events = begin(timeout)
            ended = threading.Event()
            if not isinstance(call.cancel, Unheld):
                watcher = threading.Thread(
                    target=_watch, args=(call.cancel, ended, events), daemon=True, name="orlop-watch"
                )
                watcher.start()
            try:
                yield from events
            finally:
                ended.set()
                _cancel(events)

    def close(self) -> None:
        """Close the channel; calls under way end as `Cancelled`.  Idempotent."""
        with self._lock:
            stubs, self._stubs, self._closed = self._stubs, None, True
        if stubs is not None:
            _drop(stubs)

    def _open(self, attempted: str) -> Stubs:
        stubs = self._stubs
        if stubs is not None and stubs.pid == os.getpid():
            return stubs
        with self._lock:
            if self._closed:
                raise FailedPrecondition(attempted, f"the connection to {self.address} is closed")
            if self._stubs is not None and self._stubs.pid != os.getpid():
                _left_to_parents.append(self._stubs.channel)
                self._stubs = None
            if self._stubs is None:
                channel = self._channel(attempted)
                self._stubs = Stubs(
                    os.getpid(),
                    channel,
                    images_pb2_grpc.ImagesStub(channel),
                    transfer_pb2_grpc.TransferStub(channel),
                    store_pb2_grpc.StoreStub(channel),
                    registries_pb2_grpc.RegistriesStub(channel),
                    contents_pb2_grpc.ContentsStub(channel),
                    forks_pb2_grpc.ForksStub(channel),
                    comparing_pb2_grpc.ComparingStub(channel),
                    events_pb2_grpc.EventsStub(channel),
                    sharing_pb2_grpc.SharingStub(channel),
                )
            return self._stubs

    def _channel(self, attempted: str) -> grpc.Channel:
        target = self.address.target
        if isinstance(self.address, Address):
            return grpc.insecure_channel(target, options=_OPTIONS)
        tls = self._tls or ClientTls.of(None, None, None, attempted)
        return grpc.secure_channel(target, tls.credentials(attempted), options=_OPTIONS)

    @contextmanager
    def _errors(self, attempted: str, call: Call | None) -> Iterator[None]:
        try:
            yield
        except grpc.FutureCancelledError as exc:
            raise Cancelled(attempted, "cancelled") from exc
        except grpc.RpcError as exc:
            error = error_of(exc, attempted, self.address)
            late = call is not None and call.deadline is not None and time.monotonic() >= call.deadline
            if late and isinstance(error, Cancelled):
                # The daemon's own clock ended the call first, and its reset arrived as a cancellation.
                error = DeadlineExceeded(attempted, "the deadline has passed")
            raise error from exc
        except ValueError as exc:
            if not self._closed:
                raise
            raise Cancelled(attempted, f"the connection to {self.address} was closed") from exc


@contextmanager
def unicode_only(attempted: str) -> Iterator[None]:
    """Around the making of a request: a string that is not Unicode cannot be sent."""
    try:
        yield
    except UnicodeError as exc:
        raise InvalidArgument(attempted, "a name or path that is not valid UTF-8 cannot be sent") from exc


def _timeout(call: Call | None, attempted: str) -> float | None:
    if call is None:
        return None
    call.check(attempted)
    return None if call.deadline is None else max(0.0, call.deadline - time.monotonic())


def _watch(token: CancelToken, ended: threading.Event, events: grpc.RpcContext) -> None:
    while not ended.is_set():
        if token.wait(_LINGER):
            _cancel(events)
            return


def _cancel(rpc: grpc.RpcContext | grpc.CallFuture[Any]) -> None:
    rpc.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leaves it without types


def _drop(stubs: Stubs) -> None:
    if stubs.pid == os.getpid():
        stubs.channel.close()
    else:
        _left_to_parents.append(stubs.channel)
