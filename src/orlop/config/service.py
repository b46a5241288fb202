"""What a file says in ``[daemon]``: where it listens and logs, what clients may ask for, who they are.

Values only, so that any command can say what may stand in a file and check it, without grpc.  The daemon
takes them (`orlop.service`, `orlop.cli.daemon`).
"""

from __future__ import annotations

from orlop.config.settings import setting
from orlop.errors import InvalidArgument
from orlop.values import dataclass, fields

__all__ = ["DaemonOptions", "ServiceLimits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """The options of `orlop daemon` that a file may give, too; those of `ServiceLimits` apart."""

    listen: str = setting(
        "", "unix://PATH, tcp://HOST:PORT, or several with commas", usual="unix://RUN/socket/orlop.sock"
    )
    group: str = setting(
        "", "whom the socket belongs to besides root", usual="orlop, if there is such a group"
    )
    tls_cert: str = setting("", "for TCP: the daemon's certificate, a PEM file")
    tls_key: str = setting("", "its key")
    tls_client_ca: str = setting("", "the authority of the clients' certificates")
    log_format: str = setting("text", "text or json: lines for people, or JSON objects")
    metrics: str = setting("", "where Prometheus metrics are served: 127.0.0.1:9464, or unix:///PATH")
    tracing: bool = setting(False, "make OpenTelemetry spans, for the SDK that is set up")
    log_level: str = setting("INFO", "what is logged, from there up: DEBUG, INFO, WARNING or ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """What clients may ask for at a time, and who they may be.  Counts, bytes, seconds and names.

    A client is a user (uid), or the name of a TLS certificate.  Raises `InvalidArgument` for a number below
    1; of a duration and a rate, 0 stands for no limit.
    """

    quick: int = setting(16, "threads for calls that metadata answer")
    roots: int = setting(24, "threads for calls that make, change or delete")
    transfers: int = setting(8, "threads for pulls and the like; each has a second one, which does the work")
    contents: int = setting(
        128, "threads for containerd's streams of blobs; each is one that it reads or writes"
    )
    idle: int = setting(
        64, "threads for streams that a client may hold open without work: who watches health"
    )
    spare: int = setting(16, "threads more of each kind, for clients that have no call of it running")
    waiting: int = setting(128, "calls of one client that may queue for each kind, quick ones apart")
    calls: int = setting(2048, "calls of all clients, running or waiting")
    client_calls: int = setting(512, "calls of one client, running or waiting")
    client_streams: int = setting(64, "calls of one client that report while they run")
    rate: float = setting(2_000.0, "calls a second of one client, once it has made a burst of them")
    burst: int = setting(20_000, "calls that a client may make before its rate counts")
    connections: int = setting(200, "connections of all clients")
    client_connections: int = setting(100, "connections of one client")
    handshake: float = setting(20.0, "seconds in which a connection has to become HTTP/2")
    idle_connection: float = setting(1_800.0, "seconds after which one without calls is closed")
    keepalive: float = setting(300.0, "seconds between looks whether a silent client is still there")
    quick_deadline: float = setting(
        60.0, "seconds that a call answered by metadata may take at most, whatever its client allows"
    )
    roots_deadline: float = setting(3_600.0, "seconds at most of calls that make, change or delete")
    transfers_deadline: float = setting(86_400.0, "seconds at most of pulls and the like")
    grace: float = setting(10.0, "seconds that running calls have to end once the daemon is to stop; 0: none")
    request_size: int = setting(1 << 20, "bytes of a request; the largest are options with labels")
    users: tuple[str, ...] = setting(
        (), "names or numbers; who may do everything, besides root and the group"
    )
    groups: tuple[str, ...] = setting((), "names or numbers of groups whose members may do everything")
    read_only_users: tuple[str, ...] = setting((), "names or numbers; who may look and change nothing")
    read_only_groups: tuple[str, ...] = setting((), "names or numbers of groups whose members may do so")
    tls_names: tuple[str, ...] = setting(
        (), 'names of client certificates that may do everything; "*" is any that the authority has signed'
    )
    tls_read_only_names: tuple[str, ...] = setting((), "names of those that may look and change nothing")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if isinstance(item.default, float) else 1
            if not isinstance(value, tuple) and not value >= least:
                raise InvalidArgument("use limits", f"daemon.{item.name} is {value!r}, and at least {least}")

    @property
    def opens_to_all(self) -> bool:
        """Whether users are named whom the socket's owner and group leave out."""
        return bool(self.users or self.groups or self.read_only_users or self.read_only_groups)
