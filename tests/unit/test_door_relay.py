"""The door's bytes: what is joined, what is let go of, and when.  Without gRPC: a plain socket listens behind."""

import os
import shutil
import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from orlop.service.access import Access
from orlop.service.clients import Ledger
from orlop.service.door import Door, Listening
from orlop.service.pools import ServiceLimits, counts_of

SOON = 60.0
LIMITS = ServiceLimits(users=(str(os.geteuid()),))


class Place:
    """A door before a socket of ours.  ``unread`` is its own."""

    def __init__(self, folder: Path, undo: ExitStack, unread: float) -> None:
        self._undo = undo
        self.front = str(folder / "front")
        front = self.plug()
        front.bind(self.front)
        self.behind = self.plug()
        self.behind.bind(str(folder / "behind"))
        self.behind.listen(16)
        self.ledger = Ledger(counts_of(LIMITS))
        self.door = Door(
            (Listening(sock=front, behind=str(folder / "behind")),),
            access=Access(LIMITS, group=None, attempted="listen"),
            ledger=self.ledger,
            connections=8,
            client_connections=8,
            unread=unread,
        )
        undo.callback(self.door.stop)
        self.door.start()

    def plug(self) -> socket.socket:
        made = self._undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made.settimeout(SOON)
        return made

    def connect(self) -> tuple[socket.socket, socket.socket, str]:
        """A client, what it is joined to, and the name that is bound to that."""
        client = self.plug()
        client.connect(self.front)
        far, name = self.behind.accept()
        self._undo.enter_context(far)
        far.settimeout(SOON)
        said = name.decode().removeprefix("\0")
        until(lambda: self.knows(said))
        return client, far, said

    def knows(self, name: str) -> bool:
        return self.ledger.connection(f"unix-abstract:{name}") is not None


@pytest.fixture
def place(request):
    folder = Path(tempfile.mkdtemp(prefix="orlop-", dir="/var/tmp"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder)
        yield Place(folder, undo, unread=getattr(request, "param", 600.0))


impatient = pytest.mark.parametrize("place", [0.05], indirect=True, ids=["impatient"])


def until(condition) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def stuff(sock: socket.socket) -> int:
    """Send until nothing more is taken for a while; how many bytes that were."""
    sock.settimeout(0.5)
    sent = 0
    try:
        while True:
            sent += sock.send(b"x" * 65_536)
    except TimeoutError:
        return sent


def read_all(sock: socket.socket) -> bytes:
    said = b""
    while chunk := sock.recv(65_536):
        said += chunk
    return said


def test_bytes_pass_both_ways_and_an_end_is_told_with_all_before_it(place):
    client, far, name = place.connect()
    client.sendall(b"asked")
    client.shutdown(socket.SHUT_WR)
    assert read_all(far) == b"asked"
    far.sendall(b"answered" * 10_000)
    far.close()
    assert read_all(client) == b"answered" * 10_000
    until(lambda: not place.knows(name))


def test_who_says_and_closes_nothing_holds_no_connection_that_grpc_has_closed(place):
    client, far, name = place.connect()
    far.close()
    assert client.recv(1) == b""
    until(lambda: not place.knows(name))


@impatient
def test_who_reads_nothing_holds_no_connection_that_grpc_has_closed(place):
    client, far, name = place.connect()
    stuff(far)
    far.close()
    until(lambda: not place.knows(name))
    assert client.recv(1) == b"x"  # it is there all the same


@impatient
def test_who_reads_slowly_keeps_a_connection_that_grpc_has_not_closed(place):
    client, far, name = place.connect()
    sent = stuff(far)
    other, _, _ = place.connect()  # the door has looked meanwhile
    other.close()
    assert place.knows(name)
    far.close()
    assert len(read_all(client)) <= sent


def test_what_was_said_last_arrives_though_the_client_speaks_on(place):
    client, far, _ = place.connect()
    sent = stuff(far)
    far.close()
    client.sendall(b"and another thing")
    assert len(read_all(client)) == sent


def test_nobody_foretells_the_name_of_a_connection_to_come(place):
    names = [place.connect()[2] for _ in range(4)]
    assert len({name[:24] for name in names}) == 4
    assert min(map(len, names)) >= len("orlop-") + 32
