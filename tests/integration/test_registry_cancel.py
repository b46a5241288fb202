"""Cancelling ends every phase of a request; a deadline does, too; what stalls is given up, either way.

In each case the server would go on holding the client for hours: that the call ends at all is the property.
No test here asserts a time.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

import orlop
from orlop.config import Settings
from orlop.errors import Cancelled, DeadlineExceeded, Error, Unavailable
from orlop.observe import Call, CancelToken, NullObserver, Progress
from orlop.registry.access.credentials import CredentialSources
from orlop.registry.client import Registry
from orlop.registry.net.retry import Backoff
from orlop.registry.net.sockets import Resolver
from orlop.registry.net.sockets import connect as make_connection
from orlop.spec.digest import Digest
from orlop.spec.reference import Reference
from orlop.testing.registry import Fault, MemoryRegistry
from support import images
from support.certificates import make_certificate
from support.layers import Layer
from support.rawserver import Client, RawServer

HOURS = 7_200.0
DATA = random.Random(3).randbytes(300_000)
BIG = bytes(64 << 20)  # more than the kernel's buffers take


def connect(**settings):
    settings = {"timeout": HOURS, "retries": 0, **settings}
    return closing(Registry(Settings(**settings), CredentialSources(), backoff=Backoff(base=0.001)))


@contextmanager
def cancelled_when(seen: Callable[[Call], object]) -> Iterator[Call]:
    """A call that is cancelled as soon as something is seen."""
    call, ended = Call(cancel=CancelToken()), threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            if seen(call):
                call.cancel.cancel()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield call
    finally:
        ended.set()
        thread.join(30)


@pytest.fixture
def server():
    with MemoryRegistry() as registry:
        registry.add_blob("a/b", DATA)
        yield registry


def ref(server):
    return Reference.parse(f"{server.host}/a/b:1")


def read(client, server, call):
    with client.open_blob(ref(server), Digest.of(DATA), call=call) as stream:
        return b"".join(stream)


def send(client, server, call):
    data, size = memoryview(BIG), len(BIG)
    digest = Digest("sha256:" + "0" * 64)
    client.upload_blob(
        ref(server),
        (bytes(data[at : at + (1 << 20)]) for at in range(0, size, 1 << 20)),
        digest=digest,
        size=size,
        call=call,
    )


# Names


def test_cancelling_and_time_end_the_lookup_of_a_name():
    release, asked = threading.Event(), []

    def lookup(host, port, *hints):
        asked.append(host)
        release.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.9", port))]

    resolve = Resolver(lookup)
    try:
        with cancelled_when(lambda _: asked) as call, pytest.raises(Cancelled):
            resolve("slow.example", 443, seconds=HOURS, check=lambda: call.check("x"))
        with pytest.raises(socket.gaierror, match="timed out"):
            resolve("slow.example", 443, seconds=0.0, check=lambda: None)
        assert asked == ["slow.example"]  # the first lookup still runs: nobody starts another beside it
        found = []
        others = [
            threading.Thread(
                target=lambda: found.append(resolve("slow.example", 443, seconds=HOURS, check=lambda: None))
            )
            for _ in range(3)
        ]
        for other in others:
            other.start()
    finally:
        release.set()
    for other in others:
        other.join()
    assert found == [[(socket.AF_INET, ("127.0.0.9", 443))]] * 3


def test_a_number_is_not_looked_up_in_a_thread():
    seen = []

    def lookup(host, port, *hints):
        seen.append(threading.current_thread())
        return socket.getaddrinfo(host, port, *hints)

    resolve = Resolver(lookup)
    for host in ("127.0.0.1", "::1"):
        assert resolve(host, 80, seconds=HOURS, check=lambda: None)[0][1][0] == host
    assert set(seen) == {threading.current_thread()}


def test_what_only_looks_like_a_number_is_looked_up_in_a_thread():
    seen = []

    def lookup(host, port, *hints):
        seen.append(threading.current_thread())
        return socket.getaddrinfo("127.0.0.1", port, *hints)

    resolve = Resolver(lookup)
    for host in ("1.2.3.999", "12345678901", "1.2.3.4."):
        assert resolve(host, 80, seconds=HOURS, check=lambda: None)
    assert threading.current_thread() not in seen


# Connecting


@contextmanager
def full_backlog():
    """An address on which nobody accepts and no further connection can be made: SYNs are dropped."""
    listener = socket.socket()
    held = []
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
            held.append(sock)
        yield listener.getsockname()[1]
    finally:
        for sock in (*held, listener):
            sock.close()


def test_cancelling_and_deadlines_end_the_making_of_a_connection():
    with full_backlog() as port, connect() as client:
        target = Reference.parse(f"127.0.0.1:{port}/a:1")
        for ended, call in (
            (DeadlineExceeded, Call(deadline=time.monotonic() + 0.05)),
            (Cancelled, soon_cancelled()),
        ):
            with pytest.raises(ended):
                client.resolve(target, call=call)


def test_an_address_that_does_not_answer_does_not_hold_up_the_next():
    with full_backlog() as port, socket.create_server(("127.0.0.1", 0)) as live:
        infos = [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET, live.getsockname())]
        with make_connection(infos, seconds=HOURS, check=lambda: None) as sock:
            assert sock.getpeername() == live.getsockname()


def soon_cancelled() -> Call:
    cancel = CancelToken()
    threading.Timer(0.05, cancel.cancel).start()
    return Call(cancel=cancel)


def test_cancelling_ends_a_handshake():
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as mute, connect() as client:

        def accept():
            try:
                accepted.append(mute.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        target = Reference.parse(f"127.0.0.1:{mute.getsockname()[1]}/a:1")
        with cancelled_when(lambda _: accepted) as call, pytest.raises(Cancelled):
            client.resolve(target, call=call)
        thread.join(30)
    for sock in accepted:
        sock.close()


# Answers


@pytest.mark.hostile(38)
@pytest.mark.parametrize(
    "fault",
    [{"hold_head": 0}, {"hold_head": 20}, {"hold_after": 0}, {"hold_after": 100_000}],
    ids=["no answer", "half a head", "no body", "half a body"],
)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_cancelling_ends_the_wait_for_an_answer(fault, tls, certificate):
    with MemoryRegistry(tls=certificate.context() if tls else None) as server, connect() as client:
        server.add_blob("a/b", DATA)
        server.misbehave(Fault(path="/blobs/", **fault))
        with cancelled_when(lambda _: server.seen("GET", "/blobs/")) as call, pytest.raises(Cancelled):
            read(client, server, call)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.hostile(38)
def test_cancelling_ends_a_pause_between_tries(server):
    server.misbehave(Fault(path="/blobs/", status=429, headers={"Retry-After": "100"}))
    with connect(retries=3) as client, cancelled_when(lambda call: call.tally.paused) as call:
        with pytest.raises(Cancelled):
            read(client, server, call)
        # Everybody else waits, too, and without asking.
        asked = len(server.requests)
        with pytest.raises(DeadlineExceeded):
            read(client, server, Call(deadline=time.monotonic() + 0.05))
        assert len(server.requests) == asked


@pytest.mark.hostile(38)
def test_a_head_that_trickles_is_given_up(server):
    server.misbehave(Fault(path="/blobs/", trickle_head=0.05))
    with connect(timeout=0.3) as client, pytest.raises(Unavailable, match="silent"):
        read(client, server, Call())


@pytest.mark.hostile(38)
def test_a_chunked_body_whose_framing_trickles_is_given_up():
    def answer(path: str, client: Client) -> None:
        client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        client.trickle(b"a", 0.02)  # an extension without an end: never a byte of the body

    limit = Call(deadline=time.monotonic() + 60)  # of the test; not what ends it
    given_up = pytest.raises(Unavailable, match=r"trickles|silent")
    with RawServer(answer) as server, connect(timeout=0.3) as client, given_up:
        read(client, server, limit)


@pytest.mark.hostile(38)
def test_an_answer_may_take_longer_than_a_connection(tmp_path):
    def answer(path: str, client: Client) -> None:
        server.stopping.wait(0.4)
        client.ok(DATA)

    with RawServer(answer) as server:
        folder = tmp_path / server.host
        folder.mkdir()
        (folder / "hosts.toml").write_text(f'server = "http://{server.host}"\ndial_timeout = "100ms"\n')
        # A connection that this machine was too slow for is tried again; no request was seen then.
        with connect(hosts_dirs=(str(tmp_path),), retries=9) as client:
            assert read(client, server, Call()) == DATA
        assert len(server.requests) == 1


# Sending


@pytest.mark.hostile(38)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("how", ["cancel", "stall"])
def test_a_server_that_stops_reading_does_not_hold_an_upload(how, tls, certificate):
    with MemoryRegistry(tls=certificate.context() if tls else None) as server:
        server.misbehave(Fault(path="/uploads/", method="PUT", hold_request=1_000))
        server.misbehave(Fault(path="/uploads/", method="PATCH", hold_request=1_000))
        if how == "stall":
            with connect(timeout=0.3) as client, pytest.raises(Unavailable, match=r"takes no bytes|silent"):
                send(client, server, Call())
            return
        started = cancelled_when(lambda _: server.seen("PUT") or server.seen("PATCH"))
        with connect() as client, started as call, pytest.raises(Cancelled):
            send(client, server, call)


@pytest.mark.hostile(38)
def test_an_upload_that_is_refused_while_it_is_sent_ends_with_the_refusal(server):
    body = b'{"errors":[{"code":"DENIED","message":"over quota"}]}'
    server.misbehave(
        *(Fault(method=one, path="/uploads/", early=True, status=403, body=body) for one in ("PUT", "PATCH"))
    )
    with connect() as client:
        with pytest.raises(Error, match="over quota"):
            send(client, server, Call())
        # That connection had half a request in it, and is not used for the next.
        assert read(client, server, Call()) == DATA


@pytest.mark.hostile(38)
def test_a_server_that_takes_a_body_in_drops_is_given_up():
    done = threading.Event()

    def slow(path: str, client: Client) -> None:
        if path == "/v2/":
            client.ok(b"{}")
            return
        while client.take(4_096) and not done.wait(0.02):
            continue

    with RawServer(slow) as server, connect(timeout=0.5, stall_rate=1 << 30) as client:
        target = Reference.parse(f"{server.host}/a:1")
        try:
            with pytest.raises(Unavailable, match=r"takes (no|too few) bytes|silent"):
                client.put_manifest(target, BIG, "application/json", call=Call())
        finally:
            done.set()


# What is kept


@pytest.mark.root
@pytest.mark.distribution("pull.blob.range")
def test_what_came_before_a_pull_was_cancelled_is_not_fetched_again(store_dirs):
    made = images.make_image([Layer().file("file", random.Random(8).randbytes(600_000)).tar()])
    (layer,) = json.loads(made.document)["layers"]
    with MemoryRegistry() as server, orlop.open(store_dirs.root, store_dirs.run) as store:
        for data in made.blobs.values():
            server.add_blob("a/b", data)
        server.add_manifest("a/b", "1", made.document, made.media_type)
        fault = Fault(path=layer["digest"], hold_after=400_000)
        server.misbehave(fault)
        seen = threading.Event()
        call = Call(observer=Fetched(300_000, seen), cancel=CancelToken())
        watcher = threading.Thread(target=lambda: seen.wait() and call.cancel.cancel(), daemon=True)
        watcher.start()
        with pytest.raises(Cancelled):
            store.pull(f"{server.host}/a/b:1", call=call)
        watcher.join(30)
        server.behave()
        fault.release.set()
        before = len(server.requests)
        store.pull(f"{server.host}/a/b:1")
        asked = [one for one in server.requests[before:] if "/blobs/" in one.path and "range" in one.headers]
        first = min(int(one.headers["range"].removeprefix("bytes=").partition("-")[0]) for one in asked)
        assert 300_000 <= first < layer["size"]


class Fetched(NullObserver):
    """Sets an event when so many bytes of a blob are there."""

    def __init__(self, size: int, event: threading.Event) -> None:
        self._size, self._event = size, event

    def progress(self, event: Progress) -> None:
        if event.phase == "fetching" and event.done >= self._size:
            self._event.set()
