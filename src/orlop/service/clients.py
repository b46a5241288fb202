"""Who calls: connections by the name that the door gave them, and what each client has under way.

The door (orlop.service.door) binds its own end of every connection to a name that nobody else has; gRPC
tells that name with every call (`grpc.ServicerContext.peer`), and here is what it stands for.  Not a rule
of who may do what: that is `orlop.service.access`.

Invariants: a name is used once; a call on a connection that is not known here is nobody's; what a client
began is ended exactly once, by whoever began it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from orlop.errors import Error, ResourceExhausted, limit_hint, over_limit
from orlop.values import dataclass, field

__all__ = ["NOBODY", "Client", "Connection", "Ledger", "Role", "ServiceCounts", "call_among"]

Role = Literal["full", "read-only"]
_PEER = "unix-abstract:"  # what gRPC puts before a name
_LOOKED_AT = 4  # arguments of a submitted call among which gRPC's event is
_MANY = 1_000  # accounts, after which those without a use are dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """One that calls.  ``key`` is what limits are counted by: ``uid 1000``, ``certificate ci.example``.

    ``role`` is None for who may do nothing; ``owner`` marks root and the daemon's own user.
    """

    key: str
    role: Role | None
    about: str = ""
    owner: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.key} ({self.about})" if self.about else self.key


NOBODY = Client(key="an unknown client", role=None)


@dataclass(slots=True, kw_only=True)
class Connection:
    """One that the door let in.

    ``client`` of a TLS connection is its address alone until its first call has shown the certificate, which
    ends ``tls``.  ``judge`` says whose it is by the rules of now, once that can be said.
    """

    name: str
    client: Client
    tls: bool = False
    judge: Callable[[], Client] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCounts:
    """How much of everything one client may have; see `orlop.service.pools.ServiceLimits`."""

    client_calls: int
    client_streams: int
    rate: float
    burst: int


@dataclass(slots=True)
class _Account:
    """What one client has under way, and how many calls it may make at once now."""

    tokens: float
    stamp: float
    calls: int = 0
    streams: int = 0


def call_among(args: tuple[Any, ...]) -> Any | None:  # noqa: ANN401 - gRPC's own
    """GRPC's own call among ``args``, with its ``peer`` and ``cancel``; None where a version hides it."""
    for arg in args[:_LOOKED_AT]:
        call = getattr(arg, "call", None)
        if callable(getattr(call, "peer", None)):
            return call
    return None


class Ledger:
    """All connections and accounts of a daemon.  Thread-safe; ``clock`` gives seconds."""

    def __init__(self, counts: ServiceCounts, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counts = counts
        self._clock = clock
        self._lock = threading.Lock()  # guards all below
        self._connections: dict[str, Connection] = {}
        self._accounts: dict[str, _Account] = {}

    def connected(self, connection: Connection) -> None:
        """Know a connection, before its first byte goes on."""
        with self._lock:
            self._connections[connection.name] = connection

    def disconnected(self, name: str) -> None:
        """Forget one."""
        with self._lock:
            self._connections.pop(name, None)

    def certified(self, connection: Connection, judge: Callable[[], Client]) -> None:
        """Say whose a TLS connection is: what ``judge`` says, now and at every `review`."""
        with self._lock:
            connection.judge = judge
            connection.client = judge()
            connection.tls = False  # last: another call of it must not be taken for nobody's meanwhile

    def review(self) -> None:
        """Ask of each connection anew whose it is and what that client may do: the rules have changed."""
        with self._lock:
            for connection in self._connections.values():
                if connection.judge is not None:
                    connection.client = connection.judge()

    def replace(self, counts: ServiceCounts) -> None:
        """Count by other limits from now on."""
        with self._lock:
            self._counts = counts
            for account in self._accounts.values():
                account.tokens = min(account.tokens, float(counts.burst))

    def connection(self, peer: str) -> Connection | None:
        """Which one a call came on, by what gRPC says of its peer; None for none of the door's."""
        return self._connections.get(peer.removeprefix(_PEER)) if peer.startswith(_PEER) else None

    def caller(self, args: tuple[Any, ...]) -> Client:
        """Who made a call, of which gRPC has handed over ``args`` to be run.

        The event among them is gRPC's own affair: where a version hides it all callers are one client
        here, and limits hold for all together.  Who may do what is asked again where gRPC promises an answer.
        """
        call = call_among(args)
        if call is None:
            return NOBODY
        told = call.peer()
        found = self.connection(told.decode(errors="replace") if isinstance(told, bytes) else str(told))
        return found.client if found is not None else NOBODY

    def begin(self, client: Client, *, stream: bool, rated: bool = True) -> Error | None:
        """Count a call in; the error for one that is too much.  Every one that got in is to `end`.

        One that is not ``rated`` may come at any rate.
        """
        attempted = f"call as {client}"
        with self._lock:
            account = self._account(client.key)
            if account.calls >= self._counts.client_calls:
                return _over("client_calls", account.calls + 1, self._counts.client_calls, attempted)
            if stream and account.streams >= self._counts.client_streams:
                return _over("client_streams", account.streams + 1, self._counts.client_streams, attempted)
            if rated and self._counts.rate and not self._take(account):
                return ResourceExhausted(
                    attempted,
                    f"more than {self._counts.rate:g} calls a second, after {self._counts.burst} at once",
                    hint=f"wait, or {limit_hint('rate', table='daemon')}",
                    details={"limit": "daemon.rate"},
                )
            account.calls += 1
            account.streams += stream
        return None

    def end(self, client: Client, *, stream: bool) -> None:
        """Count a call out."""
        with self._lock:
            account = self._accounts[client.key]
            account.calls -= 1
            account.streams -= stream

    def _account(self, key: str) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= _MANY:
                self._drop_unused()
            now = self._clock()
            account = self._accounts[key] = _Account(tokens=float(self._counts.burst), stamp=now)
        return account

    def _take(self, account: _Account) -> bool:
        """Take a token of a bucket that fills at ``rate`` and holds ``burst``."""
        now = self._clock()
        filled = account.tokens + (now - account.stamp) * self._counts.rate
        account.tokens, account.stamp = min(float(self._counts.burst), filled), now
        if account.tokens < 1:
            return False
        account.tokens -= 1
        return True

    def _drop_unused(self) -> None:
        """Forget clients that do nothing and whose bucket would be full by now."""
        full = self._clock() - (self._counts.burst / self._counts.rate if self._counts.rate else 0)
        self._accounts = {
            key: account for key, account in self._accounts.items() if account.calls or account.stamp > full
        }


def _over(name: str, value: int, limit: int, attempted: str) -> ResourceExhausted:
    return over_limit(name, value, limit, attempted=attempted, table="daemon")
