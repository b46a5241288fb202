"""The door: it listens, looks who comes, and hands bytes on to gRPC, which listens behind it.

gRPC for Python tells a server nothing of who is at the other end of a unix socket.  So the daemon listens
itself, asks the kernel for the peer's credentials (SO_PEERCRED), lets the connection in or not, and joins
it to a connection of its own to gRPC's private socket, bound to a name that gRPC tells with each call
(orlop.service.clients).  TLS passes through as it is: gRPC holds the keys.  See docs/adr/0013-the-door.md.

    client ── socket, accept, SO_PEERCRED ── door ── a name of its own ── ROOT/locks/door ── gRPC

One thread serves all connections.  Invariants: no byte of a connection goes on before it is known in the
ledger; a slow reader stops the reading of what is for it, so a connection holds at most one chunk each
way; an error ends the connection it befell and no other; a connection that gRPC has closed ends within a
bound, whether its client reads, closes, or does neither.
"""

from __future__ import annotations

import errno
import logging
import secrets
import select
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from orlop.errors import limit_hint
from orlop.service.access import Access, peer_of
from orlop.service.clients import Client, Connection, Ledger
from orlop.values import dataclass

__all__ = ["Door", "Listening"]

_log = logging.getLogger(__name__)

_CHUNK = 65_536  # bytes read at a time
_BACKLOG = 128
_PAUSE = 0.25  # seconds without accepting once descriptors have run out
_END = 5.0  # seconds for the thread to end
_LINGER = 2.0  # seconds that one whose connection is over has to read what was last said to it
_UNREAD = 30.0  # seconds that one may take nothing of what is left, once gRPC has closed
_LOOK = 5.0  # seconds between looks at those that do not read
_MOST_LINGERING = 64
_MANY = 1_000
_TOLD_AGAIN = 60.0  # seconds between two warnings that a client is refused
_RESERVE = 8  # one connection of so many is kept for root and the daemon's own user
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_GONE = (errno.ECONNABORTED, errno.EAGAIN, errno.EINTR, errno.EPROTO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """A socket that listens, and gRPC's own behind it.  ``tls`` says that certificates tell who calls."""

    sock: socket.socket
    behind: str  # a path
    tls: bool = False
    listens: bool = False  # already: who handed it over chose its backlog


class _End:
    """One of the two sockets of a connection: what waits to be written to it, and whether it has ended."""

    __slots__ = ("ended", "events", "joint", "other", "pending", "sock")

    def __init__(self, sock: socket.socket, joint: _Joint) -> None:
        self.sock = sock
        self.joint = joint
        self.other: _End = self
        self.pending = memoryview(b"")
        self.ended = False  # nothing more comes from it
        self.events = 0


@dataclass(slots=True, eq=False)
class _Joint:
    """A client's connection and ours to gRPC, in this order."""

    connection: Connection
    holder: str
    ends: tuple[_End, ...] = ()
    taken: float = 0.0  # when the client last took some bytes


@dataclass(slots=True, eq=False)
class _Refused:
    """A client that was told why it is not let in, or that its connection is over, until it has gone.

    Closing at once would fail what it is about to write, and that error might be all it sees.
    """

    sock: socket.socket
    until: float


class Door:
    """Accepts for some sockets.  `start` once; `shut` and `stop` are idempotent.  Owns its sockets."""

    def __init__(
        self,
        listening: tuple[Listening, ...],
        *,
        access: Access,
        ledger: Ledger,
        connections: int,
        client_connections: int,
        unread: float = _UNREAD,
    ) -> None:
        self._listening = listening
        self._access = access
        self._ledger = ledger
        self._most = connections
        self._most_of_one = client_connections
        self._unread = unread
        self._selector = selectors.DefaultSelector()
        self._chunk = bytearray(_CHUNK)  # what is read goes through it; nothing in it outlives an event
        self._read_in = memoryview(self._chunk)
        self._waker, self._woken = socket.socketpair()
        self._closing = False  # no new connections
        self._stopped = False
        self._review = False  # the rules have changed
        self._shut = threading.Event()  # the sockets that listened are closed
        self._accepting = False
        self._pause_until = 0.0
        self._joints: set[_Joint] = set()
        self._slow: set[_Joint] = set()  # those for whose clients bytes wait
        self._lingering: list[_Refused] = []  # oldest first
        self._held: Counter[str] = Counter()  # connections of each client
        self._told: dict[str, float] = {}  # when the log was last told that a client is refused
        self._made = 0
        self._thread = threading.Thread(target=self._run, name="orlop-door", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        for sock in (*(item.sock for item in self._listening), self._woken, self._waker):
            sock.setblocking(False)
        for item in self._listening:
            if not item.listens:
                item.sock.listen(_BACKLOG)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread.start()

    def replace(self, *, connections: int, client_connections: int) -> None:
        """Count by other limits from now on, and look at all connections by the rules of now.

        Those of clients that may do nothing any more end, with what they have under way.
        """
        self._most, self._most_of_one = connections, client_connections
        self._review = True
        self._wake()

    def shut(self) -> None:
        """Accept no more: who connects is told that nobody listens.  Connections go on."""
        self._closing = True
        self._wake()
        if self._thread.is_alive():
            self._shut.wait(_END)

    def stop(self) -> None:
        """End all connections."""
        self._closing = self._stopped = True
        if self._thread.ident is None:
            self._close()
            return
        self._wake()
        self._thread.join(_END)

    # ------------------------------------------------------------------ the thread's own, all below

    def _wake(self) -> None:
        try:
            self._waker.send(b"x")
        except OSError:  # full: it is awake; closed: it has ended
            return

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._set_accepting()
                calm = (self._accepting or self._closing) and not self._lingering
                idle = min(_LOOK, self._unread) if self._slow else None
                for key, events in self._selector.select(idle if calm else _PAUSE):
                    self._serve(key.data, events)
                if self._lingering:
                    self._see_off()
                if self._slow:
                    self._give_up_unread()
                if self._review:
                    self._part_with_the_unwelcome()
        except Exception:
            _log.exception("the door has failed")
            raise
        finally:
            self._close()

    def _serve(self, what: _End | Listening | _Refused | None, events: int) -> None:
        if what is None:
            self._drain_wakes()
        elif isinstance(what, _Refused):
            self._hear_out(what)
        elif isinstance(what, Listening):
            self._accept(what)
        elif what.joint in self._joints:  # else closed by an event of the same round
            try:
                passed = False
                if events & selectors.EVENT_WRITE:
                    self._write(what)
                if events & selectors.EVENT_READ:
                    passed = self._read(what)
                if not passed or events & selectors.EVENT_WRITE:
                    self._watch(what.joint)
            except OSError:  # who goes away without a word is usual
                self._part(what.joint)
            except Exception:  # noqa: BLE001 - logged; one connection's trouble is not the others'
                _log.exception("a connection of %s has failed", what.joint.connection.client)
                self._part(what.joint)

    def _drain_wakes(self) -> None:
        try:
            self._woken.recv(_CHUNK)
        except BlockingIOError:
            return

    def _set_accepting(self) -> None:
        wanted = not self._closing and time.monotonic() >= self._pause_until
        if wanted != self._accepting:
            self._accepting = wanted
            for item in self._listening:
                if wanted:
                    self._selector.register(item.sock, selectors.EVENT_READ, item)
                else:
                    self._selector.unregister(item.sock)
        if self._closing and not self._shut.is_set():
            for item in self._listening:
                item.sock.close()
            self._shut.set()

    def _accept(self, item: Listening) -> None:
        try:
            sock, address = item.sock.accept()
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                _log.warning("no connection can be accepted: %s", exc.strerror)
                self._pause_until = time.monotonic() + _PAUSE
            elif exc.errno not in _GONE:
                _log.warning("a connection was not accepted: %s", exc)
            return
        sock.setblocking(False)
        try:
            self._let_in(item, sock, address)
        except OSError as exc:
            _log.warning("a connection was not let in: %s", exc)
            sock.close()
        except Exception:  # noqa: BLE001 - as in _serve
            _log.exception("a connection was not let in")
            sock.close()

    def _let_in(self, item: Listening, sock: socket.socket, address: object) -> None:
        reserved = False
        judge = None
        if item.tls:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host, port = address[:2] if isinstance(address, tuple) else ("?", 0)
            client = Client(key=f"host {host}", role=None, about=f"port {port}")
        else:
            peer = peer_of(sock)
            judge = partial(self._access.local, peer)
            client, reserved = judge(), self._access.owns(peer)
            if client.role is None:
                self._log_refusal(client, "may not use this daemon")
                self._refuse(item, sock, 403, f"{client.key} may not use this daemon")
                return
        most = self._most if reserved else self._most - self._most // _RESERVE
        for name, held, limit in (
            ("client_connections", self._held[client.key], self._most_of_one),
            ("connections", len(self._joints), most),
        ):
            if held >= limit:
                hint = limit_hint(name, table="daemon")
                self._log_refusal(client, f"{name} is {held + 1}, the limit is {limit}")
                self._refuse(item, sock, 503, f"{name} is {held + 1}, the limit is {limit} ({hint})")
                return
        self._join(item, sock, client, judge)

    def _refuse(self, item: Listening, sock: socket.socket, status: int, text: str) -> None:
        """Say why, and close once that is read.

        In HTTP/1, whose status gRPC's clients repeat in their error (and curl shows the text); of a TLS
        connection nothing can be said before the handshake.
        """
        if item.tls:
            sock.close()
            return
        body = f"{text}\n".encode()
        head = (
            f"HTTP/1.1 {status} Refused\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            sock.send(head.encode() + body)
            sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone already, as one does that only asks whether somebody listens
            sock.close()
            return
        self._linger(sock)

    def _linger(self, sock: socket.socket) -> None:
        refused = _Refused(sock, time.monotonic() + _LINGER)
        try:
            self._selector.register(sock, selectors.EVENT_READ, refused)
        except OSError:
            sock.close()
            return
        self._lingering.append(refused)

    def _log_refusal(self, client: Client, why: str) -> None:
        """Once in a while of each client: who comes again and again is to fill no disk."""
        now = time.monotonic()
        level = logging.DEBUG
        if now - self._told.get(client.key, -_TOLD_AGAIN) >= _TOLD_AGAIN:
            if len(self._told) >= _MANY:
                self._told.clear()
            self._told[client.key] = now
            level = logging.WARNING
        _log.log(level, "refused: %s: %s", client, why)

    def _hear_out(self, refused: _Refused) -> None:
        """Read what it had to say, and forget it; its end is the end."""
        try:
            ended = not refused.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            refused.until = 0.0

    def _see_off(self) -> None:
        """Close those that have read it, those that take too long, and the oldest of too many."""
        now = time.monotonic()
        surplus = len(self._lingering) - _MOST_LINGERING
        for number, refused in enumerate(tuple(self._lingering)):
            if refused.until <= now or number < surplus:
                self._lingering.remove(refused)
                self._selector.unregister(refused.sock)
                refused.sock.close()

    def _join(
        self, item: Listening, sock: socket.socket, client: Client, judge: Callable[[], Client] | None
    ) -> None:
        behind = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            behind.setblocking(False)
            self._made += 1
            # Any user may read the names there are (/proc/net/unix), and could take one that follows.
            name = f"orlop-{secrets.token_hex(16)}"
            behind.bind(f"\0{name}")
            behind.connect(item.behind)
        except OSError:
            behind.close()
            raise
        connection = Connection(name=name, client=client, tls=item.tls, judge=judge)
        joint = _Joint(connection, client.key, taken=time.monotonic())
        ends = _End(sock, joint), _End(behind, joint)
        ends[0].other, ends[1].other = ends[1], ends[0]
        joint.ends = ends
        self._ledger.connected(joint.connection)
        self._joints.add(joint)
        self._held[joint.holder] += 1
        try:
            self._watch(joint)
        except OSError:
            self._part(joint)
            raise
        _log.debug("connection %d: %s", self._made, client)

    def _read(self, end: _End) -> bool:
        """Take a chunk and write it on; what does not fit now waits, and nothing is read meanwhile.

        True if it is all gone, as nearly always: each end waits for the same as before.
        """
        other = end.other
        if end.ended or other.pending:
            return False
        try:
            size = end.sock.recv_into(self._chunk)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            if end is end.joint.ends[0]:
                raise
            size = 0  # gRPC has closed without having read all
        if not size:
            end.ended = True
            other.sock.shutdown(socket.SHUT_WR)
            return False
        other.pending = self._read_in[:size]
        try:
            self._write(other)
        finally:
            if other.pending:
                other.pending = memoryview(bytes(other.pending))
        return not other.pending

    def _write(self, end: _End) -> None:
        if not end.pending:
            return
        try:
            end.pending = end.pending[end.sock.send(end.pending) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            if end is end.joint.ends[0]:
                raise
            end.pending = memoryview(b"")  # gRPC has closed; what it said last is still to be read
            return
        if end is end.joint.ends[0]:
            end.joint.taken = time.monotonic()

    def _watch(self, joint: _Joint) -> None:
        """Ask for what each end waits for; part once gRPC has ended and the client has all of it."""
        client, ours = joint.ends
        if ours.ended and not client.pending:
            self._part(joint, linger=not client.ended)
            return
        if client.pending:
            self._slow.add(joint)
        else:
            self._slow.discard(joint)
        for end in joint.ends:
            wanted = 0 if end.ended or end.other.pending else selectors.EVENT_READ
            wanted |= selectors.EVENT_WRITE if end.pending else 0
            if wanted == end.events:
                continue
            if not end.events:
                self._selector.register(end.sock, wanted, end)
            elif not wanted:
                self._selector.unregister(end.sock)
            else:
                self._selector.modify(end.sock, wanted, end)
            end.events = wanted

    def _give_up_unread(self) -> None:
        """Part those that gRPC has closed and whose clients take nothing of what is left."""
        before = time.monotonic() - self._unread
        for joint in tuple(self._slow):
            if joint.taken <= before and _is_hung_up(joint.ends[1].sock):
                self._part(joint)

    def _part_with_the_unwelcome(self) -> None:
        """Ask of all connections whose they are, by the rules of now; part those of nobody."""
        self._review = False
        self._ledger.review()
        for joint in tuple(self._joints):
            connection = joint.connection
            if connection.judge is not None and connection.client.role is None:
                self._log_refusal(connection.client, "may not use this daemon any more")
                self._part(joint)

    def _part(self, joint: _Joint, *, linger: bool = False) -> None:
        if joint not in self._joints:
            return
        self._joints.remove(joint)
        self._slow.discard(joint)
        self._held[joint.holder] -= 1
        if not self._held[joint.holder]:
            del self._held[joint.holder]
        for end in joint.ends:
            if end.sock in self._selector.get_map():
                self._selector.unregister(end.sock)
            if linger and end is joint.ends[0]:
                self._linger(end.sock)
            else:
                end.sock.close()
        self._ledger.disconnected(joint.connection.name)

    def _close(self) -> None:
        for joint in tuple(self._joints):
            self._part(joint)
        for sock in (*(item.sock for item in self._listening), *(item.sock for item in self._lingering)):
            sock.close()
        self._selector.close()
        self._waker.close()
        self._woken.close()
        self._shut.set()


def _is_hung_up(sock: socket.socket) -> bool:
    """Whether the other end has closed, even where bytes of it are still to be read."""
    poller = select.poll()
    poller.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poller.poll(0))
